"""The scenarios of the network services' workflows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import select

from caelum.cloud.cluster.api import CreateCluster
from caelum.cloud.config.api import UpdateGlobalConfig
from caelum.cloud.host.spec import NicIp, NicSpec, VmSpec
from caelum.cloud.l2.api import (
    AttachL2NetworkToCluster,
    CreateL2NoVlanNetwork,
    DeleteL2Network,
    DetachL2NetworkFromCluster,
)
from caelum.cloud.l3.api import AddIpRangeByNetworkCidr, CreateL3Network, DeleteL3Network
from caelum.cloud.network_service.api import AttachNetworkServiceToL3Network, DetachNetworkServiceFromL3Network
from caelum.cloud.vm.extension import VmResourceProvider
from caelum.cloud.zone.api import CreateZone
from caelum.kernel import resources
from caelum.kernel.ids import new_uuid
from caelum.testing.rehearsals import Rehearsal, rehearsal
from caelum.testing.simcloud import SimulatedCloud, simulated_cloud

NOT_NETWORKS = frozenset({"global_config", "management_node"})
"""Where the agents' port is kept, which differs from run to run, and the nodes, of which some die here."""


@asynccontextmanager
async def _cluster(hosts: int) -> AsyncIterator[SimulatedCloud]:
    """A cluster with hosts and nothing else: networks need no storage."""
    async with simulated_cloud(hosts=hosts, furnish=False) as world:
        port = str(world.hosts.port)
        await world.api(UpdateGlobalConfig(category="kvm", name="agent.port", value=port))
        world.zone = (await world.api(CreateZone(name="zone"))).uuid
        cluster = CreateCluster(name="cluster", zone_uuid=world.zone, hypervisor_type="KVM")
        world.cluster = (await world.api(cluster)).uuid
        for number, host in enumerate(world.hosts.hosts):
            await world.add_host(f"host{number}", host.ip)
        yield world


async def _l2(world: SimulatedCloud, interface: str, *, attached: bool) -> str:
    """An L2 network."""
    l2 = await world.api(CreateL2NoVlanNetwork(name=interface, zone_uuid=world.zone, physical_interface=interface))
    if attached:
        await world.api(AttachL2NetworkToCluster(l2_network_uuid=l2.uuid, cluster_uuid=world.cluster))
    return str(l2.uuid)


@rehearsal("l2_attach")
@asynccontextmanager
async def l2_attach() -> AsyncIterator[Rehearsal]:
    """A network comes to two hosts."""
    async with _cluster(hosts=2) as world:
        l2 = await _l2(world, "eth1", attached=False)
        msg = AttachL2NetworkToCluster(l2_network_uuid=l2, cluster_uuid=world.cluster)
        yield Rehearsal(world.stage, lambda: world.api(msg), ignore=NOT_NETWORKS)


@rehearsal("l2_detach")
@asynccontextmanager
async def l2_detach() -> AsyncIterator[Rehearsal]:
    """A network that nobody uses leaves two hosts."""
    async with _cluster(hosts=2) as world:
        l2 = await _l2(world, "eth1", attached=True)
        msg = DetachL2NetworkFromCluster(l2_network_uuid=l2, cluster_uuid=world.cluster)
        yield Rehearsal(world.stage, lambda: world.api(msg), ignore=NOT_NETWORKS)


@rehearsal("l2_delete")
@asynccontextmanager
async def l2_delete() -> AsyncIterator[Rehearsal]:
    """A network that nobody uses is deleted, with two hosts that have it."""
    async with _cluster(hosts=2) as world:
        l2 = await _l2(world, "eth1", attached=True)
        yield Rehearsal(world.stage, lambda: world.api(DeleteL2Network(uuid=l2)), ignore=NOT_NETWORKS)


@rehearsal("network_service_attach")
@asynccontextmanager
async def network_service_attach() -> AsyncIterator[Rehearsal]:
    """DHCP and translation come to a network."""
    async with _cluster(hosts=1) as world:
        world.l2 = await _l2(world, "private0", attached=True)
        l3 = await world.api(CreateL3Network(name="bare", l2_network_uuid=world.l2))
        await world.api(AddIpRangeByNetworkCidr(l3_network_uuid=l3.uuid, name="range", network_cidr="10.2.0.0/24"))
        msg = AttachNetworkServiceToL3Network(l3_network_uuid=l3.uuid, network_services={"Flat": ["DHCP", "SNAT"]})
        yield Rehearsal(world.stage, lambda: world.api(msg), ignore=NOT_NETWORKS)


@rehearsal("network_service_detach")
@asynccontextmanager
async def network_service_detach() -> AsyncIterator[Rehearsal]:
    """All services leave a network whose last guest is gone."""
    async with _cluster(hosts=1) as world:
        world.l2 = await _l2(world, "private0", attached=True)
        world.l3 = await world.add_l3(1)
        await _guest_came_and_went(world)
        msg = DetachNetworkServiceFromL3Network(l3_network_uuid=world.l3)
        yield _without_idle_services(world, msg)


def _without_idle_services(world: SimulatedCloud, msg: Any) -> Rehearsal:
    return Rehearsal(
        world.stage, lambda: world.api(msg), ignore=NOT_NETWORKS, hosts=lambda: hosts_without_idle_services(world)
    )


async def hosts_without_idle_services(world: SimulatedCloud) -> Any:
    """What is on the hosts, but for what serves no guest of a network that exists.

    A host gets that with the network's first guest and keeps it; whether it is there says nothing. What is left of a
    network that does not exist is shown.
    """
    model: Any = resources.model("L3NetworkVO")
    async with world.cloud.node.db.read() as session:
        known = set(await session.scalars(select(model.uuid)))
    hosts = await world.stage.dump_hosts()
    return {uuid: _without_idle(host, known) for uuid, host in hosts.items()}


def _without_idle(host: dict[str, Any], known: set[str]) -> dict[str, Any]:
    idle = {l3 for l3, dhcp in host["dhcp"].items() if not dhcp["entries"]} & known
    kinds = ("dhcp", "metadata", "nat")
    return {**host, **{kind: {l3: one for l3, one in host[kind].items() if l3 not in idle} for kind in kinds}}


async def _guest_came_and_went(world: SimulatedCloud) -> None:
    """A host has served a guest of the network, and serves it no longer."""
    host = world.hosts[0].uuid
    ips = [NicIp(ip="10.1.0.77", netmask="255.255.255.0", gateway="10.1.0.1")]
    nic = NicSpec(nic_uuid=new_uuid(), l3_network_uuid=world.l3, device_id=0, mac="fa:00:00:00:00:01", ips=ips)
    guest = VmSpec(vm_uuid=new_uuid(), name="guest", internal_id=1, cpu_num=1, memory=1, nics=[nic])
    await world.cloud.node.extensions.each(VmResourceProvider, "prepare", guest, host)
    await world.cloud.node.extensions.each(VmResourceProvider, "release", guest, host)


@rehearsal("l3_delete")
@asynccontextmanager
async def l3_delete() -> AsyncIterator[Rehearsal]:
    """A network is deleted whose last guest is gone; its DHCP server and its translation are still on the host."""
    async with _cluster(hosts=1) as world:
        world.l2 = await _l2(world, "private0", attached=True)
        world.l3 = await world.add_l3(1)
        await _guest_came_and_went(world)
        yield _without_idle_services(world, DeleteL3Network(uuid=world.l3))
