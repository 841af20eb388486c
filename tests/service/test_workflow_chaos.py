"""Many workflows at once, random failures, and a node that dies again and again: nothing leaks, nothing hangs."""

import asyncio
import random
from pathlib import Path

import pytest
from sqlalchemy import select
from tests.unit.kernel.bakery import BakeCake, BakeFlow, BakeryService, CakeModel, FlourModel, IceFlow, oven_of

from caelum.kernel.crashpoints import Plan, ProcessDied
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid
from caelum.testing.dump import unfinished
from caelum.testing.harness import kill
from caelum.testing.rehearsals import Stage

POINTS = [
    f"{flow.name}/{point}"
    for flow in (BakeFlow, IceFlow)
    for point in (
        "begin", "complete", "end", "undoing", "abort",
        *(f"{one.name}/{at}" for one in flow.steps
          for at in ("before", "after", "saved", "undo-before", "undo-after", "undo-saved")),
    )
]  # fmt: skip


async def _round(stage: Stage, dice: random.Random, answers: dict[str, bool]) -> None:
    node, oven = stage.node, oven_of(stage.node)
    oven.smoke = {what: dice.choice([0, 0, 1, 3]) for what in ("fill_tin", "spread", "heat", "empty_tin")}
    oven.slow = {what: dice.random() * 0.01 for what in ("fill_tin", "spread", "heat")}
    death = dice.choice(POINTS)
    plan = Plan(death=death, twice=dice.random() < 0.3, on_death=lambda: node.db.sever(ProcessDied(death)))
    node.workflows.crashpoints.plan = plan

    async def bake(uuid: str) -> None:
        try:
            await node.bus.call(
                BakeCake(uuid=uuid, flour=dice.choice([1, 2, 20]), ice=dice.random() < 0.5, burn=dice.random() < 0.3)
            )
            answer = True
        except CloudError:
            answer = False
        if not plan.dead:
            answers[uuid] = answer

    tasks = [asyncio.create_task(bake(new_uuid())) for _ in range(3)]
    for _ in range(500):
        if plan.dead or all(task.done() for task in tasks):
            break
        await asyncio.sleep(0.01)
    if not plan.dead and dice.random() < 0.5:
        plan.dead = True
    if plan.dead:
        await kill(node)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await stage.reboot()
    else:
        node.workflows.crashpoints.plan = None


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_random_deaths_leave_nothing_in_between(tmp_path: Path, seed: int) -> None:
    dice, answers = random.Random(seed), dict[str, bool]()
    async with Stage(tmp_path, [BakeryService]) as stage:
        for _ in range(8):
            await _round(stage, dice, answers)
        oven_of(stage.node).smoke.clear()
        async with asyncio.timeout(60):  # on PostgreSQL, the dead are first evicted
            while await unfinished(stage.node.db) or await stage.node.gc.open_jobs():
                await stage.node.gc.trigger_all()
                await asyncio.sleep(0.1)
        await _check(stage, answers)


async def _check(stage: Stage, answers: dict[str, bool]) -> None:
    oven = oven_of(stage.node)
    async with stage.node.db.read() as session:
        cakes = {row.uuid: row for row in await session.scalars(select(CakeModel))}
        used = await session.scalar(select(FlourModel.used))
    assert {row.state for row in cakes.values()} <= {"Baked"}
    assert sorted(oven.tins.values()) == sorted(cakes), "a tin without a cake, or a cake without one"
    assert oven.icing == {uuid for uuid, row in cakes.items() if row.layers == 1}
    assert len(cakes) <= (used or 0) <= 2 * len(cakes)
    for uuid, good in answers.items():
        assert (uuid in cakes) == good, "an answer was not the truth"
