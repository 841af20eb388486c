"""Choosing and taking an address.

Invariant: an address is taken by inserting its row; the unique keys decide between racers, and who loses chooses
again. Choosing by chance costs one statement as long as chance finds a free address, and the same few whether a range
is half full or nearly full. Who has to look for one does so while nobody else does in the same network: all would find
the same, and all but one in vain.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple, cast

from sqlalchemy import BigInteger, ScalarSelect, Table, and_, bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.l3.addresses import Address, Segment, any_ip, at, offset, size, usable
from caelum.cloud.l3.errors import ALLOCATE_IP_ERROR
from caelum.cloud.l3.messages import AllocateIp
from caelum.cloud.l3.model import IpRangeModel, L3NetworkModel, ReservedIpRangeModel, UsedIpModel
from caelum.cloud.l3.settings import FIRST_AVAILABLE, IP_STRATEGY
from caelum.cloud.switch import ENABLED
from caelum.kernel.database import Database, insert_new, utcnow
from caelum.kernel.errors import CloudError, invalid, not_found
from caelum.kernel.ids import derived_uuid
from caelum.kernel.journal import lock_queue, refuse_late
from caelum.kernel.prepared import Prepared
from caelum.kernel.rows import new_row, read_rows, values_of
from caelum.kernel.settings import ResourceConfigModel

ATTEMPTS = 20
"""How often a loser of a race chooses again, before it says that the network is too busy."""


class _Range(NamedTuple):
    """A range that may serve a request, and what of it may be chosen."""

    uuid: str
    start_ip: str
    end_ip: str
    netmask: str | None
    gateway: str | None
    segments: tuple[Segment, ...]


class _Network(NamedTuple):
    """What choosing needs of an L3 network but for its addresses: this is the hot path of a VM's creation."""

    uuid: str
    name: str
    state: str
    enable_ipam: bool
    strategy: str | None
    ranges: tuple[_Range, ...]


def holder_of(msg: AllocateIp) -> str:
    """Who takes the address."""
    holder = msg.holder or msg.vm_nic_uuid
    if holder is None:
        raise invalid("vmNicUuid", "an address needs a NIC or another holder")
    return holder


async def allocate(db: Database, cloud_strategy: str, msg: AllocateIp) -> UsedIpModel:
    """The address that the holder has, or a newly taken one, in a transaction of its own."""
    for _ in range(ATTEMPTS):
        async with db.transaction() as tx:
            if msg.holder is None:  # a service keeps its address, whoever asked for it first
                await refuse_late(tx)
            row = await _attempt(tx, await _known(db, tx, msg), msg, cloud_strategy)
            if row is not None:
                return row
    raise _too_busy(msg)


async def allocate_in(
    tx: AsyncSession, db: Database, cloud_strategy: str, asked: Sequence[AllocateIp]
) -> list[UsedIpModel]:
    """The same for several in somebody else's transaction, which has written nothing yet."""
    # In one order, so that of two who ask for several nobody waits for the other for ever.
    in_order = sorted(asked, key=lambda one: one.l3_network_uuid)
    networks = [await _known(db, tx, one) for one in in_order]
    taken = {}
    for l3, one in zip(networks, in_order, strict=True):
        taken[holder_of(one)] = await _surely(tx, l3, one, cloud_strategy)
    return [taken[holder_of(one)] for one in asked]


async def _known(db: Database, tx: AsyncSession, msg: AllocateIp) -> _Network:
    return await db.remember(_key(msg), lambda session: _network(session, msg), tx)


async def _surely(tx: AsyncSession, l3: _Network, msg: AllocateIp, cloud_strategy: str) -> UsedIpModel:
    for _ in range(ATTEMPTS):
        row = await _attempt(tx, l3, msg, cloud_strategy)
        if row is not None:
            return row
    raise _too_busy(msg)


async def _attempt(tx: AsyncSession, l3: _Network, msg: AllocateIp, cloud_strategy: str) -> UsedIpModel | None:
    """The address; None when somebody was faster."""
    strategy = msg.strategy or l3.strategy or cloud_strategy
    guess = _guess(l3, msg, strategy)
    if guess is not None and await _insert(tx, guess):
        return guess
    held = await _held(tx, msg)
    if held is not None:
        return held
    if msg.required_ip is None:
        await lock_queue(tx, f"l3-ip-{msg.l3_network_uuid}")
    row = await _choose(tx, l3, msg, strategy)
    return row if await _insert(tx, row) else None


def _too_busy(msg: AllocateIp) -> CloudError:
    return CloudError(
        ALLOCATE_IP_ERROR,
        f"lost the race for an address of L3 network[{msg.l3_network_uuid}] {ATTEMPTS} times",
        attempts=ATTEMPTS,
    )


async def _insert(tx: AsyncSession, row: UsedIpModel) -> bool:
    """Take the address; False when it has a holder, or its holder has another one."""
    return await insert_new(tx, UsedIpModel, **values_of(row))


async def _held(session: AsyncSession, msg: AllocateIp) -> UsedIpModel | None:
    """The address that the holder has, which must be the one that is asked for, if any is."""
    l3_uuid, holder = msg.l3_network_uuid, holder_of(msg)
    for held in await read_rows(
        session, UsedIpModel, l3_network_uuid=l3_uuid, holder=holder, ip_version=msg.ip_version
    ):
        if msg.required_ip is not None and ip_address(held.ip) != any_ip("ip", msg.required_ip):
            raise CloudError(
                ALLOCATE_IP_ERROR,
                f"{held.holder} holds {held.ip} of L3 network[{msg.l3_network_uuid}] already, so not {msg.required_ip}",
                held=held.ip,
                required=msg.required_ip,
            )
        return held
    return None


def _key(msg: AllocateIp) -> tuple[Any, ...]:
    return allocate, msg.l3_network_uuid, msg.ip_version, msg.ip_range_type, msg.ip_range_uuid


async def _network(session: AsyncSession, msg: AllocateIp) -> _Network:
    """The network, and the ranges that may serve the request, oldest first."""
    l3, row = L3NetworkModel, IpRangeModel
    fitting = [row.l3_network_uuid == l3.uuid, row.ip_version == msg.ip_version, row.ip_range_type == msg.ip_range_type]
    if msg.ip_range_uuid is not None:
        fitting.append(row.uuid == msg.ip_range_uuid)
    reserved = select(ReservedIpRangeModel.uuid).where(ReservedIpRangeModel.l3_network_uuid == l3.uuid)
    query = (
        select(l3.uuid, l3.name, l3.state, l3.enable_ipam, _own_strategy(), reserved.exists(), row)
        .outerjoin(row, and_(*fitting))
        .where(l3.uuid == msg.l3_network_uuid)
        .order_by(row.create_date, row.uuid)
        # Shared with other takers: a network that is being disabled or deleted waits for them, or they see it.
        .with_for_update(read=True, of=l3)
    )
    found = (await session.execute(query)).all()
    if not found:
        raise not_found("L3Network", msg.l3_network_uuid)
    uuid, name, state, enable_ipam, strategy, has_reserved, _ = found[0]
    cuts = await _reserved_of(session, uuid) if has_reserved else ()
    ranges = tuple(_range(one[-1], cuts) for one in found if one[-1] is not None)
    return _Network(uuid, name, state, enable_ipam, strategy, ranges)


def _range(row: IpRangeModel, reserved: Sequence[ReservedIpRangeModel]) -> _Range:
    return _Range(row.uuid, row.start_ip, row.end_ip, row.netmask, row.gateway, tuple(usable(row, reserved)))


async def _reserved_of(session: AsyncSession, l3_uuid: str) -> Sequence[ReservedIpRangeModel]:
    """The reserved ranges of an L3 network."""
    row = ReservedIpRangeModel
    return (await session.scalars(select(row).where(row.l3_network_uuid == l3_uuid))).all()


def _own_strategy() -> ScalarSelect[str]:
    """The network's override of the strategy."""
    row = ResourceConfigModel
    mine = (
        row.resource_uuid == L3NetworkModel.uuid,
        row.category == IP_STRATEGY.category,
        row.name == IP_STRATEGY.name,
    )
    return select(row.value).where(*mine).scalar_subquery()


def _guess(l3: _Network, msg: AllocateIp, strategy: str) -> UsedIpModel | None:
    """An address by chance, which nobody has unless the network is nearly full; None when chance must not choose."""
    if l3.state != ENABLED or msg.required_ip is not None or strategy == FIRST_AVAILABLE:
        return None
    choice = [one for one in l3.ranges if one.segments]
    if not choice:
        return None
    one = random.choice(choice)  # noqa: S311 - spread, not secrecy
    distance = _probes(one.segments, True)[0].first
    return _row(msg, at(one, distance), one, distance)


async def _choose(tx: AsyncSession, l3: _Network, msg: AllocateIp, strategy: str) -> UsedIpModel:
    if l3.state != ENABLED:
        raise CloudError(
            ALLOCATE_IP_ERROR, f"L3 network[{l3.uuid}, {l3.name}] is {l3.state}; it gives no addresses", state=l3.state
        )
    if msg.required_ip is not None:
        return await _required(tx, l3, msg, any_ip("ip", msg.required_ip))
    return await _free(tx, l3, msg, strategy)


async def _required(tx: AsyncSession, l3: _Network, msg: AllocateIp, wanted: Address) -> UsedIpModel:
    taken = await tx.scalar(
        select(UsedIpModel).where(UsedIpModel.l3_network_uuid == l3.uuid, UsedIpModel.ip == str(wanted))
    )
    if taken is not None:
        raise CloudError(
            ALLOCATE_IP_ERROR,
            f"{wanted} of L3 network[{l3.uuid}, {l3.name}] is in use by {taken.used_for or 'NIC'} {taken.holder}",
            ip=str(wanted),
            holder=taken.holder,
        )
    for one in l3.ranges:
        distance = offset(one, wanted)
        if distance is not None:
            return _row(msg, wanted, one, distance)
    if l3.enable_ipam:
        spans = ", ".join(f"{one.start_ip}-{one.end_ip}" for one in l3.ranges) or "none"
        raise CloudError(
            ALLOCATE_IP_ERROR,
            f"{wanted} is in no {msg.ip_range_type} range of L3 network[{l3.uuid}, {l3.name}]; its ranges: {spans}",
            ip=str(wanted),
        )
    return _row(msg, wanted, None, None)


async def _free(tx: AsyncSession, l3: _Network, msg: AllocateIp, strategy: str) -> UsedIpModel:
    order = l3.ranges if strategy == FIRST_AVAILABLE else random.sample(l3.ranges, len(l3.ranges))
    for one in order:
        distance = await _find_free(tx, one, at_random=strategy != FIRST_AVAILABLE)
        if distance is not None:
            return _row(msg, at(one, distance), one, distance)
    raise await _exhausted(tx, l3)


async def _find_free(tx: AsyncSession, one: _Range, *, at_random: bool) -> int | None:
    """A free offset: the first one, or the first after a random place, going round."""
    for first, last in _probes(one.segments, at_random):
        distance = await _first_free(tx, one.uuid, first, last)
        if distance is not None:
            return distance
    return None


def _probes(segments: Sequence[Segment], at_random: bool) -> list[Segment]:
    """The segments in the order of the search, cut at the place where it begins."""
    if not at_random or not segments:
        return list(segments)
    sizes = [one.size for one in segments]
    begin = random.choices(range(len(segments)), weights=sizes)[0]  # noqa: S311 - spread, not secrecy
    cut = segments[begin]
    place = random.randint(cut.first, cut.last)  # noqa: S311 - the same
    before = [Segment(cut.first, place - 1)] if place > cut.first else []
    return [Segment(place, cut.last), *segments[begin + 1 :], *segments[:begin], *before]


_USED = cast("Table", UsedIpModel.__table__)
_AFTER = _USED.alias("after")
_IN_RANGE = _USED.c.ip_range_uuid == bindparam("range_uuid")
_FIRST, _LAST = bindparam("first", type_=BigInteger), bindparam("last", type_=BigInteger)
_TAKEN = Prepared(select(_USED.c.uuid).where(_IN_RANGE, _USED.c.ip_offset == _FIRST))
_SUCCESSOR = select(_AFTER.c.uuid).where(
    _AFTER.c.ip_range_uuid == _USED.c.ip_range_uuid, _AFTER.c.ip_offset == _USED.c.ip_offset + 1
)
_GAP = Prepared(
    select(_USED.c.ip_offset + 1)
    .where(_IN_RANGE, _USED.c.ip_offset >= _FIRST, _USED.c.ip_offset < _LAST, ~_SUCCESSOR.exists())
    .order_by(_USED.c.ip_offset)
    .limit(1)
)


async def _first_free(tx: AsyncSession, range_uuid: str, first: int, last: int) -> int | None:
    """The first free offset in `first` ... `last`: `first` itself, or the first used one whose successor is not."""
    if not await _TAKEN.rows(tx, range_uuid=range_uuid, first=first):
        return first
    for (distance,) in await _GAP.rows(tx, range_uuid=range_uuid, first=first, last=last):
        return cast("int", distance)
    return None


async def _exhausted(tx: AsyncSession, l3: _Network) -> CloudError:
    ranges = l3.ranges
    total = sum(size(one) for one in ranges)
    left = sum(segment.size for one in ranges for segment in one.segments)
    used = await tx.scalar(select(func.count()).where(UsedIpModel.ip_range_uuid.in_([one.uuid for one in ranges])))
    return CloudError(
        ALLOCATE_IP_ERROR,
        f"no free address in L3 network[{l3.uuid}, {l3.name}]: its {len(ranges)} ranges have {total} addresses,"
        f" {used} are in use and {total - left} reserved",
        total=total,
        used=used or 0,
        reserved=total - left,
        ranges=len(ranges),
    )


def _row(msg: AllocateIp, address: Address, one: _Range | None, distance: int | None) -> UsedIpModel:
    now = utcnow()
    return new_row(
        UsedIpModel,
        # An undo that takes an address again brings back what was.
        uuid=derived_uuid(msg.l3_network_uuid, str(address), holder_of(msg)),
        l3_network_uuid=msg.l3_network_uuid,
        ip_range_uuid=None if one is None else one.uuid,
        ip_offset=distance,
        holder=holder_of(msg),
        ip_version=address.version,
        ip=str(address),
        netmask=None if one is None else one.netmask,
        gateway=None if one is None else one.gateway,
        used_for=msg.used_for or ("VmNic" if msg.vm_nic_uuid else None),
        ip_in_long=int(address) if address.version == 4 else None,
        vm_nic_uuid=msg.vm_nic_uuid,
        create_date=now,
        last_op_date=now,
    )
