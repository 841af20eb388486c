"""How L2 networks and their attachments go with what is above them."""

from __future__ import annotations

from sqlalchemy import ColumnElement, select

from caelum.cloud.l2.flows import ClusterContext, DeleteL2Context, DeleteL2Flow, DetachL2Flow
from caelum.cloud.l2.model import L2NetworkClusterRefModel, L2NetworkModel
from caelum.cloud.l2.rows import attachment
from caelum.cloud.ownership import owned_by
from caelum.kernel.cascade import CascadeExtension
from caelum.kernel.node import Node


class L2Cascade(CascadeExtension):
    """Networks go with their zone, or with the account that owns them."""

    resource = "L2NetworkVO"
    parents = ("ZoneVO", "AccountVO")

    def __init__(self, node: Node) -> None:
        self._node = node

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:
        below: ColumnElement[bool] = L2NetworkModel.zone_uuid.in_(uuids)
        if parent_type == "AccountVO":
            below = L2NetworkModel.uuid.in_(owned_by(uuids, self.resource))
        async with self._node.db.read() as session:
            return list(await session.scalars(select(L2NetworkModel.uuid).where(below)))

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:  # noqa: ARG002 - the same from anywhere
        async with self._node.db.read() as session:
            there = (await session.scalars(select(L2NetworkModel.uuid).where(L2NetworkModel.uuid.in_(uuids)))).all()
        for uuid in there:
            await self._node.workflows.run(DeleteL2Flow, DeleteL2Context(l2_network_uuid=uuid, force=force))


class L2AttachmentCascade(CascadeExtension):
    """Attachments go with their cluster. They have no UUID; here they are named "<network> <cluster>"."""

    resource = "L2NetworkClusterRefVO"
    parents = ("ClusterVO",)

    def __init__(self, node: Node) -> None:
        self._node = node

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:  # noqa: ARG002 - one parent type
        ref = L2NetworkClusterRefModel
        query = select(ref.l2_network_uuid, ref.cluster_uuid).where(ref.cluster_uuid.in_(uuids))
        async with self._node.db.read() as session:
            return [f"{l2} {cluster}" for l2, cluster in await session.execute(query)]

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:  # noqa: ARG002 - the same from anywhere
        for name in uuids:
            l2, cluster = name.split(" ")
            async with self._node.db.read() as session:
                there = await attachment(session, l2, cluster) is not None
            if there:
                ctx = ClusterContext(l2_network_uuid=l2, cluster_uuid=cluster, force=force)
                await self._node.workflows.run(DetachL2Flow, ctx)
