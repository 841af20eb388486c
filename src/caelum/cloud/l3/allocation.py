"""Choosing and taking an address.

Invariant: an address is taken by inserting its row; the unique keys decide between racers, and who loses chooses
again. Choosing costs the same few statements whether a range is empty or nearly full.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ScalarSelect, and_, bindparam, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from caelum.cloud.l3.addresses import Address, Segment, any_ip, at, offset, size, usable
from caelum.cloud.l3.errors import ALLOCATE_IP_ERROR
from caelum.cloud.l3.messages import AllocateIp
from caelum.cloud.l3.model import IpRangeModel, L3NetworkModel, ReservedIpRangeModel, UsedIpModel
from caelum.cloud.l3.settings import FIRST_AVAILABLE, IP_STRATEGY
from caelum.cloud.switch import ENABLED
from caelum.kernel.database import Database, is_unique_violation, utcnow
from caelum.kernel.errors import CloudError, invalid, not_found
from caelum.kernel.ids import derived_uuid
from caelum.kernel.journal import refuse_late
from caelum.kernel.rows import insert_rows
from caelum.kernel.settings import ResourceConfigModel

ATTEMPTS = 20
"""How often a loser of a race chooses again, before it says that the network is too busy."""


class _Network(NamedTuple):
    """What choosing needs of an L3 network, read by one statement: this is the hot path of a VM's creation."""

    uuid: str
    name: str
    state: str
    enable_ipam: bool
    strategy: str | None
    has_reserved: bool
    held: UsedIpModel | None
    ranges: list[IpRangeModel]


def holder_of(msg: AllocateIp) -> str:
    """Who takes the address."""
    holder = msg.holder or msg.vm_nic_uuid
    if holder is None:
        raise invalid("vmNicUuid", "an address needs a NIC or another holder")
    return holder


async def allocate(db: Database, cloud_strategy: str, msg: AllocateIp) -> UsedIpModel:
    """The address that the holder has, or a newly taken one, in a transaction of its own."""
    if msg.holder is not None and (held := await _held(db, msg)) is not None:
        return _check_held(held, msg)  # a service asks for its server's address with every guest
    for _ in range(ATTEMPTS):
        try:
            async with db.transaction() as tx:
                if msg.holder is None:  # a service keeps its address, whoever asked for it first
                    await refuse_late(tx)
                l3 = await _network(tx, msg)
                if l3.held is not None:
                    return _check_held(l3.held, msg)
                return await _take(tx, l3, msg, cloud_strategy)
        except IntegrityError as error:
            if not is_unique_violation(error):
                raise
    raise CloudError(
        ALLOCATE_IP_ERROR,
        f"lost the race for an address of L3 network[{msg.l3_network_uuid}] {ATTEMPTS} times",
        attempts=ATTEMPTS,
    )


async def _held(db: Database, msg: AllocateIp) -> UsedIpModel | None:
    async with db.read() as session:
        values = {"l3_uuid": msg.l3_network_uuid, "of_holder": msg.holder, "version": msg.ip_version}
        return await session.scalar(_HELD, values)


_HELD = select(UsedIpModel).where(
    UsedIpModel.l3_network_uuid == bindparam("l3_uuid"),
    UsedIpModel.holder == bindparam("of_holder"),
    UsedIpModel.ip_version == bindparam("version"),
)


async def _take(tx: AsyncSession, l3: _Network, msg: AllocateIp, cloud_strategy: str) -> UsedIpModel:
    if l3.state != ENABLED:
        raise CloudError(
            ALLOCATE_IP_ERROR, f"L3 network[{l3.uuid}, {l3.name}] is {l3.state}; it gives no addresses", state=l3.state
        )
    if msg.required_ip is not None:
        row = await _required(tx, l3, msg, any_ip("ip", msg.required_ip))
    else:
        row = await _free(tx, l3, msg, msg.strategy or l3.strategy or cloud_strategy)
    await insert_rows(tx, [row])
    return row


def _check_held(held: UsedIpModel, msg: AllocateIp) -> UsedIpModel:
    if msg.required_ip is not None and ip_address(held.ip) != any_ip("ip", msg.required_ip):
        raise CloudError(
            ALLOCATE_IP_ERROR,
            f"{held.holder} holds {held.ip} of L3 network[{msg.l3_network_uuid}] already, so not {msg.required_ip}",
            held=held.ip,
            required=msg.required_ip,
        )
    return held


async def _network(tx: AsyncSession, msg: AllocateIp) -> _Network:
    """The network, what the holder has of it, and the ranges that may serve the request, oldest first."""
    values = {
        "l3_uuid": msg.l3_network_uuid,
        "of_holder": holder_of(msg),
        "version": msg.ip_version,
        "range_type": msg.ip_range_type,
        "range_uuid": msg.ip_range_uuid,
    }
    found = (await tx.execute(_facts(msg.ip_range_uuid is not None), values)).all()
    if not found:
        raise not_found("L3Network", msg.l3_network_uuid)
    return _Network._make([*found[0][:7], [one[7] for one in found if one[7] is not None]])


@lru_cache
def _facts(in_range: bool) -> Any:
    """Made once: to make it takes longer than to run it."""
    l3, row, held = L3NetworkModel, IpRangeModel, UsedIpModel
    version: Any = bindparam("version")
    fitting = [row.ip_version == version, row.ip_range_type == bindparam("range_type")]
    if in_range:
        fitting.append(row.uuid == bindparam("range_uuid"))
    mine = and_(held.l3_network_uuid == l3.uuid, held.holder == bindparam("of_holder"), held.ip_version == version)
    reserved = select(ReservedIpRangeModel.uuid).where(ReservedIpRangeModel.l3_network_uuid == l3.uuid)
    return (
        select(l3.uuid, l3.name, l3.state, l3.enable_ipam, _own_strategy(), reserved.exists(), held, row)
        .outerjoin(held, mine)
        .outerjoin(row, and_(row.l3_network_uuid == l3.uuid, *fitting))
        .where(l3.uuid == bindparam("l3_uuid"))
        .order_by(row.create_date, row.uuid)
        # Shared with other takers: a network that is being disabled or deleted waits for them, or they see it.
        .with_for_update(read=True, of=l3)
    )


def _own_strategy() -> ScalarSelect[str]:
    """The network's override of the strategy."""
    row = ResourceConfigModel
    mine = (
        row.resource_uuid == L3NetworkModel.uuid,
        row.category == IP_STRATEGY.category,
        row.name == IP_STRATEGY.name,
    )
    return select(row.value).where(*mine).scalar_subquery()


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
    reserved = await reserved_of(tx, l3.uuid) if l3.has_reserved else []
    order = l3.ranges if strategy == FIRST_AVAILABLE else random.sample(l3.ranges, len(l3.ranges))
    for one in order:
        segments = usable(one, reserved)
        distance = await find_free(tx, one.uuid, segments, at_random=strategy != FIRST_AVAILABLE)
        if distance is not None:
            return _row(msg, at(one, distance), one, distance)
    raise await _exhausted(tx, l3, reserved)


async def reserved_of(tx: AsyncSession, l3_uuid: str) -> Sequence[ReservedIpRangeModel]:
    """The reserved ranges of an L3 network."""
    return (await tx.scalars(select(ReservedIpRangeModel).where(ReservedIpRangeModel.l3_network_uuid == l3_uuid))).all()


async def find_free(tx: AsyncSession, range_uuid: str, segments: Sequence[Segment], *, at_random: bool) -> int | None:
    """A free offset: the first one, or the first after a random place, going round."""
    for first, last in _probes(segments, at_random):
        distance = await _first_free(tx, range_uuid, first, last)
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


_TAKEN = select(UsedIpModel.uuid).where(
    UsedIpModel.ip_range_uuid == bindparam("range_uuid"), UsedIpModel.ip_offset == bindparam("first", type_=BigInteger)
)


async def _first_free(tx: AsyncSession, range_uuid: str, first: int, last: int) -> int | None:
    """The first free offset in `first` ... `last`: `first` itself, or the first used one whose successor is not."""
    used, after = UsedIpModel, aliased(UsedIpModel)
    if await tx.scalar(_TAKEN, {"range_uuid": range_uuid, "first": first}) is None:
        return first
    successor = select(after.uuid).where(after.ip_range_uuid == range_uuid, after.ip_offset == used.ip_offset + 1)
    gap = (
        select(used.ip_offset + 1)
        .where(used.ip_range_uuid == range_uuid, used.ip_offset >= first, used.ip_offset < last, ~successor.exists())
        .order_by(used.ip_offset)
        .limit(1)
    )
    return await tx.scalar(gap)


async def _exhausted(tx: AsyncSession, l3: _Network, reserved: Sequence[ReservedIpRangeModel]) -> CloudError:
    ranges = l3.ranges
    total = sum(size(one) for one in ranges)
    left = sum(segment.size for one in ranges for segment in usable(one, reserved))
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


def _row(msg: AllocateIp, address: Address, one: IpRangeModel | None, distance: int | None) -> UsedIpModel:
    now = utcnow()
    return UsedIpModel(
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
