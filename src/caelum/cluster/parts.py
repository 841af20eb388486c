"""The programs of a cluster on one machine and how each is started.

Invariant: every node trusts and is trusted by the same hosts, because its certificate comes from the one authority,
whose two files each node's directory has before the node starts.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from caelum.cluster.layout import ClusterLayout
from caelum.kernel import pki
from caelum.onemachine.parts import COMMON, PKI_DIRECTORY

AUTHORITY_FILES = ("ca.key", "ca.pem")


def share_authority(layout: ClusterLayout) -> None:
    """Make the authority, where there is none, and give it to every node."""
    pki.CertificateAuthority.open(layout.authority)
    for index in range(layout.nodes):
        target = layout.data_of(index) / PKI_DIRECTORY
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in AUTHORITY_FILES:
            if not (target / name).exists():
                shutil.copy2(layout.authority / name, target / name)


def parts(layout: ClusterLayout) -> list[dict[str, Any]]:
    """What the supervisor runs, in start order; they stop in the reverse."""
    shared = [service(layout, "postgresql"), service(layout, "rabbitmq")]
    simulator = [hosts(layout)] if layout.hosts else []
    return [*shared, *simulator, *(node(layout, index) for index in range(layout.nodes))]


def service(layout: ClusterLayout, name: str) -> dict[str, Any]:
    """PostgreSQL or RabbitMQ."""
    port = layout.database_port if name == "postgresql" else layout.broker_port
    return _part(name, _python("caelum.cluster.services", name, layout.home / name, port))


def node(layout: ClusterLayout, index: int, **environment: str) -> dict[str, Any]:
    """A management node; more of its environment may be given."""
    settings = {
        "CAELUM_DATABASE_URL": layout.database_url,
        "CAELUM_BUS_URL": layout.bus_url,
        "CAELUM_ADVERTISED_HOST": layout.address,
        "CAELUM_API_HOST": layout.address,
        "CAELUM_API_PORT": str(layout.api_port + index),
        "CAELUM_AGENT_LISTEN_HOST": layout.address,
        "CAELUM_AGENT_LISTEN_PORT": str(layout.callback_port + index),
        "CAELUM_CONSOLE_HOST": layout.address,
        "CAELUM_CONSOLE_PORT": str(layout.console_port + index),
        **environment,
    }
    command = _python("caelum.cli.server", "--data-dir", layout.data_of(index))
    part = _part(layout.names[index], command, settings)
    part["needs"] = [f"{layout.address}:{port}" for port in (layout.database_port, layout.broker_port)]
    return part


def hosts(layout: ClusterLayout) -> dict[str, Any]:
    """The simulated hosts."""
    return _part(
        "hosts",
        _python(
            "caelum.simulator",
            *("--hosts", layout.hosts, "--listen", f"{layout.first_host}:{layout.agent_port}"),
            *("--tls-dir", layout.authority, "--control", f"{layout.address}:{layout.control_port}"),
        ),
    )


def _part(name: str, command: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    return {"name": name, "command": command, "environment": {**COMMON, **(environment or {})}}


def _python(module: str, *arguments: str | int | Path) -> list[str]:
    return [sys.executable, "-m", module, *(str(one) for one in arguments)]
