"""Creations and destructions that a version with other steps began, and this one ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select, update
from tests.service.vm_clouds import assert_nothing_wrong, guests, owned, room, used

from caelum.agent.protocol import DestroyVm, StartVm
from caelum.cloud.vm.api import DestroyVmInstance, VmInstanceInventory
from caelum.kernel import journal
from caelum.kernel.engine import UNDO_RUNNER, undo_name
from caelum.kernel.errors import CANCELED, CloudError
from caelum.kernel.journal import RUNNING, UNDOING, JournalModel
from caelum.testing.simcloud import SimulatedCloud, simulated_cloud

CREATION = "reserve,record_place,prepare_host,start_on_host,leave_host"
DESTRUCTION = "destroy_domain,release_host,return_addresses,forget_addresses,release_volumes"
NEW_IN_CREATION = {"are_disks_counted", "root", "made"}
NEW_IN_DESTRUCTION = {"left", "has_volumes"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SimulatedCloud]:
    async with simulated_cloud(tmp_path) as made:
        yield made


async def run_of(world: SimulatedCloud, name: str) -> JournalModel:
    """The journal of the latest run of this workflow."""
    row = JournalModel
    async with world.cloud.node.db.read() as session:
        query = select(row).where(row.name == name).order_by(row.create_date.desc()).limit(1)
        return (await session.scalars(query)).one()


async def hang(world: SimulatedCloud, path: str, work: Any) -> Any:
    """Begin an operation that hangs at the host."""
    (host,) = world.hosts.hosts
    before = host.arrived[path]
    world.hosts.fault("hang", path)
    task = asyncio.create_task(work)
    await world.cloud.until(lambda: host.arrived[path] > before)
    return task


async def continue_as(world: SimulatedCloud, row: JournalModel, new: set[str], **changes: Any) -> None:
    """Start the server anew, with this run as the former version had left it: without what is `new` in the context."""
    ctx = {name: value for name, value in msgspec.json.decode(row.ctx).items() if name not in new}
    values = {"ctx": msgspec.json.encode(ctx | changes.pop("ctx", {})).decode(), **changes}
    async with world.cloud.node.db.transaction() as tx:
        await tx.execute(update(JournalModel).where(JournalModel.uuid == row.uuid).values(**values))
    await world.cloud.__aexit__(None, None, None)
    world.hosts.heal()
    await world.stage.reboot()
    await world.cloud.until(lambda: not world.cloud.node.workflows.dump(), 20)


async def standing(world: SimulatedCloud) -> Any:
    return await owned(world), await used(world), await room(world), guests(world)


@pytest.mark.parametrize("state", [RUNNING, UNDOING])
async def test_a_creation_at_its_start(world: SimulatedCloud, state: str) -> None:
    await world.create_vm("first")  # has the image cached
    before = await standing(world)
    creating = await hang(world, StartVm.path, world.create_vm())
    error = journal.encode_error(CloudError(CANCELED, "by its user"))
    undoing = {"position": 4, "error": error} if state == UNDOING else {"position": 3}
    await continue_as(world, await run_of(world, "vm.create"), NEW_IN_CREATION, steps=CREATION, state=state, **undoing)
    await asyncio.wait([creating])
    creating.exception()
    if state == UNDOING:
        assert await standing(world) == before
    else:
        assert sorted(guests(world).values()) == ["Running", "Running"]
    await assert_nothing_wrong(world)


async def test_what_is_left_of_a_creations_undo_destroys_its_machine(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    run, node = await run_of(world, "vm.create"), world.cloud.node
    job = {"uuid": run.uuid, "name": run.name, "step": "start_on_host", "subject": run.subject, "attempt": 1}
    job |= {"ctx": run.ctx, "error": journal.encode_error(CloudError(CANCELED, "by its user"))}
    async with node.db.transaction() as tx:
        await node.gc.submit(tx, undo_name(run.name, "start_on_host", run.uuid), UNDO_RUNNER, job, interval=10)
    await node.gc.trigger_all()

    async def done() -> bool:
        return not await node.gc.open_jobs()

    await world.cloud.until(done)
    assert vm.uuid not in guests(world)


@pytest.mark.parametrize("position", [2, 4])
async def test_a_destruction_behind_its_host(world: SimulatedCloud, position: int) -> None:
    """Its context held the VM, which nobody asks for any more."""
    before = await standing(world)
    vm: VmInstanceInventory = await world.create_vm()
    destroying = await hang(world, DestroyVm.path, world.api(DestroyVmInstance(uuid=vm.uuid)))
    run = await run_of(world, "vm.destroy")
    more = {"ctx": {"vm": msgspec.to_builtins(vm)}, "steps": DESTRUCTION, "position": position}
    world.hosts.hosts[0].world.vms.clear()  # as the steps before had left it
    await continue_as(world, run, NEW_IN_DESTRUCTION, **more)
    await asyncio.wait([destroying])
    destroying.exception()
    assert (await used(world))["vm.num"] == before[1]["vm.num"]
    assert (await room(world))[:2] == before[2][:2]
    assert (await run_of(world, "vm.destroy")).state == "Done"
    assert guests(world) == {}
