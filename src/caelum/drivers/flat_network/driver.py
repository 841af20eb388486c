"""The Flat provider: each host serves its own guests, with the same DHCP server address on all of them.

Invariant: what a host serves follows from the database: guests are added before their machine starts and dropped after
it stops, and a connect replaces everything. The DHCP server's address is an address of the L3 network like any other.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from caelum.agent.protocol import DumpHost
from caelum.cloud.host.api import HostInventory
from caelum.cloud.host.extension import HostConnect
from caelum.cloud.host.messages import ListHosts
from caelum.cloud.host.spec import HostOrder, NicSpec, VmSpec
from caelum.cloud.l2.api import L2NetworkInventory
from caelum.cloud.l2.extension import L2BeforeDetach
from caelum.cloud.l2.messages import GetL2, GetL2Hosts
from caelum.cloud.l3.api import IpRangeInventory, L3NetworkInventory, UsedIpInventory
from caelum.cloud.l3.extension import IpRangeAdded, L3BeforeDelete, L3Changed
from caelum.cloud.l3.messages import AllocateIp, ListL3s, ReturnIp
from caelum.cloud.network_service.extension import NetworkServiceDriver
from caelum.cloud.vm.extension import VmResourceProvider
from caelum.cloud.vm.messages import GetVmSpecs, ListVms
from caelum.drivers.flat_network.api import DhcpIpReply, GetL3NetworkDhcpIpAddress
from caelum.drivers.flat_network.commands import (
    DHCP,
    SERVICES,
    SNAT,
    USERDATA,
    Guest,
    apply,
    guests_by_network,
    release,
    remove,
)
from caelum.drivers.flat_network.messages import EnsureDhcpServer, RefreshL3
from caelum.drivers.flat_network.networks import TYPE, Networks, holder
from caelum.drivers.flat_network.removal import release_guests, remove_services, send
from caelum.drivers.flat_network.tags import DHCP_SERVER
from caelum.drivers.kvm.remote import on_host, order
from caelum.kernel.errors import CloudError, invalid
from caelum.kernel.ids import is_uuid
from caelum.kernel.node import Node
from caelum.kernel.service import Service, handles
from caelum.kernel.together import together

log = logging.getLogger(__name__)

_QUICK = 60.0


class FlatNetworkDriver(Service):
    """The provider's services: the DHCP server's address, and refreshing hosts."""

    name = "flat_network"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.networks = Networks(node)
        node.drivers.add(NetworkServiceDriver, TYPE, FlatProvider(self))
        for one in (FlatVmResources(self), FlatAtHostConnect(self), FlatL3Events(self), FlatL2Events(self)):
            node.extensions.add(one)

    @handles(EnsureDhcpServer, queue="flat-{l3_network_uuid}")
    async def ensure_server(self, msg: EnsureDhcpServer) -> UsedIpInventory:
        """The server's address; the tag tells clients which it is, or which the user wants."""
        uuid = msg.l3_network_uuid
        tag = await self.networks.server_tag(uuid)
        # With the UUID of an address it is our own note, and the address may have gone with its range since.
        wanted = None if tag is None or is_uuid(tag["ipUuid"]) else tag["ip"]
        request = AllocateIp(l3_network_uuid=uuid, holder=holder(uuid), required_ip=wanted, used_for="DhcpServer")
        taken = await self.node.bus.call(request)
        if tag is None or tag["ipUuid"] != taken.uuid:
            async with self.node.db.transaction() as tx:
                await DHCP_SERVER.set(tx, uuid, ip=taken.ip, ipUuid=taken.uuid)
        return taken

    @handles(RefreshL3, queue="flat-refresh-{l3_network_uuid}")
    async def refresh(self, msg: RefreshL3) -> None:
        """Rebuild the network on the hosts with guests on it; a host that fails gets it at its next connect."""
        uuid = msg.l3_network_uuid
        vms = (await self.node.bus.call(ListVms(l3_network_uuids=[uuid]))).vms
        for host_uuid in sorted({one.host_uuid for one in vms if one.host_uuid}):
            try:
                await self._rebuild(host_uuid, uuid)
            except CloudError as error:
                log.warning("host %s does not know yet that L3 network %s has changed: %s", host_uuid, uuid, error)

    @handles(GetL3NetworkDhcpIpAddress)
    async def dhcp_ip(self, msg: GetL3NetworkDhcpIpAddress) -> DhcpIpReply:
        """The server's address, when it has one."""
        async with self.node.db.read() as session:
            tag = await DHCP_SERVER.get(session, msg.l3_network_uuid)
        return DhcpIpReply(ip=None if tag is None else tag["ip"])

    async def serve_guests(self, host_uuid: str, guests: dict[str, list[Guest]], *, rebuild: bool = False) -> set[str]:
        """Serve guests, by L3 network, on a host; the networks among them that Flat serves."""
        networks = await self.networks.served(guests)

        async def one(l3: L3NetworkInventory) -> None:
            facts = await self.networks.facts(l3)
            await send(self.node, host_uuid, apply(facts, guests[l3.uuid], rebuild=rebuild))

        await together(*(one(l3) for l3 in networks))
        return {l3.uuid for l3 in networks}

    async def orders(self, guests: dict[str, list[Guest]]) -> list[HostOrder]:
        """What a host does to serve guests, by L3 network."""
        facts = [await self.networks.facts(l3) for l3 in await self.networks.served(guests)]
        return [order(command) for one in facts for command in apply(one, guests[one.l3.uuid], rebuild=False)]

    async def _rebuild(self, host_uuid: str, l3_uuid: str) -> None:
        """Replace what a host serves on one network."""
        specs = (await self.node.bus.call(GetVmSpecs(host_uuid=host_uuid))).specs
        guests = guests_by_network(specs).get(l3_uuid)
        if guests:
            await self.serve_guests(host_uuid, {l3_uuid: guests}, rebuild=True)

    async def remove_everywhere(self, l3: L3NetworkInventory, services: frozenset[str]) -> None:
        """Take services off every host that may have them."""
        hosts = await self.bus.call(GetL2Hosts(l2_network_uuid=l3.l2_network_uuid))
        await remove_services(self.node, l3, services, hosts.host_uuids)


class FlatProvider(NetworkServiceDriver):
    """What the network service asks of the provider."""

    display_name = "Flat Network Service Provider"
    description = "Flat Network Service Provider"
    services = SERVICES

    def __init__(self, flat: FlatNetworkDriver) -> None:
        self._flat, self._bus = flat, flat.node.bus

    async def check(self, l3: L3NetworkInventory, services: list[str]) -> None:
        """Translation needs a private bridge: on a shared one, the gateway is not ours to be."""
        if SNAT in services and not (await self._bus.call(GetL2(l2_network_uuid=l3.l2_network_uuid))).private:
            raise invalid(
                "networkServices",
                f"Flat gives SNAT on private L2 networks only; L2 network[uuid:{l3.l2_network_uuid}]"
                f" of L3 network[uuid:{l3.uuid}, {l3.name}] has an uplink, whose router is the gateway",
            )
        known = {one.network_service_type for one in l3.network_services}
        if USERDATA in services and DHCP not in known | set(services):
            raise invalid("networkServices", "Userdata of Flat is served by its DHCP server: attach DHCP with it")

    async def attached(self, l3: L3NetworkInventory, services: list[str]) -> None:
        """Take the DHCP server's address while there is one, and serve machines that run already."""
        if DHCP in services and _has_range(l3):
            await self._bus.call(EnsureDhcpServer(l3_network_uuid=l3.uuid))
        self._bus.send(RefreshL3(l3_network_uuid=l3.uuid))

    async def detached(self, l3: L3NetworkInventory, services: list[str]) -> None:
        """Remove what hosts have; without DHCP among it, tell them what is left."""
        await self._flat.remove_everywhere(l3, frozenset(services))
        if DHCP not in services:
            self._bus.send(RefreshL3(l3_network_uuid=l3.uuid))

    async def released(self, l3: L3NetworkInventory, services: list[str]) -> None:
        """Give the DHCP server's address back."""
        if DHCP not in services:
            return
        await self._bus.call(ReturnIp(vm_nic_uuid=holder(l3.uuid), l3_network_uuid=l3.uuid))
        async with self._flat.node.db.transaction() as tx:
            await DHCP_SERVER.delete(tx, l3.uuid)


class FlatVmResources(VmResourceProvider):
    """What a machine's start and stop ask of the provider."""

    def __init__(self, flat: FlatNetworkDriver) -> None:
        self._flat = flat

    async def prepare(self, spec: VmSpec, host_uuid: str) -> None:
        await self._flat.serve_guests(host_uuid, guests_by_network([spec]))

    async def prepare_start(self, spec: VmSpec, host_uuid: str) -> Sequence[HostOrder]:  # noqa: ARG002
        return await self._flat.orders(guests_by_network([spec]))

    async def release(self, spec: VmSpec, host_uuid: str) -> None:
        await self._release(guests_by_network([spec]), host_uuid)

    async def release_orders(self, spec: VmSpec, host_uuid: str) -> Sequence[HostOrder]:  # noqa: ARG002
        guests = guests_by_network([spec])
        networks = await self._flat.networks.served(guests)
        return [order(command) for l3 in networks for command in release(l3.uuid, guests[l3.uuid])]

    async def prepare_nic(self, spec: VmSpec, nic: NicSpec, host_uuid: str) -> None:
        await self._flat.serve_guests(host_uuid, _alone(spec, nic))

    async def release_nic(self, spec: VmSpec, nic: NicSpec, host_uuid: str) -> None:
        await self._release(_alone(spec, nic), host_uuid)

    async def _release(self, guests: dict[str, list[Guest]], host_uuid: str) -> None:
        for l3 in await self._flat.networks.served(guests):
            await release_guests(self._flat.node, host_uuid, l3.uuid, guests[l3.uuid])


def _alone(spec: VmSpec, nic: NicSpec) -> dict[str, list[Guest]]:
    guest = Guest(spec, nic)
    return {} if guest.ip is None else {nic.l3_network_uuid: [guest]}


class FlatAtHostConnect(HostConnect):
    """A host that connects serves exactly the guests of its machines."""

    order = 300

    def __init__(self, flat: FlatNetworkDriver) -> None:
        self._flat = flat

    async def connect(self, host: HostInventory) -> None:
        """Rebuild the networks of its machines and those that it has; remove those that it should not have."""
        node = self._flat.node
        there = await on_host(node.bus, host.uuid, DumpHost(), timeout=_QUICK)
        known = await self._of_cluster({*there.dhcp, *there.nat}, host.cluster_uuid)
        specs = (await node.bus.call(GetVmSpecs(host_uuid=host.uuid))).specs
        guests = {**{l3_uuid: list[Guest]() for l3_uuid in known}, **guests_by_network(specs)}
        wanted = await self._flat.serve_guests(host.uuid, guests, rebuild=True)
        for l3_uuid in sorted({*there.dhcp, *there.nat} - wanted):
            # Only the network's UUID says what is to go: the network itself may be gone, and its bridge with it.
            await send(node, host.uuid, remove(l3_uuid, "", (DHCP, SNAT)))

    async def _of_cluster(self, l3_uuids: set[str], cluster_uuid: str) -> list[str]:
        """Those of the networks that exist, that Flat serves, and whose L2 network is in the cluster."""
        networks = await self._flat.networks.served(sorted(l3_uuids))
        l2_uuids = sorted({one.l2_network_uuid for one in networks})
        found = [await self._flat.bus.call(GetL2(l2_network_uuid=uuid)) for uuid in l2_uuids]
        here = {one.inventory.uuid for one in found if cluster_uuid in one.inventory.attached_cluster_uuids}
        return [one.uuid for one in networks if one.l2_network_uuid in here]


class FlatL3Events(L3BeforeDelete, L3Changed, IpRangeAdded):
    """What the life of an L3 network asks of the provider."""

    def __init__(self, flat: FlatNetworkDriver) -> None:
        self._flat = flat

    async def before_delete_l3(self, l3: L3NetworkInventory) -> None:
        """Nothing of it stays on hosts."""
        services = await self._flat.networks.services(l3)
        if services:
            await self._flat.remove_everywhere(l3, services)

    async def l3_changed(self, l3: L3NetworkInventory) -> None:
        """Hosts with guests on it are told; nobody waits for that."""
        if not await self._flat.networks.services(l3):
            return
        if not _has_range(l3):
            async with self._flat.node.db.transaction() as tx:
                await DHCP_SERVER.delete(tx, l3.uuid)
        self._flat.node.bus.send(RefreshL3(l3_network_uuid=l3.uuid))

    async def ip_range_added(self, l3: L3NetworkInventory, added: IpRangeInventory) -> None:  # noqa: ARG002
        """The DHCP server gets its address before guests take them all."""
        if DHCP in await self._flat.networks.services(l3) and _has_range(l3):
            await self._flat.node.bus.call(EnsureDhcpServer(l3_network_uuid=l3.uuid))


class FlatL2Events(L2BeforeDetach):
    """What the life of an L2 network asks of the provider."""

    def __init__(self, flat: FlatNetworkDriver) -> None:
        self._flat = flat

    async def before_detach(self, l2: L2NetworkInventory, cluster_uuid: str) -> None:
        """Nothing of the L3 networks on it stays on the cluster's hosts: their bridge goes."""
        request = ListL3s(l2_network_uuids=[l2.uuid], provider_uuid=await self._flat.networks.provider())
        networks = (await self._flat.bus.call(request)).networks
        hosts = (await self._flat.bus.call(ListHosts(cluster_uuids=[cluster_uuid]))).hosts if networks else []
        for l3 in networks:
            services = await self._flat.networks.services(l3)
            await remove_services(self._flat.node, l3, services, [one.uuid for one in hosts])


def _has_range(l3: L3NetworkInventory) -> bool:
    ranges: Sequence[IpRangeInventory] = l3.ip_ranges
    return l3.enable_ipam and any(one.ip_range_type == "Normal" and one.ip_version == 4 for one in ranges)
