"""Loading L2 networks and their attachments."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.l2.api import L2NetworkInventory
from caelum.cloud.l2.model import ATTACHED, ATTACHING, L2NetworkClusterRefModel, L2NetworkModel
from caelum.cloud.l2.tags import BRIDGE_NAME
from caelum.kernel.errors import not_found
from caelum.kernel.tag import SystemTagModel, texts_of
from caelum.kernel.views import view


async def l2_network(session: AsyncSession, uuid: str) -> L2NetworkModel:
    """The network with its attachments, as it is in the database now."""
    found = await session.get(L2NetworkModel, uuid, populate_existing=True)
    if found is None:
        raise not_found("L2Network", uuid)
    return found


async def inventory(session: AsyncSession, uuid: str) -> L2NetworkInventory:
    """The network as clients see it."""
    return view(await l2_network(session, uuid))  # type: ignore[no-any-return]


async def bridge_of(session: AsyncSession, uuid: str) -> str:
    """The network's bridge on hosts."""
    tokens = BRIDGE_NAME.find(await texts_of(session, uuid))
    if tokens is None:
        raise not_found("bridge name of L2Network", uuid)
    return tokens["name"]


async def choose_bridge(tx: AsyncSession, uuid: str, wished: str, physical_interface: str) -> str:
    """`wished`, or a name of the network's own when that belongs to another interface's bridge already."""
    tag = BRIDGE_NAME.text(name=wished)
    others = await tx.scalars(
        select(L2NetworkModel.physical_interface)
        .join(SystemTagModel, SystemTagModel.resource_uuid == L2NetworkModel.uuid)
        .where(SystemTagModel.tag == tag, L2NetworkModel.uuid != uuid)
    )
    return wished if set(others) <= {physical_interface} else f"l2_{uuid[:12]}"


async def attachment(session: AsyncSession, l2_uuid: str, cluster_uuid: str) -> L2NetworkClusterRefModel | None:
    """The network's attachment to a cluster, in any state."""
    row = L2NetworkClusterRefModel
    return await session.scalar(select(row).where(row.l2_network_uuid == l2_uuid, row.cluster_uuid == cluster_uuid))


async def uuids_in_cluster(session: AsyncSession, cluster_uuid: str) -> Sequence[str]:
    """The networks that the hosts of a cluster should have."""
    row, ref = L2NetworkModel, L2NetworkClusterRefModel
    wanted = select(ref.l2_network_uuid).where(ref.cluster_uuid == cluster_uuid, ref.state.in_((ATTACHED, ATTACHING)))
    return (await session.scalars(select(row.uuid).where(row.uuid.in_(wanted)).order_by(row.create_date))).all()
