"""Public operations that only local storage has."""

from __future__ import annotations

from typing import Annotated

import msgspec

from caelum.cloud.primary_storage.api import (
    LOCAL_PACKAGE,
    PRIMARY_STORAGE,
    LocalStorageResourceRefInventory,
    PrimaryStorageInventory,
)
from caelum.kernel.message import ApiMessage, ApiQuery, CreateMessage, Param, Reply, rest


class HostDiskCapacity(msgspec.Struct, rename="camel", kw_only=True):
    """One host's share, in bytes."""

    host_uuid: str
    total_capacity: int
    available_capacity: int
    total_physical_capacity: int
    available_physical_capacity: int


class HostDiskCapacitiesReply(Reply, kw_only=True):
    """The shares of the hosts of a local storage."""

    inventories: list[HostDiskCapacity]


@rest("POST /primary-storage/local-storage", package=LOCAL_PACKAGE, admin_only=True, tags_for=PRIMARY_STORAGE)
class AddLocalPrimaryStorage(CreateMessage[PrimaryStorageInventory]):
    """Add a primary storage that is the directory `url` on every host of the clusters it will be attached to."""

    url: Annotated[str, Param(max_length=2048)]
    name: Annotated[str, Param(max_length=255)]
    zone_uuid: Annotated[str, Param(resource="ZoneVO")]
    description: Annotated[str | None, Param(max_length=2048)] = None
    type: Annotated[str | None, Param()] = None


@rest("GET /primary-storage/local-storage/{primaryStorageUuid}/capacities", package=LOCAL_PACKAGE, admin_only=True)
class GetLocalStorageHostDiskCapacity(ApiMessage[HostDiskCapacitiesReply]):
    """The capacity of a local storage on each of its hosts, or on one."""

    primary_storage_uuid: Annotated[str, Param(resource=PRIMARY_STORAGE)]
    host_uuid: Annotated[str | None, Param(resource="HostVO")] = None


@rest("GET /primary-storage/local-storage/resource-refs", package=LOCAL_PACKAGE)
class QueryLocalStorageResourceRef(ApiQuery[LocalStorageResourceRefInventory]):
    """Query which host holds which volume."""
