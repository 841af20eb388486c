"""Deleting hosts, by themselves or with their cluster."""

from __future__ import annotations

from sqlalchemy import select

from caelum.cloud.allocator.messages import DropHost
from caelum.cloud.host import records
from caelum.cloud.host.api import HostInventory
from caelum.cloud.host.events import HostDeleted
from caelum.cloud.host.extension import HostBeforeDelete
from caelum.cloud.host.model import HostModel
from caelum.kernel.cascade import CascadeExtension
from caelum.kernel.database import after_commit
from caelum.kernel.node import Node


class HostCascade(CascadeExtension):
    """Hosts go with their cluster; their virtual machines have gone before them."""

    resource = "HostVO"
    parents = ("ClusterVO",)

    def __init__(self, node: Node) -> None:
        self._node = node

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:  # noqa: ARG002 - one parent type
        async with self._node.db.read() as session:
            return list(await session.scalars(select(HostModel.uuid).where(HostModel.cluster_uuid.in_(uuids))))

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:  # noqa: ARG002
        for host in await records.find(self._node, HostModel.uuid.in_(uuids)):
            await self._delete(host, force)

    async def _delete(self, host: HostInventory, force: bool) -> None:
        ask = self._node.extensions.notify if force else self._node.extensions.each
        await ask(HostBeforeDelete, "before_delete", host, force)
        async with self._node.db.transaction() as tx:
            await records.remove(tx, host.uuid)
            event = HostDeleted(host_uuid=host.uuid, inventory=host)
            after_commit(tx, lambda: self._node.bus.publish(event))
        await self._node.bus.call(DropHost(host_uuid=host.uuid))
