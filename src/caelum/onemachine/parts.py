"""The programs of a one-machine cloud and how each is started; and the host's identity, made at the first start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from caelum.agent.vm import acceleration
from caelum.kernel import pki
from caelum.kernel.ids import new_uuid
from caelum.onemachine.layout import Layout

PKI_DIRECTORY = "pki"


def host_identity(layout: Layout) -> str:
    """This host's UUID; its certificate, issued by the server's authority, is renewed when it nears its end."""
    file = layout.home / "host_uuid"
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
        {"name": "libvirtd", "command": _python("caelum.onemachine.libvirtd", layout.libvirt, *_hide_kvm(layout))},
        {
            "name": "server",
            "command": _python("caelum.cli.server", "--data-dir", layout.server_data),
            "environment": {
                "CAELUM_API_PORT": str(layout.api_port),
                "CAELUM_AGENT_LISTEN_PORT": str(layout.callback_port),
                "CAELUM_AGENT_LISTEN_HOST": layout.address,
                "CAELUM_CONSOLE_PORT": str(layout.console_port),
                "CAELUM_ADVERTISED_HOST": layout.address,
                "CAELUM_AGENT_PORT": str(layout.agent_port),
            },
        },
        {"name": "agent", "command": agent_command(layout)},
    ]


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


def _hide_kvm(layout: Layout) -> list[str]:
    """Hide /dev/kvm from libvirt where it does not truly work: libvirt would probe it at each start of a guest."""
    return [] if not acceleration.KVM.exists() or _kvm_works(layout) else ["--hide-kvm"]


def _kvm_works(layout: Layout) -> bool:
    if not acceleration.answers():
        return False
    layout.run.mkdir(parents=True, exist_ok=True)
    image = layout.run / "kvm-probe.img"
    acceleration.write_image(image)
    try:
        done = subprocess.run(
            acceleration.probe_command(image), capture_output=True, timeout=acceleration.PROBE_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == acceleration.EXIT_CODE
