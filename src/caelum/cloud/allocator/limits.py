"""How much of a host may be given away: ratios and reserves from settings and tags, kept up to date.

Invariant: the limits in the books are those of the settings and tags as they are now; a change is applied to every host
that it concerns as soon as it is committed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import Table, bindparam, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.allocator import books
from caelum.cloud.allocator.messages import RefreshLimits
from caelum.cloud.allocator.model import HOST, HostCapacityModel
from caelum.cloud.allocator.settings import CPU_RATIO, MEMORY_RATIO, RESERVED_MEMORY
from caelum.cloud.cluster import tags as cluster_tags
from caelum.cloud.host import tags as host_tags
from caelum.cloud.zone import tags as zone_tags
from caelum.kernel.database import after_commit
from caelum.kernel.errors import CloudError, not_found
from caelum.kernel.node import Node
from caelum.kernel.prepared import Prepared
from caelum.kernel.settings import ResourceConfigUpdated, Setting, parse_size
from caelum.kernel.tag import SystemTagModel, Tokens

log = logging.getLogger(__name__)

_TAG = cast("Table", SystemTagModel.__table__).c
_PLACES = (HOST.c.uuid, HOST.c.cluster_uuid, HOST.c.zone_uuid)
_TEXTS = Prepared(
    select(*_PLACES, _TAG.resource_uuid, _TAG.tag)
    .select_from(HOST.outerjoin(SystemTagModel.__table__, _TAG.resource_uuid.in_(_PLACES)))
    .where(HOST.c.uuid == bindparam("key"))
)
"""A host, its cluster and its zone, with each tag of them; once without a tag, when there is none."""

_SETTINGS: tuple[Setting[Any], ...] = (CPU_RATIO, MEMORY_RATIO, RESERVED_MEMORY)
_TAGS = (host_tags.RESERVED_MEMORY, cluster_tags.RESERVED_MEMORY, zone_tags.RESERVED_MEMORY)


class Limits:
    """Keeps the limits of hosts."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._following = False

    def follow(self) -> None:
        """Apply changes of settings and tags from now on."""
        self._following = True
        settings = self._node.settings
        settings.on_change(CPU_RATIO, self._on_setting)
        settings.on_change(MEMORY_RATIO, self._on_setting)
        settings.on_change(RESERVED_MEMORY, self._on_setting)
        self._node.bus.subscribe(ResourceConfigUpdated, self._on_override)
        for tag in _TAGS:
            tag.listen(self._on_tag)

    def stop(self) -> None:
        """Tags are declared for the process, so a node that stops must turn its ear away by itself."""
        self._following = False

    async def record(self, host_uuid: str, cpu_num: int, cpu_sockets: int, total_memory: int) -> None:
        """Note what a host has physically, and what may be given of it."""
        cpu_ratio, memory_ratio, reserved = await self._terms(host_uuid)
        limit = max(0, int(total_memory * memory_ratio) - reserved)
        has = books.Has(cpu_num, cpu_sockets, cpu_num * cpu_ratio, total_memory, limit)
        # When thousands of hosts connect after a start, nearly all have what they had.
        if await books.is_recorded(self._node.db.once, host_uuid, has):
            return
        async with self._node.db.transaction() as tx:
            # Locked, so that its deletion waits and then drops what is written here.
            known = select(HOST.c.uuid).where(HOST.c.uuid == host_uuid).with_for_update(read=True)
            if await tx.scalar(known) is None:
                raise not_found("HostVO", host_uuid)
            await books.record(tx, host_uuid, has)

    async def _terms(self, host_uuid: str) -> tuple[int, float, int]:
        """CPU ratio, memory ratio and reserve of a host: its own, else its cluster's, its zone's, or everybody's."""
        found = await _TEXTS.rows(self._node.db.once, key=host_uuid)
        places = found[0][: len(_PLACES)] if found else [host_uuid]
        reserved = _reserved_by_tag(places, [(uuid, text) for *_, uuid, text in found if uuid is not None])
        settings = self._node.settings
        if reserved is None:
            reserved = await settings.get_for(RESERVED_MEMORY, *places)
        return await settings.get_for(CPU_RATIO, *places), await settings.get_for(MEMORY_RATIO, *places), reserved

    async def _on_setting(self, _value: object) -> None:
        await self.apply(None)

    async def _on_override(self, event: ResourceConfigUpdated) -> None:
        if any((one.category, one.name) == (event.category, event.name) for one in _SETTINGS):
            await self.apply(event.resource_uuid)

    async def _on_tag(self, tx: AsyncSession, uuid: str, _old: Tokens | None, _new: Tokens | None) -> None:
        if self._following:
            after_commit(tx, lambda: self._node.bus.send(RefreshLimits(resource_uuid=uuid)))

    async def apply(self, resource_uuid: str | None) -> None:
        """Compute the limits of the hosts concerned again."""
        query = select(HostCapacityModel)
        if resource_uuid is not None:
            concerned = or_(*(HOST.c[name] == resource_uuid for name in ("uuid", "cluster_uuid", "zone_uuid")))
            query = query.where(HostCapacityModel.uuid.in_(select(HOST.c.uuid).where(concerned)))
        async with self._node.db.read() as session:
            rows = list(await session.scalars(query))
        for row in rows:
            try:
                await self.record(row.uuid, row.cpu_num, row.cpu_sockets, row.total_memory)
            except CloudError as error:
                log.info("the limits of host %s are left: %s", row.uuid, error.details)


def _reserved_by_tag(places: Sequence[str], found: list[tuple[str, str]]) -> int | None:
    """The reserve that a tag names, the host's own before its cluster's and its zone's."""
    for tag, place in zip(_TAGS, places, strict=False):
        tokens = tag.find(text for uuid, text in found if uuid == place)
        if tokens is not None:
            return parse_size(tokens["capacity"])
    return None
