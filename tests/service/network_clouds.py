"""What the tests of networks share: a cloud with the network services, a zone and a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from caelum.cloud.cluster.api import ClusterInventory, CreateCluster
from caelum.cloud.l2.api import CreateL2NoVlanNetwork, L2NetworkInventory
from caelum.cloud.l3.api import AddIpRange, CreateL3Network, IpRangeInventory, L3NetworkInventory
from caelum.cloud.zone.api import CreateZone, ZoneInventory
from caelum.kernel.service import Service
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


class Site:
    """A cloud with one zone and one cluster, and short ways to make networks in them."""

    def __init__(self, cloud: EmbeddedCloud, zone: ZoneInventory, cluster: ClusterInventory) -> None:
        self.cloud, self.zone, self.cluster = cloud, zone, cluster
        self.api = cloud.api
        self.node = cloud.node

    async def l2(self, interface: str = "private0", **fields: Any) -> L2NetworkInventory:
        """An L2 network."""
        fields.setdefault("name", f"l2-{interface}")
        return await self.api(
            CreateL2NoVlanNetwork(zone_uuid=self.zone.uuid, physical_interface=interface, **fields)
        )

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
    """A started cloud with a zone and a cluster."""
    chosen = DRIVERS if drivers is None else drivers
    async with EmbeddedCloud(directory, [*SERVICES, *extra], chosen, **config) as cloud:
        zone = await cloud.api(CreateZone(name="zone"))
        cluster = await cloud.api(CreateCluster(name="cluster", zone_uuid=zone.uuid, hypervisor_type="KVM"))
        yield Site(cloud, zone, cluster)
