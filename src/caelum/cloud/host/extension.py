"""What plugs into hosts: hypervisor drivers, and work at a host's connect, disconnect and deletion."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from caelum.cloud.host.api import HostInventory
from caelum.cloud.host.messages import HostContents
from caelum.cloud.host.spec import ConsoleTarget, HostOrder, NicSpec, VmSpec, VmStarted, VolumeSpec
from caelum.kernel.errors import CloudError
from caelum.kernel.extension import ExtensionPoint
from caelum.kernel.tag import SystemTag


class HostConnection(msgspec.Struct, rename="camel", kw_only=True):
    """What a host said when it was connected."""

    agent_uuid: str
    """New at each start of the host's agent."""
    version: str
    cpu_num: int
    cpu_sockets: int
    cpu_mhz: int
    total_memory: int
    architecture: str
    os_distribution: str = ""
    os_version: str = ""
    vm_states: dict[str, str] = {}
    strangers: list[str] = []
    """Machines on the host that are not ours."""
    details: dict[str, Any] = {}
    """Values of the driver's own columns of the host's row."""
    tags: list[tuple[SystemTag, dict[str, Any]]] = []
    """System tags of the driver, with their tokens, written together with the columns while the host exists."""


class HostPing(msgspec.Struct, rename="camel", kw_only=True):
    """What a host answered to a ping."""

    agent_uuid: str
    vm_states: dict[str, str] = {}
    adopted: bool = True
    """False: the agent does not know (any more) whose host it is, so it must be connected anew."""


class HypervisorDriver(ABC):
    """A hypervisor; registered by type: `node.drivers.add(HypervisorDriver, "KVM", driver)`.

    Every operation is idempotent and fails with a `CloudError`; type HOST.1010 means that the host was not reached.
    """

    @abstractmethod
    async def connect(self, host: HostInventory) -> HostConnection:
        """Make the host ours and learn what it is."""

    @abstractmethod
    async def ping(self, host: HostInventory, timeout: float) -> HostPing:
        """Ask once whether the host is there."""

    def watch(self, host_uuid: str, gone: Callable[[], None]) -> Callable[[], None]:  # noqa: ARG002
        """Call `gone` once, later, when there is reason to believe that the host is gone; a driver that cannot tell
        never does. What is returned ends the watch.
        """
        return lambda: None

    @abstractmethod
    async def start_vm(self, host_uuid: str, spec: VmSpec) -> VmStarted:
        """Carry out the orders that come before, and start a machine."""

    @abstractmethod
    async def stop_vm(self, host_uuid: str, vm_uuid: str, kind: str, grace_seconds: float) -> None:
        """Stop a machine, "grace" or "cold"."""

    @abstractmethod
    async def reboot_vm(self, host_uuid: str, spec: VmSpec) -> VmStarted:
        """Stop and start a machine with this description."""

    @abstractmethod
    async def pause_vm(self, host_uuid: str, vm_uuid: str) -> None:
        """Freeze a machine."""

    @abstractmethod
    async def resume_vm(self, host_uuid: str, vm_uuid: str) -> None:
        """Let a paused machine go on."""

    @abstractmethod
    async def destroy_vm(self, host_uuid: str, vm_uuid: str, after: Sequence[HostOrder] = ()) -> None:
        """Pull the plug and forget the machine; then carry out the orders that come after."""

    @abstractmethod
    async def vm_states(self, host_uuid: str, vm_uuids: list[str] | None) -> dict[str, str]:
        """States of the named machines, or of all."""

    @abstractmethod
    async def dump(self, host_uuid: str, storage_paths: list[str]) -> HostContents:
        """Everything of ours that is on the host, with the files below these paths."""

    @abstractmethod
    async def attach_volume(self, host_uuid: str, vm_uuid: str, volume: VolumeSpec) -> None:
        """Plug a disk in."""

    @abstractmethod
    async def detach_volume(self, host_uuid: str, vm_uuid: str, volume: VolumeSpec) -> None:
        """Unplug a disk."""

    @abstractmethod
    async def attach_nic(self, host_uuid: str, vm_uuid: str, nic: NicSpec) -> None:
        """Plug a NIC in."""

    @abstractmethod
    async def detach_nic(self, host_uuid: str, vm_uuid: str, nic: NicSpec) -> None:
        """Unplug a NIC."""

    @abstractmethod
    async def console(self, host_uuid: str, vm_uuid: str) -> ConsoleTarget:
        """Where the machine's screen is."""


class HostConnect(ExtensionPoint):
    """Work at every connect, in order, before the host counts as Connected. A failure fails the connect.

    Orders in use: 100 L2 networks, 200 primary storage, 300 DHCP and metadata, 400 further network services.
    """

    async def connect(self, host: HostInventory) -> None:
        """Bring the host to what the database says."""


class HostAfterConnect(ExtensionPoint):
    """Told when a host became Connected."""

    async def after_connect(self, host: HostInventory) -> None:
        """The host can be used."""


class HostDisconnected(ExtensionPoint):
    """Told when a host became Disconnected."""

    async def disconnected(self, host: HostInventory, reason: CloudError) -> None:
        """The host cannot be reached; its machines may well be running."""


class HostBeforeDelete(ExtensionPoint):
    """Asked before a host goes; an exception forbids it unless the deletion is enforced."""

    async def before_delete(self, host: HostInventory, force: bool) -> None:
        """Object, or clear away what is on the host."""


class HostMaintenance(ExtensionPoint):
    """Asked to empty a host that goes into maintenance; an exception keeps it out of it."""

    async def maintain(self, host: HostInventory) -> None:
        """Move or stop what runs on the host."""
