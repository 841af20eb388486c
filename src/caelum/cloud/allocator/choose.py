"""Choosing a host: the database's rules, then plugins' filters and storage, then the reservation that decides.

Invariant: a host is chosen by taking from it. Whatever was found before is only a proposal: when somebody was faster,
the next candidate is tried, and what was already taken for the refused one is given back. Nearly always one transaction
takes everything. Else disks come first, so that a host's reservation is complete as soon as there is one. For a
workflow that has turned back meanwhile nothing is taken: its undo has given everything back.
"""

from __future__ import annotations

from typing import Any

import msgspec

from caelum.cloud.allocator import books
from caelum.cloud.allocator.errors import NO_AVAILABLE_HOST
from caelum.cloud.allocator.extension import HostAllocatorStrategy, HostFilter
from caelum.cloud.allocator.messages import AllocateHost, Candidate, DiskRequest, HostAllocation
from caelum.cloud.allocator.model import HostReservationModel
from caelum.cloud.allocator.pages import Pages
from caelum.cloud.allocator.rules import HostRow, Request, explain, refusal, request
from caelum.cloud.allocator.settings import CHECK_PHYSICAL_MEMORY, PAGE
from caelum.cloud.allocator.strategies import full_name, nearest_first
from caelum.cloud.l2.messages import GetL2
from caelum.cloud.l3.messages import GetL3
from caelum.cloud.parts import has_part, part
from caelum.cloud.primary_storage.errors import RESERVED_ELSEWHERE
from caelum.cloud.primary_storage.extension import SpaceRecords
from caelum.cloud.primary_storage.messages import FindStorage, ReleaseStorage, ReserveStorage, StorageCandidates
from caelum.kernel.errors import CANCELED, CloudError
from caelum.kernel.journal import refuse_late
from caelum.kernel.node import Node
from caelum.kernel.rows import new_row

MISSED = "hostsConnecting"
"""The fact of a refusal that a host which may do was being connected."""
_FIRST_PAGE = 2
_GROWTH = 16
Storages = dict[str, list[str]]
"""By disk key, the primary storages that will do on a host, best first."""


class _NotSoError(Exception):
    """Rolls a transaction back that took something."""


class Chooser:
    """One allocation."""

    def __init__(self, node: Node, ask: AllocateHost) -> None:
        self._node = node
        self._ask = ask
        self._refused: dict[str, dict[str, str]] = {}
        self._size = 0
        """How many hosts the next page has at most; 0 before the first."""

    async def choose(self) -> HostAllocation:
        """Reserve on the best host that will do. Raises HOST_ALLOCATION.1000, with the fact `MISSED` when a host was
        passed over because it was not connected yet."""
        physically = self._node.settings.get(CHECK_PHYSICAL_MEMORY)
        asked = request(self._ask, await self._clusters(), physically=physically)
        types: dict[str, str] = {}
        pages = self._opened(asked)
        while page := await self._page(pages):
            candidates = [_candidate(row) for row in page]
            types.update({row.uuid: row.hypervisor_type for row in page})
            left, storages = await self._filter(candidates)
            if self._ask.dry_run:
                if left:
                    return _allocation(left[0], types, candidates=left)
                continue
            for candidate in left:
                here = storages.get(candidate.host_uuid, {})
                disks = await self._take_at_once(candidate, here, physically)
                if disks is None:
                    disks = await self._take(candidate, here, physically)
                if disks is not None:
                    return _allocation(candidate, types, disks=disks)
        raise await self._nothing(asked, missed=await pages.missed())

    async def _clusters(self) -> list[str] | None:
        """The clusters that have all L2 networks of the request's L3 networks."""
        if not self._ask.l3_network_uuids:
            return None
        networks = (await self._node.bus.call(GetL3(l3_network_uuids=self._ask.l3_network_uuids))).networks
        l2_uuids = list(dict.fromkeys(one.l2_network_uuid for one in networks))
        common: set[str] | None = None
        for uuid in l2_uuids:
            facts = await self._node.bus.call(GetL2(l2_network_uuid=uuid))
            here = set(facts.inventory.attached_cluster_uuids)
            common = here if common is None else common & here
        return sorted(common or set())

    def _opened(self, asked: Request) -> Pages:
        known = self._node.drivers.types(HostAllocatorStrategy)
        strategy = self._node.drivers.get(HostAllocatorStrategy, full_name(self._ask.strategy, known))
        return Pages(self._node.db, asked, strategy)

    async def _page(self, pages: Pages) -> list[HostRow]:
        """The next of what passes the rules, best first: the preferred host, then few at a time, for one of the first
        nearly always will do; then more and more. Who only asks gets whole pages."""
        most = self._node.settings.get(PAGE)
        if self._size == 0:
            self._size = most if self._ask.dry_run else min(most, _FIRST_PAGE)
            preferred = None if self._ask.dry_run else pages.strategy.preferred(self._ask)
            if preferred is not None and (page := await pages.only(preferred)):
                return page
        page = await pages.next(self._size)
        self._size = min(most, self._size * _GROWTH)
        ring = self._node.ring
        # What is done next on a host that this node serves takes no trip, and few others choose it meanwhile.
        return page if ring.alone else nearest_first(pages.strategy, page, ring.owns)

    # --- filters ----------------------------------------------------------------------------------------------------

    async def _filter(self, candidates: list[Candidate]) -> tuple[list[Candidate], dict[str, Storages]]:
        for one in self._node.extensions.of(HostFilter):
            reasons = await one.refuse(self._ask, candidates)
            candidates = self._without(type(one).__name__, candidates, reasons)
        reasons, storages = await self._storage(candidates)
        return self._without("HostPrimaryStorage", candidates, reasons), storages

    def _without(self, name: str, candidates: list[Candidate], reasons: dict[str, str]) -> list[Candidate]:
        if reasons:
            self._refused.setdefault(name, {}).update(reasons)
        return [one for one in candidates if one.host_uuid not in reasons]

    async def _storage(self, candidates: list[Candidate]) -> tuple[dict[str, str], dict[str, Storages]]:
        """Why hosts cannot have the disks, and where those that can would have them."""
        uuids = [one.host_uuid for one in candidates]
        reasons: dict[str, str] = {}
        storages: dict[str, Storages] = {uuid: {} for uuid in uuids}
        for storage_uuid in self._ask.volume_storage_uuids if uuids else ():
            found = await self._node.bus.call(FindStorage(host_uuids=uuids, size=0, primary_storage_uuid=storage_uuid))
            can = {uuid for one in found.candidates for uuid in one.host_uuids}
            reasons.update({uuid: _why(found, uuid, storage_uuid) for uuid in uuids if uuid not in can})
        for disk in self._ask.disks if uuids else ():
            found = await self._node.bus.call(self._find(disk, uuids))
            for uuid in uuids:
                fitting = [one for one in found.candidates if uuid in one.host_uuids]
                best = sorted(fitting, key=lambda one: -one.available[uuid])
                storages[uuid][disk.key] = [one.primary_storage_uuid for one in best]
                if not fitting:
                    reasons.setdefault(uuid, _why(found, uuid, disk.primary_storage_uuid, disk.size))
        return reasons, storages

    def _find(self, disk: DiskRequest, uuids: list[str]) -> FindStorage:
        return FindStorage(
            host_uuids=uuids,
            size=disk.size,
            primary_storage_uuid=disk.primary_storage_uuid,
            required_tags=disk.required_tags,
            image_uuid=self._ask.image_uuid if disk.is_root else None,
        )

    # --- taking -----------------------------------------------------------------------------------------------------

    async def _take_at_once(self, candidate: Candidate, storages: Storages, physically: bool) -> dict[str, str] | None:
        """All in one transaction, each disk on the best storage; None, and nothing is taken, when not all can be had
        so (a storage may be gone by now), or the storages' service is elsewhere."""
        if self._ask.disks and not has_part(self._node, SpaceRecords):
            return None
        host_uuid = candidate.host_uuid
        disks = {disk.key: storages[disk.key][0] for disk in self._ask.disks}
        # In one order, so that of two who take of the same storages nobody waits for the other for ever.
        in_order = sorted(self._ask.disks, key=lambda one: (disks[one.key], one.key))
        try:
            takes = [(await part(self._node, SpaceRecords).at(disks[disk.key], host_uuid), disk) for disk in in_order]
            async with self._node.db.transaction() as tx:
                await refuse_late(tx)
                if not await books.take_anew(tx, self._wanted(host_uuid, disks), physically=physically):
                    raise _NotSoError
                for take, disk in takes:
                    await take(tx, disk.key, disk.size)
        except _NotSoError:
            return None
        except CloudError as error:
            if error.kind is CANCELED or error.kind.transient:
                raise
            return None
        return disks

    async def _take(
        self, candidate: Candidate, storages: Storages, physically: bool, *, again: bool = True
    ) -> dict[str, str] | None:
        """Disks, CPU and memory on a host; None when somebody was faster. Raises CANCELED when nobody wants it.

        Once more (`again`) when a disk had its space elsewhere, left by an attempt of this step that died.
        """
        host_uuid = candidate.host_uuid
        try:
            disks = {disk.key: await self._take_disk(disk, host_uuid, storages[disk.key]) for disk in self._ask.disks}
            taken = await self._take_host(host_uuid, disks, physically)
        except CloudError as error:
            await self._let_go()
            if error.kind is not NO_AVAILABLE_HOST:
                raise
            if again and any(_is_elsewhere(one) for one in error.causes):
                return await self._take(candidate, storages, physically, again=False)
            self._without("HostPrimaryStorage", [], {host_uuid: error.details})
            return None
        if taken:
            return disks
        await self._let_go()
        self._without("HostCapacity", [], {host_uuid: f"host[{host_uuid}]: others were faster"})
        return None

    async def _take_host(self, host_uuid: str, disks: dict[str, str], physically: bool) -> bool:
        async with self._node.db.transaction() as tx:
            await refuse_late(tx)
            await books.give_back(tx, self._ask.vm_uuid)
            return await books.take(tx, self._wanted(host_uuid, disks), physically=physically)

    def _wanted(self, host_uuid: str, disks: dict[str, str]) -> HostReservationModel:
        ask = self._ask
        return new_row(
            HostReservationModel, vm_uuid=ask.vm_uuid, host_uuid=host_uuid, cpu_num=ask.cpu_num, memory=ask.memory,
            disks=msgspec.json.encode(disks).decode(),
        )  # fmt: skip

    async def _take_disk(self, disk: DiskRequest, host_uuid: str, storages: list[str]) -> str:
        refusals: list[CloudError] = []
        for storage_uuid in storages:
            try:
                await self._node.bus.call(
                    ReserveStorage(key=disk.key, primary_storage_uuid=storage_uuid, host_uuid=host_uuid, size=disk.size)
                )
            except CloudError as error:
                if error.kind.transient:
                    raise
                refusals.append(error)
            else:
                return storage_uuid
        why = "; ".join(one.details for one in refusals) or "no storage"
        details = f"host[{host_uuid}]: disk[{disk.key}] of {disk.size} bytes: {why}"
        raise CloudError(NO_AVAILABLE_HOST, details, causes=list(refusals))

    async def _let_go(self) -> None:
        """Give back what was taken. When that is refused because the run has turned back, its undo does it."""
        await self._node.bus.call_all([ReleaseStorage(key=disk.key) for disk in self._ask.disks])

    # --- refusal ----------------------------------------------------------------------------------------------------

    async def _nothing(self, asked: Request, *, missed: bool) -> CloudError:
        async with self._node.db.read() as session:
            causes = await explain(session, asked)
        causes += [refusal(name, reasons) for name, reasons in self._refused.items()]
        ask = self._ask
        details = (
            f"no host for vm[uuid:{ask.vm_uuid}] with {ask.cpu_num} CPUs, {ask.memory} bytes of memory and"
            f" {len(ask.disks)} disks: " + ("; ".join(one.details for one in causes) or "there are no hosts")
        )
        facts: dict[str, Any] = {MISSED: True} if missed else {}
        return CloudError(
            NO_AVAILABLE_HOST, details, causes=list(causes), cpuNum=ask.cpu_num, memorySize=ask.memory, **facts
        )


def _why(found: StorageCandidates, host_uuid: str, storage_uuid: str | None, size: int = 0) -> str:
    reasons = [
        f"storage[{one.primary_storage_uuid}]: {one.reason}"
        for one in found.refusals
        if one.host_uuid in (None, host_uuid)
    ]
    what = f"{size} bytes" if size else f"its volumes on storage[{storage_uuid}]"
    return f"host[{host_uuid}] has no place for {what}: " + ("; ".join(reasons) or "no storage is attached")


def _is_elsewhere(error: BaseException) -> bool:
    return isinstance(error, CloudError) and error.kind is RESERVED_ELSEWHERE


def _candidate(row: HostRow) -> Candidate:
    return Candidate(
        host_uuid=row.uuid,
        cluster_uuid=row.cluster_uuid,
        zone_uuid=row.zone_uuid,
        available_cpu=row.free_cpu,
        available_memory=row.free_memory,
    )


def _allocation(
    chosen: Candidate,
    types: dict[str, str],
    *,
    disks: dict[str, str] | None = None,
    candidates: list[Candidate] | None = None,
) -> HostAllocation:
    return HostAllocation(
        host_uuid=chosen.host_uuid,
        cluster_uuid=chosen.cluster_uuid,
        zone_uuid=chosen.zone_uuid,
        hypervisor_type=types[chosen.host_uuid],
        disks=disks or {},
        candidates=candidates or [],
    )
