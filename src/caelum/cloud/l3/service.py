"""L3 networks: rows, DNS servers, routes, services, MTU. Ranges and addresses are handled in `ranges` and `ips`.

Invariant: what belongs to a network goes with it, in one transaction, once no host serves it any more.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import ColumnElement, Select, delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud import quota
from caelum.cloud.l2.messages import GetL2
from caelum.cloud.l3.addresses import any_ip, any_network
from caelum.cloud.l3.api import (
    AddDnsToL3Network,
    AddHostRouteToL3Network,
    ChangeL3NetworkState,
    CreateL3Network,
    DeleteL3Network,
    GetL3NetworkMtu,
    GetL3NetworkTypes,
    L3NetworkInventory,
    L3TypesReply,
    MtuReply,
    RemoveDnsFromL3Network,
    RemoveHostRouteFromL3Network,
    SetL3NetworkMtu,
    UpdateL3Network,
)
from caelum.cloud.l3.cascade import IpRangeCascade, L3Cascade
from caelum.cloud.l3.extension import L3Changed
from caelum.cloud.l3.ips import AddressHandlers
from caelum.cloud.l3.messages import ChangeL3Services, GetL3, GetMtu, L3sReply, ListL3s
from caelum.cloud.l3.model import (
    L3NetworkDnsModel,
    L3NetworkHostRouteModel,
    L3NetworkModel,
    NetworkServiceL3NetworkRefModel,
)
from caelum.cloud.l3.ranges import RangeHandlers
from caelum.cloud.l3.rows import inventory, network, networks
from caelum.cloud.l3.tags import MTU
from caelum.cloud.ownership import own
from caelum.cloud.switch import ENABLED, switch
from caelum.kernel import context
from caelum.kernel.database import unique
from caelum.kernel.errors import INVALID_ARGUMENT, OPERATION_ERROR, CloudError, invalid
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import WholeReply
from caelum.kernel.node import Node
from caelum.kernel.service import handles
from caelum.kernel.tag import save_tags
from caelum.kernel.views import views

L3_STATES = switch("L3Network")
TYPES = ("L3BasicNetwork",)
QUOTA = "l3.num"


class L3Service(RangeHandlers, AddressHandlers):
    """Owns L3 networks and all that belongs to them."""

    name = "l3"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.extensions.add(L3Cascade(node))
        node.extensions.add(IpRangeCascade(node))

    @handles(CreateL3Network)
    async def create(self, msg: CreateL3Network) -> L3NetworkInventory:
        """Create a network."""
        if (msg.type or TYPES[0]) not in TYPES:
            raise invalid("type", f"{msg.type} is no type of L3 networks; there is {', '.join(TYPES)}")
        l2 = (await self.node.bus.call(GetL2(l2_network_uuid=msg.l2_network_uuid))).inventory
        account = context.current().actor.account_uuid
        uuid = msg.resource_uuid or new_uuid()
        async with self.node.db.transaction() as tx:
            await quota.take(tx, account, QUOTA, key=uuid)
            tx.add(
                L3NetworkModel(
                    uuid=uuid,
                    name=msg.name,
                    description=msg.description,
                    type=msg.type or TYPES[0],
                    zone_uuid=l2.zone_uuid,
                    l2_network_uuid=l2.uuid,
                    state=ENABLED,
                    dns_domain=msg.dns_domain,
                    system=bool(msg.system),
                    category=msg.category or "Private",
                    ip_version=msg.ip_version or 4,
                    enable_ipam=msg.enable_ipam is not False,
                    isolated=l2.isolated,
                )
            )
            await tx.flush()
            await own(tx, account, uuid, "L3NetworkVO")
            await save_tags(tx, msg, uuid)
            return await inventory(tx, uuid)

    @handles(UpdateL3Network, queue="l3-{uuid}")
    async def update(self, msg: UpdateL3Network) -> L3NetworkInventory:
        """Change plain fields."""
        fields = ("description", "dns_domain", "category", "system")
        async with self.node.db.transaction() as tx:
            row = await network(tx, msg.uuid)
            row.name = msg.name or row.name
            for field in fields:
                if (value := getattr(msg, field)) is not None:
                    setattr(row, field, value)
            await tx.flush()
            changed = await inventory(tx, msg.uuid)
        return await self._changed(changed)

    @handles(ChangeL3NetworkState, queue="l3-{uuid}")
    async def change_state(self, msg: ChangeL3NetworkState) -> L3NetworkInventory:
        """Enable or disable a network."""
        async with self.node.db.transaction() as tx:
            row = await network(tx, msg.uuid)
            row.state = L3_STATES.next(row.state, msg.state_event)
            await tx.flush()
            return await inventory(tx, msg.uuid)

    @handles(DeleteL3Network, queue="l3-{uuid}")
    async def delete(self, msg: DeleteL3Network) -> None:
        """Delete a network with its ranges, and detach what uses it."""
        await self.node.cascade.delete("L3NetworkVO", [msg.uuid], mode=msg.delete_mode)

    @handles(GetL3NetworkTypes)
    async def types(self, msg: GetL3NetworkTypes) -> L3TypesReply:  # noqa: ARG002 - there is nothing to choose
        """The types of networks."""
        return L3TypesReply(types=list(TYPES))

    # --- what guests are told -----------------------------------------------------------------------------------------

    @handles(AddDnsToL3Network, queue="l3-{l3_network_uuid}")
    async def add_dns(self, msg: AddDnsToL3Network) -> L3NetworkInventory:
        """Add a DNS server."""
        server, uuid = str(any_ip("dns", msg.dns)), msg.l3_network_uuid
        async with self.node.db.transaction() as tx:
            async with unique(tx, OPERATION_ERROR, f"there has been a DNS[{server}] on L3 network[uuid:{uuid}]"):
                tx.add(L3NetworkDnsModel(l3_network_uuid=uuid, dns=server))
            changed = await inventory(tx, uuid)
        return await self._changed(changed)

    @handles(RemoveDnsFromL3Network, queue="l3-{l3_network_uuid}")
    async def remove_dns(self, msg: RemoveDnsFromL3Network) -> L3NetworkInventory:
        """Remove a DNS server; one that is not there counts as removed."""
        row = L3NetworkDnsModel
        async with self.node.db.transaction() as tx:
            server = str(any_ip("dns", msg.dns))
            await tx.execute(delete(row).where(row.l3_network_uuid == msg.l3_network_uuid, row.dns == server))
            changed = await inventory(tx, msg.l3_network_uuid)
        return await self._changed(changed)

    @handles(AddHostRouteToL3Network, queue="l3-{l3_network_uuid}")
    async def add_route(self, msg: AddHostRouteToL3Network) -> L3NetworkInventory:
        """Add a route."""
        prefix, nexthop = any_network("prefix", msg.prefix), any_ip("nexthop", msg.nexthop)
        uuid = msg.l3_network_uuid
        async with self.node.db.transaction() as tx:
            row = await network(tx, uuid)
            if {prefix.version, nexthop.version} != {row.ip_version}:
                raise invalid("prefix", f"the route {prefix} via {nexthop} is not of IPv{row.ip_version}")
            async with unique(
                tx, OPERATION_ERROR, f"there has been a hostroute for prefix[{prefix}] on L3 network[uuid:{uuid}]"
            ):
                tx.add(L3NetworkHostRouteModel(l3_network_uuid=uuid, prefix=str(prefix), nexthop=str(nexthop)))
            changed = await inventory(tx, uuid)
        return await self._changed(changed)

    @handles(RemoveHostRouteFromL3Network, queue="l3-{l3_network_uuid}")
    async def remove_route(self, msg: RemoveHostRouteFromL3Network) -> L3NetworkInventory:
        """Remove a route; one that is not there counts as removed."""
        row = L3NetworkHostRouteModel
        async with self.node.db.transaction() as tx:
            prefix = str(any_network("prefix", msg.prefix))
            await tx.execute(delete(row).where(row.l3_network_uuid == msg.l3_network_uuid, row.prefix == prefix))
            changed = await inventory(tx, msg.l3_network_uuid)
        return await self._changed(changed)

    @handles(SetL3NetworkMtu, queue="l3-{l3_network_uuid}")
    async def set_mtu(self, msg: SetL3NetworkMtu) -> WholeReply:
        """Set the MTU that guests are told."""
        async with self.node.db.transaction() as tx:
            await MTU.set(tx, msg.l3_network_uuid, l3Uuid=msg.l3_network_uuid, mtu=msg.mtu)
            changed = await inventory(tx, msg.l3_network_uuid)
        await self._changed(changed)
        return WholeReply()

    @handles(GetL3NetworkMtu)
    async def api_mtu(self, msg: GetL3NetworkMtu) -> MtuReply:
        """The MTU that guests are told."""
        return MtuReply(mtu=await self.mtu(GetMtu(l3_network_uuid=msg.l3_network_uuid)))

    @handles(GetMtu, reads=True)
    async def mtu(self, msg: GetMtu) -> int:
        """The network's own MTU, or its L2 network's."""

        async def load(session: AsyncSession) -> tuple[dict[str, str] | None, str]:
            l2_uuid = (await network(session, msg.l3_network_uuid)).l2_network_uuid
            return await MTU.get(session, msg.l3_network_uuid), l2_uuid

        tag, l2_uuid = await self.node.db.remember((MTU.format, msg.l3_network_uuid), load)
        if tag is not None:
            return int(tag["mtu"])
        return (await self.node.bus.call(GetL2(l2_network_uuid=l2_uuid))).mtu

    async def _changed(self, l3: L3NetworkInventory) -> L3NetworkInventory:
        await self.node.extensions.notify(L3Changed, "l3_changed", l3)
        return l3

    # --- for other services -------------------------------------------------------------------------------------------

    @handles(GetL3, reads=True)
    async def get(self, msg: GetL3) -> L3sReply:
        """Networks by UUID."""
        key = (L3NetworkModel, *msg.l3_network_uuids)
        return L3sReply(await self.db.remember(key, lambda session: networks(session, msg.l3_network_uuids)))

    @handles(ListL3s, reads=True)
    async def list_networks(self, msg: ListL3s) -> L3sReply:
        """Networks by UUID, L2 network or provider."""

        async def load(session: AsyncSession) -> L3sReply:
            return L3sReply(views(await session.scalars(_wanted(msg))))

        return await self.db.remember((ListL3s, msgspec.json.encode(msg)), load)

    @handles(ChangeL3Services, queue="l3-{l3_network_uuid}")
    async def change_services(self, msg: ChangeL3Services) -> L3NetworkInventory:
        """Record which provider serves what."""
        async with self.node.db.transaction() as tx:
            await _detach_services(tx, msg)
            await _attach_services(tx, msg)
            return await inventory(tx, msg.l3_network_uuid)


def _wanted(msg: ListL3s) -> Select[L3NetworkModel]:
    ref, conditions = NetworkServiceL3NetworkRefModel, list[ColumnElement[bool]]()
    if msg.l3_network_uuids is not None:
        conditions.append(L3NetworkModel.uuid.in_(msg.l3_network_uuids))
    if msg.l2_network_uuids is not None:
        conditions.append(L3NetworkModel.l2_network_uuid.in_(msg.l2_network_uuids))
    if msg.provider_uuid is not None:
        served = select(ref.l3_network_uuid).where(ref.network_service_provider_uuid == msg.provider_uuid)
        conditions.append(L3NetworkModel.uuid.in_(served))
    return select(L3NetworkModel).where(*conditions).order_by(L3NetworkModel.create_date)


async def _detach_services(tx: AsyncSession, msg: ChangeL3Services) -> None:
    row = NetworkServiceL3NetworkRefModel
    for one in msg.detach:
        await tx.execute(
            delete(row).where(
                row.l3_network_uuid == msg.l3_network_uuid,
                row.network_service_provider_uuid == one.network_service_provider_uuid,
                row.network_service_type == one.network_service_type,
            )
        )


async def _attach_services(tx: AsyncSession, msg: ChangeL3Services) -> None:
    row = NetworkServiceL3NetworkRefModel
    columns = select(row.network_service_type, row.network_service_provider_uuid)
    known = await tx.execute(columns.where(row.l3_network_uuid == msg.l3_network_uuid))
    serving: dict[str, str] = dict(known.all())
    for one in msg.attach:
        service, provider = one.network_service_type, one.network_service_provider_uuid
        if service not in serving:
            serving[service] = provider
            values = {"network_service_provider_uuid": provider, "network_service_type": service}
            tx.add(row(l3_network_uuid=msg.l3_network_uuid, **values))
        elif serving[service] != provider:
            raise CloudError(
                INVALID_ARGUMENT,
                f"L3 network[uuid:{msg.l3_network_uuid}] has service[{service}] from"
                f" provider[uuid:{serving[service]}] already; a service has one provider,"
                f" so provider[uuid:{provider}] can not serve it",
                service=service,
                provider=serving[service],
            )
    await tx.flush()
