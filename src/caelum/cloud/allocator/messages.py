"""Internal messages to the allocator.

A reservation is a row keyed by the VM's UUID: repeating a request changes nothing. A return
gives back exactly what the row says was taken.
"""

from __future__ import annotations

import msgspec

from caelum.kernel.message import Message, message


class DiskRequest(msgspec.Struct, rename="camel", kw_only=True):
    """A disk that the machine needs; `key` (the volume's UUID) is what its space is reserved under."""

    key: str
    size: int
    primary_storage_uuid: str | None = None
    is_root: bool = False
    required_tags: list[str] = []


class Candidate(msgspec.Struct, rename="camel", kw_only=True):
    """A host that would do."""

    host_uuid: str
    cluster_uuid: str
    zone_uuid: str
    available_cpu: int
    available_memory: int


class HostAllocation(msgspec.Struct, rename="camel", kw_only=True):
    """The chosen host and, by disk key, the primary storage. A dry run fills `candidates`, best first."""

    host_uuid: str
    cluster_uuid: str
    zone_uuid: str
    hypervisor_type: str
    disks: dict[str, str] = {}
    candidates: list[Candidate] = []


@message(timeout=300)
class AllocateHost(Message[HostAllocation], kw_only=True):
    """Choose a host for a machine and reserve its CPU, memory and disk space there.

    Refused with HOST_ALLOCATION.1000: `causes` has one error per filter that removed hosts, with how many and why.
    """

    vm_uuid: str
    cpu_num: int
    memory: int
    zone_uuid: str | None = None
    cluster_uuid: str | None = None
    host_uuid: str | None = None
    l3_network_uuids: list[str] = []
    disks: list[DiskRequest] = []
    image_uuid: str | None = None
    avoid_host_uuids: list[str] = []
    strategy: str = "LeastVmPreferred"
    dry_run: bool = False
    system_tags: list[str] = []
    hypervisor_type: str | None = None
    architecture: str | None = None
    volume_storage_uuids: list[str] = []
    """Primary storages of volumes that exist already: the host must reach all of them."""
    last_host_uuid: str | None = None
    is_new: bool = False
    """Whether this is asked for the first time, and nothing was reserved for the machine before."""


@message(timeout=60)
class ReturnHost(Message[None], kw_only=True):
    """Give back the CPU and memory that a machine reserved; success when there is nothing. Disk space stays."""

    vm_uuid: str
    host_uuid: str | None = None
    """Only when the reservation is on this host."""


@message(timeout=60)
class ReserveHost(Message[None], kw_only=True):
    """Reserve on a given host without choosing: a machine was found running there."""

    vm_uuid: str
    host_uuid: str
    cpu_num: int
    memory: int
    force: bool = False
    """Also beyond the capacity: the machine runs already, and the books must show it."""


@message(timeout=60)
class ReportHostCapacity(Message[None], kw_only=True):
    """What a host physically has, told at each connect."""

    host_uuid: str
    total_cpu: int
    """Cores."""
    total_memory: int
    cpu_sockets: int = 1


@message(timeout=60)
class DropHost(Message[None], kw_only=True):
    """Forget a host's capacity and the reservations on it."""

    host_uuid: str


@message(timeout=300)
class RefreshLimits(Message[None], kw_only=True):
    """A tag or setting changed what hosts may give away: compute the limits of the hosts concerned again."""

    resource_uuid: str | None = None
    """A host, cluster or zone; None concerns all."""
