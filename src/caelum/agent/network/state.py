"""What is remembered of the networks between two starts of the agent: small JSON files in its state directory.

Invariant: a file is replaced atomically and tells what was asked for, so that an agent that starts later carries on
with what runs. Losing the files costs nothing that the server's next `rebuild` does not bring back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from caelum.agent.network import names
from caelum.agent.protocol import ApplyDhcp, ApplyNat, CreateBridge, Nic

S = TypeVar("S", bound=msgspec.Struct)

DHCP_FILE, NAT_FILE = "dhcp.json", "nat.json"


class DhcpState(msgspec.Struct, kw_only=True):
    """An L3 network's DHCP service. `served` is every address that the running server may have a lease for."""

    command: ApplyDhcp
    served: dict[str, str] = {}


class NatState(msgspec.Struct, kw_only=True):
    """An L3 network's translation."""

    command: ApplyNat


class Forwarding(msgspec.Struct, kw_only=True):
    """Who needs this host to forward packets, and the kernel's setting from before the first of them in this boot."""

    before: str
    boot: str
    users: list[str] = []


class Networks:
    """The files: `l2/<bridge>.json`, `l3/<uuid>/...`, `taps/<tap>.json`, `forwarding.json`."""

    def __init__(self, state_dir: Path) -> None:
        self.root = state_dir / "network"

    def folder(self, l3_uuid: str) -> Path:
        """Where an L3 network's files are."""
        return self.root / "l3" / names.uuid(l3_uuid)

    def dhcp(self, l3_uuid: str) -> DhcpState | None:
        """The DHCP service of an L3 network, if it has one here."""
        return read(self.folder(l3_uuid) / DHCP_FILE, DhcpState)

    def save_dhcp(self, state: DhcpState) -> None:
        """Remember a DHCP service."""
        write(self.folder(state.command.l3_uuid) / DHCP_FILE, msgspec.json.encode(state))

    def nat(self, l3_uuid: str) -> NatState | None:
        """The translation of an L3 network, if it has one here."""
        return read(self.folder(l3_uuid) / NAT_FILE, NatState)

    def save_nat(self, state: NatState) -> None:
        """Remember a translation."""
        write(self.folder(state.command.l3_uuid) / NAT_FILE, msgspec.json.encode(state))

    def bridge(self, bridge: str) -> CreateBridge | None:
        """How a bridge was asked for."""
        return read(self._bridge_file(bridge), CreateBridge)

    def save_bridge(self, command: CreateBridge) -> None:
        """Remember a bridge."""
        write(self._bridge_file(command.bridge), msgspec.json.encode(command))

    def forget_bridge(self, bridge: str) -> None:
        """Forget a bridge."""
        self._bridge_file(bridge).unlink(missing_ok=True)

    def bridges(self) -> list[CreateBridge]:
        """Every bridge that was asked for."""
        files = sorted((self.root / "l2").glob("*.json"))
        return [found for file in files if (found := read(file, CreateBridge)) is not None]

    def tap(self, tap: str) -> Nic | None:
        """The NIC whose tap is guarded."""
        return read(self._tap_file(tap), Nic)

    def save_tap(self, nic: Nic) -> None:
        """Remember a guarded tap."""
        write(self._tap_file(nic.name), msgspec.json.encode(nic))

    def forget_tap(self, tap: str) -> None:
        """Forget a tap."""
        self._tap_file(tap).unlink(missing_ok=True)

    def taps(self) -> list[Nic]:
        """Every guarded tap."""
        files = sorted((self.root / "taps").glob("*.json"))
        return [found for file in files if (found := read(file, Nic)) is not None]

    def all_dhcp(self) -> Iterator[DhcpState]:
        """Every DHCP service."""
        for folder in sorted((self.root / "l3").glob("*")):
            state = read(folder / DHCP_FILE, DhcpState)
            if state is not None:
                yield state

    def all_nat(self) -> Iterator[NatState]:
        """Every translation."""
        for folder in sorted((self.root / "l3").glob("*")):
            state = read(folder / NAT_FILE, NatState)
            if state is not None:
                yield state

    def forget(self, l3_uuid: str, *, keep: str) -> None:
        """Forget all of an L3 network but the file `keep`, and its folder when nothing is left."""
        folder = self.folder(l3_uuid)
        for entry in folder.iterdir() if folder.is_dir() else ():
            if entry.name != keep:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()

    def forget_nat(self, l3_uuid: str) -> None:
        """Forget a translation, and the network's folder when nothing is left."""
        folder = self.folder(l3_uuid)
        (folder / NAT_FILE).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()

    def forwarding(self) -> Forwarding | None:
        """Who needs forwarding; None when nobody does."""
        return read(self.root / "forwarding.json", Forwarding)

    def save_forwarding(self, state: Forwarding | None) -> None:
        """Remember or forget who needs forwarding."""
        file = self.root / "forwarding.json"
        file.unlink(missing_ok=True) if state is None else write(file, msgspec.json.encode(state))

    def _tap_file(self, tap: str) -> Path:
        return self.root / "taps" / f"{names.interface(tap)}.json"

    def _bridge_file(self, bridge: str) -> Path:
        return self.root / "l2" / f"{names.interface(bridge)}.json"


def read(file: Path, kind: type[S]) -> S | None:
    """A state file, or None when it is absent or not what it should be: then the next command writes it anew."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def write(file: Path, content: bytes) -> bool:
    """Make a file have this content, atomically; tells whether that changed anything."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if file.read_bytes() == content:
            return False
    temporary = file.with_name(f".{file.name}.new")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
    return True
