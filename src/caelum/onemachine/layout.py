"""Where a one-machine cloud keeps its things, and on which ports it listens.

Everything is below one directory: `purge` removes that directory and nothing else. Environment: `CAELUM_HOME`,
`CAELUM_API_PORT`, `CAELUM_AGENT_PORT`, `CAELUM_CONSOLE_PORT`, `CAELUM_CALLBACK_PORT`, and `CAELUM_GUEST_CIDR` where the
guests' network would overlap one of the machine's own (/24 or larger).
"""

from __future__ import annotations

import os
from ipaddress import IPv4Network
from pathlib import Path

import msgspec

DEFAULT_HOME = Path("/var/lib/caelum")
GUEST_CIDR = "10.77.0.0/24"


class Layout(msgspec.Struct, frozen=True):
    """The directories and ports of one cloud on this machine."""

    home: Path
    api_port: int = 8080
    agent_port: int = 7070
    console_port: int = 4900
    callback_port: int = 8443
    address: str = "127.0.0.1"
    guest_cidr: str = GUEST_CIDR

    @classmethod
    def from_environment(cls) -> Layout:
        """The layout that the environment asks for."""

        def port(name: str, default: int) -> int:
            return int(os.environ.get(f"CAELUM_{name}_PORT", default))

        return cls(
            home=Path(os.environ.get("CAELUM_HOME", DEFAULT_HOME)),
            api_port=port("API", 8080),
            agent_port=port("AGENT", 7070),
            console_port=port("CONSOLE", 4900),
            callback_port=port("CALLBACK", 8443),
            guest_cidr=os.environ.get("CAELUM_GUEST_CIDR", GUEST_CIDR),
        )

    def guest_address(self, number: int) -> str:
        """An address of the guests' network: 1 is the gateway, 10 to 250 are the guests'."""
        return str(IPv4Network(self.guest_cidr)[number])

    @property
    def api(self) -> str:
        return f"http://{self.address}:{self.api_port}"

    @property
    def server_data(self) -> Path:
        return self.home / "server"

    @property
    def agent_state(self) -> Path:
        return self.home / "agent"

    @property
    def agent_tls(self) -> Path:
        return self.home / "agent-tls"

    @property
    def primary_storage(self) -> Path:
        return self.home / "primary"

    @property
    def backup_storage(self) -> Path:
        return self.home / "backup"

    @property
    def guest_image(self) -> Path:
        return self.home / "guest" / "guest.qcow2"

    @property
    def libvirt(self) -> Path:
        return self.home / "libvirt"

    @property
    def libvirt_socket(self) -> Path:
        return self.libvirt / "run" / "libvirt" / "libvirt-sock"

    @property
    def libvirt_uri(self) -> str:
        return f"qemu+unix:///system?socket={self.libvirt_socket}"

    @property
    def logs(self) -> Path:
        return self.home / "log"

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def host_uuid_file(self) -> Path:
        return self.home / "host_uuid"

    @property
    def directories(self) -> list[Path]:
        """All directories of the cloud in its home."""
        return [
            self.server_data, self.agent_state, self.agent_tls, self.primary_storage, self.backup_storage,
            self.guest_image.parent, self.libvirt, self.logs, self.run,
        ]  # fmt: skip
