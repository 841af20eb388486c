"""A node with hosts behind it: the host, allocator and KVM services, and simulated agents over real HTTPS."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from caelum.cloud.allocator.service import AllocatorService
from caelum.cloud.cluster.api import ClusterInventory, CreateCluster
from caelum.cloud.cluster.service import ClusterService
from caelum.cloud.host.api import HostInventory
from caelum.cloud.host.messages import GetHost
from caelum.cloud.host.service import HostService
from caelum.cloud.host.settings import PING_INTERVAL, PING_PAUSE
from caelum.cloud.zone.api import CreateZone
from caelum.cloud.zone.service import ZoneService
from caelum.drivers.kvm.api import AddKVMHost
from caelum.drivers.kvm.client import Pace
from caelum.drivers.kvm.service import KvmService
from caelum.drivers.kvm.settings import AGENT_PORT
from caelum.simulator import SimulatedHosts
from caelum.testing.cloud import EmbeddedCloud

SERVICES = (ZoneService, ClusterService, HostService, AllocatorService)
QUICK = Pace(connect=2, acknowledge=2, back_off=(0.05, 0.1), first_poll=0.3, slowest_poll=0.5, lost_after=5)


class QuickKvmService(KvmService):
    """The same, but less patient."""

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self.agents._pace = QUICK


class HostCloud(EmbeddedCloud):
    """A cloud with one cluster and simulated hosts that wait to be added."""

    sim: SimulatedHosts
    cluster: ClusterInventory

    async def prepare(self, sim: SimulatedHosts) -> None:
        self.sim = sim
        await self.node.settings.set(AGENT_PORT, sim.port)
        await self.node.settings.set(PING_INTERVAL, 2)
        await self.node.settings.set(PING_PAUSE, 0)

    async def make_cluster(self, name: str = "cluster") -> ClusterInventory:
        zone = await self.api(CreateZone(name="zone"))
        self.cluster = await self.api(CreateCluster(zone_uuid=zone.uuid, name=name, hypervisor_type="KVM"))
        return self.cluster

    async def add_host(self, index: int = 0, **more: Any) -> HostInventory:
        values = {
            "name": f"host-{index}", "management_ip": self.sim[index].ip, "cluster_uuid": self.cluster.uuid,
            "username": "root", "password": "secret",
        }  # fmt: skip
        return await self.api(AddKVMHost(**{**values, **more}))

    async def host(self, uuid: str) -> HostInventory:
        return await self.node.bus.call(GetHost(host_uuid=uuid))

    async def until_status(self, uuid: str, status: str, seconds: float = 15) -> HostInventory:
        async def there() -> HostInventory | None:
            found = await self.host(uuid)
            return found if found.status == status else None

        return await self.until(there, seconds)


@contextlib.asynccontextmanager
async def host_cloud(directory: Path, hosts: int = 2, *, services: Any = (), **sizes: Any) -> AsyncIterator[HostCloud]:
    """The cloud with its cluster made; no host is added yet."""
    async with (
        SimulatedHosts(hosts, directory=directory / "pki", **sizes) as sim,
        HostCloud(directory, services=[*SERVICES, *services], drivers=[QuickKvmService]) as cloud,
    ):
        await cloud.prepare(sim)
        await cloud.make_cluster()
        yield cloud
