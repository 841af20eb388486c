"""Public operations on primary storages of every type. Adding one is each driver's own operation."""

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

PACKAGE = "org.zstack.header.storage.primary"
LOCAL_PACKAGE = "org.zstack.storage.primary.local"
PRIMARY_STORAGE = "PrimaryStorageVO"
CLUSTER = "ClusterVO"
ZONE = "ZoneVO"


@inventory(
    PACKAGE,
    vo=PRIMARY_STORAGE,
    expands=(
        Expand(field="zone", inventory="ZoneInventory", foreign_key="zoneUuid"),
        Expand(field="volume", inventory="VolumeInventory", foreign_key="uuid", key="primaryStorageUuid"),
        Expand(
            field="volumeSnapshot", inventory="VolumeSnapshotInventory", foreign_key="uuid", key="primaryStorageUuid"
        ),
        Expand(
            field="clusterRef",
            inventory="PrimaryStorageClusterRefInventory",
            foreign_key="uuid",
            key="primaryStorageUuid",
            hidden=True,
        ),
    ),
    aliases=(("cluster", "clusterRef.cluster"),),
)
class PrimaryStorageInventory(Inventory, kw_only=True):
    """A store of volumes, and how full it is. `available_capacity` counts promises, the physical ones bytes."""

    uuid: str
    zone_uuid: str
    name: str
    url: str
    description: str | None = None
    total_capacity: int | None = None
    available_capacity: int | None = None
    total_physical_capacity: int | None = None
    available_physical_capacity: int | None = None
    system_used_capacity: int | None = None
    type: str
    state: str
    status: str
    mount_path: str | None = None
    create_date: datetime | None = None
    last_op_date: datetime | None = None
    attached_cluster_uuids: list[str] = []


@inventory(
    PACKAGE,
    vo="PrimaryStorageClusterRefVO",
    expands=(
        Expand(field="cluster", inventory="ClusterInventory", foreign_key="clusterUuid"),
        Expand(field="primaryStorage", inventory="PrimaryStorageInventory", foreign_key="primaryStorageUuid"),
    ),
)
class PrimaryStorageClusterRefInventory(Inventory, kw_only=True):
    """That a primary storage serves a cluster."""

    id: int
    cluster_uuid: str
    primary_storage_uuid: str
    create_date: datetime | None = None
    last_op_date: datetime | None = None


@inventory(PACKAGE, vo="ImageCacheVO")
class ImageCacheInventory(Inventory, kw_only=True):
    """A copy of an image on a primary storage, from which volumes are cloned."""

    id: int
    primary_storage_uuid: str
    image_uuid: str | None = None
    install_url: str
    media_type: str
    size: int
    md5sum: str | None = None
    state: str | None = None
    create_date: datetime | None = None
    last_op_date: datetime | None = None


@inventory(
    LOCAL_PACKAGE,
    vo="LocalStorageHostRefVO",
    expands=(
        Expand(field="host", inventory="HostInventory", foreign_key="hostUuid"),
        Expand(field="primaryStorage", inventory="PrimaryStorageInventory", foreign_key="primaryStorageUuid"),
    ),
)
class LocalStorageHostRefInventory(Inventory, kw_only=True):
    """One host's share of a host-bound primary storage."""

    primary_storage_uuid: str
    host_uuid: str
    total_capacity: int
    available_capacity: int
    total_physical_capacity: int
    available_physical_capacity: int
    create_date: datetime | None = None
    last_op_date: datetime | None = None


@inventory(
    LOCAL_PACKAGE,
    vo="LocalStorageResourceRefVO",
    expands=(
        Expand(field="volume", inventory="VolumeInventory", foreign_key="resourceUuid"),
        Expand(field="image", inventory="ImageInventory", foreign_key="resourceUuid"),
        Expand(field="snapshot", inventory="VolumeSnapshotInventory", foreign_key="resourceUuid"),
    ),
)
class LocalStorageResourceRefInventory(Inventory, kw_only=True):
    """Which host holds the bits of a resource on a host-bound primary storage."""

    resource_uuid: str
    primary_storage_uuid: str
    host_uuid: str
    size: int
    resource_type: str
    create_date: datetime | None = None
    last_op_date: datetime | None = None


class PrimaryStorageCapacityReply(Reply, kw_only=True):
    """Sums over the primary storages asked for, in bytes."""

    total_capacity: int
    available_capacity: int
    total_physical_capacity: int
    available_physical_capacity: int
    success: bool = True


class PrimaryStorageTypesReply(Reply, kw_only=True):
    """The types that drivers offer."""

    types: list[str]


class AllocatorStrategiesReply(Reply, kw_only=True):
    """The names of the allocation strategies."""

    strategies: list[str]


@rest(
    "POST /clusters/{clusterUuid}/primary-storage/{primaryStorageUuid}",
    package=PACKAGE,
    admin_only=True,
    route_by="primary_storage_uuid",
)
class AttachPrimaryStorageToCluster(ApiMessage[PrimaryStorageInventory]):
    """Let the hosts of a cluster use a primary storage; it is prepared on each connected host."""

    cluster_uuid: Annotated[str, Param(resource=CLUSTER)]
    primary_storage_uuid: Annotated[str, Param(resource=PRIMARY_STORAGE)]


@rest(
    "DELETE /clusters/{clusterUuid}/primary-storage/{primaryStorageUuid}",
    package=PACKAGE,
    admin_only=True,
    route_by="primary_storage_uuid",
)
class DetachPrimaryStorageFromCluster(ApiMessage[PrimaryStorageInventory]):
    """Take a primary storage from a cluster. Running virtual machines on it are stopped first."""

    primary_storage_uuid: Annotated[str, Param(resource=PRIMARY_STORAGE)]
    cluster_uuid: Annotated[str, Param(resource=CLUSTER)]


@rest("PUT /primary-storage/{uuid}/actions", package=PACKAGE, admin_only=True)
class UpdatePrimaryStorage(ApiMessage[PrimaryStorageInventory]):
    """Change a primary storage's name or description, or, while no cluster uses it, its URL."""

    uuid: Annotated[str, Param(resource=PRIMARY_STORAGE)]
    name: Annotated[str | None, Param(max_length=255)] = None
    description: Annotated[str | None, Param(max_length=2048)] = None
    url: Annotated[str | None, Param(max_length=2048)] = None


@rest("PUT /primary-storage/{uuid}/actions", package=PACKAGE, admin_only=True)
class ChangePrimaryStorageState(ApiMessage[PrimaryStorageInventory]):
    """Enable a primary storage, disable it for new volumes, or put it into maintenance."""

    uuid: Annotated[str, Param(resource=PRIMARY_STORAGE)]
    state_event: Annotated[str, Param(valid_values=("enable", "disable", "maintain", "deleting"))]


@rest("DELETE /primary-storage/{uuid}", package=PACKAGE, admin_only=True)
class DeletePrimaryStorage(DeleteMessage[None]):
    """Delete a primary storage that no cluster uses. The bits on it are left where they are."""

    uuid: Annotated[str, Param()]


@rest("PUT /primary-storage/{uuid}/actions", package=PACKAGE, admin_only=True)
class ReconnectPrimaryStorage(ApiMessage[PrimaryStorageInventory]):
    """Prepare a primary storage again on every connected host and read its capacity."""

    uuid: Annotated[str, Param(resource=PRIMARY_STORAGE)]


@rest("GET /primary-storage", package=PACKAGE, also=("/primary-storage/{uuid}",))
class QueryPrimaryStorage(ApiQuery[PrimaryStorageInventory]):
    """Query primary storages."""


@rest("GET /primary-storage/capacities", package=PACKAGE, admin_only=True)
class GetPrimaryStorageCapacity(ApiMessage[PrimaryStorageCapacityReply]):
    """The capacity of the named primary storages, of those of zones or clusters, or of all."""

    zone_uuids: Annotated[list[str] | None, Param(resource=ZONE)] = None
    cluster_uuids: Annotated[list[str] | None, Param(resource=CLUSTER)] = None
    primary_storage_uuids: Annotated[list[str] | None, Param(resource=PRIMARY_STORAGE)] = None
    all: Annotated[bool, Param()] = False


@rest("GET /primary-storage/types", package=PACKAGE, admin_only=True)
class GetPrimaryStorageTypes(ApiMessage[PrimaryStorageTypesReply]):
    """The types of primary storage that this cloud has drivers for."""


@rest("GET /primary-storage/allocators/strategies", package=PACKAGE, admin_only=True)
class GetPrimaryStorageAllocatorStrategies(ApiMessage[AllocatorStrategiesReply]):
    """The strategies that choose among primary storages."""


@rest(
    "PUT /primary-storage/{primaryStorageUuid}/actions",
    package=PACKAGE,
    admin_only=True,
    route_by="primary_storage_uuid",
)
class SyncPrimaryStorageCapacity(ApiMessage[PrimaryStorageInventory]):
    """Read the physical capacity again and derive the available one from what is stored."""

    primary_storage_uuid: Annotated[str, Param(resource=PRIMARY_STORAGE)]


@rest("GET /primary-storage/imagecache", package=PACKAGE, admin_only=True)
class QueryImageCache(ApiQuery[ImageCacheInventory]):
    """Query cached images."""


@rest("PUT /primary-storage/{uuid}/actions", package=PACKAGE, admin_only=True)
class CleanUpImageCacheOnPrimaryStorage(ApiMessage[None]):
    """Delete cached images that no volume is cloned from and whose image is gone; with `force` all without clones."""

    uuid: Annotated[str, Param(resource=PRIMARY_STORAGE)]
    force: Annotated[bool, Param()] = False
