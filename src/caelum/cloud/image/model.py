"""Tables of images and of their copies on backup storages.

Invariant: an image is Ready while at least one of its copies is; it is Deleted when all of them are.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from caelum.cloud.image.api import IMAGE, ImageBackupStorageRefInventory, ImageInventory
from caelum.cloud.switch import ENABLED, switch
from caelum.kernel.database import Resource, Row, utcnow

STATES = switch("Image")

DOWNLOADING = "Downloading"
READY = "Ready"
DELETED = "Deleted"


class ImageBackupStorageRefModel(Row):
    """An image's copy on one backup storage."""

    __tablename__ = "image_backup_storage_ref"
    __steady__ = True
    __vo__ = "ImageBackupStorageRefVO"
    __inventory__ = ImageBackupStorageRefInventory
    __table_args__ = (UniqueConstraint("image_uuid", "backup_storage_uuid"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    image_uuid: Mapped[str] = mapped_column(ForeignKey("image.uuid", ondelete="CASCADE"))
    backup_storage_uuid: Mapped[str] = mapped_column(String(32), index=True)
    install_path: Mapped[str | None] = mapped_column(String(2048))
    status: Mapped[str] = mapped_column(String(32), default=DOWNLOADING)
    export_md5_sum: Mapped[str | None] = mapped_column(String(255))
    export_url: Mapped[str | None] = mapped_column(String(2048))
    create_date: Mapped[datetime] = mapped_column(default=utcnow)
    last_op_date: Mapped[datetime] = mapped_column(default=utcnow, onupdate=utcnow)


class ImageModel(Resource):
    """A template that volumes are cloned from, or an ISO."""

    __tablename__ = "image"
    __steady__ = True
    __vo__ = IMAGE
    __inventory__ = ImageInventory

    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(String(2048))
    state: Mapped[str] = mapped_column(String(32), default=ENABLED)
    status: Mapped[str] = mapped_column(String(32), default=DOWNLOADING)
    size: Mapped[int] = mapped_column(default=0)
    actual_size: Mapped[int] = mapped_column(default=0)
    md5_sum: Mapped[str | None] = mapped_column(String(255))
    sha256: Mapped[str | None] = mapped_column(String(64))
    url: Mapped[str] = mapped_column(String(1024))
    media_type: Mapped[str] = mapped_column(String(64))
    guest_os_type: Mapped[str | None] = mapped_column(String(255))
    type: Mapped[str] = mapped_column(String(64), default="zstack")
    platform: Mapped[str | None] = mapped_column(String(64))
    architecture: Mapped[str | None] = mapped_column(String(32))
    format: Mapped[str | None] = mapped_column(String(64))
    system: Mapped[bool] = mapped_column(default=False)
    virtio: Mapped[bool] = mapped_column(default=True)

    backup_storage_refs: Mapped[list[ImageBackupStorageRefModel]] = relationship(
        lazy="selectin", order_by=ImageBackupStorageRefModel.id, viewonly=True
    )
