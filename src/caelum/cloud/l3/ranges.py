"""Handlers about IP ranges.

Invariant: ranges of one L3 network do not overlap, and all its ranges for NICs have the same network and gateway.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.l3.addresses import NewRange, check_reserved, overlap, range_of, ranges_of_cidr
from caelum.cloud.l3.api import (
    AddIpRange,
    AddIpRangeByNetworkCidr,
    AddIpRangeByNetworkCidrReply,
    AddReservedIpRange,
    DeleteIpRange,
    DeleteReservedIpRange,
    IpRangeInventory,
    ReservedIpRangeInventory,
    UpdateIpRange,
)
from caelum.cloud.l3.extension import IpRangeAdded
from caelum.cloud.l3.model import AddressPoolModel, IpRangeModel, L3NetworkModel, ReservedIpRangeModel
from caelum.cloud.l3.rows import inventory, ip_range, network
from caelum.cloud.ownership import disown, own
from caelum.kernel import context
from caelum.kernel.errors import invalid
from caelum.kernel.ids import new_uuid
from caelum.kernel.service import Service, handles
from caelum.kernel.tag import drop_tags, save_tags
from caelum.kernel.views import view, views

POOL = "AddressPool"


class RangeHandlers(Service):
    """What the L3 service does with ranges."""

    @handles(AddIpRange, queue="l3-{l3_network_uuid}")
    async def add_range(self, msg: AddIpRange) -> IpRangeInventory:
        """Add a range by its ends."""
        pool = msg.ip_range_type == POOL
        return (await self._add(msg, [range_of(msg.start_ip, msg.end_ip, msg.netmask, msg.gateway, pool)]))[0]

    @handles(AddIpRangeByNetworkCidr, queue="l3-{l3_network_uuid}")
    async def add_cidr(self, msg: AddIpRangeByNetworkCidr) -> AddIpRangeByNetworkCidrReply:
        """Add a whole network."""
        added = await self._add(msg, ranges_of_cidr(msg.network_cidr, msg.gateway, msg.ip_range_type == POOL))
        return AddIpRangeByNetworkCidrReply(inventory=added[0], inventories=added)

    async def _add(self, msg: AddIpRange | AddIpRangeByNetworkCidr, wanted: list[NewRange]) -> list[IpRangeInventory]:
        async with self.node.db.transaction() as tx:
            l3 = await network(tx, msg.l3_network_uuid)
            rows = [self._row(msg, one) for one in wanted]
            if msg.resource_uuid is not None:
                rows[0].uuid = msg.resource_uuid
            for row in rows:
                _check(l3, row)
                tx.add(row)
                await own(tx, context.current().actor.account_uuid, row.uuid, "IpRangeVO")
            await tx.flush()
            for row in rows:
                await save_tags(tx, msg, row.uuid)
            added, now = views(rows), await inventory(tx, l3.uuid)
        for one in added:
            await self.node.extensions.notify(IpRangeAdded, "ip_range_added", now, one)
        return added

    def _row(self, msg: AddIpRange | AddIpRangeByNetworkCidr, one: NewRange) -> IpRangeModel:
        model = AddressPoolModel if msg.ip_range_type == POOL else IpRangeModel
        return model(
            uuid=new_uuid(),
            l3_network_uuid=msg.l3_network_uuid,
            name=msg.name,
            description=msg.description,
            start_ip=str(one.start),
            end_ip=str(one.end),
            netmask=str(one.network.netmask),
            gateway=str(one.gateway),
            network_cidr=str(one.network),
            ip_version=4,
            prefix_len=one.network.prefixlen,
            ip_range_type=msg.ip_range_type or "Normal",
        )

    @handles(UpdateIpRange, queue="ip-range-{uuid}")
    async def update_range(self, msg: UpdateIpRange) -> IpRangeInventory:
        """Change name and description."""
        async with self.node.db.transaction() as tx:
            row = await ip_range(tx, msg.uuid)
            row.name = msg.name or row.name
            row.description = row.description if msg.description is None else msg.description
            await tx.flush()
        return view(row)  # type: ignore[no-any-return]

    @handles(DeleteIpRange, queue="ip-range-{uuid}")
    async def delete_range(self, msg: DeleteIpRange) -> None:
        """Delete a range and what uses its addresses."""
        await self.node.cascade.delete("IpRangeVO", [msg.uuid], mode=msg.delete_mode)

    @handles(AddReservedIpRange, queue="l3-{l3_network_uuid}")
    async def reserve(self, msg: AddReservedIpRange) -> ReservedIpRangeInventory:
        """Keep addresses from being chosen; who has one already keeps it."""
        start, end = check_reserved(msg.start_ip, msg.end_ip)
        async with self.node.db.transaction() as tx:
            l3 = await network(tx, msg.l3_network_uuid)
            row = ReservedIpRangeModel(
                uuid=msg.resource_uuid or new_uuid(),
                l3_network_uuid=l3.uuid,
                start_ip=str(start),
                end_ip=str(end),
                ip_version=start.version,
            )
            _refuse_overlap(row, l3.reserved_ip_ranges, "reserved range")
            if not any(overlap(row, one) for one in l3.ip_ranges):
                raise invalid("startIp", f"{start} to {end} is in no range of L3 network[{l3.uuid}, {l3.name}]")
            tx.add(row)
            await own(tx, context.current().actor.account_uuid, row.uuid, "ReservedIpRangeVO")
            await tx.flush()
            await save_tags(tx, msg, row.uuid)
        return view(row)  # type: ignore[no-any-return]

    @handles(DeleteReservedIpRange, queue="ip-range-{uuid}")
    async def unreserve(self, msg: DeleteReservedIpRange) -> None:
        """Let the addresses be chosen again."""
        async with self.node.db.transaction() as tx:
            await tx.execute(delete(ReservedIpRangeModel).where(ReservedIpRangeModel.uuid == msg.uuid))
            await disown(tx, msg.uuid)
            await drop_tags(tx, msg.uuid)


def _check(l3: L3NetworkModel, row: IpRangeModel) -> None:
    if l3.ip_version != row.ip_version:
        raise invalid("startIp", f"L3 network[{l3.uuid}] is of IPv{l3.ip_version}, the range of IPv{row.ip_version}")
    if not l3.enable_ipam:
        raise invalid("l3NetworkUuid", f"L3 network[{l3.uuid}, {l3.name}] manages no addresses (enableIPAM is false)")
    _refuse_overlap(row, l3.ip_ranges, "ip range")
    if row.ip_range_type == POOL:
        return
    for other in l3.ip_ranges:
        if other.ip_range_type == POOL or other.ip_version != row.ip_version:
            continue
        if other.network_cidr != row.network_cidr:
            raise invalid(
                "netmask", f"the new range's network {row.network_cidr} differs from {other.network_cidr} of the others"
            )
        if other.gateway != row.gateway:
            raise invalid(
                "gateway", f"new add ip range gateway {row.gateway} is different from old gateway {other.gateway}"
            )


def _refuse_overlap(
    row: IpRangeModel | ReservedIpRangeModel, others: Sequence[IpRangeModel | ReservedIpRangeModel], what: str
) -> None:
    for other in others:
        if overlap(row, other):
            raise invalid(
                "startIp",
                f"{row.start_ip} to {row.end_ip} overlaps with {what}"
                f"[uuid:{other.uuid}, start ip:{other.start_ip}, end ip: {other.end_ip}]",
            )


async def ranges_of_networks(session: AsyncSession, l3_uuids: Sequence[str]) -> list[str]:
    """The UUIDs of the ranges of these networks."""
    return list(await session.scalars(select(IpRangeModel.uuid).where(IpRangeModel.l3_network_uuid.in_(l3_uuids))))
