"""A complete cloud on simulated hosts: zone, cluster, hosts, storages, image, network, offering. For service tests and
the crash harness.

Invariant: everything goes the way of a user's request; nothing is written into the database by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from sqlalchemy import select

from caelum.cloud.backup_storage.api import AttachBackupStorageToZone
from caelum.cloud.cluster.api import CreateCluster
from caelum.cloud.config.api import UpdateGlobalConfig
from caelum.cloud.host.api import HostInventory
from caelum.cloud.host.messages import ListHosts
from caelum.cloud.host.service import HostService
from caelum.cloud.image.api import AddImage
from caelum.cloud.l2.api import AttachL2NetworkToCluster, CreateL2NoVlanNetwork
from caelum.cloud.l3.api import AddIpRange, CreateL3Network
from caelum.cloud.network_service.api import AttachNetworkServiceToL3Network, QueryNetworkServiceProvider
from caelum.cloud.offering.api import CreateDiskOffering, CreateInstanceOffering
from caelum.cloud.primary_storage.api import AttachPrimaryStorageToCluster
from caelum.cloud.vm.api import CreateVmInstance, VmInstanceInventory
from caelum.cloud.zone.api import CreateZone
from caelum.drivers.directory_backup.api import AddDirectoryBackupStorage
from caelum.drivers.kvm.api import AddKVMHost
from caelum.drivers.local_storage.api import AddLocalPrimaryStorage
from caelum.kernel import resources
from caelum.kernel.message import QueryCondition
from caelum.simulator import SimulatedHosts
from caelum.simulator.image import IMAGE_SIZE as IMAGE_SIZE
from caelum.simulator.image import empty_qcow2 as empty_qcow2
from caelum.testing.cloud import EmbeddedCloud
from caelum.testing.rehearsals import Rehearsal, Stage

GIB = 1 << 30
MIB = 1 << 20


class SimulatedCloud:
    """A `Stage` with hosts and everything that a VM needs; attributes are the UUIDs of what was made."""

    def __init__(self, stage: Stage, hosts: SimulatedHosts, directory: Path) -> None:
        self.stage, self.hosts, self.directory = stage, hosts, directory
        self.zone = self.cluster = self.image = self.l2 = self.l3 = self.offering = self.disk_offering = ""
        self.primary_storage = self.backup_storage = ""

    @property
    def cloud(self) -> EmbeddedCloud:
        """The cloud that runs now: another one after a reboot."""
        return self.stage.cloud

    def rehearse(
        self,
        trigger: Callable[[], Awaitable[Any]],
        ignore: frozenset[str] = frozenset(),
        hosts: Callable[[], Awaitable[Any]] | None = None,
    ) -> Rehearsal:
        """A rehearsal in this cloud; what differs from cloud to cloud by chance is left out."""
        chance = frozenset(
            {
                "backup_storage.available_capacity",
                "backup_storage.total_capacity",
                "local_storage_host_ref.available_physical_capacity",
                "primary_storage_capacity.available_physical_capacity",
            }
        )
        masks = (str(self.directory), str(self.hosts.port))
        return Rehearsal(self.stage, trigger, ignore=ignore | chance, masks=masks, hosts=hosts)

    async def api(self, msg: Any, **more: Any) -> Any:
        """Send an API message as the administrator."""
        return await self.cloud.api(msg, **more)

    async def furnish(self, *, l3_count: int = 1) -> None:
        """Make everything that a VM needs."""
        await self._settings()
        self.zone = (await self.api(CreateZone(name="zone"))).uuid
        self.cluster = (await self.api(CreateCluster(name="cluster", zone_uuid=self.zone, hypervisor_type="KVM"))).uuid
        for number, host in enumerate(self.hosts.hosts):
            await self.add_host(f"host{number}", host.ip)
        await self._storages()
        await self._network(l3_count)
        self.offering = (await self.api(CreateInstanceOffering(name="small", cpu_num=1, memory_size=128 * MIB))).uuid
        self.disk_offering = (await self.api(CreateDiskOffering(name="disk", disk_size=GIB))).uuid

    async def add_host(self, name: str, ip: str) -> HostInventory:
        """Add a simulated host."""
        added: HostInventory = await self.api(
            AddKVMHost(
                name=name, management_ip=ip, username="root", password="unused",  # noqa: S106
                cluster_uuid=self.cluster,
            )
        )  # fmt: skip
        return added

    async def create_vm(self, name: str = "vm", **fields: Any) -> VmInstanceInventory:
        """Create a VM from the image on the network."""
        values = {
            "image_uuid": self.image, "instance_offering_uuid": self.offering, "l3_network_uuids": [self.l3], **fields,
        }  # fmt: skip
        created: VmInstanceInventory = await self.api(CreateVmInstance(name=name, **values))
        return created

    async def free_address(self, number: int = 1) -> str:
        """An address that nobody has, of the L3 network that `add_l3` made with this number."""
        used: Any = resources.model("UsedIpVO")
        async with self.cloud.node.db.read() as session:
            taken = set(await session.scalars(select(used.ip)))
        return next(one for one in (f"10.{number}.0.{last}" for last in range(200, 251)) if one not in taken)

    async def _settings(self) -> None:
        wanted = {
            ("kvm", "agent.port"): str(self.hosts.port),
            ("image", "download.localPath.whitelist"): f"{self.directory}/**",
        }
        for (category, name), value in wanted.items():
            await self.api(UpdateGlobalConfig(category=category, name=name, value=value))

    async def _storages(self) -> None:
        primary = await self.api(AddLocalPrimaryStorage(name="local", url="/caelum_ps", zone_uuid=self.zone))
        self.primary_storage = primary.uuid
        await self.api(
            AttachPrimaryStorageToCluster(cluster_uuid=self.cluster, primary_storage_uuid=self.primary_storage)
        )
        backup = await self.api(AddDirectoryBackupStorage(name="images", url=str(self.directory / "backup")))
        self.backup_storage = backup.uuid
        await self.api(AttachBackupStorageToZone(zone_uuid=self.zone, backup_storage_uuid=self.backup_storage))
        image = await self.api(
            AddImage(
                name="image",
                url=f"file://{empty_qcow2(self.directory / 'image.qcow2')}",
                backup_storage_uuids=[self.backup_storage],
                media_type="RootVolumeTemplate",
                format="qcow2",
                platform="Linux",
            )
        )
        self.image = image.uuid

    async def _network(self, l3_count: int) -> None:
        l2 = await self.api(CreateL2NoVlanNetwork(name="private", zone_uuid=self.zone, physical_interface="private0"))
        self.l2 = l2.uuid
        await self.api(AttachL2NetworkToCluster(l2_network_uuid=self.l2, cluster_uuid=self.cluster))
        self.l3 = await self.add_l3(1)
        for number in range(2, l3_count + 1):
            await self.add_l3(number)

    async def add_l3(self, number: int) -> str:
        """An L3 network 10.<number>.0.0/24 with all flat services."""
        l3 = await self.api(CreateL3Network(name=f"net{number}", l2_network_uuid=self.l2, type="L3BasicNetwork"))
        await self.api(
            AddIpRange(
                l3_network_uuid=l3.uuid, name="range", start_ip=f"10.{number}.0.10", end_ip=f"10.{number}.0.250",
                netmask="255.255.255.0", gateway=f"10.{number}.0.1",
            )
        )  # fmt: skip
        found = await self.api(QueryNetworkServiceProvider(conditions=[QueryCondition("type", "=", "Flat")]))
        services = ["DHCP", "DNS", "Userdata", "HostRoute", "SNAT"]
        provider = found.inventories[0]
        await self.api(
            AttachNetworkServiceToL3Network(
                l3_network_uuid=l3.uuid,
                network_services={getattr(provider, "uuid", None) or provider["uuid"]: services},
            )
        )
        return str(l3.uuid)


@contextlib.asynccontextmanager
async def simulated_cloud(
    directory: Path | None = None, *, hosts: int = 1, furnish: bool = True, **config: Any
) -> AsyncIterator[SimulatedCloud]:
    """A furnished cloud on a directory (a temporary one by default), with simulated hosts that outlive its node."""
    async with contextlib.AsyncExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="caelum-test-")))
        agents = await stack.enter_async_context(SimulatedHosts(hosts, directory=directory / "pki"))

        async def dump() -> dict[str, Any]:
            return agents.dump()

        stage = Stage(directory, hosts=dump, keep=agents.keep, ready=_hosts_connected, **config)
        await stack.enter_async_context(stage)
        made = SimulatedCloud(stage, agents, directory)
        if furnish:
            await made.furnish()
        yield made


async def _hosts_connected(cloud: EmbeddedCloud) -> None:
    """Wait until every host that the database knows is Connected, and not only from before the restart."""
    service = cloud.node.services["host"]
    if isinstance(service, HostService):
        await asyncio.wait_for(service.tracker.settled(), 30.0)

    async def connected() -> bool:
        return all(one.status == "Connected" for one in (await cloud.node.bus.call(ListHosts())).hosts)

    await cloud.until(connected, 30.0)
