"""What hosts do to virtual machines, and what the records make of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import Context
from pathlib import Path

import pytest
from sqlalchemy import update
from tests.service.vm_clouds import assert_nothing_wrong, chain, guests, room, until_state, used, vm_of

from caelum.agent import protocol
from caelum.agent.news import VmStateReport
from caelum.cloud.config.api import UpdateGlobalConfig
from caelum.cloud.host.api import QueryHost
from caelum.cloud.identity.api import CreateAccount, ShareResource, UpdateQuota
from caelum.cloud.vm.api import (
    CreateVmInstance,
    DestroyVmInstance,
    StartVmInstance,
    StopVmInstance,
    StrangerVmFound,
    VmInstanceInventory,
    VmStateChanged,
    VmStateChangedOnHost,
)
from caelum.cloud.vm.flows.base import destroy_later
from caelum.cloud.vm.messages import DestroyLeftover, VmStateSeen
from caelum.cloud.vm.model import VmInstanceModel
from caelum.kernel.context import Actor
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import QueryCondition
from caelum.simulator import SimulatedHost
from caelum.testing.simcloud import MIB, SimulatedCloud, simulated_cloud


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SimulatedCloud]:
    async with simulated_cloud(tmp_path, hosts=2) as made:
        for name, value in (("ping.interval", "2"), ("ping.timeout", "2"), ("ping.maxFailure", "1")):
            await made.api(UpdateGlobalConfig(category="host", name=name, value=value))
        await patience(made, 0)
        yield made


async def patience(world: SimulatedCloud, seconds: int) -> None:
    """How long work waits for the return of a lost host."""
    await world.api(UpdateGlobalConfig(category="host", name="connection.patience", value=str(seconds)))


def host_of(world: SimulatedCloud, vm: VmInstanceInventory) -> SimulatedHost:
    return world.hosts.by_uuid(vm.host_uuid or "")


async def until_status(world: SimulatedCloud, host: SimulatedHost, status: str) -> None:
    async def there() -> bool:
        found = await world.api(QueryHost(conditions=[QueryCondition("uuid", "=", host.uuid)]))
        return bool(found.inventories[0].status == status)

    await world.cloud.until(there, 30)


async def test_a_guest_that_ends_by_itself_gives_its_place_back(world: SimulatedCloud) -> None:
    free = await room(world)
    vm = await world.create_vm()
    host_of(world, vm).guest_changes(vm.uuid, "Stopped")
    ended = await until_state(world, vm.uuid, "Stopped")
    assert (ended.host_uuid, ended.last_host_uuid) == (None, vm.host_uuid)
    assert (await room(world))[:2] == free[:2]
    assert await used(world) == {"vm.totalNum": 1, "vm.num": 0, "vm.cpuNum": 0, "vm.memorySize": 0}
    told = [(one.from_state, one.to_state) for one in await world.cloud.seen(VmStateChangedOnHost)]
    assert told == [("Running", "Stopped")]
    await assert_nothing_wrong(world)
    assert (await world.api(StartVmInstance(uuid=vm.uuid))).state == "Running"


async def test_a_guest_that_is_paused_or_crashes_by_itself(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    for state in ("Paused", "Running", "Crashed"):
        host_of(world, vm).guest_changes(vm.uuid, state)
        assert (await until_state(world, vm.uuid, state)).host_uuid == vm.host_uuid
    assert (await world.api(StartVmInstance(uuid=vm.uuid))).state == "Running"
    assert guests(world) == {vm.uuid: "Running"}
    await assert_nothing_wrong(world)


@pytest.mark.timeout(120)
async def test_a_lost_host_makes_its_vms_unknown_until_it_is_back(world: SimulatedCloud) -> None:
    vm = await world.create_vm("stays")
    ends = await world.create_vm("ends", host_uuid=vm.host_uuid)
    away = next(one.uuid for one in world.hosts.hosts if one.uuid != vm.host_uuid)
    elsewhere = await world.create_vm("elsewhere", host_uuid=away)
    host = host_of(world, vm)
    await host.die()
    for one in (vm, ends):
        unknown = await until_state(world, one.uuid, "Unknown", 30)
        assert unknown.host_uuid == vm.host_uuid
    assert (await vm_of(world, elsewhere.uuid)).state == "Running"
    del host.world.vms[ends.uuid]
    await host.revive()
    assert (await until_state(world, vm.uuid, "Running", 40)).host_uuid == vm.host_uuid
    assert (await until_state(world, ends.uuid, "Stopped", 40)).host_uuid is None
    assert await used(world) == {"vm.totalNum": 3, "vm.num": 2, "vm.cpuNum": 2, "vm.memorySize": 256 * MIB}
    await until_status(world, host, "Connected")
    await assert_nothing_wrong(world)


async def test_a_vm_is_found_running_that_was_thought_stopped(world: SimulatedCloud) -> None:
    free = await room(world)
    vm = await world.create_vm()
    host = host_of(world, vm)
    kept = host.world.vms[vm.uuid]
    await world.api(StopVmInstance(uuid=vm.uuid, type="cold"))
    host.world.vms[vm.uuid] = kept
    host.guest_changes(vm.uuid, "Running")
    await world.cloud.until(lambda: _told(world, vm.uuid, "Running"))
    found = await until_state(world, vm.uuid, "Running")
    assert found.host_uuid == vm.host_uuid
    assert await used(world) == {"vm.totalNum": 1, "vm.num": 1, "vm.cpuNum": 1, "vm.memorySize": 128 * MIB}
    assert free[1] - (await room(world))[1] == 128 * MIB
    await assert_nothing_wrong(world)


async def test_a_vm_is_found_running_also_beyond_its_accounts_quota(world: SimulatedCloud) -> None:
    account = await world.api(CreateAccount(name="dev", password="x" * 128))
    actor = Actor(account.uuid, account.uuid, None, False)
    await world.api(ShareResource(to_public=True, resource_uuids=[world.image, world.offering, world.l3]))
    values = {"image_uuid": world.image, "instance_offering_uuid": world.offering, "l3_network_uuids": [world.l3]}
    vm = await world.api(CreateVmInstance(name="vm", **values), actor=actor)
    host = host_of(world, vm)
    kept = host.world.vms[vm.uuid]
    await world.api(StopVmInstance(uuid=vm.uuid, type="cold"), actor=actor)
    await world.api(UpdateQuota(identity_uuid=account.uuid, name="vm.num", value=0))
    with pytest.raises(CloudError):
        await world.api(StartVmInstance(uuid=vm.uuid), actor=actor)
    host.world.vms[vm.uuid] = kept
    host.guest_changes(vm.uuid, "Running")
    assert (await until_state(world, vm.uuid, "Running")).host_uuid == vm.host_uuid
    await world.cloud.until(lambda: _told(world, vm.uuid, "Running"))
    counted = {"vm.totalNum": 1, "vm.num": 1, "vm.cpuNum": 1, "vm.memorySize": 128 * MIB}
    assert await used(world, account.uuid) == counted
    await assert_nothing_wrong(world)
    await world.api(StopVmInstance(uuid=vm.uuid, type="cold"), actor=actor)
    assert await used(world, account.uuid) == {**dict.fromkeys(counted, 0), "vm.totalNum": 1}


async def _told(world: SimulatedCloud, vm_uuid: str, state: str) -> bool:
    """Whether it was told of a VM that was found so, which is when all is in order again."""
    events = await world.cloud.seen(VmStateChangedOnHost)
    return any((one.vm_uuid, one.to_state) == (vm_uuid, state) for one in events)


async def test_a_stranger_is_told_and_never_touched(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    host, stranger = host_of(world, vm), new_uuid()
    host.world.vms[stranger] = host.world.vms[vm.uuid]
    host.report("vm-state", VmStateReport(vm_uuid=stranger, state="Running", reason="who knows"))

    async def told() -> list[StrangerVmFound]:
        return [one for one in await world.cloud.seen(StrangerVmFound) if one.vm_identity == stranger]

    event = (await world.cloud.until(told))[0]
    assert (event.host_uuid, event.vm_state) == (host.uuid, "Running")
    assert stranger in host.world.vms


async def test_a_report_of_a_destroyed_vm_ends_its_machine(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    host = host_of(world, vm)
    kept = host.world.vms[vm.uuid]
    await world.api(DestroyVmInstance(uuid=vm.uuid))
    host.world.vms[vm.uuid] = kept
    host.guest_changes(vm.uuid, "Running")
    await world.cloud.until(lambda: vm.uuid not in host.world.vms)
    assert (await vm_of(world, vm.uuid)).state == "Destroyed"


@pytest.mark.timeout(120)
async def test_a_vm_destroyed_while_its_host_is_away_goes_when_it_is_back(world: SimulatedCloud) -> None:
    free = await room(world)
    vm = await world.create_vm()
    host = host_of(world, vm)
    await host.die()
    await until_status(world, host, "Disconnected")
    await until_state(world, vm.uuid, "Unknown", 30)
    await world.api(DestroyVmInstance(uuid=vm.uuid), timeout=60)
    assert (await vm_of(world, vm.uuid)).state == "Destroyed"
    assert vm.uuid in host.world.vms, "nobody could tell the host"
    assert await world.cloud.node.gc.open_jobs()
    await host.revive()
    await until_status(world, host, "Connected")

    async def gone() -> bool:
        return vm.uuid not in host.world.vms and not await world.cloud.node.gc.open_jobs()

    await world.cloud.until(gone, 10)
    assert (await room(world))[:2] == free[:2]
    await assert_nothing_wrong(world)


async def test_a_leftover_goes_in_the_turn_of_its_vm_at_its_own_node(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    host, node, queue = host_of(world, vm), world.cloud.node, f"vm-{vm.uuid}"
    await world.api(StopVmInstance(uuid=vm.uuid, type="cold"))

    def destroyed() -> int:
        return host.arrived[protocol.DestroyVm.path]

    async def done() -> bool:
        return not await node.gc.open_jobs()

    async def leave(*names: str) -> None:
        """Leave the machine to the garbage collector, which waits for the VM's turn after these."""
        async with node.db.transaction() as tx:
            await destroy_later(node, tx, vm.uuid, host.uuid)
        await node.gc.trigger_all()
        await pending(*names, "DestroyLeftover")

    async def pending(*names: str) -> None:
        await world.cloud.until(lambda: [one.name for one in node.queues.dump()[queue].pending] == list(names))

    # The job's own UUID, which decides which node has it, is not the VM's.
    assert DestroyLeftover.__meta__.route_by == "vm_uuid"
    before = destroyed()
    async with node.queues.turn(queue):
        await leave()
        assert destroyed() == before
    await world.cloud.until(done)
    assert destroyed() == before + 1

    async with node.queues.turn(queue):
        start = StartVmInstance(uuid=vm.uuid, host_uuid=host.uuid)
        starting = asyncio.create_task(world.api(start), context=Context())
        await pending("APIStartVmInstanceMsg")
        await leave("APIStartVmInstanceMsg")
    await starting
    await world.cloud.until(done)
    assert destroyed() == before + 1
    assert guests(world) == {vm.uuid: "Running"}, "it has come to life there"


async def test_a_host_that_is_back_before_a_vms_turn_comes_leaves_it_running(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    host, busy = host_of(world, vm), asyncio.Event()
    work = asyncio.create_task(world.cloud.node.queues.run(f"vm-{vm.uuid}", 1, busy.wait, name="busy"))
    await host.die()
    await until_status(world, host, "Disconnected")
    await host.revive()
    await until_status(world, host, "Connected")
    busy.set()
    await work
    await asyncio.sleep(0.3)  # the turn of the loss comes, and nothing follows
    assert (await vm_of(world, vm.uuid)).state == "Running"
    assert not [one for one in await world.cloud.seen(VmStateChanged) if one.new_state == "Unknown"]


async def test_what_a_host_said_before_it_died_starts_no_stopped_vm(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    await world.api(StopVmInstance(uuid=vm.uuid, type="cold"))
    host = host_of(world, vm)
    await host.die()
    await world.cloud.node.bus.call(VmStateSeen(vm_uuid=vm.uuid, host_uuid=vm.host_uuid or "", state="Running"))
    assert (await vm_of(world, vm.uuid)).state == "Stopped"


async def test_a_vm_does_not_start_on_a_host_that_is_away(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    await world.api(StopVmInstance(uuid=vm.uuid, type="cold"))
    host = host_of(world, vm)
    await host.die()
    await until_status(world, host, "Disconnected")
    with pytest.raises(CloudError) as refused:
        await world.api(StartVmInstance(uuid=vm.uuid))
    errors = chain(refused.value)
    assert errors[0].code == "VM.1001"
    assert "HOST_ALLOCATION.1000" in [one.code for one in errors]
    assert any("Disconnected" in one.details or "Connected" in one.details for one in errors)
    assert (await vm_of(world, vm.uuid)).state == "Stopped"


@pytest.mark.parametrize("path", [protocol.StartVm.path, protocol.CreateVolume.path, protocol.ApplyDhcp.path])
@pytest.mark.parametrize("fault", ["die", "die_after"])
async def test_a_creation_outlives_the_death_of_the_agent(world: SimulatedCloud, path: str, fault: str) -> None:
    await patience(world, 60)
    world.hosts.fault(fault, path, count=1)
    create = asyncio.create_task(world.create_vm())
    died = await world.cloud.until(lambda: next((one for one in world.hosts.hosts if not one.alive), None), 20)
    await until_status(world, died, "Disconnected")
    assert not create.done()
    await died.revive()
    vm = await asyncio.wait_for(create, 25)
    assert (vm.state, vm.host_uuid) == ("Running", died.uuid)
    assert guests(world) == {vm.uuid: "Running"}
    await asyncio.sleep(0.5)  # a host is looked at once more right after its connect
    await until_status(world, died, "Connected")
    await assert_nothing_wrong(world)


async def test_a_restart_of_the_server_disturbs_no_vm(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    stopped = await world.create_vm("stopped", strategy="CreateStopped")
    before = [await vm_of(world, one.uuid) for one in (vm, stopped)], await room(world), world.hosts.dump()
    await world.cloud.__aexit__(None, None, None)
    await world.stage.reboot()
    after = [await vm_of(world, one.uuid) for one in (vm, stopped)], await room(world), world.hosts.dump()
    assert after[1:] == before[1:]
    assert [(one.uuid, one.state, one.host_uuid) for one in after[0]] == [
        (one.uuid, one.state, one.host_uuid) for one in before[0]
    ]
    async with world.cloud.node.db.transaction() as tx:
        await tx.execute(update(VmInstanceModel).where(VmInstanceModel.uuid == vm.uuid).values(state="Paused"))
    await world.cloud.__aexit__(None, None, None)
    await world.stage.reboot()
    await until_state(world, vm.uuid, "Running")
