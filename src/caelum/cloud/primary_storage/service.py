"""The primary storage service: the public operations.

Invariant: operations that change a storage itself run in its queue; those on its contents (`contents.py`) do not wait
for them.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select

from caelum.cloud.cluster.messages import GetCluster
from caelum.cloud.primary_storage import (
    tags,  # noqa: F401 - declares the tags
)
from caelum.cloud.primary_storage.api import (
    PRIMARY_STORAGE,
    AllocatorStrategiesReply,
    AttachPrimaryStorageToCluster,
    ChangePrimaryStorageState,
    CleanUpImageCacheOnPrimaryStorage,
    DeletePrimaryStorage,
    DetachPrimaryStorageFromCluster,
    GetPrimaryStorageAllocatorStrategies,
    GetPrimaryStorageCapacity,
    GetPrimaryStorageTypes,
    PrimaryStorageCapacityReply,
    PrimaryStorageInventory,
    PrimaryStorageTypesReply,
    ReconnectPrimaryStorage,
    SyncPrimaryStorageCapacity,
    UpdatePrimaryStorage,
)
from caelum.cloud.primary_storage.cache import ImageCache
from caelum.cloud.primary_storage.cascade import PrimaryStorageCascade, StorageOfClusterCascade
from caelum.cloud.primary_storage.contents import StorageContentsService
from caelum.cloud.primary_storage.errors import ATTACH_ERROR, DETACH_ERROR, DISCONNECTED
from caelum.cloud.primary_storage.events import PrimaryStorageStateChanged
from caelum.cloud.primary_storage.extension import PrimaryStorageDriver
from caelum.cloud.primary_storage.flows import (
    AddStorageContext,
    AddStorageFlow,
    AttachContext,
    AttachFlow,
    DetachFlow,
    on_hosts,
)
from caelum.cloud.primary_storage.hosts import HostShareCascade, NoteLostHost, PrepareStorageOnConnect
from caelum.cloud.primary_storage.messages import AddPrimaryStorage, GetPrimaryStorage
from caelum.cloud.primary_storage.model import (
    CONNECTED,
    STATES,
    PrimaryStorageCapacityModel,
    PrimaryStorageClusterRefModel,
    PrimaryStorageModel,
)
from caelum.cloud.primary_storage.settings import CACHE_GC_INTERVAL, CAPACITY_REFRESH
from caelum.cloud.primary_storage.storages import Storages, get
from caelum.cloud.primary_storage.trash import Trash
from caelum.kernel.errors import CloudError, invalid
from caelum.kernel.node import Node
from caelum.kernel.service import handles, intercepts

STRATEGIES = ["DefaultPrimaryStorageAllocationStrategy"]


class PrimaryStorageService(StorageContentsService):
    """Owns primary storages, their capacity and their image cache."""

    name = "primary_storage"

    def __init__(self, node: Node) -> None:
        storages = Storages(node)
        trash = Trash(node, storages)
        super().__init__(node, storages, trash, ImageCache(node, storages, trash))
        for extension in (
            PrepareStorageOnConnect(storages),
            NoteLostHost(storages),
            HostShareCascade(node, storages),
            PrimaryStorageCascade(node, storages),
            StorageOfClusterCascade(node),
        ):
            node.extensions.add(extension)

    async def start(self) -> None:
        self.node.timers.every(CAPACITY_REFRESH, self.refresh_capacities, name="primary-storage.capacity")
        self.node.timers.every(CACHE_GC_INTERVAL, self.clean_caches, name="primary-storage.image-cache")

    # --- life ---------------------------------------------------------------------------------------------------------

    @handles(AddPrimaryStorage, queue="primary-storage-{uuid}")
    async def add(self, msg: AddPrimaryStorage) -> PrimaryStorageInventory:
        driver = self.node.drivers.get(PrimaryStorageDriver, msg.type)
        driver.check_url(msg.url)
        await self._refuse_same(msg)
        ctx = AddStorageContext(
            uuid=msg.uuid,
            type=msg.type,
            name=msg.name,
            url=msg.url,
            zone_uuid=msg.zone_uuid,
            description=msg.description,
            system_tags=msg.system_tags,
            user_tags=msg.user_tags,
            tag_uuids=msg.tag_uuids,
        )
        return await self.node.workflows.run(AddStorageFlow, ctx, answers=True)

    async def _refuse_same(self, msg: AddPrimaryStorage) -> None:
        row = PrimaryStorageModel
        query = select(row.uuid).where(row.type == msg.type, row.url == msg.url, row.zone_uuid == msg.zone_uuid)
        async with self.node.db.read() as session:
            known = await session.scalar(query)
        if known is not None:
            raise invalid(
                "url", f"primary storage[uuid:{known}] of this zone has the url[{msg.url}] already", uuid=known
            )

    @handles(UpdatePrimaryStorage, queue="primary-storage-{uuid}")
    async def update(self, msg: UpdatePrimaryStorage) -> PrimaryStorageInventory:
        async with self.node.db.transaction() as tx:
            row = await get(tx, msg.uuid)
            if msg.url is not None and msg.url != row.url:
                self._check_new_url(row, msg.url)
                row.url = msg.url
            row.name = msg.name if msg.name is not None else row.name
            row.description = msg.description if msg.description is not None else row.description
        return await self.storages.find(msg.uuid)

    def _check_new_url(self, row: PrimaryStorageModel, url: str) -> None:
        if row.cluster_refs:
            clusters = len(row.cluster_refs)
            raise invalid("url", f"it cannot change while {clusters} clusters use the storage; detach them first")
        self.storages.driver(row).check_url(url)

    @handles(ChangePrimaryStorageState, queue="primary-storage-{uuid}")
    async def change_state(self, msg: ChangePrimaryStorageState) -> PrimaryStorageInventory:
        async with self.node.db.transaction() as tx:
            row = await get(tx, msg.uuid)
            old, row.state = row.state, STATES.next(row.state, msg.state_event)
            new = row.state
        inventory = await self.storages.find(msg.uuid)
        if old != new:
            changed = PrimaryStorageStateChanged(
                primary_storage_uuid=msg.uuid, old_state=old, new_state=new, inventory=inventory
            )
            self.node.bus.publish(changed)
        return inventory

    @intercepts(DeletePrimaryStorage)
    async def check_delete(self, msg: DeletePrimaryStorage) -> None:
        async with self.node.db.read() as session:
            row = await session.get(PrimaryStorageModel, msg.uuid)
        if row is not None and row.cluster_refs:
            clusters = [one.cluster_uuid for one in row.cluster_refs]
            raise invalid("uuid", f"primary storage[uuid:{msg.uuid}] is still attached to clusters{clusters}")

    @handles(DeletePrimaryStorage, queue="primary-storage-{uuid}")
    async def delete(self, msg: DeletePrimaryStorage) -> None:
        await self.node.cascade.delete(PRIMARY_STORAGE, [msg.uuid], msg.delete_mode)

    # --- clusters -----------------------------------------------------------------------------------------------------

    @handles(AttachPrimaryStorageToCluster, queue="primary-storage-{primary_storage_uuid}", repeatable=True)
    async def attach(self, msg: AttachPrimaryStorageToCluster) -> PrimaryStorageInventory:
        ps = await self.storages.find(msg.primary_storage_uuid)
        cluster = await self.node.bus.call(GetCluster(cluster_uuid=msg.cluster_uuid))
        if cluster.zone_uuid != ps.zone_uuid:
            raise CloudError(
                ATTACH_ERROR,
                f"primary storage[uuid:{ps.uuid}] is in zone[uuid:{ps.zone_uuid}], cluster[uuid:{cluster.uuid}] is in"
                f" zone[uuid:{cluster.zone_uuid}]",
            )
        return await self.node.workflows.run(AttachFlow, AttachContext(ps.uuid, cluster.uuid), answers=True)

    @handles(DetachPrimaryStorageFromCluster, queue="primary-storage-{primary_storage_uuid}", repeatable=True)
    async def detach(self, msg: DetachPrimaryStorageFromCluster) -> PrimaryStorageInventory:
        ps = await self.storages.find(msg.primary_storage_uuid)
        if msg.cluster_uuid not in ps.attached_cluster_uuids:
            raise CloudError(
                DETACH_ERROR, f"primary storage[uuid:{ps.uuid}] is not attached to cluster[uuid:{msg.cluster_uuid}]"
            )
        return await self.node.workflows.run(DetachFlow, AttachContext(ps.uuid, msg.cluster_uuid), answers=True)

    @handles(ReconnectPrimaryStorage, queue="primary-storage-{uuid}")
    async def reconnect(self, msg: ReconnectPrimaryStorage) -> PrimaryStorageInventory:
        ps = await self.storages.find(msg.uuid)
        hosts = await self.connected_hosts(ps)
        errors = await on_hosts(hosts, lambda host_uuid: self.storages.connect(ps, host_uuid))
        if hosts and len(errors) == len(hosts):
            first = next(iter(errors.values()))
            raise CloudError(
                DISCONNECTED,
                f"none of {len(hosts)} hosts reaches primary storage[uuid:{ps.uuid}]: {first.details}",
                cause=first,
                causes=list(errors.values()),
            )
        return await self._connected(ps.uuid)

    async def _connected(self, uuid: str) -> PrimaryStorageInventory:
        async with self.node.db.transaction() as tx:
            await self.storages.set_status(tx, await get(tx, uuid), CONNECTED)
        return await self.storages.find(uuid)

    # --- capacity -----------------------------------------------------------------------------------------------------

    @handles(SyncPrimaryStorageCapacity, queue="primary-storage-{primary_storage_uuid}")
    async def sync_capacity(self, msg: SyncPrimaryStorageCapacity) -> PrimaryStorageInventory:
        ps = await self.storages.find(msg.primary_storage_uuid)
        errors = await self._refresh(ps)
        if errors:
            host_uuid, first = next(iter(errors.items()))
            raise CloudError(
                DISCONNECTED,
                f"{len(errors)} hosts did not tell their capacity; host[uuid:{host_uuid}]: {first.details}",
                causes=list(errors.values()),
            )
        return await self.storages.find(ps.uuid)

    async def _refresh(self, ps: PrimaryStorageInventory) -> dict[str, CloudError]:
        hosts = await self.storages.hosts_of(ps.uuid, CONNECTED)
        return await on_hosts(hosts, lambda host_uuid: self.storages.refresh(ps, host_uuid))

    async def refresh_capacities(self) -> None:
        """Read the physical capacity of every storage that this node serves. A host that fails is the host's affair."""
        for ps in await self._mine():
            await self._refresh(ps)

    async def clean_caches(self) -> None:
        """Delete cached images that nobody needs."""
        for ps in await self._mine():
            await self.cache.clean(ps)

    async def _mine(self) -> list[PrimaryStorageInventory]:
        async with self.node.db.read() as session:
            uuids = (await session.scalars(select(PrimaryStorageModel.uuid))).all()
        return [await self.storages.find(uuid) for uuid in uuids if self.node.ring.owns(uuid)]

    @handles(CleanUpImageCacheOnPrimaryStorage)
    async def clean_cache(self, msg: CleanUpImageCacheOnPrimaryStorage) -> None:
        await self.cache.clean(await self.storages.find(msg.uuid), msg.force)

    @handles(GetPrimaryStorageCapacity)
    async def get_capacity(self, msg: GetPrimaryStorageCapacity) -> PrimaryStorageCapacityReply:
        if not (msg.all or msg.zone_uuids or msg.cluster_uuids or msg.primary_storage_uuids):
            raise invalid("primaryStorageUuids", "name primary storages, zones or clusters, or say all=true")
        row, capacity = PrimaryStorageModel, PrimaryStorageCapacityModel
        ref = PrimaryStorageClusterRefModel
        query: Any = select(
            func.sum(capacity.total_capacity),
            func.sum(capacity.available_capacity),
            func.sum(capacity.total_physical_capacity),
            func.sum(capacity.available_physical_capacity),
        ).where(capacity.uuid == row.uuid)
        if msg.primary_storage_uuids:
            query = query.where(row.uuid.in_(msg.primary_storage_uuids))
        if msg.zone_uuids:
            query = query.where(row.zone_uuid.in_(msg.zone_uuids))
        if msg.cluster_uuids:
            attached = select(ref.primary_storage_uuid).where(ref.cluster_uuid.in_(msg.cluster_uuids))
            query = query.where(row.uuid.in_(attached))
        async with self.node.db.read() as session:
            total, available, physical, free = (await session.execute(query)).one()
        return PrimaryStorageCapacityReply(
            total_capacity=total or 0,
            available_capacity=available or 0,
            total_physical_capacity=physical or 0,
            available_physical_capacity=free or 0,
        )

    @handles(GetPrimaryStorageTypes)
    async def get_types(self, _msg: GetPrimaryStorageTypes) -> PrimaryStorageTypesReply:
        return PrimaryStorageTypesReply(types=self.node.drivers.types(PrimaryStorageDriver))

    @handles(GetPrimaryStorageAllocatorStrategies)
    async def get_strategies(self, _msg: GetPrimaryStorageAllocatorStrategies) -> AllocatorStrategiesReply:
        return AllocatorStrategiesReply(strategies=STRATEGIES)

    @handles(GetPrimaryStorage)
    async def get_one(self, msg: GetPrimaryStorage) -> PrimaryStorageInventory:
        return await self.storages.find(msg.uuid)
