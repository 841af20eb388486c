"""What the tests of networks share: a cloud with the network services, a zone and a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.service.host_clouds import QuickKvmService

from caelum.cloud.cluster.api import ClusterInventory, CreateCluster
from caelum.cloud.host.api import HostInventory
from caelum.cloud.host.messages import GetHost
from caelum.cloud.host.settings import LOST_PATIENCE, PING_INTERVAL, PING_PAUSE
from caelum.cloud.host.spec import VmSpec
from caelum.cloud.l2.api import CreateL2NoVlanNetwork, L2NetworkInventory
from caelum.cloud.l3.api import AddIpRange, CreateL3Network, IpRangeInventory, L3NetworkInventory
from caelum.cloud.vm.messages import (
    GetVmSpecs,
    HostLost,
    HostVmsSeen,
    ListVms,
    VmSpecsReply,
    VmsReply,
    VmStateSeen,
)
from caelum.cloud.zone.api import CreateZone, ZoneInventory
from caelum.drivers.kvm.api import AddKVMHost
from caelum.drivers.kvm.settings import AGENT_PORT
from caelum.kernel.node import Node
from caelum.kernel.service import Service, handles
from caelum.simulator import SimulatedHosts
from caelum.simulator.world import World
from caelum.testing.cloud import EmbeddedCloud

SERVICES: list[Any] = [
    "caelum.cloud.query.service:QueryService",
    "caelum.cloud.tag.service:TagService",
    "caelum.cloud.config.service:ConfigService",
    "caelum.cloud.zone.service:ZoneService",
    "caelum.cloud.cluster.service:ClusterService",
    "caelum.cloud.l2.service:L2Service",
    "caelum.cloud.l3.service:L3Service",
    "caelum.cloud.network_service.service:NetworkServiceService",
]
DRIVERS = [
    "caelum.drivers.no_vlan.driver:NoVlanDriver",
    "caelum.drivers.flat_network.driver:FlatNetworkDriver",
]


HOST_SERVICES = [
    "caelum.cloud.host.service:HostService",
    "caelum.cloud.allocator.service:AllocatorService",
]


class Site:
    """A cloud with one zone and one cluster, and short ways to make networks in them."""

    def __init__(self, cloud: EmbeddedCloud, zone: ZoneInventory, cluster: ClusterInventory) -> None:
        self.cloud, self.zone, self.cluster = cloud, zone, cluster
        self.api = cloud.api
        self.node = cloud.node

    async def l2(self, interface: str = "private0", **fields: Any) -> L2NetworkInventory:
        """An L2 network."""
        fields.setdefault("name", f"l2-{interface}")
        return await self.api(CreateL2NoVlanNetwork(zone_uuid=self.zone.uuid, physical_interface=interface, **fields))

    async def l3(self, l2: L2NetworkInventory | None = None, **fields: Any) -> L3NetworkInventory:
        """An L3 network without ranges."""
        l2 = l2 or await self.l2()
        return await self.api(CreateL3Network(name=fields.pop("name", "l3"), l2_network_uuid=l2.uuid, **fields))

    async def range(self, l3: L3NetworkInventory, start: str, end: str, **fields: Any) -> IpRangeInventory:
        """A range of 10.0.0.0/16 with the gateway 10.0.0.1."""
        fields = {"netmask": "255.255.0.0", "gateway": "10.0.0.1", "name": "range", **fields}
        return await self.api(AddIpRange(l3_network_uuid=l3.uuid, start_ip=start, end_ip=end, **fields))


@asynccontextmanager
async def site(
    directory: Path, *extra: str | type[Service], drivers: list[Any] | None = None, **config: Any
) -> AsyncIterator[Site]:
    """A started cloud with a zone and a cluster, without hosts."""
    chosen = DRIVERS if drivers is None else drivers
    async with EmbeddedCloud(directory, [*SERVICES, *extra], chosen, **config) as cloud:
        yield await _site(cloud)


async def _site(cloud: EmbeddedCloud) -> Site:
    zone = await cloud.api(CreateZone(name="zone"))
    cluster = await cloud.api(CreateCluster(name="cluster", zone_uuid=zone.uuid, hypervisor_type="KVM"))
    return Site(cloud, zone, cluster)


class Machines(Service):
    """Stands where the VM service is: tells what machines there are, for tests that start none."""

    name = "vm"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.on: dict[str, list[VmSpec]] = {}

    @handles(GetVmSpecs)
    async def specs(self, msg: GetVmSpecs) -> VmSpecsReply:
        return VmSpecsReply(self.on.get(msg.host_uuid, []))

    @handles(ListVms)
    async def list_vms(self, msg: ListVms) -> VmsReply:
        wanted = set(msg.l3_network_uuids or ())
        return VmsReply(
            [
                SimpleNamespace(uuid=spec.vm_uuid, host_uuid=host)  # type: ignore[misc]
                for host, specs in self.on.items()
                for spec in specs
                if wanted & {nic.l3_network_uuid for nic in spec.nics}
            ]
        )

    @handles(VmStateSeen)
    async def seen(self, msg: VmStateSeen) -> None: ...

    @handles(HostVmsSeen)
    async def all_seen(self, msg: HostVmsSeen) -> None: ...

    @handles(HostLost)
    async def lost(self, msg: HostLost) -> None: ...


class HostSite(Site):
    """A site with simulated hosts."""

    sim: SimulatedHosts

    async def add_host(self, index: int = 0) -> HostInventory:
        """Add a simulated host to the cluster."""
        return await self.api(
            AddKVMHost(
                name=f"host-{index}",
                management_ip=self.sim[index].ip,
                cluster_uuid=self.cluster.uuid,
                username="root",
                password="secret",
            )
        )

    async def host(self, uuid: str) -> HostInventory:
        """A host as it is now."""
        return await self.node.bus.call(GetHost(host_uuid=uuid))

    async def until_status(self, uuid: str, status: str) -> None:
        """Wait until a host has this status."""

        async def there() -> bool:
            return (await self.host(uuid)).status == status

        await self.cloud.until(there, 20)

    @property
    def machines(self) -> Machines:
        """The stand-in of the VM service."""
        found = self.node.services["vm"]
        assert isinstance(found, Machines)
        return found

    def world(self, index: int = 0) -> World:
        """What a simulated host holds."""
        return self.sim[index].world


@asynccontextmanager
async def host_site(directory: Path, hosts: int = 2) -> AsyncIterator[HostSite]:
    """A started cloud with simulated hosts that wait to be added."""
    async with SimulatedHosts(hosts, directory=directory / "pki") as sim:
        services = [*SERVICES, *HOST_SERVICES, Machines]
        async with EmbeddedCloud(directory, services, [*DRIVERS, QuickKvmService]) as cloud:
            await cloud.node.settings.set(AGENT_PORT, sim.port)
            await cloud.node.settings.set(PING_INTERVAL, 2)
            await cloud.node.settings.set(PING_PAUSE, 0)
            await cloud.node.settings.set(LOST_PATIENCE, 0)
            base = await _site(cloud)
            found = HostSite(cloud, base.zone, base.cluster)
            found.sim = sim
            yield found
