"""What a host does for a VM right before its start and after its end travels with that: bridges, services."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest
from tests.service.vm_clouds import assert_nothing_wrong, chain, guests

from caelum.agent import protocol as p
from caelum.cloud.host.api import ReconnectHost
from caelum.cloud.host.errors import FAILED_TO_START_VM
from caelum.cloud.host.messages import DestroyAndReleaseVmOnHost, PrepareAndStartVmOnHost
from caelum.cloud.host.settings import SYNC_LEVEL
from caelum.cloud.l3.api import AddDnsToL3Network
from caelum.cloud.network_service.api import DetachNetworkServiceFromL3Network
from caelum.cloud.primary_storage.api import CleanUpImageCacheOnPrimaryStorage
from caelum.cloud.primary_storage.messages import PlanVolumeOnStorage
from caelum.cloud.vm.api import DestroyVmInstance, ExpungeVmInstance, StartVmInstance, StopVmInstance
from caelum.cloud.vm.flows import base
from caelum.cloud.volume.messages import GetVolumes
from caelum.drivers.flat_network import removal
from caelum.drivers.kvm import driver
from caelum.drivers.kvm.messages import RunAgentCommand
from caelum.drivers.local_storage.driver import LocalStorage
from caelum.kernel.errors import UNDELIVERABLE, CloudError
from caelum.kernel.message import Message
from caelum.testing.simcloud import SimulatedCloud, simulated_cloud


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SimulatedCloud]:
    async with simulated_cloud(tmp_path, hosts=1) as made:
        yield made


def came(world: SimulatedCloud, before: Counter[str]) -> Counter[str]:
    return world.hosts[0].arrived - before


async def test_a_start_and_what_comes_before_are_one_request(world: SimulatedCloud) -> None:
    vm = await world.create_vm("first")
    before = world.hosts[0].arrived.copy()
    await world.create_vm("second")
    created = came(world, before)
    assert {path: created[path] for path in (p.Series.path, p.CreateBridge.path, p.StartVm.path)} == {
        p.Series.path: 1, p.CreateBridge.path: 1, p.StartVm.path: 1,
    }  # fmt: skip
    await world.cloud.api(StopVmInstance(uuid=vm.uuid))
    world.hosts[0].world.bridges.clear()
    before = world.hosts[0].arrived.copy()
    await world.cloud.api(StartVmInstance(uuid=vm.uuid))
    assert came(world, before)[p.CreateBridge.path] == 1
    assert world.hosts[0].world.bridges, "whatever became of it, the bridge is there when the VM starts"


async def test_an_agent_that_takes_no_series_is_told_one_by_one(world: SimulatedCloud) -> None:
    world.hosts[0].protocol = 2
    await world.cloud.api(ReconnectHost(uuid=world.hosts[0].uuid))
    before = world.hosts[0].arrived.copy()
    vm = await world.create_vm("vm")
    assert vm.state == "Running"
    assert came(world, before)[p.Series.path] == 0
    assert came(world, before)[p.CreateBridge.path] == 1


async def test_an_order_that_fails_fails_the_start_and_nothing_stays(world: SimulatedCloud) -> None:
    world.hosts.fault("error", p.CreateBridge.path, code=p.NETWORK)
    with pytest.raises(CloudError) as failed:
        await world.create_vm("vm")
    chain = [failed.value]
    while chain[-1].cause is not None:
        chain.append(chain[-1].cause)
    assert FAILED_TO_START_VM.code in [one.code for one in chain]
    assert p.NETWORK in [one.code for one in chain]
    world.hosts.heal()
    assert guests(world) == {}
    await assert_nothing_wrong(world)


async def test_an_order_that_fails_for_the_moment_is_repeated(world: SimulatedCloud) -> None:
    world.hosts.fault("error", p.CreateBridge.path, code=p.NETWORK, transient=True, count=1)
    assert (await world.create_vm("vm")).state == "Running"


async def test_an_order_that_hangs_fails_the_start_in_time(
    world: SimulatedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "PREPARED_START", 1.0)
    world.hosts.fault("hang", p.ApplyDhcp.path)
    async with asyncio.timeout(30):
        with pytest.raises(CloudError):
            await world.create_vm("vm")
    world.hosts.heal()
    assert guests(world) == {}
    await assert_nothing_wrong(world)


# --- the root disk is made with the start -----------------------------------------------------------------------------


def asked_alone(world: SimulatedCloud, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that drivers send to hosts outside of a start, from now on."""
    bus, paths = world.cloud.node.bus, list[str]()
    call = bus.call

    async def noted(msg: Any, timeout: float | None = None) -> Any:
        if isinstance(msg, RunAgentCommand):
            paths.append(msg.path)
        return await call(msg, timeout)

    monkeypatch.setattr(bus, "call", noted)
    return paths


def disks(world: SimulatedCloud) -> list[str]:
    """The volumes' files on the host."""
    return sorted(one for one in world.hosts[0].world.files if "Volumes" in one)


async def test_the_root_disk_is_made_in_the_request_that_starts_its_vm(
    world: SimulatedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await world.create_vm("first")
    alone, before = asked_alone(world, monkeypatch), world.hosts[0].arrived.copy()
    vm = await world.create_vm("second")
    assert (alone, came(world, before)[p.CreateVolume.path], came(world, before)[p.Series.path]) == ([], 1, 1)
    (root,) = vm.all_volumes
    (volume,) = (await world.cloud.node.bus.call(GetVolumes(vm_instance_uuid=vm.uuid))).volumes
    made = (volume.status, volume.install_path, volume.format, volume.size, volume.actual_size)
    assert (root.status, root.install_path, root.format, root.size, root.actual_size) == made
    assert (volume.status, volume.install_path in disks(world)) == ("Ready", True)
    other = first.all_volumes[0]
    assert made[2:] == (other.format, other.size, other.actual_size), "as one that was made alone"
    await assert_nothing_wrong(world)


async def test_a_guest_is_started_with_the_format_in_which_its_root_disk_is_made(
    world: SimulatedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.create_vm("first")
    monkeypatch.setattr(LocalStorage, "format", "raw")
    vm = await world.create_vm("vm")
    (disk,) = world.hosts[0].world.vms[vm.uuid].definition.disks
    assert (disk.install_path, disk.format) == (vm.all_volumes[0].install_path, "raw")


async def test_data_disks_are_made_before(world: SimulatedCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.create_vm("first")
    alone = asked_alone(world, monkeypatch)
    vm = await world.create_vm("vm", data_disk_offering_uuids=[world.disk_offering])
    assert alone == [p.CreateVolume.path]
    assert [(one.device_id, one.status) for one in vm.all_volumes] == [(0, "Ready"), (1, "Ready")]
    assert len(world.hosts[0].world.vms[vm.uuid].definition.disks) == 2
    await assert_nothing_wrong(world)


async def test_an_image_that_has_left_the_host_is_fetched_again(world: SimulatedCloud) -> None:
    first = await world.create_vm("first")
    await world.cloud.api(DestroyVmInstance(uuid=first.uuid))
    await world.cloud.api(ExpungeVmInstance(uuid=first.uuid))
    files = world.hosts[0].world.files
    for path in [one for one in files if "imagecache" in one]:
        del files[path]
    vm = await world.create_vm("vm")
    assert (vm.state, vm.all_volumes[0].status) == ("Running", "Ready")
    await assert_nothing_wrong(world)


async def test_an_image_that_leaves_the_cache_after_the_plan_is_not_cloned(
    world: SimulatedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await world.create_vm("first")
    await world.cloud.api(DestroyVmInstance(uuid=first.uuid))
    await world.cloud.api(ExpungeVmInstance(uuid=first.uuid))
    bus, planned = world.cloud.node.bus, list[Any]()
    call, clean = bus.call, CleanUpImageCacheOnPrimaryStorage(uuid=world.primary_storage, force=True)

    async def cleaned(msg: Any, timeout: float | None = None) -> Any:
        answer = await call(msg, timeout)
        if isinstance(msg, PlanVolumeOnStorage):
            planned.append(answer)
            await asyncio.create_task(world.cloud.api(clean), context=Context())
        return answer

    monkeypatch.setattr(bus, "call", cleaned)
    before = world.hosts[0].arrived.copy()
    vm = await world.create_vm("vm")
    assert planned
    assert None not in planned
    assert came(world, before)[p.CreateVolume.path] == 1, "it is not tried on an image that may go at any time"
    assert (vm.state, vm.all_volumes[0].status) == ("Running", "Ready")
    host = world.hosts[0].world
    assert host.backing[vm.all_volumes[0].install_path or ""] in host.files
    await assert_nothing_wrong(world)


async def test_a_root_disk_that_fails_in_the_series_is_tried_alone(
    world: SimulatedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.create_vm("first")
    alone = asked_alone(world, monkeypatch)
    world.hosts.fault("error", p.CreateVolume.path, code=p.STORAGE, count=1)
    vm = await world.create_vm("vm")
    assert (vm.state, vm.all_volumes[0].status, alone) == ("Running", "Ready", [p.CreateVolume.path])
    await assert_nothing_wrong(world)


async def test_a_root_disk_that_cannot_be_made_fails_with_the_storages_error(world: SimulatedCloud) -> None:
    first, before = await world.create_vm("first"), disks(world)
    world.hosts.fault("error", p.CreateVolume.path, code=p.STORAGE, details="no such luck")
    with pytest.raises(CloudError, match="no such luck") as failed:
        await world.create_vm("vm")
    codes = [one.code for one in chain(failed.value)]
    assert p.STORAGE in codes
    assert FAILED_TO_START_VM.code not in codes
    world.hosts.heal()
    assert (guests(world), disks(world)) == ({first.uuid: "Running"}, before)
    await assert_nothing_wrong(world)


async def test_a_start_that_fails_takes_the_root_disk_along(world: SimulatedCloud) -> None:
    first, before = await world.create_vm("first"), disks(world)
    world.hosts.fault("error", p.StartVm.path, code=p.LIBVIRT)
    with pytest.raises(CloudError) as failed:
        await world.create_vm("vm")
    assert FAILED_TO_START_VM.code in [one.code for one in chain(failed.value)]
    world.hosts.heal()
    assert (guests(world), disks(world)) == ({first.uuid: "Running"}, before)
    await assert_nothing_wrong(world)


@pytest.mark.parametrize("command", [p.CreateVolume, p.CreateBridge, p.StartVm])
async def test_a_creation_that_is_cancelled_on_its_host_leaves_nothing(
    world: SimulatedCloud, command: type[p.Command[Any]]
) -> None:
    first, before, workflows = await world.create_vm("first"), disks(world), world.cloud.node.workflows
    arrived = world.hosts[0].arrived[command.path]
    world.hosts.fault("hang", command.path)
    creation = asyncio.create_task(world.create_vm("vm"))
    await world.cloud.until(lambda: world.hosts[0].arrived[command.path] > arrived)
    (run,) = [one for one in workflows.dump() if one["name"] == "vm.create"]
    assert workflows.cancel(run["uuid"], "by its user")
    async with asyncio.timeout(10):
        with pytest.raises(CloudError):
            await creation
    world.hosts.heal()
    assert (guests(world), disks(world)) == ({first.uuid: "Running"}, before)
    await assert_nothing_wrong(world)


async def test_a_host_that_does_not_tell_of_the_disk_is_asked_again(
    world: SimulatedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner, of the version before, does what is ordered, and keeps the answers to itself."""
    await world.create_vm("first")
    silent = driver._started
    monkeypatch.setattr(driver, "_started", lambda answer, _before=(): silent(answer))
    vm = await world.create_vm("vm")
    assert (vm.state, vm.all_volumes[0].status) == ("Running", "Ready")
    await assert_nothing_wrong(world)


def no_such_message(world: SimulatedCloud, monkeypatch: pytest.MonkeyPatch, cls: type[Message[Any]]) -> None:
    """Have the hosts' owner know no message of this class, as a server of the version before."""
    bus = world.cloud.node.bus
    call = bus.call

    async def older(msg: Any, timeout: float | None = None) -> Any:
        if isinstance(msg, cls):
            raise CloudError(UNDELIVERABLE, "no message is called so", message=msg.__meta__.name)
        return await call(msg, timeout)

    monkeypatch.setattr(bus, "call", older)


async def test_an_owner_of_the_version_before_is_asked_step_by_step(
    world: SimulatedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = world.hosts[0].arrived.copy()
    no_such_message(world, monkeypatch, PrepareAndStartVmOnHost)
    vm = await world.create_vm("vm")
    assert vm.state == "Running"
    assert came(world, before)[p.CreateBridge.path] == 1
    assert came(world, before)[p.StartVm.path] == 1


# --- what changes while a start waits for its host's turn -------------------------------------------------------------


async def create_while(world: SimulatedCloud, change: Any, made: Callable[[], bool]) -> None:
    """Create a VM whose start waits in its host's queue until `change` was made there."""
    queues, name, level, free = world.cloud.node.queues, f"host-{world.hosts[0].uuid}", 3, asyncio.Event()
    await world.cloud.node.settings.set(SYNC_LEVEL, level)
    others = [queues.submit(name, level, free.wait) for _ in range(level)]
    created = asyncio.create_task(world.create_vm("late"))
    await world.cloud.until(lambda: queues.dump()[name].pending)
    await world.cloud.api(change)
    await world.cloud.until(made)
    free.set()
    await asyncio.gather(*others)
    assert (await created).state == "Running"


async def test_a_start_does_not_bring_back_services_that_were_detached_meanwhile(world: SimulatedCloud) -> None:
    there = world.hosts[0].world
    await create_while(world, DetachNetworkServiceFromL3Network(l3_network_uuid=world.l3), lambda: not there.dhcp)
    assert (there.dhcp, there.nat, leases(world)) == ({}, {}, [])
    await assert_nothing_wrong(world)


async def test_a_start_does_not_bring_back_options_that_were_changed_meanwhile(world: SimulatedCloud) -> None:
    await world.create_vm("first")

    def told() -> bool:
        return all("9.9.9.9" in one.dns for one in world.hosts[0].world.dhcp.values())

    await create_while(world, AddDnsToL3Network(l3_network_uuid=world.l3, dns="9.9.9.9"), told)
    assert told()


# --- destruction ------------------------------------------------------------------------------------------------------

RELEASES = (p.ReleaseDhcp.path, p.ReleaseMetadata.path)


def leases(world: SimulatedCloud) -> list[Any]:
    return [one for served in world.hosts[0].world.leases.values() for one in served]


async def test_a_destruction_and_what_comes_after_are_one_request(world: SimulatedCloud) -> None:
    vm = await world.create_vm("vm")
    assert leases(world)
    before = world.hosts[0].arrived.copy()
    await world.cloud.api(DestroyVmInstance(uuid=vm.uuid))
    gone = came(world, before)
    assert {path: gone[path] for path in (p.Series.path, p.DestroyVm.path, *RELEASES)} == {
        p.Series.path: 1, p.DestroyVm.path: 1, **dict.fromkeys(RELEASES, 1),
    }  # fmt: skip
    assert (leases(world), guests(world)) == ([], {})
    await assert_nothing_wrong(world)


@pytest.mark.parametrize("path", [p.DestroyVm.path, p.ReleaseDhcp.path])
async def test_a_destruction_of_which_a_part_fails_is_finished_later(world: SimulatedCloud, path: str) -> None:
    vm = await world.create_vm("vm")
    world.hosts.fault("error", path, code=p.LIBVIRT)
    await world.cloud.api(DestroyVmInstance(uuid=vm.uuid))
    assert len(await world.cloud.node.gc.open_jobs()) == 1
    world.hosts.heal()
    await world.cloud.node.gc.trigger_all()

    async def done() -> bool:
        return not await world.cloud.node.gc.open_jobs()

    await world.cloud.until(done)
    assert (leases(world), guests(world)) == ([], {})
    await assert_nothing_wrong(world)


@pytest.mark.parametrize("path", [p.DestroyVm.path, p.ReleaseDhcp.path])
async def test_a_destruction_that_fails_for_a_moment_is_done_at_once(world: SimulatedCloud, path: str) -> None:
    vm = await world.create_vm("vm")
    world.hosts.fault("error", path, code=p.LIBVIRT, count=1)
    await world.cloud.api(DestroyVmInstance(uuid=vm.uuid))
    assert await world.cloud.node.gc.open_jobs() == []
    assert (leases(world), guests(world)) == ([], {})


async def test_a_destruction_of_which_a_part_hangs_is_finished_later(
    world: SimulatedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await world.create_vm("vm")
    monkeypatch.setattr(base, "IN_ONE_GO", 1.0)
    monkeypatch.setattr(removal, "TIMEOUT", 1.0)
    world.hosts.fault("hang", p.ReleaseDhcp.path)
    async with asyncio.timeout(30):
        await world.cloud.api(DestroyVmInstance(uuid=vm.uuid))
    assert guests(world) == {}
    assert len(await world.cloud.node.gc.open_jobs()) == 1


async def test_an_owner_of_the_version_before_destroys_step_by_step(
    world: SimulatedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await world.create_vm("vm")
    no_such_message(world, monkeypatch, DestroyAndReleaseVmOnHost)
    await world.cloud.api(DestroyVmInstance(uuid=vm.uuid))
    assert (leases(world), guests(world)) == ([], {})
