"""News of backup storages."""

from __future__ import annotations

from caelum.cloud.backup_storage.api import BackupStorageInventory
from caelum.kernel.errors import ErrorCode
from caelum.kernel.events import CanonicalEvent, canonical


@canonical("/backup-storage/status/change")
class BackupStorageStatusChanged(CanonicalEvent):
    """A backup storage became reachable, or is no longer."""

    backup_storage_uuid: str
    old_status: str
    new_status: str
    inventory: BackupStorageInventory


@canonical("/backup-storage/disconnected")
class BackupStorageDisconnected(CanonicalEvent):
    """A backup storage cannot be reached any more."""

    backup_storage_uuid: str
    reason: ErrorCode | None = None
