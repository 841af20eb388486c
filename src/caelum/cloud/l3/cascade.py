"""How L3 networks and ranges go with what is above them."""

from __future__ import annotations

from sqlalchemy import ColumnElement, delete, select

from caelum.cloud.l3.extension import L3Changed
from caelum.cloud.l3.flows import DeleteL3Context, DeleteL3Flow
from caelum.cloud.l3.model import IpRangeModel, L3NetworkModel
from caelum.cloud.l3.rows import networks
from caelum.cloud.ownership import disown, owned_by
from caelum.kernel.cascade import CascadeExtension
from caelum.kernel.node import Node
from caelum.kernel.tag import drop_tags


class L3Cascade(CascadeExtension):
    """Networks go with their L2 network, or with the account that owns them."""

    resource = "L3NetworkVO"
    parents = ("L2NetworkVO", "AccountVO")

    def __init__(self, node: Node) -> None:
        self._node = node

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:
        below: ColumnElement[bool] = L3NetworkModel.l2_network_uuid.in_(uuids)
        if parent_type == "AccountVO":
            below = L3NetworkModel.uuid.in_(owned_by(uuids, self.resource))
        async with self._node.db.read() as session:
            return list(await session.scalars(select(L3NetworkModel.uuid).where(below)))

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:  # noqa: ARG002 - the same from anywhere
        for uuid in await self._existing(uuids):
            await self._node.workflows.run(DeleteL3Flow, DeleteL3Context(l3_network_uuid=uuid, force=force))

    async def _existing(self, uuids: list[str]) -> list[str]:
        async with self._node.db.read() as session:
            return list(await session.scalars(select(L3NetworkModel.uuid).where(L3NetworkModel.uuid.in_(uuids))))


class IpRangeCascade(CascadeExtension):
    """Ranges go with their network."""

    resource = "IpRangeVO"
    parents = ("L3NetworkVO",)

    def __init__(self, node: Node) -> None:
        self._node = node

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:  # noqa: ARG002 - one parent type
        async with self._node.db.read() as session:
            return list(await session.scalars(select(IpRangeModel.uuid).where(IpRangeModel.l3_network_uuid.in_(uuids))))

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:  # noqa: ARG002 - nothing on hosts
        if issuer != self.resource:
            # They go in the transaction that deletes their network, so that a deletion that fails has lost nothing.
            return
        row = IpRangeModel
        async with self._node.db.transaction() as tx:
            affected = (await tx.scalars(select(row.l3_network_uuid).where(row.uuid.in_(uuids)).distinct())).all()
            await tx.execute(delete(row).where(row.uuid.in_(uuids)))
            for uuid in uuids:
                await disown(tx, uuid)
                await drop_tags(tx, uuid)
            changed = await networks(tx, affected)
        for l3 in changed:
            await self._node.extensions.notify(L3Changed, "l3_changed", l3)
