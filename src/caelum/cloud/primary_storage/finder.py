"""Where a size fits: the answer to `FindStorage`, with a reason for each place where it does not."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from sqlalchemy import ColumnElement, String, Table, bindparam, literal, select

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
from caelum.kernel.prepared import Prepared, Reading
from caelum.kernel.rows import read_rows
from caelum.kernel.tag import UserTagModel

FEW = 500
"""Hosts that are named in a query; of more, all are read."""
_HOST_REF = cast("Table", LocalStorageHostRefModel.__table__).c
_CAPACITY = cast("Table", PrimaryStorageCapacityModel.__table__).c
_CACHE = cast("Table", ImageCacheModel.__table__).c


def _is_cached(host_uuid: Any) -> ColumnElement[bool]:
    """Whether the image is in the cache of the storage, of a host-bound one in that host's."""
    here = (_CACHE.primary_storage_uuid == bindparam("of_storage"), _CACHE.host_uuid == host_uuid)
    return select(_CACHE.id).where(_CACHE.image_uuid == bindparam("of_image", type_=String), *here).exists()


_OF_STORAGE = select(
    _HOST_REF.host_uuid,
    _HOST_REF.status,
    _HOST_REF.available_capacity,
    _HOST_REF.available_physical_capacity,
    _is_cached(_HOST_REF.host_uuid),
).where(_HOST_REF.primary_storage_uuid == bindparam("of_storage"))
_ALL_SHARES = Prepared(_OF_STORAGE)
_SHARES = Prepared(_OF_STORAGE.where(_HOST_REF.host_uuid.in_(bindparam("hosts", expanding=True))))
_WHOLE = Prepared(
    select(_CAPACITY.available_capacity, _CAPACITY.available_physical_capacity, _is_cached(literal(NO_HOST))).where(
        _CAPACITY.uuid == bindparam("of_storage")
    )
)


class _Share(NamedTuple):
    """What a host has of a storage, or what all of a shared one has: whether it is there, free bytes, of the books
    and of the disk, and whether the image is there already.
    """

    status: str
    available: int
    physical: int
    has_image: bool


class Finder:
    """One search. `terms` gives each storage's rules, `host_bound` its kind, `image_size` the bytes of an image."""

    def __init__(
        self,
        reading: Reading,
        ask: FindStorage,
        terms: dict[str, Terms],
        host_bound: dict[str, bool],
        image_size: int = 0,
    ) -> None:
        self._reading, self._ask, self._image_size = reading, ask, image_size
        self._terms, self._host_bound = terms, host_bound
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
        found: dict[str, set[str]] = {}
        for row in await read_rows(self._reading, UserTagModel, resource_uuid=uuids):
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
        available = {}
        for host_uuid in self._ask.host_uuids:
            free = self._free(ps, by_host.get(host_uuid), whole, host_uuid)
            if free is not None:
                available[host_uuid] = free
        hosts = sorted(available, key=lambda one: -available[one])
        return StorageCandidate(ps.uuid, hosts, available) if available else None

    async def _shares(self, ps_uuid: str) -> dict[str, _Share]:
        """The hosts' rows, as plain tuples: a search may be over thousands of hosts."""
        asked, here = self._ask.host_uuids, {"of_storage": ps_uuid, "of_image": self._ask.image_uuid}
        if len(asked) > FEW:
            rows = await _ALL_SHARES.rows(self._reading, **here)
        else:
            rows = await _SHARES.rows(self._reading, **here, hosts=asked)
        return {row[0]: _Share(*row[1:]) for row in rows}

    async def _whole(self, ps_uuid: str) -> _Share | None:
        for row in await _WHOLE.rows(self._reading, of_storage=ps_uuid, of_image=self._ask.image_uuid):
            return _Share(CONNECTED, *row)
        return None

    def _free(self, ps: KnownStorage, ref: _Share | None, whole: _Share | None, host_uuid: str) -> int | None:
        """The free bytes when it fits on this host, else None with the reason noted."""
        terms, capacity = self._terms[ps.uuid], ref if self._host_bound[ps.uuid] else whole
        if ref is None or ref.status != CONNECTED or capacity is None:
            self._refuse(ps, host_uuid, "the host is not connected to it")
            return None
        image = 0 if capacity.has_image else self._image_size
        reason = self._too_little(capacity.available, capacity.physical, image, terms)
        if reason is not None:
            self._refuse(ps, host_uuid, reason)
            return None
        return capacity.available

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
