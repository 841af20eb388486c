"""What becomes of virtual machines when what they stand on is deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.service.vm_clouds import assert_nothing_wrong, chain, guests, room, used, vm_of

from caelum.agent import protocol
from caelum.cloud.config.api import UpdateGlobalConfig
from caelum.cloud.host.api import ChangeHostState, DeleteHost
from caelum.cloud.host.messages import ListHosts
from caelum.cloud.identity.api import CreateAccount, DeleteAccount, ShareResource
from caelum.cloud.image.api import DeleteImage
from caelum.cloud.l2.api import DetachL2NetworkFromCluster
from caelum.cloud.l3.api import DeleteL3Network
from caelum.cloud.offering.api import DeleteInstanceOffering
from caelum.cloud.primary_storage.api import DeletePrimaryStorage, DetachPrimaryStorageFromCluster
from caelum.cloud.vm.api import CreateVmInstance, QueryVmInstance, QueryVmNic, StartVmInstance
from caelum.cloud.volume.api import QueryVolume
from caelum.cloud.zone.api import DeleteZone
from caelum.kernel.context import Actor
from caelum.kernel.errors import CloudError
from caelum.testing.simcloud import MIB, SimulatedCloud, simulated_cloud


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SimulatedCloud]:
    async with simulated_cloud(tmp_path, hosts=2) as made:
        yield made


async def states(world: SimulatedCloud) -> dict[str, str]:
    return {one.uuid: one.state for one in (await world.api(QueryVmInstance())).inventories}


async def test_a_zone_takes_everything(world: SimulatedCloud) -> None:
    for number in range(4):
        await world.create_vm(f"vm{number}")
    await world.create_vm("stopped", strategy="CreateStopped")
    await world.api(DeleteZone(uuid=world.zone), timeout=60)
    assert await states(world) == {}
    assert guests(world) == {}
    assert (await world.api(QueryVolume())).inventories == []
    assert (await world.api(QueryVmNic())).inventories == []
    assert await used(world) == {"vm.totalNum": 0, "vm.num": 0, "vm.cpuNum": 0, "vm.memorySize": 0}
    for host in world.hosts.hosts:
        assert not host.world.leases or not any(host.world.leases.values())


async def test_a_primary_storage_takes_its_vms(world: SimulatedCloud) -> None:
    await world.create_vm("one")
    await world.create_vm("two")
    free = (await room(world))[:2]
    await world.api(
        DetachPrimaryStorageFromCluster(cluster_uuid=world.cluster, primary_storage_uuid=world.primary_storage)
    )
    assert set((await states(world)).values()) == {"Stopped"}, "a storage that is detached stops its VMs"
    assert guests(world) == {}
    await world.api(DeletePrimaryStorage(uuid=world.primary_storage))
    assert await states(world) == {}
    assert (await room(world))[1] - free[1] == 256 * MIB
    assert (await world.api(QueryVolume())).inventories == []


async def test_an_l3_network_takes_its_nics_only(world: SimulatedCloud) -> None:
    second = await world.add_l3(2)
    both = await world.create_vm("both", l3_network_uuids=[world.l3, second])
    alone = await world.create_vm("alone")
    await world.api(DeleteL3Network(uuid=world.l3))
    assert await states(world) == {both.uuid: "Running", alone.uuid: "Running"}
    now = await vm_of(world, both.uuid)
    assert ([one.l3_network_uuid for one in now.vm_nics], now.default_l3_network_uuid) == ([second], second)
    assert (await vm_of(world, alone.uuid)).vm_nics == []
    for host in world.hosts.hosts:
        assert world.l3 not in host.world.dhcp
        assert all(len(vm.definition.nics) < 2 for vm in host.world.vms.values())
    await assert_nothing_wrong(world)


async def test_an_l2_network_that_leaves_its_cluster_takes_the_nics(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    await world.api(DetachL2NetworkFromCluster(l2_network_uuid=world.l2, cluster_uuid=world.cluster))
    now = await vm_of(world, vm.uuid)
    assert (now.state, now.vm_nics) == ("Running", [])
    assert all(host.world.bridges == {} for host in world.hosts.hosts)


async def test_a_host_that_is_deleted_stops_its_vms(world: SimulatedCloud) -> None:
    """On local storage the disks go with the host, and so do the VMs."""
    vm = await world.create_vm("goes")
    other = next(one.uuid for one in world.hosts.hosts if one.uuid != vm.host_uuid)
    kept = await world.create_vm("stays", host_uuid=other)
    await world.api(DeleteHost(uuid=vm.host_uuid or ""))
    assert await states(world) == {kept.uuid: "Running"}
    assert guests(world) == {kept.uuid: "Running"}
    assert await used(world) == {"vm.totalNum": 1, "vm.num": 1, "vm.cpuNum": 1, "vm.memorySize": 128 * MIB}
    await assert_nothing_wrong(world)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (protocol.StopVm.path, "stop vm[uuid:{vm}]"),
        (protocol.GetVmStates.path, "vm[uuid:{vm}, name:stays]"),
        (protocol.GetStorageCapacity.path, "primary storage[uuid:{storage}, name:local]"),
    ],
)
async def test_a_host_whose_agent_refuses_is_deleted_by_force_only(
    world: SimulatedCloud, path: str, named: str
) -> None:
    vm = await world.create_vm("stays")
    before = await states(world), await room(world), await used(world), world.hosts.dump()
    world.hosts.fault("error", path, host=vm.host_uuid)
    with pytest.raises(CloudError) as refused:
        await world.api(DeleteHost(uuid=vm.host_uuid or ""))
    said = " ".join(one.details for one in chain(refused.value))
    assert named.format(vm=vm.uuid, storage=world.primary_storage) in said
    assert refused.value.code == "SYS.1004"
    assert (await states(world), await room(world), await used(world), world.hosts.dump()) == before
    assert await world.cloud.node.gc.open_jobs() == []
    await world.api(DeleteHost(uuid=vm.host_uuid or "", delete_mode="Enforcing"))
    assert await states(world) == {}
    assert [one.uuid for one in (await world.cloud.node.bus.call(ListHosts())).hosts] != [vm.host_uuid]


async def test_a_lost_host_is_deleted_by_force_only_unless_it_is_empty(world: SimulatedCloud) -> None:
    await world.api(UpdateGlobalConfig(category="host", name="connection.patience", value="0"))
    vm = await world.create_vm("stays")
    empty = next(one for one in world.hosts.hosts if one.uuid != vm.host_uuid)
    lost = world.hosts.by_uuid(vm.host_uuid or "")
    for host in (lost, empty):
        await host.die()

    async def noticed() -> bool:
        return {one.status for one in (await world.cloud.node.bus.call(ListHosts())).hosts} == {"Disconnected"}

    await world.cloud.until(noticed, 30)
    with pytest.raises(
        CloudError, match=rf"storage\[uuid:{world.primary_storage}, name:local\] does not answer on host"
    ):
        await world.api(DeleteHost(uuid=lost.uuid))
    assert vm.uuid in await states(world)
    await world.api(DeleteHost(uuid=empty.uuid))
    await world.api(DeleteHost(uuid=lost.uuid, delete_mode="Enforcing"))
    assert await states(world) == {}


async def test_a_host_in_maintenance_has_no_vms(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    await world.api(ChangeHostState(uuid=vm.host_uuid or "", state_event="maintain"), timeout=60)
    assert (await vm_of(world, vm.uuid)).state == "Stopped"
    with pytest.raises(CloudError, match="Maintenance"):
        await world.api(StartVmInstance(uuid=vm.uuid))
    assert guests(world) == {}
    await assert_nothing_wrong(world)


async def test_an_account_takes_its_vms(world: SimulatedCloud) -> None:
    account = await world.api(CreateAccount(name="dev", password="x" * 128))
    actor = Actor(account.uuid, account.uuid, None, False)
    await world.api(ShareResource(to_public=True, resource_uuids=[world.image, world.offering, world.l3]))
    mine = CreateVmInstance(
        name="vm", image_uuid=world.image, instance_offering_uuid=world.offering, l3_network_uuids=[world.l3]
    )
    vm = await world.api(mine, actor=actor)
    kept = await world.create_vm("of the administrator")
    assert vm.uuid in guests(world)
    await world.api(DeleteAccount(uuid=account.uuid))
    assert await states(world) == {kept.uuid: "Running"}
    assert guests(world) == {kept.uuid: "Running"}
    await assert_nothing_wrong(world)


async def test_an_offering_and_an_image_leave_their_vms(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    await world.api(DeleteInstanceOffering(uuid=world.offering))
    await world.api(DeleteImage(uuid=world.image))
    now = await vm_of(world, vm.uuid)
    assert (now.state, now.instance_offering_uuid) == ("Running", None)
    assert guests(world) == {vm.uuid: "Running"}
