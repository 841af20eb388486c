"""Tables of VMs, NICs and CD-ROM drives, and the VM's state machine.

Invariant: two NICs of a VM never share a device id, and no two NICs share a MAC address.
"""

from __future__ import annotations

import enum
from typing import Any, ClassVar

from sqlalchemy import ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from caelum.cloud.vm.api import VmCdRomInventory, VmInstanceInventory, VmNicInventory
from caelum.kernel.database import Base, Resource, relate
from caelum.kernel.state import StateMachine


class VmState(enum.StrEnum):
    """The states of a VM, as clients know them."""

    CREATED = "Created"
    STARTING = "Starting"
    RUNNING = "Running"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    REBOOTING = "Rebooting"
    MIGRATING = "Migrating"
    VOLUME_MIGRATING = "VolumeMigrating"
    VOLUME_RECOVERING = "VolumeRecovering"
    PAUSING = "Pausing"
    PAUSED = "Paused"
    RESUMING = "Resuming"
    UNKNOWN = "Unknown"
    DESTROYING = "Destroying"
    DESTROYED = "Destroyed"
    CRASHED = "Crashed"
    NO_STATE = "NoState"
    EXPUNGING = "Expunging"
    ERROR = "Error"


_TARGETS = {
    "running": VmState.RUNNING,
    "stopped": VmState.STOPPED,
    "paused": VmState.PAUSED,
    "starting": VmState.STARTING,
    "stopping": VmState.STOPPING,
    "rebooting": VmState.REBOOTING,
    "migrating": VmState.MIGRATING,
    "migrated": VmState.RUNNING,
    "pausing": VmState.PAUSING,
    "resuming": VmState.RESUMING,
    "destroying": VmState.DESTROYING,
    "destroyed": VmState.DESTROYED,
    "expunging": VmState.EXPUNGING,
    "unknown": VmState.UNKNOWN,
    "crashed": VmState.CRASHED,
    "noState": VmState.NO_STATE,
    "volumeMigrating": VmState.VOLUME_MIGRATING,
    "volumeRecovering": VmState.VOLUME_RECOVERING,
}
"""Where each event leads, but for the exceptions below."""

_ALLOWED = {
    VmState.CREATED: "starting destroying destroyed",
    VmState.STARTING: "running stopped paused destroying unknown",
    VmState.RUNNING: (
        "running destroying stopping stopped rebooting migrating volumeRecovering pausing paused crashed noState"
        " unknown"
    ),
    VmState.STOPPING: "stopped destroying running unknown",
    VmState.STOPPED: "starting stopped running paused destroying volumeMigrating volumeRecovering noState unknown",
    VmState.REBOOTING: "running stopped noState unknown destroying",
    VmState.MIGRATING: "migrated running paused stopped noState unknown destroying",
    VmState.VOLUME_MIGRATING: "stopped noState unknown destroying",
    VmState.VOLUME_RECOVERING: "volumeRecovering stopping stopped noState unknown destroying",
    VmState.PAUSING: "paused destroying running noState unknown",
    VmState.PAUSED: "resuming stopped running stopping destroying noState unknown migrating",
    VmState.RESUMING: "running destroying paused noState unknown",
    VmState.UNKNOWN: "destroying stopping unknown paused running migrating noState stopped",
    VmState.DESTROYING: "unknown destroyed destroying running expunging",
    VmState.DESTROYED: "stopped",
    VmState.CRASHED: "running unknown stopping stopped rebooting crashed destroyed noState destroying",
    VmState.NO_STATE: "running unknown stopping stopped rebooting crashed destroyed noState destroying",
    VmState.EXPUNGING: "",
    VmState.ERROR: "",
}
_EXCEPTIONS: dict[tuple[str, str], str] = {
    (VmState.RUNNING, "volumeMigrating"): VmState.MIGRATING,
    (VmState.MIGRATING, "volumeMigrated"): VmState.RUNNING,
    (VmState.PAUSED, "volumeMigrated"): VmState.RUNNING,
    (VmState.VOLUME_MIGRATING, "volumeMigrated"): VmState.STOPPED,
    (VmState.VOLUME_RECOVERING, "starting"): VmState.VOLUME_RECOVERING,
    (VmState.VOLUME_RECOVERING, "running"): VmState.VOLUME_RECOVERING,
    (VmState.VOLUME_RECOVERING, "volumeRecovered"): VmState.RUNNING,
}

VM_STATES = StateMachine(
    "VmInstance",
    VmState,
    _EXCEPTIONS | {(state, event): _TARGETS[event] for state, events in _ALLOWED.items() for event in events.split()},
)
"""The original's table (header/.../vm/VmInstanceState.java)."""

ON_HOST = frozenset({VmState.RUNNING, VmState.PAUSED})
"""Stable states in which the machine exists on its host."""
TRANSITIONAL = frozenset(
    {
        VmState.STARTING, VmState.STOPPING, VmState.REBOOTING, VmState.DESTROYING, VmState.MIGRATING, VmState.PAUSING,
        VmState.RESUMING, VmState.VOLUME_MIGRATING, VmState.VOLUME_RECOVERING, VmState.EXPUNGING,
    }
)  # fmt: skip
"""States that only a running workflow may leave a VM in."""


NEEDS_HOST = ON_HOST | TRANSITIONAL - {VmState.DESTROYING, VmState.EXPUNGING} | {VmState.UNKNOWN}
"""States in which what a VM needs on its host must be there, for it is there or may be."""
NIC_THERE, NIC_LEAVING = "enable", "disable"
"""A NIC's state while it is taken away: a host that connects meanwhile must not get anything for it any more."""


class VmSequenceModel(Base):
    """Gives out internal ids: small numbers that name a VM where a UUID is too long."""

    __tablename__ = "vm_sequence"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    vm_instance_uuid: Mapped[str] = mapped_column(String(32), unique=True)


class VmNicModel(Resource):
    """A network interface of a VM."""

    __tablename__ = "vm_nic"
    __vo__ = "VmNicVO"
    __inventory__: ClassVar[type[Any]] = VmNicInventory
    __table_args__ = (
        UniqueConstraint("vm_instance_uuid", "device_id"),
        Index("ix_vm_nic_l3_network", "l3_network_uuid"),
        Index("ix_vm_nic_ip", "ip"),
    )

    vm_instance_uuid: Mapped[str] = mapped_column(ForeignKey("vm_instance.uuid", ondelete="CASCADE"))
    l3_network_uuid: Mapped[str] = mapped_column(String(32))
    used_ip_uuid: Mapped[str | None] = mapped_column(String(32))
    ip: Mapped[str | None] = mapped_column(String(128))
    netmask: Mapped[str | None] = mapped_column(String(32))
    gateway: Mapped[str | None] = mapped_column(String(128))
    mac: Mapped[str] = mapped_column(String(17), unique=True)
    hypervisor_type: Mapped[str | None] = mapped_column(String(64))
    meta_data: Mapped[str | None] = mapped_column(Text)
    ip_version: Mapped[int] = mapped_column(default=4)
    driver_type: Mapped[str] = mapped_column(String(64), default="virtio")
    internal_name: Mapped[str] = mapped_column(String(128))
    device_id: Mapped[int]
    type: Mapped[str] = mapped_column(String(32), default="VNIC")
    state: Mapped[str] = mapped_column(String(32), default=NIC_THERE)


class VmCdRomModel(Resource):
    """A CD-ROM drive of a VM."""

    __tablename__ = "vm_cd_rom"
    __vo__ = "VmCdRomVO"
    __inventory__: ClassVar[type[Any]] = VmCdRomInventory
    __table_args__ = (UniqueConstraint("vm_instance_uuid", "device_id"),)

    vm_instance_uuid: Mapped[str] = mapped_column(ForeignKey("vm_instance.uuid", ondelete="CASCADE"))
    device_id: Mapped[int]
    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(Text)
    iso_uuid: Mapped[str | None] = mapped_column(String(32))
    iso_install_path: Mapped[str | None] = mapped_column(Text)
    protocol: Mapped[str | None] = mapped_column(String(32))


class VmInstanceModel(Resource):
    """A virtual machine. `destroyed_at` is kept in `last_op_date` of the state Destroyed."""

    __tablename__ = "vm_instance"
    __vo__ = "VmInstanceVO"
    __inventory__: ClassVar[type[Any]] = VmInstanceInventory
    __table_args__ = (
        Index("ix_vm_instance_host", "host_uuid"),
        Index("ix_vm_instance_state", "state"),
        Index("ix_vm_instance_name_uuid", "name", "uuid"),  # as pages are ordered
        Index("ix_vm_instance_last_host", "last_host_uuid", "state"),
    )

    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(Text)
    zone_uuid: Mapped[str] = mapped_column(String(32))
    cluster_uuid: Mapped[str | None] = mapped_column(String(32))
    host_uuid: Mapped[str | None] = mapped_column(String(32))
    last_host_uuid: Mapped[str | None] = mapped_column(String(32))
    image_uuid: Mapped[str | None] = mapped_column(String(32))
    instance_offering_uuid: Mapped[str | None] = mapped_column(String(32))
    root_volume_uuid: Mapped[str | None] = mapped_column(String(32))
    default_l3_network_uuid: Mapped[str | None] = mapped_column(String(32))
    platform: Mapped[str] = mapped_column(String(255), default="Linux")
    architecture: Mapped[str] = mapped_column(String(32), default="x86_64")
    guest_os_type: Mapped[str | None] = mapped_column(String(255))
    type: Mapped[str] = mapped_column(String(64), default="UserVm")
    hypervisor_type: Mapped[str] = mapped_column(String(64), default="KVM")
    cpu_num: Mapped[int]
    cpu_speed: Mapped[int] = mapped_column(default=0)
    memory_size: Mapped[int]
    reserved_memory_size: Mapped[int] = mapped_column(default=0)
    allocator_strategy: Mapped[str | None] = mapped_column(String(64))
    internal_id: Mapped[int]
    state: Mapped[str] = mapped_column(String(64))

    vm_nics: Mapped[list[VmNicModel]] = relationship(
        lazy="selectin", order_by=VmNicModel.device_id, cascade="all, delete-orphan", passive_deletes=True
    )
    vm_cd_roms: Mapped[list[VmCdRomModel]] = relationship(
        lazy="selectin", order_by=VmCdRomModel.device_id, cascade="all, delete-orphan", passive_deletes=True
    )


relate(
    VmNicModel,
    "used_ips",
    "UsedIpModel",
    primaryjoin="foreign(UsedIpModel.vm_nic_uuid) == VmNicModel.uuid",
    lazy="selectin",
)
relate(
    VmInstanceModel,
    "all_volumes",
    "VolumeModel",
    primaryjoin="foreign(VolumeModel.vm_instance_uuid) == VmInstanceModel.uuid",
    order_by="VolumeModel.device_id",
    lazy="selectin",
)
