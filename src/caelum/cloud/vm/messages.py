"""What other services tell and ask the VM service."""

from __future__ import annotations

import msgspec

from caelum.cloud.host.spec import VmSpec
from caelum.cloud.vm.api import VmInstanceInventory
from caelum.cloud.volume.api import VolumeInventory
from caelum.kernel.message import Message, message


class VmSpecsReply(msgspec.Struct, frozen=True, rename="camel"):
    """Complete descriptions of VMs."""

    specs: list[VmSpec]


class VmsReply(msgspec.Struct, frozen=True, rename="camel"):
    """VMs."""

    vms: list[VmInstanceInventory]


@message(service="vm-tracer", route_by="vm_uuid", timeout=120)
class VmStateSeen(Message[None], kw_only=True):
    """A host has the VM in this state (Running, Paused, Stopped, Crashed, NoState); Stopped also when it is absent."""

    vm_uuid: str
    host_uuid: str
    state: str


@message(service="vm-tracer", timeout=120)
class HostVmsSeen(Message[None], kw_only=True):
    """Everything that a host runs: state by VM UUID, also of VMs that the cloud may not know."""

    host_uuid: str
    states: dict[str, str]


@message(service="vm-tracer", timeout=60)
class HostLost(Message[None], kw_only=True):
    """A host cannot be reached: nobody knows how its VMs are."""

    host_uuid: str


@message(timeout=60)
class GetVmSpecs(Message[VmSpecsReply], kw_only=True):
    """Descriptions of all VMs that are on a host, to rebuild there what they need."""

    host_uuid: str


@message(timeout=60)
class ListVms(Message[VmsReply], kw_only=True):
    """VMs by host, cluster, zone, image, offering, L3 network or UUID; all conditions hold, at least one is given."""

    host_uuids: list[str] | None = None
    vm_uuids: list[str] | None = None
    l3_network_uuids: list[str] | None = None
    zone_uuids: list[str] | None = None
    primary_storage_uuids: list[str] | None = None
    states: list[str] | None = None


@message(route_by="vm_uuid")
class StopVm(Message[None], kw_only=True):
    """Stop a VM on the cloud's own account (host maintenance, cascade); done when it is stopped."""

    vm_uuid: str
    kind: str = "grace"


@message(route_by="vm_uuid")
class DestroyVm(Message[None], kw_only=True):
    """Destroy a VM on the cloud's own account; policy None takes the setting's. Done when it is gone."""

    vm_uuid: str
    policy: str | None = None
    force: bool = False
    """Go on when the host objects: what is left there goes to the garbage collector."""


@message(route_by="vm_uuid")
class DestroyLeftover(Message[bool], kw_only=True):
    """Destroy what a host may still have of a machine, in its VM's turn, unless the VM has come to life again there.

    False: a VM that is being made there, or taken away, must be looked at again.
    """

    vm_uuid: str
    host_uuid: str


@message(route_by="vm_uuid")
class DetachNicFromVm(Message[VmInstanceInventory], kw_only=True):
    """Take a NIC from its VM for a client, in the VM's turn: the NIC's own UUID may belong to another node."""

    vm_uuid: str
    vm_nic_uuid: str


@message(route_by="vm_uuid")
class DetachVolumeFromVm(Message[VolumeInventory], kw_only=True):
    """Take a data volume from its VM for a client, in the VM's turn: the volume's UUID may belong to another node."""

    vm_uuid: str
    volume_uuid: str
    answers: bool = True
    """Whether that is all that the client's job is about: False when more is to be done with the volume."""


@message(route_by="vm_uuid")
class DetachVmNic(Message[None], kw_only=True):
    """Take a NIC from its VM because its network goes away."""

    vm_uuid: str
    vm_nic_uuid: str
