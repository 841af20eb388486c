"""L2 networks: their rows, and where they are. What they are on a host is their type's driver's business.

Invariant: the bridge of a network has the same name on every host, from the network's creation on.
"""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import select

from caelum.cloud.cluster.messages import GetCluster, ListClusters
from caelum.cloud.host.messages import ListHosts
from caelum.cloud.l2.api import (
    AttachL2NetworkToCluster,
    CandidateClustersReply,
    CandidateL2NetworksReply,
    CreateL2NoVlanNetwork,
    DeleteL2Network,
    DetachL2NetworkFromCluster,
    GetCandidateClustersForAttachingL2Network,
    GetCandidateL2NetworksForAttachingCluster,
    GetL2NetworkTypes,
    GetVSwitchTypes,
    L2NetworkData,
    L2NetworkInventory,
    TypesReply,
    UpdateL2Network,
)
from caelum.cloud.l2.cascade import L2AttachmentCascade, L2Cascade
from caelum.cloud.l2.connect import L2AtHostConnect
from caelum.cloud.l2.extension import L2Driver
from caelum.cloud.l2.flows import AttachL2Flow, ClusterContext, DetachL2Flow, conflicting
from caelum.cloud.l2.messages import CheckL2, GetL2, GetL2Hosts, L2Facts, L2HostsReply, L2OnHost, RealiseL2, RemoveL2
from caelum.cloud.l2.model import L2NetworkModel
from caelum.cloud.l2.removal import remove
from caelum.cloud.l2.rows import bridge_of, choose_bridge, inventory, l2_network
from caelum.cloud.l2.tags import BRIDGE_NAME
from caelum.cloud.ownership import own
from caelum.kernel import context
from caelum.kernel.errors import invalid
from caelum.kernel.ids import new_uuid
from caelum.kernel.node import Node
from caelum.kernel.service import Service, handles
from caelum.kernel.tag import save_tags
from caelum.kernel.views import view

NO_VLAN = "L2NoVlanNetwork"
T = TypeVar("T")


class L2Service(Service):
    """Owns L2 networks."""

    name = "l2"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        for one in (L2Cascade(node), L2AttachmentCascade(node), L2AtHostConnect(node)):
            node.extensions.add(one)

    @handles(CreateL2NoVlanNetwork)
    async def create(self, msg: CreateL2NoVlanNetwork) -> L2NetworkInventory:
        """Create a network; no host knows of it yet."""
        kind = msg.type or NO_VLAN
        driver = self.node.drivers.get(L2Driver, kind)
        _check_new(driver, msg)
        uuid = msg.resource_uuid or new_uuid()
        async with self.node.db.transaction() as tx:
            tx.add(
                L2NetworkModel(
                    uuid=uuid,
                    name=msg.name,
                    description=msg.description,
                    zone_uuid=msg.zone_uuid,
                    physical_interface=msg.physical_interface,
                    type=kind,
                    v_switch_type=msg.v_switch_type or driver.vswitch_types[0],
                    virtual_network_id=None,
                    isolated=False,
                )
            )
            await tx.flush()
            wished = driver.bridge_name(msg.physical_interface)
            await BRIDGE_NAME.set(tx, uuid, name=await choose_bridge(tx, uuid, wished, msg.physical_interface))
            await own(tx, context.current().actor.account_uuid, uuid, "L2NetworkVO")
            await save_tags(tx, msg, uuid)
            return await inventory(tx, uuid)

    @handles(UpdateL2Network, queue="l2-{uuid}")
    async def update(self, msg: UpdateL2Network) -> L2NetworkInventory:
        """Change name and description."""
        async with self.node.db.transaction() as tx:
            row = await l2_network(tx, msg.uuid)
            row.name = msg.name or row.name
            row.description = row.description if msg.description is None else msg.description
            await tx.flush()
            return await inventory(tx, msg.uuid)

    @handles(DeleteL2Network, queue="l2-{uuid}")
    async def delete(self, msg: DeleteL2Network) -> None:
        """Delete a network and the L3 networks on it."""
        await self.node.cascade.delete("L2NetworkVO", [msg.uuid], mode=msg.delete_mode)

    @handles(AttachL2NetworkToCluster, queue="l2-{l2_network_uuid}", repeatable=True)
    async def attach(self, msg: AttachL2NetworkToCluster) -> L2NetworkInventory:
        """Realise a network in a cluster."""
        cluster = await self.node.bus.call(GetCluster(cluster_uuid=msg.cluster_uuid))
        async with self.node.db.read() as session:
            l2 = await l2_network(session, msg.l2_network_uuid)
        if cluster.zone_uuid != l2.zone_uuid:
            raise invalid(
                "clusterUuid",
                f"cluster[uuid:{cluster.uuid}] is in zone[uuid:{cluster.zone_uuid}],"
                f" L2 network[uuid:{l2.uuid}] in zone[uuid:{l2.zone_uuid}]",
            )
        ctx = ClusterContext(l2_network_uuid=l2.uuid, cluster_uuid=cluster.uuid, l2_provider_type=msg.l2_provider_type)
        return await self.node.workflows.run(AttachL2Flow, ctx, answers=True)

    @handles(DetachL2NetworkFromCluster, queue="l2-{l2_network_uuid}", repeatable=True)
    async def detach(self, msg: DetachL2NetworkFromCluster) -> L2NetworkInventory:
        """Take a network out of a cluster."""
        ctx = ClusterContext(l2_network_uuid=msg.l2_network_uuid, cluster_uuid=msg.cluster_uuid)
        return await self.node.workflows.run(DetachL2Flow, ctx, answers=True)

    # --- what is there to choose from ---------------------------------------------------------------------------------

    @handles(GetL2NetworkTypes)
    async def types(self, msg: GetL2NetworkTypes) -> TypesReply:  # noqa: ARG002 - there is nothing to choose
        """The types that have a driver."""
        return TypesReply(types=self.node.drivers.types(L2Driver))

    @handles(GetVSwitchTypes)
    async def vswitch_types(self, msg: GetVSwitchTypes) -> TypesReply:  # noqa: ARG002 - the same
        """The virtual switches that the drivers know."""
        drivers = self.node.drivers.all(L2Driver).values()
        return TypesReply(types=sorted({one for driver in drivers for one in driver.vswitch_types}))

    @handles(GetCandidateClustersForAttachingL2Network)
    async def candidate_clusters(self, msg: GetCandidateClustersForAttachingL2Network) -> CandidateClustersReply:
        """The clusters of its zone that neither have it nor another network on its interface."""
        async with self.node.db.read() as session:
            l2 = await l2_network(session, msg.l2_network_uuid)
        clusters = (await self.node.bus.call(ListClusters(zone_uuid=l2.zone_uuid))).clusters
        async with self.node.db.read() as session:
            free = [one for one in clusters if not await conflicting(session, l2, one.uuid)]
        wanted = [one for one in free if not msg.cluster_types or one.type in msg.cluster_types]
        return CandidateClustersReply(inventories=_page(wanted, msg.start, msg.limit))

    @handles(GetCandidateL2NetworksForAttachingCluster)
    async def candidate_networks(self, msg: GetCandidateL2NetworksForAttachingCluster) -> CandidateL2NetworksReply:
        """The networks of its zone that it neither has nor has the interface of in use."""
        cluster = await self.node.bus.call(GetCluster(cluster_uuid=msg.cluster_uuid))
        async with self.node.db.read() as session:
            rows = (
                await session.scalars(select(L2NetworkModel).where(L2NetworkModel.zone_uuid == cluster.zone_uuid))
            ).all()
            free = [one for one in rows if not await conflicting(session, one, cluster.uuid)]
        shown = _page(free, msg.start, msg.limit)
        return CandidateL2NetworksReply(inventories=[_data(view(one)) for one in shown])

    # --- on hosts -----------------------------------------------------------------------------------------------------

    @handles(CheckL2)
    async def check(self, msg: CheckL2) -> None:
        """Ask a host."""
        l2, _ = await self._found(msg.l2_network_uuid)
        await self._driver(l2).check(l2, msg.host_uuid)

    @handles(RealiseL2)
    async def realise(self, msg: RealiseL2) -> L2OnHost:
        """Make the network on a host."""
        l2, bridge = await self._found(msg.l2_network_uuid)
        await self._driver(l2).realise(l2, bridge, msg.host_uuid)
        return L2OnHost(bridge)

    @handles(RemoveL2)
    async def remove(self, msg: RemoveL2) -> None:
        """Take the network off a host."""
        l2, bridge = await self._found(msg.l2_network_uuid)
        await remove(self.node, l2, bridge, msg.host_uuid, force=msg.force)

    @handles(GetL2, reads=True)
    async def get(self, msg: GetL2) -> L2Facts:
        """What a network is."""
        l2, bridge = await self._found(msg.l2_network_uuid)
        driver = self._driver(l2)
        orders = driver.orders(l2, bridge) if msg.with_orders else None
        return L2Facts(inventory=l2, bridge=bridge, private=driver.private(l2), mtu=driver.mtu(l2), orders=orders)

    @handles(GetL2Hosts)
    async def hosts(self, msg: GetL2Hosts) -> L2HostsReply:
        """The hosts that have a network."""
        l2, _ = await self._found(msg.l2_network_uuid)
        if not l2.attached_cluster_uuids:
            return L2HostsReply([])
        found = (await self.node.bus.call(ListHosts(cluster_uuids=l2.attached_cluster_uuids))).hosts
        return L2HostsReply([one.uuid for one in found if one.status == "Connected" or not msg.connected_only])

    async def _found(self, uuid: str) -> tuple[L2NetworkInventory, str]:
        # Apart from each other: tags of other resources change all the time.
        l2 = await self.db.remember((L2NetworkModel, uuid), lambda session: inventory(session, uuid))
        return l2, await self.db.remember((bridge_of, uuid), lambda session: bridge_of(session, uuid))

    def _driver(self, l2: L2NetworkInventory) -> L2Driver:
        return self.node.drivers.get(L2Driver, l2.type)


def _check_new(driver: L2Driver, msg: CreateL2NoVlanNetwork) -> None:
    driver.check_new(msg.physical_interface)
    if msg.v_switch_type is not None and msg.v_switch_type not in driver.vswitch_types:
        known = ", ".join(driver.vswitch_types)
        raise invalid("vSwitchType", f"no driver makes networks of {msg.v_switch_type}; there is {known}")
    if msg.isolated or msg.pvlan:
        raise invalid("isolated", "isolation of guests (isolated, pvlan) is not supported on a Linux bridge")


def _page(found: list[T], start: int | None, limit: int | None) -> list[T]:
    begin = start or 0
    return found[begin:] if limit is None else found[begin : begin + limit]


def _data(l2: L2NetworkInventory) -> L2NetworkData:
    shared = [name for name in L2NetworkData.__struct_fields__ if name in L2NetworkInventory.__struct_fields__]
    return L2NetworkData(**{name: getattr(l2, name) for name in shared})
