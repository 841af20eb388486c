"""What other services ask of backup storages. Every message may be repeated."""

from __future__ import annotations

import msgspec

from caelum.cloud.backup_storage.api import BackupStorageInventory
from caelum.cloud.backup_storage.extension import StoredImage
from caelum.kernel.message import Message, Reply, message


class BackupStoragesReply(Reply, kw_only=True):
    """Backup storages."""

    storages: list[BackupStorageInventory]


class ImageUrl(msgspec.Struct, frozen=True, rename="camel"):
    """Where hosts fetch an image."""

    url: str


class ImageFileSize(msgspec.Struct, frozen=True, rename="camel"):
    """An image file's true size."""

    actual_size: int


class BackupFiles(msgspec.Struct, frozen=True, rename="camel"):
    """The files on a backup storage, by their install paths."""

    files: list[str]


@message(route_by="uuid")
class AddBackupStorage(Message[BackupStorageInventory]):
    """Add a storage of a driver's type. Drivers send it from their own public operation."""

    uuid: str
    type: str
    name: str
    url: str
    description: str | None = None
    system_tags: list[str] | None = None
    user_tags: list[str] | None = None
    tag_uuids: list[str] | None = None


@message()
class GetBackupStorage(Message[BackupStorageInventory]):
    """One backup storage."""

    uuid: str


@message()
class FindBackupStorages(Message[BackupStoragesReply]):
    """Enabled, connected backup storages, with most room first: of a zone, with room for `size`, among `uuids`."""

    zone_uuid: str | None = None
    size: int = 0
    uuids: list[str] | None = None


@message(route_by="backup_storage_uuid")
class CheckImageSource(Message[None]):
    """Refuse at once what a later `StoreImage` would refuse: storage not ready, or a URL that may not be fetched."""

    backup_storage_uuid: str
    url: str
    is_admin: bool


@message(route_by="backup_storage_uuid", timeout=259200.0)
class StoreImage(Message[StoredImage]):
    """Fetch an image into a backup storage, with its space reserved. Progress goes to the job of the caller."""

    backup_storage_uuid: str
    image_uuid: str
    account_uuid: str
    url: str
    media_type: str
    format: str | None = None


@message(route_by="backup_storage_uuid")
class DeleteImageFile(Message[None]):
    """Delete an image's file and give its space back; the garbage collector does it when the storage is away."""

    backup_storage_uuid: str
    image_uuid: str
    install_path: str | None = None


@message(route_by="backup_storage_uuid")
class GetImageUrl(Message[ImageUrl]):
    """Where hosts fetch an image of this storage."""

    backup_storage_uuid: str
    install_path: str


@message(route_by="backup_storage_uuid")
class GetImageFileSize(Message[ImageFileSize]):
    """The true size of an image's file."""

    backup_storage_uuid: str
    install_path: str


@message(route_by="backup_storage_uuid", timeout=120)
class ListBackupFiles(Message[BackupFiles]):
    """Every file on a backup storage, whether an image is known for it or not."""

    backup_storage_uuid: str
