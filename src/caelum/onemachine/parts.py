"""The programs of a one-machine cloud and how each is started; and the host's identity, made at the first start."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from caelum.kernel import pki
from caelum.kernel.ids import new_uuid
from caelum.onemachine.layout import Layout

PKI_DIRECTORY = "pki"
PARTS = ("agent", "server", "libvirtd")
"""In the order in which they are ended."""
COMMON = {"PYTHONDONTWRITEBYTECODE": ""}
"""For every part: a program that is compiled anew at each start takes seconds to be ready again after a crash."""


def host_identity(layout: Layout) -> str:
    """This host's UUID; its certificate, issued by the server's authority, is renewed when it nears its end."""
    file = layout.host_uuid_file
    if not file.exists():
        file.write_text(new_uuid())
    host_uuid = file.read_text().strip()
    layout.agent_tls.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = pki.Files(layout.agent_tls / "tls.crt", layout.agent_tls / "tls.key", layout.agent_tls / "ca.crt")
    if not files.certificate.exists() or pki.remaining(files.certificate.read_bytes()) < pki.RENEW_BEFORE:
        authority = pki.CertificateAuthority.open(layout.server_data / PKI_DIRECTORY)
        files.authority.write_bytes(authority.certificate_pem)
        pki.store(files, authority.issue(pki.Identity("host", host_uuid), [layout.address]))
    return host_uuid


def parts(layout: Layout) -> list[dict[str, Any]]:
    """What the supervisor runs, in start order."""
    return [
        {"name": "libvirtd", "command": libvirtd_command(layout), "environment": COMMON},
        {
            "name": "server",
            "command": _python("caelum.cli.server", "--data-dir", layout.server_data),
            "environment": {
                "CAELUM_API_PORT": str(layout.api_port),
                "CAELUM_AGENT_LISTEN_PORT": str(layout.callback_port),
                "CAELUM_AGENT_LISTEN_HOST": layout.address,
                "CAELUM_CONSOLE_PORT": str(layout.console_port),
                "CAELUM_ADVERTISED_HOST": layout.address,
                **COMMON,
            },
        },
        {"name": "agent", "command": agent_command(layout), "environment": COMMON},
    ]


def libvirtd_command(layout: Layout) -> list[str]:
    """The private libvirt's command line."""
    return _python("caelum.onemachine.libvirtd", layout.libvirt, "--agent-state", layout.agent_state)


def agent_command(layout: Layout, *more: str) -> list[str]:
    """The host agent's command line."""
    return _python(
        "caelum.agent.main",
        "--state-dir",
        layout.agent_state,
        "--tls-dir",
        layout.agent_tls,
        "--listen",
        f"{layout.address}:{layout.agent_port}",
        "--libvirt-uri",
        layout.libvirt_uri,
        *more,
    )


def _python(module: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", module, *(str(one) for one in arguments)]
