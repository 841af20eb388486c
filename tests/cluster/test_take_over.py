"""What becomes of the work of nodes that die, leave, are paused, or lose a resource to a node that joins."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from tests.cluster.bakeries import Bakeries
from tests.unit.kernel.bakery import FLOUR, BakeCake, BakeFlow, CakeModel, FlourModel

from caelum.kernel import context, journal
from caelum.kernel.crashpoints import Plan, ProcessDied
from caelum.kernel.database import utcnow
from caelum.kernel.errors import CloudError
from caelum.kernel.gc import GarbageCollectorModel
from caelum.kernel.ids import derived_uuid, new_uuid
from caelum.kernel.jobs import MANAGEMENT_NODE_UNAVAILABLE
from caelum.kernel.journal import DONE, JournalModel, StaleAttempt
from caelum.testing.cloud import EmbeddedCloud

POINTS = [
    "begin", "take_flour/before", "take_flour/after", "take_flour/saved", "fill_tin/after", "ice/before", "ice/saved",
    "heat/after", "complete", "end",
]  # fmt: skip
UNDO_POINTS = ["undoing", "ice/undo-before", "fill_tin/undo-after", "take_flour/undo-saved", "abort"]


async def _bake_at(cluster: Bakeries, cloud: EmbeddedCloud, job: str | None = None, **fields: object) -> str:
    """Let a node, which owns it, begin to bake a cake; nobody waits for it."""
    uuid = cluster.owned_by(cloud, new_uuid)
    inside = context.TaskContext(job_uuid=job, api="BakeCake")
    with context.use(inside):
        cloud.node.bus.send(BakeCake(uuid=uuid, **fields))
    return uuid


async def _run(cluster: Bakeries, cake: str) -> JournalModel | None:
    row = JournalModel
    async with cluster.nodes[0].db.read() as session:
        return await session.scalar(select(row).where(row.subject == cake, row.name == BakeFlow.name))


async def _ended(cluster: Bakeries, cake: str) -> JournalModel:
    async def ended() -> JournalModel | None:
        row = await _run(cluster, cake)
        return row if row is not None and row.state not in journal.LIVE else None

    row: JournalModel = await cluster.until(ended, 40)
    return row


@pytest.mark.parametrize("point", POINTS)
async def test_a_workflow_whose_node_dies_at_any_point_is_ended_by_another(tmp_path: Path, point: str) -> None:
    async with Bakeries(tmp_path, 2) as cluster:
        survivor, victim = cluster.clouds
        job = new_uuid()
        await cluster.job(victim, job)
        plan = Plan(death=f"cake.bake/{point}", on_death=lambda: victim.node.db.sever(ProcessDied(point)))
        victim.node.workflows.crashpoints.plan = plan
        cake = await _bake_at(cluster, victim, job)
        await cluster.until(lambda: plan.dead)
        await cluster.kill(victim)
        answer = await cluster.answered(job)
        row = await _ended(cluster, cake)
        assert answer.error is None
        assert '"state":"Baked"' in (answer.result or "")
        assert row.state == DONE
        assert row.attempt == (1 if point == "end" else 2)
        assert row.owner == (victim if point == "end" else survivor).node.uuid
        assert (await cluster.row(FlourModel, "wheat")).used == 3
        assert list(cluster.oven.tins.values()) == [cake]
        assert (await cluster.row(CakeModel, cake)).layers == 1


@pytest.mark.parametrize("point", UNDO_POINTS)
async def test_an_undo_whose_node_dies_is_ended_by_another(tmp_path: Path, point: str) -> None:
    async with Bakeries(tmp_path, 2) as cluster:
        victim = cluster.clouds[1]
        job = new_uuid()
        await cluster.job(victim, job)
        plan = Plan(death=f"cake.bake/{point}", on_death=lambda: victim.node.db.sever(ProcessDied(point)))
        victim.node.workflows.crashpoints.plan = plan
        cake = await _bake_at(cluster, victim, job, burn=True)
        await cluster.until(lambda: plan.dead)
        await cluster.kill(victim)
        answer = await cluster.answered(job)
        await _ended(cluster, cake)
        assert answer.error is not None
        assert answer.error.details == "burnt"
        assert (await cluster.row(FlourModel, "wheat")).used == 0
        assert await cluster.row(CakeModel, cake) is None
        assert await cluster.oven.dump() == {"tins": [], "icing": []}


async def test_a_paused_node_is_fenced_and_its_workflow_goes_on_elsewhere(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 2) as cluster:
        survivor, paused = cluster.clouds
        cluster.oven.slow["heat"] = 3600
        cake = await _bake_at(cluster, paused)
        await cluster.until(lambda: "heat" in cluster.oven.begun)
        paused.node.membership.freeze()
        await cluster.until(lambda: paused.node.uuid not in survivor.node.ring.members)
        cluster.oven.slow["heat"] = 0

        async def taken() -> bool:
            row = await _run(cluster, cake)
            return row is not None and row.owner == survivor.node.uuid

        await cluster.until(taken, 30)
        # It wakes: its own view is that the run is its, in the first attempt.
        old = await _run(cluster, cake)
        assert old is not None
        paused.node.membership.thaw()
        await cluster.until(lambda: cluster.lost)
        with pytest.raises((CloudError, StaleAttempt)):
            async with paused.node.db.transaction() as tx:
                await journal.advance(tx, old.uuid, paused.node.uuid, 1, position=0)
        assert (await _ended(cluster, cake)).state == DONE
        assert not paused.node.workflows.dump()


async def test_a_node_that_leaves_hands_its_unfinished_work_over(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 2, stop_seconds=0.2) as cluster:
        leaving = cluster.clouds[1]
        job = new_uuid()
        await cluster.job(leaving, job)
        cluster.oven.slow["heat"] = 3600
        cake = await _bake_at(cluster, leaving, job)
        await cluster.until(lambda: "heat" in cluster.oven.begun)
        cluster.oven.slow["heat"] = 0
        await cluster.remove(leaving)
        assert (await cluster.answered(job)).error is None
        assert (await _ended(cluster, cake)).attempt == 2


async def test_jobs_and_gc_jobs_of_a_dead_node_are_taken(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 3) as cluster:
        victim = cluster.clouds[2]
        job = new_uuid()
        await cluster.job(victim, job)
        async with victim.node.db.transaction() as tx:
            uuid = await victim.node.gc.submit(tx, "later", "test.never", {}, interval=3600)
        await cluster.kill(victim)
        answer = await cluster.answered(job)
        assert answer.error is not None
        assert answer.error.code == MANAGEMENT_NODE_UNAVAILABLE.code

        async def adopted() -> bool:
            row = await cluster.row(GarbageCollectorModel, uuid)
            return row.management_node_uuid in {node.uuid for node in cluster.nodes}

        await cluster.until(adopted)


async def test_work_of_a_whole_dead_cloud_is_taken_by_the_first_that_starts(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 1) as cluster:
        oven = cluster.oven
        oven.slow["heat"] = 3600
        cake = await _bake_at(cluster, cluster.clouds[0])
        await cluster.until(lambda: "heat" in oven.begun)
        await cluster.kill(cluster.clouds[0])
        oven.slow["heat"] = 0
        first = cluster.prepare()
        await first.__aenter__()
        cluster.clouds.append(first)
        row = await _ended(cluster, cake)
        assert (row.state, row.owner, row.attempt) == (DONE, first.node.uuid, 2)


async def test_a_node_that_joins_takes_nothing_from_those_that_live(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 1) as cluster:
        first, oven = cluster.clouds[0], cluster.oven
        oven.slow["heat"] = 3600
        cakes = [await _bake_at(cluster, first, flour=0, ice=False) for _ in range(16)]
        await cluster.until(lambda: oven.log.count("fill_tin") == len(cakes))
        second = await cluster.add()
        moved = [cake for cake in cakes if second.node.ring.owns(cake)]
        assert moved
        await asyncio.sleep(0.5)
        rows = [await _run(cluster, cake) for cake in cakes]
        assert {(row.owner, row.attempt) for row in rows if row is not None} == {(first.node.uuid, 1)}


async def test_new_work_of_a_resource_that_moved_waits_for_the_old_owners(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 1) as cluster:
        first, oven = cluster.clouds[0], cluster.oven
        oven.slow["heat"] = 3600
        cakes = [await _bake_at(cluster, first, flour=0, ice=False) for _ in range(16)]
        await cluster.until(lambda: oven.log.count("fill_tin") == len(cakes))
        second = await cluster.add()
        cake = next(one for one in cakes if second.node.ring.owns(one))
        # The cake exists already, so this one would fail at once, if it began.
        again = asyncio.create_task(second.api(BakeCake(uuid=cake, flour=0, ice=False)))
        done, _ = await asyncio.wait([again], timeout=1.5)
        assert not done
        first.node.workflows.cancel((await _run(cluster, cake)).uuid)  # type: ignore[union-attr]
        oven.slow["heat"] = 0
        assert (await again).state == "Baked"
        async with second.node.db.read() as session:
            runs = list(await session.scalars(select(JournalModel).where(JournalModel.subject == cake)))
        assert sorted((run.state, run.owner == second.node.uuid) for run in runs) == [(DONE, True), ("Undone", False)]


async def test_a_run_never_waits_for_what_it_is_part_of(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 1) as cluster:
        node = cluster.nodes[0]
        names = ("outer", "middle", "inner")
        rows = [JournalModel(**_row(name, names[:index], owner="e" * 32)) for index, name in enumerate(names)]
        stranger = JournalModel(**_row("stranger", (), owner=node.uuid))
        async with node.db.transaction() as tx:
            tx.add_all(rows[:2])
        part, whole = rows[2], rows[0]
        part.owner = whole.owner = node.uuid
        async with node.db.transaction() as tx:
            assert not await journal.is_held_elsewhere(tx, part)
            assert await journal.is_held_elsewhere(tx, stranger)
            assert not await journal.is_held_elsewhere(tx, stranger, before=utcnow() - timedelta(hours=1))


def _row(name: str, above: tuple[str, ...], *, owner: str) -> dict[str, Any]:
    parent = f"{derived_uuid(above[-1])}/step/run" if above else None
    return {
        "uuid": derived_uuid(name), "name": "test", "subject": "s", "queue": "q", "parent": parent, "owner": owner,
        "attempt": 1, "position": 0, "skipped": [], "state": journal.RUNNING, "ctx": "{}", "actor": {},
    }  # fmt: skip


async def test_an_answer_is_true_though_the_node_that_worked_died(tmp_path: Path) -> None:
    """The client's node lives; the node that owns the resource dies in the middle."""
    async with Bakeries(tmp_path, 2) as cluster:
        here, victim = cluster.clouds
        job = new_uuid()
        await cluster.job(here, job)
        cluster.oven.slow["heat"] = 3600
        cake = cluster.owned_by(victim, new_uuid)
        with context.use(context.TaskContext(job_uuid=job, api="BakeCake")):
            asked = asyncio.create_task(here.node.bus.call(BakeCake(uuid=cake), 60))
        await cluster.until(lambda: "heat" in cluster.oven.begun)
        cluster.oven.slow["heat"] = 0
        await cluster.kill(victim)
        with pytest.raises(CloudError) as gone:
            await asked
        assert gone.value.kind is MANAGEMENT_NODE_UNAVAILABLE
        answer = await here.node.workflows.answer_of_job(job)
        assert isinstance(answer, str)
        assert '"state":"Baked"' in answer
        assert (await cluster.answered(job)).error is None


async def test_churn_loses_nothing(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 2) as cluster:
        cakes: list[str] = []
        for _ in range(3):
            cluster.oven.slow["heat"] = 0.3
            for cloud in list(cluster.clouds):
                cakes += [await _bake_at(cluster, cloud, flour=0) for _ in range(4)]
            await cluster.add()
            await cluster.kill(cluster.clouds[0])
            await cluster.agreed()

        async def all_ended() -> bool:
            row = JournalModel
            async with cluster.nodes[0].db.read() as session:
                return not list(await session.scalars(select(row.uuid).where(row.state.in_(journal.LIVE))))

        await cluster.until(all_ended, 60)
        async with cluster.nodes[0].db.read() as session:
            found = list(await session.scalars(select(CakeModel)))
        assert {cake.state for cake in found} <= {"Baked"}
        assert {cake.uuid for cake in found} <= set(cakes)
        assert len(found) >= len(cakes) * 2 // 3
        assert {cake.layers for cake in found} == {1}


async def test_concurrent_writers_do_not_overbook(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 2) as cluster:
        cakes = [new_uuid() for _ in range(12)]
        askers = [cluster.clouds[number % 2] for number in range(len(cakes))]
        asked = [cloud.api(BakeCake(uuid=cake, ice=False)) for cloud, cake in zip(askers, cakes, strict=True)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        baked = [one for one in answers if not isinstance(one, BaseException)]
        assert len(baked) == FLOUR // 3
        assert (await cluster.row(FlourModel, "wheat")).used == 3 * len(baked)


async def test_what_was_loaded_stays_as_it_was_read(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 2) as cluster:

        async def add_one(cloud: EmbeddedCloud) -> None:
            async with cloud.node.db.transaction() as tx:
                flour = await tx.get_one(FlourModel, "wheat")
                used = flour.used
                await asyncio.sleep(0.01)
                flour.used = used + 1

        await asyncio.gather(*(add_one(cluster.clouds[number % 2]) for number in range(20)))
        assert (await cluster.row(FlourModel, "wheat")).used == 20
        async with cluster.nodes[0].db.transaction() as tx:
            await tx.execute(update(FlourModel).values(used=0))
