"""Deleting hosts, by themselves or with their cluster."""

from __future__ import annotations

from sqlalchemy import select

from caelum.cloud.allocator.messages import DropHost
from caelum.cloud.host import records
from caelum.cloud.host.api import HostInventory
from caelum.cloud.host.events import HostDeleted
from caelum.cloud.host.extension import HostBeforeDelete
from caelum.cloud.host.messages import GetVmStatesOnHost
from caelum.cloud.host.model import HostModel
from caelum.cloud.vm.api import VmInstanceInventory
from caelum.cloud.vm.messages import ListVms
from caelum.kernel.cascade import DELETE_FAILED, CascadeExtension
from caelum.kernel.database import after_commit
from caelum.kernel.errors import CloudError
from caelum.kernel.node import Node

_MOST_NAMED = 10
"""VMs that an objection names."""


class HostCascade(CascadeExtension):
    """Hosts go with their cluster; their virtual machines have gone before them."""

    resource = "HostVO"
    parents = ("ClusterVO",)

    def __init__(self, node: Node) -> None:
        self._node = node

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:  # noqa: ARG002 - one parent type
        async with self._node.db.read() as session:
            return list(await session.scalars(select(HostModel.uuid).where(HostModel.cluster_uuid.in_(uuids))))

    async def check(self, uuids: list[str]) -> None:
        """Object while virtual machines are on a host that does not answer: nobody could take them off it."""
        if not self._node.bus.serves(ListVms):
            return
        for host in await records.find(self._node, HostModel.uuid.in_(uuids)):
            vms = (await self._node.bus.call(ListVms(host_uuids=[host.uuid]))).vms
            placed = [one for one in vms if one.host_uuid == host.uuid]
            if placed:
                await self._check_answer(host, placed)

    async def _check_answer(self, host: HostInventory, placed: list[VmInstanceInventory]) -> None:
        try:
            await self._node.bus.call(GetVmStatesOnHost(host_uuid=host.uuid, vm_uuids=[one.uuid for one in placed]))
        except CloudError as error:
            named = ", ".join(f"vm[uuid:{one.uuid}, name:{one.name}]" for one in placed[:_MOST_NAMED])
            why = (
                f"host[uuid:{host.uuid}, name:{host.name}] does not answer, so {len(placed)} virtual machines cannot be"
                f" taken off it: {named}"
            )
            raise CloudError(DELETE_FAILED, why, cause=error, hostUuid=host.uuid, vmNum=len(placed)) from error

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
