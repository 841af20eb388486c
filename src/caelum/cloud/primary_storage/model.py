"""Tables of primary storages: the storages, whom they serve, their capacity, and what is promised and kept on them.

Invariant: on each place (a host's share of a host-bound storage, or a whole shared storage) available capacity is
total - used by the system - sum of the charges of its reservations. `capacity.py` is the only writer of all three.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint, select
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.orm import Mapped, column_property, mapped_column, relationship

from caelum.cloud.primary_storage.api import (
    PRIMARY_STORAGE,
    ImageCacheInventory,
    LocalStorageHostRefInventory,
    LocalStorageResourceRefInventory,
    PrimaryStorageClusterRefInventory,
    PrimaryStorageInventory,
)
from caelum.cloud.switch import ENABLED
from caelum.kernel.database import Base, Resource, Row, utcnow
from caelum.kernel.state import StateMachine

CONNECTING = "Connecting"
CONNECTED = "Connected"
DISCONNECTED = "Disconnected"
ATTACHED, DETACHING = "Attached", "Detaching"

STATES = StateMachine(
    "PrimaryStorage",
    ("Enabled", "Disabled", "Maintenance", "Deleting"),
    {
        (state, event): target
        for state in ("Enabled", "Disabled", "Maintenance", "Deleting")
        for event, target in (
            ("enable", "Enabled"),
            ("disable", "Disabled"),
            ("maintain", "Maintenance"),
            ("deleting", "Deleting"),
        )
    },
)

NO_HOST = ""
"""In a key column: bits that all hosts share."""


class PrimaryStorageCapacityModel(Base):
    """The capacity of a storage; of a host-bound one, the sum over its hosts."""

    __tablename__ = "primary_storage_capacity"

    uuid: Mapped[str] = mapped_column(ForeignKey("primary_storage.uuid", ondelete="CASCADE"), primary_key=True)
    total_capacity: Mapped[int] = mapped_column(default=0)
    available_capacity: Mapped[int] = mapped_column(default=0)
    total_physical_capacity: Mapped[int] = mapped_column(default=0)
    available_physical_capacity: Mapped[int] = mapped_column(default=0)
    system_used_capacity: Mapped[int] = mapped_column(default=0)


class PrimaryStorageClusterRefModel(Row):
    """That a primary storage serves a cluster."""

    __tablename__ = "primary_storage_cluster_ref"
    __steady__ = True
    __vo__ = "PrimaryStorageClusterRefVO"
    __inventory__ = PrimaryStorageClusterRefInventory
    __table_args__ = (UniqueConstraint("primary_storage_uuid", "cluster_uuid"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    primary_storage_uuid: Mapped[str] = mapped_column(ForeignKey("primary_storage.uuid", ondelete="CASCADE"))
    cluster_uuid: Mapped[str] = mapped_column(String(32), index=True)
    state: Mapped[str] = mapped_column(String(16), default=ATTACHED)
    """Detaching while hosts are made to forget the storage: a host that connects meanwhile must not prepare it."""
    create_date: Mapped[datetime] = mapped_column(default=utcnow)
    last_op_date: Mapped[datetime] = mapped_column(default=utcnow, onupdate=utcnow)


class PrimaryStorageModel(Resource):
    """A store of volumes."""

    __tablename__ = "primary_storage"
    __steady__ = True
    __vo__ = PRIMARY_STORAGE
    __inventory__ = PrimaryStorageInventory

    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(String(2048))
    zone_uuid: Mapped[str] = mapped_column(String(32), index=True)
    url: Mapped[str] = mapped_column(String(2048))
    type: Mapped[str] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(32), default=ENABLED)
    status: Mapped[str] = mapped_column(String(32), default=CONNECTING)
    mount_path: Mapped[str | None] = mapped_column(String(2048))

    cluster_refs: Mapped[list[PrimaryStorageClusterRefModel]] = relationship(
        lazy="selectin", order_by=PrimaryStorageClusterRefModel.id, viewonly=True
    )

    attached_cluster_uuids: AssociationProxy[list[str]] = association_proxy("cluster_refs", "cluster_uuid")

    def extra_view(self) -> dict[str, Any]:
        """The clusters that the storage serves."""
        return {"attached_cluster_uuids": list(self.attached_cluster_uuids)}


class LocalStorageHostRefModel(Row):
    """A host's part in a storage: whether it reaches it and, on a host-bound one, its share of the capacity."""

    __tablename__ = "local_storage_host_ref"
    __vo__ = "LocalStorageHostRefVO"
    __inventory__ = LocalStorageHostRefInventory

    primary_storage_uuid: Mapped[str] = mapped_column(
        ForeignKey("primary_storage.uuid", ondelete="CASCADE"), primary_key=True
    )
    host_uuid: Mapped[str] = mapped_column(String(32), primary_key=True, index=True)
    status: Mapped[str] = mapped_column(String(32), default=CONNECTED)
    total_capacity: Mapped[int] = mapped_column(default=0)
    available_capacity: Mapped[int] = mapped_column(default=0)
    total_physical_capacity: Mapped[int] = mapped_column(default=0)
    available_physical_capacity: Mapped[int] = mapped_column(default=0)
    system_used_capacity: Mapped[int] = mapped_column(default=0)
    create_date: Mapped[datetime] = mapped_column(default=utcnow)
    last_op_date: Mapped[datetime] = mapped_column(default=utcnow, onupdate=utcnow)


class StorageReservationModel(Base):
    """Space taken for a purpose. `charged` is what it took from the available capacity, and what it will give back.

    `image_uuid` marks a clone of that cached image: while the row exists the cached image stays. `install_path` is
    where the bits are to be made: chosen before they are, so that whoever repeats or undoes the making finds them;
    `maker` is the run that makes them.
    """

    __tablename__ = "storage_reservation"
    __table_args__ = (Index("ix_storage_reservation_place", "primary_storage_uuid", "host_uuid"),)

    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    primary_storage_uuid: Mapped[str] = mapped_column(ForeignKey("primary_storage.uuid", ondelete="CASCADE"))
    host_uuid: Mapped[str] = mapped_column(String(32), default=NO_HOST)
    size: Mapped[int]
    charged: Mapped[int]
    scaled: Mapped[bool] = mapped_column(default=True)
    image_uuid: Mapped[str | None] = mapped_column(String(32))
    install_path: Mapped[str | None] = mapped_column(String(2048))
    maker: Mapped[str | None] = mapped_column(String(32))
    create_date: Mapped[datetime] = mapped_column(default=utcnow)


class LocalStorageResourceRefModel(Row):
    """Which host holds a resource's bits."""

    __tablename__ = "local_storage_resource_ref"
    __vo__ = "LocalStorageResourceRefVO"
    __inventory__ = LocalStorageResourceRefInventory

    resource_uuid: Mapped[str] = mapped_column(String(32), primary_key=True)
    primary_storage_uuid: Mapped[str] = mapped_column(
        ForeignKey("primary_storage.uuid", ondelete="CASCADE"), index=True
    )
    host_uuid: Mapped[str] = mapped_column(String(32), index=True)
    size: Mapped[int]
    resource_type: Mapped[str] = mapped_column(String(255))
    create_date: Mapped[datetime] = mapped_column(default=utcnow)
    last_op_date: Mapped[datetime] = mapped_column(default=utcnow, onupdate=utcnow)


class ImageCacheModel(Row):
    """A copy of an image on a storage (of a host-bound one: on one host)."""

    __tablename__ = "image_cache"
    __steady__ = True
    __vo__ = "ImageCacheVO"
    __inventory__ = ImageCacheInventory
    __table_args__ = (UniqueConstraint("image_uuid", "primary_storage_uuid", "host_uuid"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    primary_storage_uuid: Mapped[str] = mapped_column(
        ForeignKey("primary_storage.uuid", ondelete="CASCADE"), index=True
    )
    image_uuid: Mapped[str] = mapped_column(String(32))
    host_uuid: Mapped[str] = mapped_column(String(32), default=NO_HOST)
    install_path: Mapped[str] = mapped_column(String(2048))
    install_url: Mapped[str] = mapped_column(String(2200))
    media_type: Mapped[str] = mapped_column(String(64))
    format: Mapped[str] = mapped_column(String(64))
    size: Mapped[int]
    virtual_size: Mapped[int]
    md5sum: Mapped[str | None] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(32), default="ready")
    create_date: Mapped[datetime] = mapped_column(default=utcnow)
    last_op_date: Mapped[datetime] = mapped_column(default=utcnow, onupdate=utcnow)


def _of_capacity(column: Any) -> Any:
    table = PrimaryStorageCapacityModel
    return column_property(
        select(column).where(table.uuid == PrimaryStorageModel.uuid).correlate_except(table).scalar_subquery()
    )


# Read with the row itself, so that queries can compare and sort by them.
for _name in (
    "total_capacity",
    "available_capacity",
    "total_physical_capacity",
    "available_physical_capacity",
    "system_used_capacity",
):
    setattr(PrimaryStorageModel, _name, _of_capacity(getattr(PrimaryStorageCapacityModel, _name)))
