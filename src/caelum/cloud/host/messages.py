"""Internal messages to the host service. All operations on a host run in that host's queue.

Every one is idempotent: the named state is reached or kept. Those that act on a host fail with HOST.1010 while the
host is not Connected, except the connect itself.
"""

from __future__ import annotations

from typing import Any

import msgspec

from caelum.cloud.host.api import HostInventory
from caelum.cloud.host.spec import ConsoleTarget, HostOrder, NicSpec, VmSpec, VmStarted, VolumeSpec
from caelum.kernel.message import Message, message


@message(route_by="host_uuid")
class AddHost(Message[HostInventory], kw_only=True):
    """Take a host in and connect it, for a driver's own add API; `details` fills the driver's own columns."""

    host_uuid: str
    hypervisor_type: str
    name: str
    management_ip: str
    cluster_uuid: str
    description: str | None = None
    details: dict[str, Any] = {}
    system_tags: list[str] | None = None
    user_tags: list[str] | None = None
    tag_uuids: list[str] | None = None


@message(route_by="host_uuid")
class UpdateHostRecord(Message[HostInventory], kw_only=True):
    """Change columns of a host's row by name, the driver's own among them; absent ones stay."""

    host_uuid: str
    changes: dict[str, Any]


@message(route_by="host_uuid")
class StartVmOnHost(Message[VmStarted], kw_only=True):
    """Start a machine; one that runs already is left as it is."""

    host_uuid: str
    spec: VmSpec


@message(route_by="host_uuid")
class PrepareAndStartVmOnHost(Message[VmStarted], kw_only=True):
    """Have the host carry out what its description and the providers of resources say comes before, and start the
    machine, in one go."""

    host_uuid: str
    spec: VmSpec


@message(route_by="host_uuid")
class StopVmOnHost(Message[None], kw_only=True):
    """Stop a machine: "grace" asks the guest first, "cold" pulls the plug."""

    host_uuid: str
    vm_uuid: str
    kind: str = "grace"
    grace_seconds: float = 60


@message(route_by="host_uuid")
class RebootVmOnHost(Message[VmStarted], kw_only=True):
    """Stop and start with this description."""

    host_uuid: str
    spec: VmSpec


@message(route_by="host_uuid")
class PauseVmOnHost(Message[None], kw_only=True):
    """Freeze a machine in memory."""

    host_uuid: str
    vm_uuid: str


@message(route_by="host_uuid")
class ResumeVmOnHost(Message[None], kw_only=True):
    """Let a paused machine go on."""

    host_uuid: str
    vm_uuid: str


@message(route_by="host_uuid")
class DestroyVmOnHost(Message[None], kw_only=True):
    """Pull the plug and forget the machine; success when there is none."""

    host_uuid: str
    vm_uuid: str


@message(route_by="host_uuid")
class DestroyAndReleaseVmOnHost(Message[None], kw_only=True):
    """The same, and then have the host carry out orders, in one go, when no connect of it is under way or due."""

    host_uuid: str
    vm_uuid: str
    orders: list[HostOrder]


class VmStatesReply(msgspec.Struct, rename="camel", kw_only=True):
    """State by VM UUID; a machine that is not on the host is absent."""

    states: dict[str, str]


@message(route_by="host_uuid", timeout=60)
class GetVmStatesOnHost(Message[VmStatesReply], kw_only=True):
    """The states of the named machines, or of all that the host has."""

    host_uuid: str
    vm_uuids: list[str] | None = None


class HostContents(msgspec.Struct, rename="camel", kw_only=True):
    """What of ours is on a host, as the host itself finds it."""

    vms: dict[str, str]
    """State by VM UUID."""
    strangers: list[str] = []
    """Machines that are not ours."""
    bridges: list[str] = []
    taps: list[str] = []
    dhcp: dict[str, list[str]] = {}
    """L3 UUID to the MAC addresses that are served."""
    metadata: dict[str, list[str]] = {}
    """L3 UUID to the addresses that are served."""
    nat: list[str] = []
    """L3 UUIDs."""
    files: dict[str, list[str]] = {}
    """Storage path to every file below it."""


@message(route_by="host_uuid", timeout=120)
class DumpHost(Message[HostContents], kw_only=True):
    """Everything of ours that is on a host, with the files below these storage paths; nothing is changed."""

    host_uuid: str
    storage_paths: list[str] = []


@message(route_by="host_uuid")
class AttachVolumeOnHost(Message[None], kw_only=True):
    """Plug a disk into a running machine."""

    host_uuid: str
    vm_uuid: str
    volume: VolumeSpec


@message(route_by="host_uuid")
class DetachVolumeOnHost(Message[None], kw_only=True):
    """Unplug a disk."""

    host_uuid: str
    vm_uuid: str
    volume: VolumeSpec


@message(route_by="host_uuid")
class AttachNicOnHost(Message[None], kw_only=True):
    """Plug a NIC into a running machine; its `internal_name` must be set."""

    host_uuid: str
    vm_uuid: str
    nic: NicSpec


@message(route_by="host_uuid")
class DetachNicOnHost(Message[None], kw_only=True):
    """Unplug a NIC; its `internal_name` must be set."""

    host_uuid: str
    vm_uuid: str
    nic: NicSpec


@message(route_by="host_uuid", timeout=60)
class GetConsoleOnHost(Message[ConsoleTarget], kw_only=True):
    """Where the screen of a machine is."""

    host_uuid: str
    vm_uuid: str


@message(timeout=60)
class GetHost(Message[HostInventory], kw_only=True):
    """One host."""

    host_uuid: str


class HostsReply(msgspec.Struct, rename="camel", kw_only=True):
    """Hosts, by UUID."""

    hosts: list[HostInventory]


@message(timeout=60)
class ListHosts(Message[HostsReply], kw_only=True):
    """Hosts of clusters, of a zone, with these UUIDs, or all."""

    cluster_uuids: list[str] | None = None
    zone_uuid: str | None = None
    host_uuids: list[str] | None = None


@message(route_by="host_uuid")
class ReconnectHostInternal(Message[HostInventory], kw_only=True):
    """Connect a host anew; a connect that is under way is joined, not doubled."""

    host_uuid: str
    reason: str = ""


@message(route_by="host_uuid", timeout=60)
class HostAgentSeen(Message[None], kw_only=True):
    """A driver heard from a host's agent. One that is not the agent of the last connect has restarted: connect anew.

    `agent_uuid` None means that the agent said it is going down.
    """

    host_uuid: str
    agent_uuid: str | None = None


@message(route_by="host_uuid")
class AwaitHost(Message[None], kw_only=True):
    """Return when no connect of the host is under way or due since this node's start, whether it succeeded or not.

    A connect brings what the host serves to what the records say; work of a VM that ran at the same time could be
    undone by it, or undo it.
    """

    host_uuid: str


@message(route_by="host_uuid")
class AwaitLostHost(Message[bool], kw_only=True):
    """Return when a host that could not be reached is worth another try; False when it is gone for too long.

    `waited` is how many seconds ago it was first found unreachable.
    """

    host_uuid: str
    waited: float = 0


@message()
class AwaitHosts(Message[bool], kw_only=True):
    """Return when the hosts are done that any node is connecting, or this one is to since its start; or after a while.

    Tells whether that had to be waited for: hosts that were missing a moment ago may be there now. Only the given host
    is waited for, or those of the given cluster and zone.
    """

    host_uuid: str | None = None
    cluster_uuid: str | None = None
    zone_uuid: str | None = None


@message(route_by="host_uuid", timeout=60)
class HostSuspected(Message[None], kw_only=True):
    """Somebody could not reach a host: ping it now rather than at the next turn."""

    host_uuid: str
    reason: str


@message(route_by="host_uuid", timeout=60)
class VmStatesSeenOnHost(Message[None], kw_only=True):
    """A driver learnt machines' states on a host. `complete`: these are all that it has."""

    host_uuid: str
    states: dict[str, str]
    strangers: list[str] = []
    complete: bool = False
