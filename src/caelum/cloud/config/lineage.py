"""What a resource inherits overrides of settings from: its host, its cluster, its zone.

It is read from the columns that name them, of whatever resource types are installed.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from caelum.kernel import resources

_ABOVE = ("host_uuid", "cluster_uuid", "zone_uuid")


async def lineage(session: AsyncSession, uuid: str) -> list[str]:
    """The resource first, then what it is in, nearest first."""
    resource_type = await resources.type_of(session, uuid)
    if resource_type is None:
        return [uuid]
    row: Any = await session.get(resources.model(resource_type), uuid)
    above = [getattr(row, column, None) for column in _ABOVE]
    return [uuid, *(one for one in above if one)]
