"""Handlers about single addresses: allocate, return, and tell what is free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.l3.addresses import any_ip, at, offset, usable
from caelum.cloud.l3.allocation import allocate, allocate_in, holder_of
from caelum.cloud.l3.api import (
    AvailabilityReply,
    CheckIpAvailability,
    FreeIpInventory,
    GetFreeIp,
    GetIpAddressCapacity,
    IpCapacityData,
    IpCapacityReply,
    UsedIpInventory,
)
from caelum.cloud.l3.extension import AddressRecords
from caelum.cloud.l3.messages import AllocateIp, GetHeldIp, ReturnIp
from caelum.cloud.l3.model import IpRangeModel, L3NetworkModel, ReservedIpRangeModel, UsedIpModel
from caelum.cloud.l3.rows import network
from caelum.cloud.l3.settings import IP_STRATEGY
from caelum.kernel.errors import invalid
from caelum.kernel.journal import refuse_late
from caelum.kernel.node import Node
from caelum.kernel.rows import delete_rows, read_rows
from caelum.kernel.service import Service, handles
from caelum.kernel.views import view, views

MAX_LISTED = 10_000
"""Free addresses that one answer lists at most."""
MAX_LONG = 2**63 - 1
_WINDOW = 4096


class AddressHandlers(Service):
    """What the L3 service does with addresses."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.extensions.add(RecordsOfAddresses(node))

    @handles(AllocateIp, queue="l3-ip-{l3_network_uuid}")
    async def allocate(self, msg: AllocateIp) -> UsedIpInventory:
        """Take an address."""
        holder_of(msg)
        return view(await allocate(self.db, self.node.settings.get(IP_STRATEGY), msg))  # type: ignore[no-any-return]

    @handles(GetHeldIp, reads=True)
    async def held(self, msg: GetHeldIp) -> UsedIpInventory | None:
        """The address that a holder has."""
        l3_uuid, version = msg.l3_network_uuid, msg.ip_version
        found = await read_rows(
            self.node.db.once, UsedIpModel, l3_network_uuid=l3_uuid, holder=msg.holder, ip_version=version
        )
        return view(found[0]) if found else None

    @handles(ReturnIp)
    async def give_back(self, msg: ReturnIp) -> None:
        """Give addresses back."""
        only = {"holder": msg.vm_nic_uuid}
        if msg.l3_network_uuid is not None:
            only["l3_network_uuid"] = msg.l3_network_uuid
        async with self.node.db.transaction() as tx:
            await refuse_late(tx)
            await delete_rows(tx, UsedIpModel, **only)

    @handles(GetFreeIp)
    async def free(self, msg: GetFreeIp) -> list[FreeIpInventory]:
        """List free addresses."""
        if (msg.l3_network_uuid is None) == (msg.ip_range_uuid is None):
            raise invalid("l3NetworkUuid", "ipRangeUuid and l3NetworkUuid: exactly one of them is needed")
        limit = min(max(msg.limit, 0), MAX_LISTED)
        found: list[FreeIpInventory] = []
        async with self.node.db.read() as session:
            for one, reserved in await _ranges(session, _wanted(msg)):
                if len(found) < limit:
                    found += await _free_of(session, one, reserved, msg.start, limit - len(found))
        return found

    @handles(CheckIpAvailability)
    async def check(self, msg: CheckIpAvailability) -> AvailabilityReply:
        """Whether an address is free."""
        wanted = any_ip("ip", msg.ip)
        async with self.node.db.read() as session:
            l3 = await network(session, msg.l3_network_uuid)
            if any(one.gateway == str(wanted) for one in l3.ip_ranges):
                return AvailabilityReply(available=False, reason=f"{wanted} is the gateway")
            holder = await session.scalar(
                select(UsedIpModel.holder).where(UsedIpModel.l3_network_uuid == l3.uuid, UsedIpModel.ip == str(wanted))
            )
        if holder is not None:
            return AvailabilityReply(available=False, reason=f"{wanted} is in use by {holder}")
        if msg.ip_range_check and l3.enable_ipam and all(offset(one, wanted) is None for one in l3.ip_ranges):
            return AvailabilityReply(available=False, reason=f"{wanted} is in no ip range of the L3 network")
        return AvailabilityReply(available=True)

    @handles(GetIpAddressCapacity)
    async def capacity(self, msg: GetIpAddressCapacity) -> IpCapacityReply:
        """Count addresses."""
        group, uuids, vo = _grouping(msg)
        condition: list[ColumnElement[bool]] = [] if uuids is None else [group.in_(uuids)]
        async with self.node.db.read() as session:
            ranges = await _ranges(session, condition)
            used = await _used_by_range(session, [one.uuid for one, _ in ranges])
            pairs = await session.execute(select(L3NetworkModel.uuid, L3NetworkModel.zone_uuid))
            zones: dict[str, str] = dict(pairs.all())
        data = {uuid: IpCapacityData(resource_uuid=uuid) for uuid in uuids or ()}
        for one, reserved in ranges:
            key = {"IpRangeVO": one.uuid, "L3NetworkVO": one.l3_network_uuid}.get(vo) or zones[one.l3_network_uuid]
            _count(data.setdefault(key, IpCapacityData(resource_uuid=key)), one, reserved, used.get(one.uuid, 0))
        return _sum(list(data.values()), vo)


def _wanted(msg: GetFreeIp) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [
        IpRangeModel.uuid == msg.ip_range_uuid
        if msg.ip_range_uuid is not None
        else IpRangeModel.l3_network_uuid == msg.l3_network_uuid
    ]
    if msg.ip_range_type is not None:
        conditions.append(IpRangeModel.ip_range_type == msg.ip_range_type)
    if msg.ip_version is not None:
        conditions.append(IpRangeModel.ip_version == msg.ip_version)
    return conditions


RangeWithReserved = tuple[IpRangeModel, Sequence[ReservedIpRangeModel]]


async def _ranges(session: AsyncSession, conditions: Iterable[ColumnElement[bool]]) -> list[RangeWithReserved]:
    """Ranges, each with the reserved ranges of its network."""
    query = select(IpRangeModel).join(L3NetworkModel, L3NetworkModel.uuid == IpRangeModel.l3_network_uuid)
    rows = (await session.scalars(query.where(*conditions).order_by(IpRangeModel.create_date))).all()
    reserved: dict[str, list[ReservedIpRangeModel]] = {row.l3_network_uuid: [] for row in rows}
    for one in await session.scalars(
        select(ReservedIpRangeModel).where(ReservedIpRangeModel.l3_network_uuid.in_(reserved))
    ):
        reserved[one.l3_network_uuid].append(one)
    return [(row, reserved[row.l3_network_uuid]) for row in rows]


async def _free_of(
    session: AsyncSession, one: IpRangeModel, reserved: Sequence[ReservedIpRangeModel], start: str | None, limit: int
) -> list[FreeIpInventory]:
    """The first free addresses of a range, from `start` on; read window by window, so a full range costs no memory."""
    begin = 0 if start is None else offset(one, any_ip("start", start))
    found: list[FreeIpInventory] = []
    for first, last in usable(one, reserved) if begin is not None else ():
        low = max(first, begin or 0)
        while low <= last and len(found) < limit:
            high = min(last, low + max(limit, _WINDOW) - 1)
            taken = await _taken(session, one.uuid, low, high)
            free = [distance for distance in range(low, high + 1) if distance not in taken]
            found += [_free_view(one, distance) for distance in free[: limit - len(found)]]
            low = high + 1
    return found


async def _taken(session: AsyncSession, range_uuid: str, low: int, high: int) -> set[int | None]:
    row = UsedIpModel
    return set(
        await session.scalars(
            select(row.ip_offset).where(row.ip_range_uuid == range_uuid, row.ip_offset.between(low, high))
        )
    )


def _free_view(one: IpRangeModel, distance: int) -> FreeIpInventory:
    return FreeIpInventory(ip_range_uuid=one.uuid, ip=str(at(one, distance)), netmask=one.netmask, gateway=one.gateway)


async def _used_by_range(session: AsyncSession, uuids: Sequence[str]) -> dict[str, int]:
    row = UsedIpModel
    query = select(row.ip_range_uuid, func.count()).where(row.ip_range_uuid.in_(uuids)).group_by(row.ip_range_uuid)
    return {uuid: count for uuid, count in await session.execute(query) if uuid is not None}


def _grouping(msg: GetIpAddressCapacity) -> tuple[ColumnElement[str], list[str] | None, str]:
    """By what the addresses are counted, which of them (None: all), and the type's name."""
    ranges, networks = IpRangeModel.uuid, L3NetworkModel.uuid
    if msg.ip_range_uuids:
        return ranges, msg.ip_range_uuids, "IpRangeVO"  # type: ignore[return-value]
    if msg.l3_network_uuids:
        return networks, msg.l3_network_uuids, "L3NetworkVO"  # type: ignore[return-value]
    if msg.zone_uuids or msg.all:
        return L3NetworkModel.zone_uuid, None if msg.all else msg.zone_uuids, "ZoneVO"  # type: ignore[return-value]
    raise invalid(
        "all",
        "zoneUuids, l3NetworkUuids, ipRangeUuids must have at least one be none-empty list, or all is set to true",
    )


def _count(data: IpCapacityData, one: IpRangeModel, reserved: Sequence[ReservedIpRangeModel], used: int) -> None:
    total = min(MAX_LONG, sum(segment.size for segment in usable(one, reserved)))
    free = max(0, total - used)
    data.total_capacity = min(MAX_LONG, data.total_capacity + total)
    data.available_capacity = min(MAX_LONG, data.available_capacity + free)
    data.used_ip_address_number += used
    if one.ip_version == 4:
        data.ipv4_total_capacity += total
        data.ipv4_available_capacity += free
        data.ipv4_used_ip_address_number += used
    else:
        data.ipv6_total_capacity = min(MAX_LONG, data.ipv6_total_capacity + total)
        data.ipv6_available_capacity = min(MAX_LONG, data.ipv6_available_capacity + free)
        data.ipv6_used_ip_address_number += used


_NUMBERS = tuple(name for name in IpCapacityData.__struct_fields__ if name != "resource_uuid")


def _sum(data: list[IpCapacityData], vo: str) -> IpCapacityReply:
    totals = {name: min(MAX_LONG, sum(getattr(one, name) for one in data)) for name in _NUMBERS}
    return IpCapacityReply(**totals, capacity_data=data, resource_type=vo)


class RecordsOfAddresses(AddressRecords):
    """What others take of addresses in their transactions."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def take(self, tx: AsyncSession, asked: Sequence[AllocateIp]) -> list[UsedIpInventory]:
        """Take addresses."""
        taken: list[UsedIpInventory] = views(
            await allocate_in(tx, self._node.db, self._node.settings.get(IP_STRATEGY), asked)
        )
        return taken

    async def give_back(self, tx: AsyncSession, vm_nic_uuids: Sequence[str]) -> None:
        """Give addresses back."""
        await delete_rows(tx, UsedIpModel, holder=list(vm_nic_uuids))
