"""The end of a VM: what it had goes at once, exactly once, and the news of it are true."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.service.test_crash_harness import chosen
from tests.service.vm_clouds import assert_nothing_wrong, guests, room, until_state, used, vm_of

from caelum.cloud.host.service import HostService
from caelum.cloud.l3.api import CheckIpAvailability
from caelum.cloud.parts import part
from caelum.cloud.vm.api import DestroyVmInstance, VmInstanceInventory, VmStateChanged
from caelum.cloud.vm.flows.destroy import DestroyVmFlow
from caelum.cloud.vm.settings import DELETE_DATA_VOLUMES, DELETION_POLICY
from caelum.cloud.volume.api import QueryVolume, VolumeInventory
from caelum.cloud.volume.events import VolumeStatusChanged
from caelum.cloud.volume.extension import VolumeRecords
from caelum.cloud.volume.messages import DeleteVolume, GetVolumes
from caelum.drivers.flat_network.driver import FlatVmResources
from caelum.kernel.context import ADMIN_ACCOUNT_UUID
from caelum.kernel.message import QueryCondition
from caelum.testing.harness import Harness
from caelum.testing.rehearsals import Rehearsal
from caelum.testing.simcloud import SimulatedCloud, simulated_cloud


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SimulatedCloud]:
    async with simulated_cloud(tmp_path, hosts=1) as made:
        yield made


async def volumes_of(world: SimulatedCloud, vm: VmInstanceInventory) -> dict[str, VolumeInventory]:
    """What there is of the volumes that it had, deleted ones too."""
    had = ",".join(one.uuid for one in vm.all_volumes)
    found = await world.api(QueryVolume(conditions=[QueryCondition(name="uuid", op="in", value=had)]))
    return {one.type: one for one in found.inventories}


def deletions(world: SimulatedCloud) -> int:
    """How many volumes were deleted by message."""
    return world.cloud.node.bus.endpoint_of(DeleteVolume(volume_uuid="")).stats.count


async def delete_root(world: SimulatedCloud, uuid: str) -> VolumeInventory | None:
    async with world.cloud.node.db.transaction() as tx:
        return await part(world.cloud.node, VolumeRecords).delete_root(tx, uuid)


async def test_all_behind_the_host_is_one_transaction(world: SimulatedCloud) -> None:
    free, vm, node = await room(world), await world.create_vm(), world.cloud.node
    before = node.db.transactions
    await world.api(DestroyVmInstance(uuid=vm.uuid))
    assert node.db.transactions - before == 2, "one before the host is told, one after it is done"
    assert (guests(world), (await room(world))[:2]) == ({}, free[:2])
    assert (await used(world))["vm.num"] == 0
    assert (await volumes_of(world, vm))["Root"].status == "Deleted"
    free_again = CheckIpAvailability(l3_network_uuid=world.l3, ip=vm.vm_nics[0].ip or "")
    assert (await world.api(free_again)).available
    await assert_nothing_wrong(world)


async def test_the_news_are_those_of_the_records(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    await world.api(DestroyVmInstance(uuid=vm.uuid))
    told = [one for one in await world.cloud.seen(VmStateChanged) if one.vm_uuid == vm.uuid][-2:]
    assert [(one.old_state, one.new_state) for one in told] == [("Running", "Destroying"), ("Destroying", "Destroyed")]
    assert told[-1].inventory == await vm_of(world, vm.uuid)
    (deleted,) = [one for one in await world.cloud.seen(VolumeStatusChanged) if one.new_status == "Deleted"]
    assert (deleted.old_status, deleted.account_uuid) == ("Ready", ADMIN_ACCOUNT_UUID)
    assert deleted.inventory == (await volumes_of(world, vm))["Root"]


@pytest.mark.parametrize(("with_data", "kept"), [(False, None), (True, "Deleted")])
async def test_data_disks_stay_unless_they_are_to_go(world: SimulatedCloud, with_data: bool, kept: str | None) -> None:
    await world.cloud.node.settings.set(DELETE_DATA_VOLUMES, with_data)
    vm = await world.create_vm(data_disk_offering_uuids=[world.disk_offering])
    await world.api(DestroyVmInstance(uuid=vm.uuid))
    left = await volumes_of(world, vm)
    assert left["Root"].status == "Deleted"
    assert (left["Data"].status, left["Data"].vm_instance_uuid) == (kept or "Ready", None)
    assert deletions(world) == (1 if with_data else 0), "the root disk's is none"
    await assert_nothing_wrong(world)


@pytest.mark.parametrize("policy", ["Direct", "Never"])
async def test_other_policies_take_the_volumes_own_way(world: SimulatedCloud, policy: str) -> None:
    await world.cloud.node.settings.set(DELETION_POLICY, policy)
    vm = await world.create_vm()
    await world.api(DestroyVmInstance(uuid=vm.uuid))
    assert await volumes_of(world, vm) == {}
    assert deletions(world) == 1
    assert await world.cloud.node.resources.exists("VmInstanceVO", vm.uuid) == (policy == "Never")
    assert (guests(world), (await used(world))["vm.num"]) == ({}, 0)


async def test_a_root_disk_that_is_not_ready_takes_its_own_way(world: SimulatedCloud) -> None:
    vm, bus = await world.create_vm(), world.cloud.node.bus
    root = vm.root_volume_uuid or ""
    await bus.call(DeleteVolume(volume_uuid=root, policy="Delay"))
    assert await delete_root(world, root) is None
    await world.api(DestroyVmInstance(uuid=vm.uuid))
    assert (await volumes_of(world, vm))["Root"].status == "Deleted"
    assert (await bus.call(GetVolumes(vm_instance_uuid=vm.uuid))).volumes == []
    assert guests(world) == {}


async def test_it_waits_for_a_connect_that_is_due(world: SimulatedCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """What that had planned to serve would be there again otherwise."""
    vm, due = await world.create_vm(), asyncio.Event()
    hosts = world.cloud.node.services["host"]
    assert isinstance(hosts, HostService)

    async def tried(_host_uuid: str) -> None:
        await due.wait()

    monkeypatch.setattr(hosts.tracker, "tried", tried)
    destroying = asyncio.create_task(world.api(DestroyVmInstance(uuid=vm.uuid)))
    await until_state(world, vm.uuid, "Destroying")
    await asyncio.sleep(0.2)
    assert guests(world) == {vm.uuid: "Running"}
    due.set()
    await destroying
    assert guests(world) == {}


async def test_only_root_disks_go_with_their_vm(world: SimulatedCloud) -> None:
    vm = await world.create_vm(data_disk_offering_uuids=[world.disk_offering])
    data = (await volumes_of(world, vm))["Data"]
    assert await delete_root(world, data.uuid) is None
    assert (await volumes_of(world, vm))["Data"] == data


async def test_a_vm_without_nics_ends_too(world: SimulatedCloud) -> None:
    vm = await world.create_vm(l3_network_uuids=[])
    await world.api(DestroyVmInstance(uuid=vm.uuid))
    assert ((await vm_of(world, vm.uuid)).state, guests(world)) == ("Destroyed", {})
    await assert_nothing_wrong(world)


@asynccontextmanager
async def with_data_disk() -> AsyncIterator[Rehearsal]:
    """A VM whose data disk outlives it."""
    async with simulated_cloud() as made:
        vm = await made.create_vm(data_disk_offering_uuids=[made.disk_offering])
        times = frozenset({"volume.last_vm_instance_uuid", "volume.last_detach_date"})
        yield made.rehearse(lambda: made.api(DestroyVmInstance(uuid=vm.uuid)), times)


@pytest.mark.timeout(3600)
async def test_the_long_way_ends_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a disk to detach, and a provider that has more to do for the release than a host can be told."""

    async def more_than_orders(*_: Any) -> None:
        return None

    monkeypatch.setattr(FlatVmResources, "release_orders", more_than_orders)
    played = chosen(DestroyVmFlow.name)
    async with Harness(DestroyVmFlow, with_data_disk) as harness:
        assert await harness.rehearse(played) == len(played)
