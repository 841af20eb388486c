"""What the deletion of zones and clusters means for primary storages, and theirs for what is on them."""

from __future__ import annotations

from sqlalchemy import delete, select

from caelum.cloud.primary_storage.api import PRIMARY_STORAGE
from caelum.cloud.primary_storage.events import PrimaryStorageDeleted
from caelum.cloud.primary_storage.extension import PrimaryStorageBeforeDelete
from caelum.cloud.primary_storage.flows import on_hosts, remove_storage
from caelum.cloud.primary_storage.model import PrimaryStorageClusterRefModel, PrimaryStorageModel
from caelum.cloud.primary_storage.storages import Storages
from caelum.kernel.cascade import CascadeExtension
from caelum.kernel.database import after_commit
from caelum.kernel.node import Node
from caelum.kernel.views import view


class PrimaryStorageCascade(CascadeExtension):
    """Deletes primary storages, alone or with their zone. The directories on the hosts stay as they are."""

    resource = PRIMARY_STORAGE
    parents = ("ZoneVO",)

    def __init__(self, node: Node, storages: Storages) -> None:
        self._node, self._storages = node, storages

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:
        query = select(PrimaryStorageModel.uuid).where(PrimaryStorageModel.zone_uuid.in_(uuids))
        async with self._node.db.read() as session:
            return list((await session.scalars(query)).all())

    async def check(self, uuids: list[str]) -> None:
        for ps in await self._found(uuids):
            await self._node.extensions.each(PrimaryStorageBeforeDelete, "before_delete", view(ps))

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:
        for row in await self._found(uuids):
            await self._leave(row)
            await self._remove(row)

    async def _leave(self, row: PrimaryStorageModel) -> None:
        ps = view(row)
        hosts = await self._storages.hosts_of(row.uuid)
        await on_hosts(hosts, lambda host_uuid: self._storages.disconnect(ps, host_uuid))
        await self._storages.driver(row).remove(ps)

    async def _remove(self, row: PrimaryStorageModel) -> None:
        news = PrimaryStorageDeleted(primary_storage_uuid=row.uuid, inventory=view(row))
        async with self._node.db.transaction() as tx:
            await remove_storage(tx, row.uuid)
            after_commit(tx, lambda: self._node.bus.publish(news))

    async def _found(self, uuids: list[str]) -> list[PrimaryStorageModel]:
        async with self._node.db.read() as session:
            query = select(PrimaryStorageModel).where(PrimaryStorageModel.uuid.in_(uuids))
            return list((await session.scalars(query)).all())


class StorageOfClusterCascade(CascadeExtension):
    """A cluster that goes leaves its primary storages."""

    resource = "PrimaryStorageClusterRefVO"
    parents = ("ClusterVO",)

    def __init__(self, node: Node) -> None:
        self._node = node

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:
        ref = PrimaryStorageClusterRefModel
        query = select(ref.cluster_uuid).where(ref.cluster_uuid.in_(uuids)).distinct()
        async with self._node.db.read() as session:
            return list((await session.scalars(query)).all())

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:
        ref = PrimaryStorageClusterRefModel
        async with self._node.db.transaction() as tx:
            await tx.execute(delete(ref).where(ref.cluster_uuid.in_(uuids)))
