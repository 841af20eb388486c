"""What a provider is on goes with it."""

from __future__ import annotations

from sqlalchemy import delete, select

from caelum.cloud.network_service.model import NetworkServiceProviderL2RefModel
from caelum.kernel.cascade import CascadeExtension
from caelum.kernel.node import Node


class ProviderL2RefCascade(CascadeExtension):
    """That a provider is on an L2 network is forgotten with the network, whose L3 networks go before it."""

    resource = "NetworkServiceProviderL2NetworkRefVO"
    parents = ("L2NetworkVO",)

    def __init__(self, node: Node) -> None:
        self._node = node

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:  # noqa: ARG002 - one parent type
        row = NetworkServiceProviderL2RefModel
        async with self._node.db.read() as session:
            return [str(one) for one in await session.scalars(select(row.id).where(row.l2_network_uuid.in_(uuids)))]

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:  # noqa: ARG002 - the same from anywhere
        row = NetworkServiceProviderL2RefModel
        async with self._node.db.transaction() as tx:
            await tx.execute(delete(row).where(row.id.in_([int(one) for one in uuids])))
