"""Public operations on backup storages of every type. Adding one is each driver's own operation."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from caelum.kernel.message import (
    ApiMessage,
    ApiQuery,
    DeleteMessage,
    Expand,
    Inventory,
    Param,
    Reply,
    inventory,
    rest,
)

PACKAGE = "org.zstack.header.storage.backup"
BACKUP_STORAGE = "BackupStorageVO"
ZONE = "ZoneVO"


@inventory(
    PACKAGE,
    vo=BACKUP_STORAGE,
    expands=(
        Expand(
            field="zoneRef",
            inventory="BackupStorageZoneRefInventory",
            foreign_key="uuid",
            key="backupStorageUuid",
            hidden=True,
        ),
        Expand(
            field="imageRef",
            inventory="ImageBackupStorageRefInventory",
            foreign_key="uuid",
            key="backupStorageUuid",
            hidden=True,
        ),
    ),
    aliases=(("zone", "zoneRef.zone"), ("image", "imageRef.image")),
)
class BackupStorageInventory(Inventory, kw_only=True):
    """A store of images, and how full it is."""

    uuid: str
    name: str
    url: str
    description: str | None = None
    total_capacity: int | None = None
    available_capacity: int | None = None
    type: str
    state: str
    status: str
    create_date: datetime | None = None
    last_op_date: datetime | None = None
    attached_zone_uuids: list[str] = []


@inventory(
    PACKAGE,
    vo="BackupStorageZoneRefVO",
    expands=(
        Expand(field="zone", inventory="ZoneInventory", foreign_key="zoneUuid"),
        Expand(field="backupStorage", inventory="BackupStorageInventory", foreign_key="backupStorageUuid"),
    ),
)
class BackupStorageZoneRefInventory(Inventory, kw_only=True):
    """That a backup storage serves a zone."""

    id: int
    backup_storage_uuid: str
    zone_uuid: str
    create_date: datetime | None = None
    last_op_date: datetime | None = None


class BackupStorageCapacityReply(Reply, kw_only=True):
    """Sums over the backup storages asked for, in bytes."""

    total_capacity: int
    available_capacity: int
    success: bool = True


class BackupStorageTypesReply(Reply, kw_only=True):
    """The types that drivers offer."""

    types: list[str]


@rest(
    "POST /zones/{zoneUuid}/backup-storage/{backupStorageUuid}",
    package=PACKAGE,
    admin_only=True,
    route_by="backup_storage_uuid",
)
class AttachBackupStorageToZone(ApiMessage[BackupStorageInventory]):
    """Let a zone use the images of a backup storage."""

    zone_uuid: Annotated[str, Param(resource=ZONE)]
    backup_storage_uuid: Annotated[str, Param(resource=BACKUP_STORAGE)]


@rest(
    "DELETE /zones/{zoneUuid}/backup-storage/{backupStorageUuid}",
    package=PACKAGE,
    admin_only=True,
    route_by="backup_storage_uuid",
)
class DetachBackupStorageFromZone(ApiMessage[BackupStorageInventory]):
    """Take a backup storage from a zone."""

    backup_storage_uuid: Annotated[str, Param(resource=BACKUP_STORAGE)]
    zone_uuid: Annotated[str, Param(resource=ZONE)]


@rest("PUT /backup-storage/{uuid}/actions", package=PACKAGE, admin_only=True)
class UpdateBackupStorage(ApiMessage[BackupStorageInventory]):
    """Change a backup storage's name or description."""

    uuid: Annotated[str, Param(resource=BACKUP_STORAGE)]
    name: Annotated[str | None, Param(max_length=255)] = None
    description: Annotated[str | None, Param(max_length=2048)] = None


@rest("PUT /backup-storage/{uuid}/actions", package=PACKAGE, admin_only=True)
class ChangeBackupStorageState(ApiMessage[BackupStorageInventory]):
    """Enable or disable a backup storage. A disabled one takes and gives no images."""

    uuid: Annotated[str, Param(resource=BACKUP_STORAGE)]
    state_event: Annotated[str, Param(valid_values=("enable", "disable"))]


@rest("DELETE /backup-storage/{uuid}", package=PACKAGE, admin_only=True)
class DeleteBackupStorage(DeleteMessage[None]):
    """Delete a backup storage and the records of its images. The files stay where they are."""

    uuid: Annotated[str, Param()]


@rest("PUT /backup-storage/{uuid}/actions", package=PACKAGE, admin_only=True)
class ReconnectBackupStorage(ApiMessage[BackupStorageInventory]):
    """Connect to a backup storage again and read its capacity."""

    uuid: Annotated[str, Param(resource=BACKUP_STORAGE)]


@rest("GET /backup-storage", package=PACKAGE, also=("/backup-storage/{uuid}",))
class QueryBackupStorage(ApiQuery[BackupStorageInventory]):
    """Query backup storages."""


@rest("GET /backup-storage/capacities", package=PACKAGE, admin_only=True)
class GetBackupStorageCapacity(ApiMessage[BackupStorageCapacityReply]):
    """The capacity of the named backup storages, of those of zones, or of all."""

    zone_uuids: Annotated[list[str] | None, Param(resource=ZONE)] = None
    backup_storage_uuids: Annotated[list[str] | None, Param(resource=BACKUP_STORAGE)] = None
    all: Annotated[bool, Param()] = False


@rest("GET /backup-storage/types", package=PACKAGE, admin_only=True)
class GetBackupStorageTypes(ApiMessage[BackupStorageTypesReply]):
    """The types of backup storage that this cloud has drivers for."""
