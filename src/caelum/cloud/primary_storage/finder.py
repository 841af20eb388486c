"""Where a size fits: the answer to `FindStorage`, with a reason for each place where it does not."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.primary_storage.capacity import Terms
from caelum.cloud.primary_storage.messages import FindStorage, StorageCandidate, StorageCandidates, StorageRefusal
from caelum.cloud.primary_storage.model import (
    CONNECTED,
    NO_HOST,
    ImageCacheModel,
    LocalStorageHostRefModel,
    PrimaryStorageCapacityModel,
)
from caelum.cloud.primary_storage.storages import KnownStorage
from caelum.cloud.switch import DISABLED, ENABLED
from caelum.kernel.tag import UserTagModel

HostRef = LocalStorageHostRefModel

FEW = 500
"""Hosts that are named in a query; of more, all are read."""


class Finder:
    """One search. `terms` gives each storage's rules, `host_bound` its kind, `image_size` the bytes of an image."""

    def __init__(
        self,
        session: AsyncSession,
        ask: FindStorage,
        terms: dict[str, Terms],
        host_bound: dict[str, bool],
        image_size: int = 0,
    ) -> None:
        self._session, self._ask, self._terms, self._host_bound = session, ask, terms, host_bound
        self._image_size = image_size
        self._refusals: list[StorageRefusal] = []

    async def find(self, storages: list[KnownStorage]) -> StorageCandidates:
        """The places where it fits, most free space first."""
        tagged = await self._tagged([one.uuid for one in storages])
        found = []
        for ps in storages:
            reason = self._unusable(ps, tagged.get(ps.uuid, set()))
            if reason is not None:
                self._refuse(ps, None, reason)
            elif (candidate := await self._on_hosts(ps)) is not None:
                found.append(candidate)
        found.sort(key=lambda one: max(one.available.values()), reverse=True)
        return StorageCandidates(found, self._refusals)

    async def _tagged(self, uuids: list[str]) -> dict[str, set[str]]:
        if not self._ask.required_tags:
            return {}
        rows = await self._session.scalars(select(UserTagModel).where(UserTagModel.resource_uuid.in_(uuids)))
        found: dict[str, set[str]] = {}
        for row in rows:
            found.setdefault(row.resource_uuid, set()).add(row.tag)
        return found

    def _unusable(self, ps: KnownStorage, tags: set[str]) -> str | None:
        clusters = ps.cluster_uuids
        if ps.state != ENABLED and (self._ask.size or ps.state != DISABLED):
            return f"it is {ps.state}"
        if ps.status != CONNECTED:
            return f"it is {ps.status}"
        if not clusters:
            return "it is attached to no cluster"
        if self._ask.cluster_uuids is not None and not clusters & set(self._ask.cluster_uuids):
            return f"it is attached to none of the {len(self._ask.cluster_uuids)} clusters asked for"
        missing = [one for one in self._ask.required_tags if one not in tags]
        return f"it lacks the user tags {missing}" if missing else None

    async def _on_hosts(self, ps: KnownStorage) -> StorageCandidate | None:
        by_host = await self._shares(ps.uuid)
        whole = None if self._host_bound[ps.uuid] else await self._whole(ps.uuid)
        cached = await self._cached(ps.uuid)
        available = {}
        for host_uuid in self._ask.host_uuids:
            free = self._free(ps, by_host.get(host_uuid), whole, host_uuid, cached)
            if free is not None:
                available[host_uuid] = free
        hosts = sorted(available, key=lambda one: -available[one])
        return StorageCandidate(ps.uuid, hosts, available) if available else None

    async def _shares(self, ps_uuid: str) -> dict[str, Any]:
        """The hosts' rows, as plain tuples: a search may be over thousands of hosts."""
        row = HostRef
        query = select(row.host_uuid, row.status, row.available_capacity, row.available_physical_capacity).where(
            row.primary_storage_uuid == ps_uuid
        )
        if len(self._ask.host_uuids) <= FEW:
            query = query.where(row.host_uuid.in_(self._ask.host_uuids))
        return {one.host_uuid: one for one in await self._session.execute(query)}

    async def _whole(self, ps_uuid: str) -> Any:
        row = PrimaryStorageCapacityModel
        query = select(row.available_capacity, row.available_physical_capacity).where(row.uuid == ps_uuid)
        return (await self._session.execute(query)).one_or_none()

    async def _cached(self, ps_uuid: str) -> set[str]:
        cache = ImageCacheModel
        query = select(cache.host_uuid).where(
            cache.primary_storage_uuid == ps_uuid, cache.image_uuid == self._ask.image_uuid
        )
        return set(await self._session.scalars(query))

    def _free(self, ps: KnownStorage, ref: Any, whole: Any, host_uuid: str, cached: set[str]) -> int | None:
        """The free bytes when it fits on this host, else None with the reason noted."""
        bound, terms = self._host_bound[ps.uuid], self._terms[ps.uuid]
        capacity: Any = ref if bound else whole
        if ref is None or ref.status != CONNECTED or capacity is None:
            self._refuse(ps, host_uuid, "the host is not connected to it")
            return None
        image = 0 if (host_uuid if bound else NO_HOST) in cached else self._image_size
        reason = self._too_little(capacity.available_capacity, capacity.available_physical_capacity, image, terms)
        if reason is not None:
            self._refuse(ps, host_uuid, reason)
            return None
        return int(capacity.available_capacity)

    def _too_little(self, available: int, physical: int, image: int, terms: Terms) -> str | None:
        if not self._ask.size:
            return None
        need = terms.charge(self._ask.size, True) + image
        if available - need < terms.reserved:
            return (
                f"{available} bytes available, of which {terms.reserved} stay reserved; {need} bytes are needed"
                f" ({self._ask.size} at over-provisioning ratio {terms.ratio}, {image} for the image)"
            )
        return f"{physical} physical bytes are free, the image needs {image}" if physical < image else None

    def _refuse(self, ps: KnownStorage, host_uuid: str | None, reason: str) -> None:
        self._refusals.append(StorageRefusal(ps.uuid, host_uuid, reason))
