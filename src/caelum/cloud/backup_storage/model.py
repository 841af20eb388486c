"""Tables of backup storages: the storages, whom they serve, and the space that images take.

Invariant: available capacity is what was free at the last look, less what was promised since. `capacity.py` alone
changes it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, String, UniqueConstraint
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.orm import Mapped, mapped_column, relationship

from caelum.cloud.backup_storage.api import BACKUP_STORAGE, BackupStorageInventory, BackupStorageZoneRefInventory
from caelum.cloud.switch import ENABLED, switch
from caelum.kernel.database import Base, Resource, Row, utcnow

CONNECTING = "Connecting"
CONNECTED = "Connected"
DISCONNECTED = "Disconnected"

STATES = switch("BackupStorage")


class BackupStorageZoneRefModel(Row):
    """That a backup storage serves a zone."""

    __tablename__ = "backup_storage_zone_ref"
    __steady__ = True
    __vo__ = "BackupStorageZoneRefVO"
    __inventory__ = BackupStorageZoneRefInventory
    __table_args__ = (UniqueConstraint("backup_storage_uuid", "zone_uuid"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    backup_storage_uuid: Mapped[str] = mapped_column(ForeignKey("backup_storage.uuid", ondelete="CASCADE"))
    zone_uuid: Mapped[str] = mapped_column(String(32), index=True)
    create_date: Mapped[datetime] = mapped_column(default=utcnow)
    last_op_date: Mapped[datetime] = mapped_column(default=utcnow, onupdate=utcnow)


class BackupStorageModel(Resource):
    """A store of images."""

    __tablename__ = "backup_storage"
    __vo__ = BACKUP_STORAGE
    __inventory__ = BackupStorageInventory

    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(String(2048))
    url: Mapped[str] = mapped_column(String(2048))
    type: Mapped[str] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(32), default=ENABLED)
    status: Mapped[str] = mapped_column(String(32), default=CONNECTING)
    total_capacity: Mapped[int] = mapped_column(default=0)
    available_capacity: Mapped[int] = mapped_column(default=0)

    zone_refs: Mapped[list[BackupStorageZoneRefModel]] = relationship(
        lazy="selectin", order_by=BackupStorageZoneRefModel.id, viewonly=True
    )

    attached_zone_uuids: AssociationProxy[list[str]] = association_proxy("zone_refs", "zone_uuid")

    def extra_view(self) -> dict[str, Any]:
        """The zones that the storage serves."""
        return {"attached_zone_uuids": list(self.attached_zone_uuids)}


class BackupReservationModel(Base):
    """Space that an image takes. `written`: the bytes are on the storage, so what is free there shows it already."""

    __tablename__ = "backup_storage_reservation"

    backup_storage_uuid: Mapped[str] = mapped_column(
        ForeignKey("backup_storage.uuid", ondelete="CASCADE"), primary_key=True
    )
    image_uuid: Mapped[str] = mapped_column(String(32), primary_key=True)
    size: Mapped[int]
    written: Mapped[bool] = mapped_column(default=False)
