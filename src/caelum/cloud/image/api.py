"""Public operations on images."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from caelum.cloud.backup_storage.api import BackupStorageInventory
from caelum.kernel.message import (
    ApiMessage,
    ApiQuery,
    CreateMessage,
    DeleteMessage,
    Expand,
    Inventory,
    Param,
    inventory,
    rest,
)

PACKAGE = "org.zstack.header.image"
IMAGE = "ImageVO"
BACKUP_STORAGE = "BackupStorageVO"
MEDIA_TYPES = ("RootVolumeTemplate", "ISO", "DataVolumeTemplate")
PLATFORMS = ("Linux", "Windows", "Other", "Paravirtualization", "WindowsVirtio")
ARCHITECTURES = ("x86_64", "aarch64", "mips64el", "loongarch64")


@inventory(
    PACKAGE,
    vo="ImageBackupStorageRefVO",
    expands=(
        Expand(field="image", inventory="ImageInventory", foreign_key="imageUuid"),
        Expand(field="backupStorage", inventory="BackupStorageInventory", foreign_key="backupStorageUuid"),
    ),
)
class ImageBackupStorageRefInventory(Inventory, kw_only=True):
    """An image's copy on one backup storage."""

    image_uuid: str
    backup_storage_uuid: str
    install_path: str | None = None
    status: str
    export_md5_sum: str | None = None
    export_url: str | None = None
    create_date: datetime | None = None
    last_op_date: datetime | None = None


@inventory(
    PACKAGE,
    vo=IMAGE,
    expands=(
        Expand(
            field="backupStorageRef",
            inventory="ImageBackupStorageRefInventory",
            foreign_key="uuid",
            key="imageUuid",
            hidden=True,
        ),
        Expand(field="volume", inventory="VolumeInventory", foreign_key="uuid", key="rootImageUuid"),
    ),
    aliases=(("backupStorage", "backupStorageRef.backupStorage"),),
)
class ImageInventory(Inventory, kw_only=True):
    """A template that volumes are cloned from, or an ISO. `size` is what a guest sees, `actual_size` the file."""

    uuid: str
    name: str
    description: str | None = None
    state: str
    status: str
    size: int | None = None
    actual_size: int | None = None
    md5_sum: str | None = None
    url: str
    media_type: str
    guest_os_type: str | None = None
    type: str
    platform: str | None = None
    architecture: str | None = None
    format: str | None = None
    system: bool = False
    virtio: bool | None = None
    create_date: datetime | None = None
    last_op_date: datetime | None = None
    backup_storage_refs: list[ImageBackupStorageRefInventory] = []
    system_tags: list[Any] | None = None


@rest("POST /images", package=PACKAGE, tags_for=IMAGE, timeout=259200.0)
class AddImage(CreateMessage[ImageInventory]):
    """Fetch an image from a URL into backup storages. It is Ready when at least one of them has it.

    `http`, `https`, and for administrators `file` URLs below the directories that setting
    `image/download.localPath.whitelist` allows. What the file is, is read from its header, never guessed.
    """

    name: Annotated[str, Param(max_length=255)]
    url: Annotated[str, Param(max_length=1024)]
    backup_storage_uuids: Annotated[list[str], Param(nonempty=True, resource=BACKUP_STORAGE, no_owner_check=True)]
    description: Annotated[str | None, Param(max_length=2048)] = None
    media_type: Annotated[str | None, Param(valid_values=MEDIA_TYPES)] = None
    guest_os_type: Annotated[str | None, Param(max_length=255)] = None
    architecture: Annotated[str | None, Param(max_length=32, valid_values=ARCHITECTURES)] = None
    system: Annotated[bool, Param()] = False
    format: Annotated[str | None, Param()] = None
    platform: Annotated[str | None, Param(valid_values=PLATFORMS)] = None
    type: Annotated[str | None, Param()] = None
    virtio: Annotated[bool, Param()] = True


@rest("DELETE /images/{uuid}", package=PACKAGE)
class DeleteImage(DeleteMessage[None]):
    """Delete an image, from the named backup storages or from all. Policy Delay keeps the files until the expunging."""

    uuid: Annotated[str, Param(resource=IMAGE, check_account=True, target=True, success_if_missing=True)]
    backup_storage_uuids: Annotated[list[str] | None, Param(nonempty=True, resource=BACKUP_STORAGE)] = None


@rest("PUT /images/{imageUuid}/actions", package=PACKAGE, route_by="image_uuid")
class ExpungeImage(ApiMessage[None], kw_only=True):
    """Delete the files of a deleted image for good."""

    uuid: Annotated[str | None, Param(resource=IMAGE, check_account=True, target=True)] = None
    """Ignored: the path names the image."""
    image_uuid: Annotated[str, Param(resource=IMAGE, check_account=True, target=True)]
    backup_storage_uuids: Annotated[list[str] | None, Param(nonempty=True, resource=BACKUP_STORAGE)] = None


@rest("PUT /images/{imageUuid}/actions", package=PACKAGE, route_by="image_uuid")
class RecoverImage(ApiMessage[ImageInventory]):
    """Take back the deletion of an image."""

    image_uuid: Annotated[str, Param(resource=IMAGE, check_account=True, target=True)]
    backup_storage_uuids: Annotated[list[str] | None, Param()] = None


@rest("PUT /images/{uuid}/actions", package=PACKAGE)
class UpdateImage(ApiMessage[ImageInventory]):
    """Change what is said about an image."""

    uuid: Annotated[str, Param(resource=IMAGE, check_account=True, target=True)]
    name: Annotated[str | None, Param(max_length=255)] = None
    description: Annotated[str | None, Param(max_length=2048)] = None
    guest_os_type: Annotated[str | None, Param(max_length=255)] = None
    media_type: Annotated[
        str | None, Param(max_length=255, valid_values=("RootVolumeTemplate", "DataVolumeTemplate", "ISO"))
    ] = None
    format: Annotated[str | None, Param(max_length=255, valid_values=("raw", "qcow2", "iso"))] = None
    system: Annotated[bool | None, Param()] = None
    platform: Annotated[str | None, Param(valid_values=PLATFORMS)] = None
    architecture: Annotated[str | None, Param(max_length=32, valid_values=ARCHITECTURES)] = None
    virtio: Annotated[bool | None, Param()] = None


@rest("PUT /images/{uuid}/actions", package=PACKAGE)
class ChangeImageState(ApiMessage[ImageInventory]):
    """Enable or disable an image. A disabled one refuses new volumes."""

    uuid: Annotated[str, Param(resource=IMAGE, check_account=True, target=True)]
    state_event: Annotated[str, Param(valid_values=("enable", "disable"))]


@rest("PUT /images/{uuid}/actions", package=PACKAGE)
class SyncImageSize(ApiMessage[ImageInventory]):
    """Read an image's file size from its backup storage."""

    uuid: Annotated[str, Param(resource=IMAGE, check_account=True, target=True)]


@rest("GET /images", package=PACKAGE, also=("/images/{uuid}",))
class QueryImage(ApiQuery[ImageInventory]):
    """Query images."""


@rest(
    "GET /images/candidate-backup-storage",
    package=PACKAGE,
    also=(
        "/images/volumes/{volumeUuid}/candidate-backup-storage",
        "/images/volume-snapshots/{volumeSnapshotUuid}/candidate-backup-storage",
    ),
)
class GetCandidateBackupStorageForCreatingImage(ApiMessage[list[BackupStorageInventory]]):
    """The backup storages that could take an image made of a volume."""

    volume_uuid: Annotated[str | None, Param(resource="VolumeVO")] = None
    volume_snapshot_uuid: Annotated[str | None, Param(resource="VolumeSnapshotVO")] = None
