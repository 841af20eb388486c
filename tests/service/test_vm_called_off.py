"""Creations that are called off while their host is at them: whatever comes late, nothing of them is left there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from tests.service.vm_clouds import assert_nothing_wrong, guests

from caelum.agent.protocol import StartVm
from caelum.cloud.config.api import UpdateGlobalConfig
from caelum.cloud.vm.api import VmInstanceInventory
from caelum.cloud.vm.flows.base import destroy_later
from caelum.drivers.kvm.client import AgentClient
from caelum.kernel import context
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.journal import JournalModel
from caelum.simulator.faults import Latency
from caelum.testing.simcloud import SimulatedCloud, simulated_cloud

Creation = asyncio.Task[VmInstanceInventory]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SimulatedCloud]:
    async with simulated_cloud(tmp_path) as made:
        yield made


def runs(world: SimulatedCloud) -> list[str]:
    """The creations that are under way."""
    return [one["uuid"] for one in world.cloud.node.workflows.dump() if one["name"] == "vm.create"]


async def begin(world: SimulatedCloud, count: int, at_host: int) -> list[Creation]:
    """Begin creations, and wait until the host is at so many of the starts, and the others wait for their turn."""
    (host,) = world.hosts.hosts
    created = [asyncio.create_task(world.create_vm(f"vm-{number}")) for number in range(count)]
    queue = f"host-{host.uuid}"

    def at_it() -> bool:
        turns = world.cloud.node.queues.dump().get(queue)
        waiting = 0 if turns is None else len(turns.pending)
        return (host.arrived[StartVm.path], waiting) == (at_host, count - at_host)

    await world.cloud.until(at_it)
    return created


async def call_off(world: SimulatedCloud, created: list[Creation]) -> list[str]:
    """Cancel creations, wait for their end, and tell their runs."""
    cancelled = runs(world)
    assert all(world.cloud.node.workflows.cancel(one, "by its user") for one in cancelled)
    ends = await asyncio.wait_for(asyncio.gather(*created, return_exceptions=True), 15)
    assert all(isinstance(one, CloudError) for one in ends), ends
    return cancelled


async def test_a_start_that_goes_on_at_the_host_behind_its_undo_is_refused(
    world: SimulatedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host,) = world.hosts.hosts

    async def lost(*_: Any) -> None:
        """The agent does not hear that nobody wants the command any more."""

    monkeypatch.setattr(AgentClient, "_cancel", lost)
    world.hosts.latency(Latency(path=StartVm.path, low=2))
    await call_off(world, await begin(world, 1, at_host=1))
    assert host.journal.running() == 1, "the undo did not wait for it"
    await world.cloud.until(lambda: not host.journal.running())
    assert guests(world) == {}
    assert host.done[StartVm.path] == 0
    await assert_nothing_wrong(world)


async def test_a_machine_that_is_destroyed_later_is_destroyed_in_the_attempt_of_that_time(
    world: SimulatedCloud,
) -> None:
    (host,), node = world.hosts.hosts, world.cloud.node
    world.hosts.latency(Latency(path=StartVm.path, low=60))
    (run,) = await call_off(world, await begin(world, 1, at_host=1))

    async def done() -> bool:
        return not await node.gc.open_jobs()

    async with node.db.transaction() as tx:
        await tx.execute(update(JournalModel).where(JournalModel.uuid == run).values(attempt=7))
        with context.use(context.in_step(context.current(), f"{run}/prepare_host/undo", f"{run}:2")):
            await destroy_later(node, tx, new_uuid(), host.uuid)
    await node.gc.trigger_all()
    await world.cloud.until(done)
    assert host.journal.overtaken(f"{run}:6")
    assert not host.journal.overtaken(f"{run}:7")


async def test_what_fills_the_turns_of_its_host_is_called_off_all_the_same(world: SimulatedCloud) -> None:
    await world.api(UpdateGlobalConfig(category="kvm", name="host.syncLevel", value="3"))
    world.hosts.fault("hang", StartVm.path)
    (host,) = world.hosts.hosts
    await call_off(world, await begin(world, 5, at_host=3))
    await world.cloud.until(lambda: not host.journal.running())
    world.hosts.heal()
    assert host.arrived[StartVm.path] == 3, "those that waited for a turn never began"
    assert guests(world) == {}
    await assert_nothing_wrong(world)
    assert (await world.create_vm("another")).state == "Running"
