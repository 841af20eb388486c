"""The crash harness, proven on workflows with nested work, skipped steps and a world outside of the database."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from tests.unit.kernel.bakery import (
    BakeCake,
    BakeContext,
    BakeFlow,
    BakeryService,
    CakeInventory,
    IceCake,
    IceFlow,
    oven_of,
)

from caelum.kernel.ids import derived_uuid
from caelum.kernel.workflow import Run, Workflow, step
from caelum.testing.harness import Case, Failure, Harness, cases
from caelum.testing.rehearsals import Rehearsal, Stage

CAKE = derived_uuid("cake")


@asynccontextmanager
async def baking(ice: bool = True) -> AsyncIterator[Rehearsal]:
    with TemporaryDirectory() as directory:
        stage = Stage(Path(directory), [BakeryService], hosts=lambda: oven_of(stage.node).dump())
        async with stage:
            yield Rehearsal(stage, lambda: stage.node.bus.call(BakeCake(uuid=CAKE, ice=ice)))


@asynccontextmanager
async def icing() -> AsyncIterator[Rehearsal]:
    async with baking(ice=False) as scene:
        await scene.trigger()
        yield Rehearsal(scene.cloud, lambda: scene.cloud.node.bus.call(IceCake(uuid=CAKE)))


async def test_a_good_workflow_passes_every_case() -> None:
    async with Harness(BakeFlow, baking) as harness:
        assert await harness.rehearse() == len(cases(BakeFlow)) > 40


async def test_a_workflow_with_a_queue_of_its_own_passes() -> None:
    async with Harness(IceFlow, icing) as harness:
        await harness.rehearse()


async def test_skipped_steps_are_no_failure() -> None:
    async with Harness(BakeFlow, lambda: baking(ice=False)) as harness:
        await harness.rehearse([case for case in cases(BakeFlow) if "ice" in case.name])


class LeakyFlow(Workflow[BakeContext, CakeInventory]):
    """Leaves its tin in the oven when it is undone, and fills a second one when it is repeated."""

    name = "cake.leaky"
    rehearsal = "test_leaky"

    def subject(self, ctx: BakeContext) -> str:
        return ctx.uuid

    @step()
    async def fill_tin(self, run: Run[BakeContext]) -> None:
        oven = oven_of(run.node)
        oven.tins[f"tin {len(oven.tins)}"] = run.ctx.uuid

    @fill_tin.undo
    async def empty_tin(self, run: Run[BakeContext]) -> None:
        """Forgets to do it."""


def _leaky(scene: Rehearsal) -> Any:
    ctx = BakeContext(uuid=CAKE, name="x", flour=1, ice=False, burn=False)
    return scene.cloud.node.workflows.run(LeakyFlow, ctx)


@asynccontextmanager
async def leaking() -> AsyncIterator[Rehearsal]:
    async with baking() as scene:
        yield Rehearsal(scene.cloud, lambda: _leaky(scene))


@pytest.mark.parametrize("name", ["fill_tin fails after its effect", "each step twice", "death at fill_tin/after"])
async def test_a_workflow_that_leaks_is_found_out(name: str) -> None:
    case = next(one for one in cases(LeakyFlow) if one.name == name)
    async with Harness(LeakyFlow, leaking) as harness:
        with pytest.raises(Failure, match=r"tin 0|tin 1"):
            await harness.run(case)


async def test_a_wrong_outcome_is_found_out() -> None:
    async with Harness(BakeFlow, baking) as harness:
        with pytest.raises(Failure, match="is Undone, not Done"):
            await harness.run(Case(name="odd", outcome="Done", errors=("heat/before",)))
