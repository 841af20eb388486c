"""The books: taking from a host and giving back, never more than there is.

Invariant: every change is one transaction with a conditional update; nothing is decided on numbers that were read
before. A reservation that exists is recognised by its VM.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, cast

from sqlalchemy import BigInteger, ColumnElement, Table, bindparam, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.allocator.model import HostCapacityModel, HostReservationModel
from caelum.kernel.database import insert_new
from caelum.kernel.prepared import Prepared, Reading
from caelum.kernel.rows import insert_rows, values_of

Capacity = HostCapacityModel
Reservation = HostReservationModel
_HAS = cast("Table", Capacity.__table__).c
_USED = ("used_cpu", "used_memory", "vm_count")


CPU, MEMORY = "need_cpu", "need_memory"
"""The places in statements for what a machine needs."""


def fits(*, physically: bool) -> list[ColumnElement[bool]]:
    """That a host has CPU and MEMORY left; `physically`: also that it has so much memory at all."""
    memory = bindparam(MEMORY, type_=BigInteger)
    conditions: list[ColumnElement[bool]] = [
        _HAS.used_cpu + bindparam(CPU, type_=BigInteger) <= _HAS.total_cpu,
        _HAS.used_memory + memory <= _HAS.limit_memory,
    ]
    return [*conditions, _HAS.total_memory >= memory] if physically else conditions


async def take(tx: AsyncSession, wanted: Reservation, *, physically: bool = False, force: bool = False) -> bool:
    """Reserve on a host; False when it does not have so much (any more), unless by force."""
    needs = {CPU: wanted.cpu_num, MEMORY: wanted.memory}
    if not await _taking(physically=physically, force=force).run(tx, on_host=wanted.host_uuid, **needs):
        return False
    await insert_rows(tx, [wanted])
    return True


async def take_anew(tx: AsyncSession, wanted: Reservation, *, physically: bool) -> bool:
    """The same for a machine that has no reservation. False when it has one, or the host does not have so much: then
    the transaction must be rolled back."""
    if not await insert_new(tx, Reservation, **values_of(wanted)):
        return False
    needs = {CPU: wanted.cpu_num, MEMORY: wanted.memory}
    return await _taking(physically=physically, force=False).run(tx, on_host=wanted.host_uuid, **needs) > 0


@lru_cache
def _taking(*, physically: bool, force: bool) -> Prepared:
    table = cast("Table", Capacity.__table__)
    values = {
        "used_cpu": table.c.used_cpu + bindparam(CPU, type_=BigInteger),
        "used_memory": table.c.used_memory + bindparam(MEMORY, type_=BigInteger),
        "vm_count": table.c.vm_count + 1,
    }
    conditions = [] if force else fits(physically=physically)
    return Prepared(update(table).where(table.c.uuid == bindparam("on_host"), *conditions).values(values))


async def give_back(tx: AsyncSession, vm_uuid: str, host_uuid: str | None = None) -> bool:
    """Undo a reservation; False when there is none (on that host)."""
    on_host = {} if host_uuid is None else {"on_host": host_uuid}
    rows = await _forgetting(anywhere=host_uuid is None).rows(tx, of_vm=vm_uuid, **on_host)
    for where, cpus, memory in rows:
        await _giving().run(tx, of_host=where, cpus=cpus, bytes=memory)
    return bool(rows)


@lru_cache
def _forgetting(*, anywhere: bool) -> Prepared:
    table = cast("Table", Reservation.__table__)
    conditions = [table.c.vm_uuid == bindparam("of_vm")]
    if not anywhere:
        conditions.append(table.c.host_uuid == bindparam("on_host"))
    return Prepared(delete(table).where(*conditions).returning(table.c.host_uuid, table.c.cpu_num, table.c.memory))


@lru_cache
def _giving() -> Prepared:
    table = cast("Table", Capacity.__table__)
    values = {
        "used_cpu": table.c.used_cpu - bindparam("cpus", type_=BigInteger),
        "used_memory": table.c.used_memory - bindparam("bytes", type_=BigInteger),
        "vm_count": table.c.vm_count - 1,
    }
    return Prepared(update(table).where(table.c.uuid == bindparam("of_host")).values(values))


class Has(NamedTuple):
    """What a host has, and what may be given away of it (`total_cpu`, `limit_memory`)."""

    cpu_num: int
    cpu_sockets: int
    total_cpu: int
    total_memory: int
    limit_memory: int


async def is_recorded(session: Reading, host_uuid: str, has: Has) -> bool:
    """Whether the books say just that of a host, and what is taken of it is what its reservations take together."""
    known = await _recorded().rows(session, key=host_uuid)
    if not known:
        return False
    said, taken = known[0][: -len(_USED)], known[0][-len(_USED) :]
    return tuple(said) == (*has, *map(int, taken))  # sums of big integers are decimals in PostgreSQL


@lru_cache
def _recorded() -> Prepared:
    """What the books say of a host, and what its reservations take together."""
    here, held = cast("Table", Capacity.__table__).c, cast("Table", Reservation.__table__).c
    sums = [select(one).where(held.host_uuid == here.uuid).scalar_subquery() for one in _sums()]
    return Prepared(
        select(*(here[name] for name in (*Has._fields, *_USED)), *sums).where(here.uuid == bindparam("key"))
    )


async def record(tx: AsyncSession, host_uuid: str, has: Has) -> None:
    """Write down what a host has, and count again what is taken of it."""
    row = await tx.get(Capacity, host_uuid, with_for_update=True)
    if row is None:
        row = Capacity(uuid=host_uuid)
        tx.add(row)
    for name, value in has._asdict().items():
        setattr(row, name, value)
    row.used_cpu, row.used_memory, row.vm_count = await _taken(tx, host_uuid)


async def _taken(session: AsyncSession, host_uuid: str) -> tuple[int, int, int]:
    # Sums of big integers are decimals in PostgreSQL.
    [(cpu, memory, count)] = await _summing().rows(session, key=host_uuid)
    return int(cpu), int(memory), int(count)


@lru_cache
def _summing() -> Prepared:
    here = cast("Table", Reservation.__table__).c
    return Prepared(select(*_sums()).where(here.host_uuid == bindparam("key")))


def _sums() -> tuple[ColumnElement[int], ...]:
    """What reservations take together, in the order of `_USED`."""
    here = cast("Table", Reservation.__table__).c
    return func.coalesce(func.sum(here.cpu_num), 0), func.coalesce(func.sum(here.memory), 0), func.count()


async def drop(tx: AsyncSession, host_uuid: str) -> None:
    """Forget a host."""
    await tx.execute(delete(Reservation).where(Reservation.host_uuid == host_uuid))
    await tx.execute(delete(Capacity).where(Capacity.uuid == host_uuid))
