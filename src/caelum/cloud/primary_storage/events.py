"""News of primary storages."""

from __future__ import annotations

from caelum.cloud.primary_storage.api import PrimaryStorageInventory
from caelum.kernel.errors import ErrorCode
from caelum.kernel.events import CanonicalEvent, canonical


@canonical("/primaryStorage/delete")
class PrimaryStorageDeleted(CanonicalEvent):
    """A primary storage is gone."""

    primary_storage_uuid: str
    inventory: PrimaryStorageInventory


@canonical("/primaryStorage/status/change")
class PrimaryStorageStatusChanged(CanonicalEvent):
    """A primary storage became reachable, or is no longer."""

    primary_storage_uuid: str
    old_status: str
    new_status: str
    inventory: PrimaryStorageInventory


@canonical("/primaryStorage/state/change")
class PrimaryStorageStateChanged(CanonicalEvent):
    """A primary storage was enabled, disabled or put into maintenance."""

    primary_storage_uuid: str
    old_state: str
    new_state: str
    inventory: PrimaryStorageInventory


@canonical("/primaryStorage/host/status/change")
class PrimaryStorageHostStatusChanged(CanonicalEvent):
    """A host gained or lost its access to a primary storage."""

    primary_storage_uuid: str
    host_uuid: str
    new_status: str
    old_status: str | None = None
    reason: ErrorCode | None = None


@canonical("/primaryStorage/disconnected")
class PrimaryStorageDisconnected(CanonicalEvent):
    """No host reaches a primary storage any more."""

    primary_storage_uuid: str
    reason: ErrorCode | None = None
