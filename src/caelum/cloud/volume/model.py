"""The table of volumes and the states of one.

Invariant: a virtual machine has at most one volume as each of its devices; a volume has bits (`install_path`) exactly
when it is Ready, or Deleted and was Ready before.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from caelum.cloud.switch import ENABLED, switch
from caelum.cloud.volume.api import VOLUME, VolumeInventory
from caelum.kernel.database import Resource
from caelum.kernel.state import StateMachine

STATES = switch("Volume")

ROOT = "Root"
DATA = "Data"

NOT_INSTANTIATED = "NotInstantiated"
CREATING = "Creating"
READY = "Ready"
DELETED = "Deleted"

STATUSES = StateMachine(
    "Volume",
    (NOT_INSTANTIATED, CREATING, READY, DELETED),
    {
        (NOT_INSTANTIATED, "instantiate"): CREATING,
        (CREATING, "instantiated"): READY,
        (NOT_INSTANTIATED, "instantiated"): READY,
        (CREATING, "give up"): NOT_INSTANTIATED,
        (CREATING, "delete"): DELETED,
        (READY, "delete"): DELETED,
        (NOT_INSTANTIATED, "delete"): DELETED,
        (DELETED, "delete"): DELETED,
        (DELETED, "recover"): READY,
    },
)


class VolumeModel(Resource):
    """A disk."""

    __tablename__ = "volume"
    __vo__ = VOLUME
    __inventory__ = VolumeInventory
    __table_args__ = (UniqueConstraint("vm_instance_uuid", "device_id"),)

    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(String(2048))
    type: Mapped[str] = mapped_column(String(32))
    primary_storage_uuid: Mapped[str | None] = mapped_column(String(32), index=True)
    vm_instance_uuid: Mapped[str | None] = mapped_column(String(32), index=True)
    device_id: Mapped[int | None]
    disk_offering_uuid: Mapped[str | None] = mapped_column(String(32), index=True)
    root_image_uuid: Mapped[str | None] = mapped_column(String(32), index=True)
    install_path: Mapped[str | None] = mapped_column(String(2048))
    format: Mapped[str | None] = mapped_column(String(64))
    size: Mapped[int]
    actual_size: Mapped[int | None]
    state: Mapped[str] = mapped_column(String(32), default=ENABLED)
    status: Mapped[str] = mapped_column(String(32), default=NOT_INSTANTIATED)
    is_shareable: Mapped[bool] = mapped_column(default=False)
    volume_qos: Mapped[str | None] = mapped_column(String(2048))
    protocol: Mapped[str | None] = mapped_column(String(32))
    last_vm_instance_uuid: Mapped[str | None] = mapped_column(String(32))
    last_attach_date: Mapped[datetime | None]
    last_detach_date: Mapped[datetime | None]
