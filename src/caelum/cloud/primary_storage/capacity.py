"""The books of primary storages: what fits, what is promised, what is left.

Invariant: a reservation and the capacity that it takes change in one transaction, by one conditional statement, so two
takers at once cannot both get the last byte. What is given back is what the reservation's row says was taken. Available
capacity can be derived anew from the reservations at any time, and is at every look at the physical capacity.

Rows are locked in this order: storage, reservations, the host's share, the storage's capacity. So no two wait for each
other, and whoever holds the share (of a shared storage: the capacity) sees every charge that counts in it. Who takes of
several storages in one transaction goes through them in the order of their UUIDs.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Table,
    bindparam,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.primary_storage.errors import ALLOCATE_ERROR, RESERVED_ELSEWHERE
from caelum.cloud.primary_storage.extension import PhysicalCapacity
from caelum.cloud.primary_storage.model import (
    CONNECTED,
    NO_HOST,
    ImageCacheModel,
    LocalStorageHostRefModel,
    LocalStorageResourceRefModel,
    PrimaryStorageCapacityModel,
    StorageReservationModel,
)
from caelum.kernel.database import insert_new, update_where
from caelum.kernel.errors import CloudError, not_found
from caelum.kernel.gc import GarbageCollectorModel
from caelum.kernel.prepared import Prepared, Reading
from caelum.kernel.rows import delete_rows, read_rows, update_rows

Reservation = StorageReservationModel
HostRef = LocalStorageHostRefModel
Capacity = PrimaryStorageCapacityModel

CACHE_PREFIX = "cache"
TRASH_PREFIX = "trash"


class Place:
    """Where space is taken: a host's share of a host-bound storage, or a whole shared storage."""

    def __init__(self, ps_uuid: str, host_uuid: str | None, host_bound: bool) -> None:
        if host_bound and not host_uuid:
            raise CloudError(
                ALLOCATE_ERROR,
                f"primary storage[uuid:{ps_uuid}] is bound to hosts, so a host must be named",
                uuid=ps_uuid,
            )
        self.ps_uuid = ps_uuid
        self.host_uuid = host_uuid if host_bound and host_uuid else NO_HOST

    @property
    def host_bound(self) -> bool:
        return self.host_uuid != NO_HOST

    def __str__(self) -> str:
        on_host = f" on host[uuid:{self.host_uuid}]" if self.host_bound else ""
        return f"primary storage[uuid:{self.ps_uuid}]{on_host}"


class Terms:
    """The rules of a reservation: the over-provisioning ratio, and what must stay free."""

    def __init__(self, ratio: float = 1.0, reserved: int = 0) -> None:
        self.ratio, self.reserved = ratio, reserved

    def charge(self, size: int, scaled: bool) -> int:
        """What `size` bytes take from the available capacity; real bytes (a cached image) are not scaled."""
        return math.ceil(size / self.ratio) if scaled else size


async def reserve(tx: AsyncSession, place: Place, key: str, size: int, terms: Terms, *, scaled: bool = True) -> None:
    """Take space under `key`; the same key again only adjusts the size. Refused with PS.1000 and the numbers, and
    with CAELUM.PS.1001 while the key has space at another place.
    """
    charged = terms.charge(size, scaled)
    new = {"key": key, "primary_storage_uuid": place.ps_uuid, "host_uuid": place.host_uuid, "scaled": scaled}
    if await insert_new(tx, Reservation, **new, size=size, charged=charged):
        await _take(tx, place, charged, size, terms)
        return
    known = await tx.get_one(Reservation, key)
    if (known.primary_storage_uuid, known.host_uuid) != (place.ps_uuid, place.host_uuid):
        elsewhere = Place(known.primary_storage_uuid, known.host_uuid, known.host_uuid != NO_HOST)
        raise CloudError(
            RESERVED_ELSEWHERE,
            f"{key} has reserved {known.size} bytes on {elsewhere} already;"
            f" it must be released before it can reserve on {place}",
            key=key,
        )
    await _take(tx, place, charged - known.charged, size, terms)
    known.size, known.charged = size, charged
    await tx.flush()


async def pin(
    tx: AsyncSession, key: str, install_path: str, image_uuid: str | None = None, maker: str | None = None
) -> None:
    """Note where the bits of a reservation go, which cached image they stand on, and who makes them."""
    known = await tx.get_one(Reservation, key)
    known.install_path, known.image_uuid, known.maker = install_path, image_uuid, maker


async def pin_new(
    tx: AsyncSession,
    place: Place,
    key: str,
    install_path: str,
    image_uuid: str | None,
    maker: str | None,
    waiting: str,
    *,
    cached_path: str | None = None,
) -> bool:
    """The same for a reservation at this place that has no path yet; False for another, and when a clean-up called
    `waiting` still has to delete what was at that path before.

    Who has looked the cached image up before says where it was (`cached_path`): False also when it is not there any
    more. Who looks it up afterwards need not.
    """
    values = {
        "of_key": key,
        "of_storage": place.ps_uuid,
        "of_host": place.host_uuid,
        "waiting": waiting,
        "install_path": install_path,
        "image_uuid": image_uuid,
        "maker": maker,
    }
    if cached_path is None:
        return await _pinning(if_cached=False).run(tx, **values) > 0
    return await _pinning(if_cached=True).run(tx, **values, of_image=image_uuid, cached_path=cached_path) > 0


@lru_cache
def _pinning(*, if_cached: bool) -> Prepared:
    table = cast("Table", Reservation.__table__)
    here, job = table.c, GarbageCollectorModel
    mine = (
        here.key == bindparam("of_key"),
        here.primary_storage_uuid == bindparam("of_storage"),
        here.host_uuid == bindparam("of_host"),
        here.install_path.is_(None),
    )
    conditions = [*mine, ~select(job.uuid).where(job.open_name == bindparam("waiting")).exists()]
    if if_cached:
        conditions.append(_is_cached())
    names = ("install_path", "image_uuid", "maker")
    return Prepared(update(table).where(*conditions).values({name: bindparam(name) for name in names}))


def _is_cached() -> ColumnElement[bool]:
    """Whether the image is cached at that path; it stays until the transaction ends, and then the mark is seen."""
    cached = cast("Table", ImageCacheModel.__table__).c
    there = select(cached.id).where(
        cached.image_uuid == bindparam("of_image"),
        cached.primary_storage_uuid == bindparam("of_storage"),
        cached.host_uuid == bindparam("of_host"),
        cached.install_path == bindparam("cached_path"),
    )
    return there.with_for_update(read=True, key_share=True).exists()


async def release(tx: AsyncSession, key: str) -> None:
    """Give back what `key` took, and forget where its bits are."""
    for ps_uuid, host_uuid, charged, size in await _releasing().rows(tx, of_key=key):
        await delete_rows(tx, LocalStorageResourceRefModel, resource_uuid=key)
        await _take(tx, Place(ps_uuid, host_uuid, bool(host_uuid)), -charged, size, Terms())


@lru_cache
def _releasing() -> Prepared:
    table = cast("Table", Reservation.__table__)
    here = table.c
    taken = (here.primary_storage_uuid, here.host_uuid, here.charged, here.size)
    return Prepared(delete(table).where(here.key == bindparam("of_key")).returning(*taken))


async def move(tx: AsyncSession, key: str, new_key: str) -> None:
    """Rename a reservation; nothing to do when it was renamed before."""
    if not await read_rows(tx, Reservation, lock=True, key=[key, new_key]):
        raise not_found("storage reservation", key)
    await update_rows(tx, Reservation, {"key": new_key}, key=key)
    await delete_rows(tx, LocalStorageResourceRefModel, resource_uuid=key)


async def _take(tx: AsyncSession, place: Place, charge: int, size: int, terms: Terms) -> None:
    if charge == 0:
        return
    values = {"of_storage": place.ps_uuid, "charge": charge, "reserved": terms.reserved}
    changed = 1
    if place.host_bound:
        here = {**values, "of_host": place.host_uuid}
        changed = await _take_from(tx, HostRef, here, limited=charge > 0)
    if changed:
        # Of a host-bound storage this is a sum for display: whether it fits was decided on the host.
        changed = await _take_from(tx, Capacity, values, limited=charge > 0 and not place.host_bound)
    if not changed and charge > 0:
        raise await _refusal(tx, place, size, charge, terms)


async def _take_from(
    tx: AsyncSession, model: type[HostRef] | type[Capacity], values: dict[str, Any], *, limited: bool
) -> int:
    return await _taking(model, limited).run(tx, **values)


@lru_cache
def _taking(model: type[HostRef] | type[Capacity], limited: bool) -> Prepared:
    table = cast("Table", model.__table__)
    left = table.c.available_capacity - bindparam("charge", type_=BigInteger)
    conditions = [table.c.uuid == bindparam("of_storage")] if model is Capacity else [
        table.c.primary_storage_uuid == bindparam("of_storage"), table.c.host_uuid == bindparam("of_host"),
    ]  # fmt: skip
    if limited:
        conditions.append(left >= bindparam("reserved", type_=BigInteger))
    return Prepared(update(table).where(*conditions).values(available_capacity=left))


async def _refusal(tx: AsyncSession, place: Place, size: int, charge: int, terms: Terms) -> CloudError:
    if place.host_bound:
        available = await tx.scalar(select(HostRef.available_capacity).where(*_here(place)))
    else:
        available = await tx.scalar(select(Capacity.available_capacity).where(Capacity.uuid == place.ps_uuid))
    if available is None:
        return CloudError(ALLOCATE_ERROR, f"{place} is not connected, so its capacity is unknown", required=charge)
    return CloudError(
        ALLOCATE_ERROR,
        f"{place} has {available} bytes available, of which {terms.reserved} stay reserved; {charge} bytes are needed"
        f" for {size} bytes at over-provisioning ratio {terms.ratio}",
        available=available,
        reserved=terms.reserved,
        required=charge,
        primaryStorageUuid=place.ps_uuid,
        hostUuid=place.host_uuid or None,
    )


def _here(place: Place) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return HostRef.primary_storage_uuid == place.ps_uuid, HostRef.host_uuid == place.host_uuid


async def is_recorded(
    session: AsyncSession, ps_uuid: str, host_uuid: str, physical: PhysicalCapacity, terms: Terms
) -> bool:
    """Whether the books say just that of a connected host's share of a host-bound storage."""
    place = {"of_storage": ps_uuid, "of_host": host_uuid}
    for status, system_used, *amounts in await _share().rows(session, **place):
        charges = await _charges().rows(session, **place)
        left = physical.total - system_used - sum(charged for _, _, charged in charges)
        return (
            status == CONNECTED
            and physical.total > 0
            and amounts == [physical.total, physical.total, physical.available, left]
            and all(charged == terms.charge(size, scaled) for size, scaled, charged in charges)
        )
    return False


@lru_cache
def _share() -> Prepared:
    here = cast("Table", HostRef.__table__).c
    amounts = (
        here.total_capacity,
        here.total_physical_capacity,
        here.available_physical_capacity,
        here.available_capacity,
    )
    return Prepared(
        select(here.status, here.system_used_capacity, *amounts).where(
            here.primary_storage_uuid == bindparam("of_storage"), here.host_uuid == bindparam("of_host")
        )
    )


@lru_cache
def _charges() -> Prepared:
    here = cast("Table", Reservation.__table__).c
    return Prepared(
        select(here.size, here.scaled, here.charged).where(
            here.primary_storage_uuid == bindparam("of_storage"), here.host_uuid == bindparam("of_host")
        )
    )


async def has_share(session: Reading, ps_uuid: str, host_uuid: str) -> bool:
    """Whether a host has been entered as one that has the storage."""
    return bool(await _share().rows(session, of_storage=ps_uuid, of_host=host_uuid))


async def record(
    tx: AsyncSession, ps_uuid: str, host_uuid: str, physical: PhysicalCapacity, terms: Terms, host_bound: bool
) -> None:
    """Enter what a host says of a storage, mark the host as connected, and derive the available capacity anew."""
    ref = await tx.get(HostRef, (ps_uuid, host_uuid), with_for_update=True)
    if ref is None:
        ref = HostRef(primary_storage_uuid=ps_uuid, host_uuid=host_uuid)
        tx.add(ref)
    ref.status = CONNECTED
    if host_bound:
        await _derive(tx, ref, Place(ps_uuid, host_uuid, True), physical, terms)
        # Thousands of hosts that connect after a restart, each as it was, must not each add all of them up.
        changed = ref in tx.new or tx.is_modified(ref)
        await tx.flush()
        if changed:
            await sum_hosts(tx, ps_uuid)
        return
    await tx.flush()
    whole = await tx.get_one(Capacity, ps_uuid, with_for_update=True)
    await _derive(tx, whole, Place(ps_uuid, None, False), physical, terms)


async def _derive(
    tx: AsyncSession, row: HostRef | Capacity, place: Place, physical: PhysicalCapacity, terms: Terms
) -> None:
    charged = await _recharge(tx, place, terms)
    if not row.total_capacity:
        # The first look: what is used and not ours will not be given to volumes.
        row.system_used_capacity = max(0, physical.total - physical.available - charged)
    row.total_capacity = row.total_physical_capacity = physical.total
    row.available_physical_capacity = physical.available
    row.available_capacity = physical.total - row.system_used_capacity - charged


async def _recharge(tx: AsyncSession, place: Place, terms: Terms) -> int:
    """The sum of all charges at a place, each at today's ratio; the place is locked."""
    row = Reservation
    here = (row.primary_storage_uuid == place.ps_uuid, row.host_uuid == place.host_uuid)
    found = (await tx.execute(select(row.key, row.size, row.scaled, row.charged).where(*here))).all()
    total = sum(int(one.charged) for one in found)
    outdated = [one.key for one in found if one.charged != terms.charge(one.size, one.scaled)]
    if outdated:
        # Those that somebody else holds wait for the place, which is ours: they keep their charge until the next look.
        unheld = select(row).where(row.key.in_(outdated), *here).with_for_update(skip_locked=True, key_share=True)
        for one in await tx.scalars(unheld):
            charged = terms.charge(one.size, one.scaled)
            total += charged - one.charged
            one.charged = charged
    return total


async def sum_hosts(tx: AsyncSession, ps_uuid: str) -> None:
    """Make a host-bound storage's capacity the sum over its hosts."""
    names = (
        "total_capacity",
        "available_capacity",
        "total_physical_capacity",
        "available_physical_capacity",
        "system_used_capacity",
    )
    # Locked before the look: of two that sum at once, the second sees what the first has written.
    await tx.execute(select(Capacity.uuid).where(Capacity.uuid == ps_uuid).with_for_update())
    sums = [func.coalesce(func.sum(getattr(HostRef, name)), 0) for name in names]
    row = (await tx.execute(select(*sums).where(HostRef.primary_storage_uuid == ps_uuid))).one()
    await update_where(tx, Capacity, dict(zip(names, row, strict=True)), Capacity.uuid == ps_uuid)


async def drop_hosts(tx: AsyncSession, ps_uuid: str, host_uuids: list[str], host_bound: bool) -> None:
    """Take hosts, and of a host-bound storage their shares, out. Reservations stay: the bits are still there."""
    theirs = HostRef.host_uuid.in_(host_uuids)
    await tx.execute(delete(HostRef).where(HostRef.primary_storage_uuid == ps_uuid, theirs))
    if host_bound:
        await sum_hosts(tx, ps_uuid)
