"""Loading L3 networks."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.l3.api import L3NetworkInventory
from caelum.cloud.l3.model import IpRangeModel, L3NetworkModel
from caelum.kernel.errors import not_found
from caelum.kernel.views import view


async def network(session: AsyncSession, uuid: str) -> L3NetworkModel:
    """The network with everything that belongs to it, as it is in the database now."""
    found = await session.get(L3NetworkModel, uuid, populate_existing=True)
    if found is None:
        raise not_found("L3Network", uuid)
    return found


async def inventory(session: AsyncSession, uuid: str) -> L3NetworkInventory:
    """The network as clients see it."""
    return view(await network(session, uuid))  # type: ignore[no-any-return]


async def networks(session: AsyncSession, uuids: Sequence[str]) -> list[L3NetworkInventory]:
    """Several networks, in the order of the UUIDs; raises when one does not exist."""
    rows = await session.scalars(select(L3NetworkModel).where(L3NetworkModel.uuid.in_(uuids)))
    found = {row.uuid: row for row in rows}
    for uuid in uuids:
        if uuid not in found:
            raise not_found("L3Network", uuid)
    return [view(found[uuid]) for uuid in uuids]


async def ip_range(session: AsyncSession, uuid: str) -> IpRangeModel:
    """One range."""
    found = await session.get(IpRangeModel, uuid)
    if found is None:
        raise not_found("IpRange", uuid)
    return found
