"""The garbage collector: runs until it holds, at events, once per name, and across nodes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import select, update

from caelum.kernel.database import utcnow
from caelum.kernel.events import CanonicalEvent, canonical
from caelum.kernel.gc import GarbageCollector, GarbageCollectorModel, gc_runner
from caelum.kernel.node import Node
from caelum.testing.cloud import EmbeddedCloud

RUNS: list[dict[str, Any]] = []
ANSWERS: dict[str, list[Any]] = {}


@canonical("/test/host/connected")
class TestHostConnected(CanonicalEvent):
    __test__ = False

    host_uuid: str


@gc_runner("test.run")
async def run(node: Node, context: dict[str, Any]) -> bool:
    RUNS.append(context)
    answer = ANSWERS.get(context["id"], [])
    value = answer.pop(0) if answer else True
    if isinstance(value, Exception):
        raise value
    if isinstance(value, float):
        await asyncio.sleep(value)
        return True
    return bool(value)


@pytest.fixture(autouse=True)
def _clear() -> None:
    RUNS.clear()
    ANSWERS.clear()


async def _submit(node: Node, name: str, **more: Any) -> str:
    async with node.db.transaction() as tx:
        return await node.gc.submit(
            tx, name, more.pop("runner", "test.run"), {"id": name}, **{"interval": 0.01, **more}
        )


async def _row(node: Node, uuid: str) -> GarbageCollectorModel:
    async with node.db.read() as session:
        return await session.get_one(GarbageCollectorModel, uuid)


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110 - the condition is in the database
            await asyncio.sleep(0.01)


async def _done(node: Node, uuid: str) -> None:
    async def done() -> bool:
        return (await _row(node, uuid)).status == "Done"

    await _until(done)


async def test_a_job_runs_until_it_holds(node: Node) -> None:
    ANSWERS["a"] = [False, ValueError("down"), True]
    uuid = await _submit(node, "a")
    await _done(node, uuid)
    row = await _row(node, uuid)
    assert (row.attempts, row.open_name, row.last_error, row.type) == (3, None, None, "TimeBased")
    assert len(RUNS) == 3


async def test_a_job_that_was_rolled_back_does_not_run(node: Node) -> None:
    async def fail() -> None:
        async with node.db.transaction() as tx:
            await node.gc.submit(tx, "a", "test.run", {"id": "a"}, interval=0.0)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await fail()
    await asyncio.sleep(0.1)
    assert RUNS == []


async def test_one_open_job_per_name(node: Node) -> None:
    first = await _submit(node, "a", interval=60)
    assert await _submit(node, "a", interval=60) == first
    assert await node.gc.open_jobs() == ["a"]
    assert await node.gc.trigger(first)
    await _done(node, first)
    assert not await node.gc.trigger(first)
    assert await _submit(node, "a", interval=60) != first


async def test_an_event_runs_the_jobs_that_wait_for_it(node: Node) -> None:
    here = await _submit(node, "a", interval=3600, on_event=TestHostConnected, match={"host_uuid": "h1"})
    there = await _submit(node, "b", interval=3600, on_event=TestHostConnected, match={"host_uuid": "h2"})
    assert (await _row(node, here)).type == "EventBased"
    node.bus.publish(TestHostConnected(host_uuid="h1"))
    await _done(node, here)
    assert (await _row(node, there)).status == "Idle"
    assert RUNS == [{"id": "a"}]


async def test_the_delay_grows_to_its_limit(node: Node) -> None:
    ANSWERS["a"] = [False] * 3
    uuid = await _submit(node, "a", interval=1000.0, delay=0.0)
    for attempts, seconds in ((1, 1000), (2, 2000), (3, 3600)):

        async def failed(wanted: int = attempts) -> bool:
            row = await _row(node, uuid)
            return row.attempts == wanted and row.status == "Idle"

        await _until(failed)
        wait = ((await _row(node, uuid)).next_run - utcnow()).total_seconds()
        assert seconds - 10 < wait <= seconds * 1.1
        await node.gc.trigger(uuid)


async def test_a_missing_runner_is_waited_for(node: Node) -> None:
    uuid = await _submit(node, "a", runner="test.not-installed", interval=60.0, delay=0.0)

    async def tried() -> bool:
        return (await _row(node, uuid)).last_error is not None

    await _until(tried)
    assert (await _row(node, uuid)).last_error == "no runner test.not-installed is installed"


async def test_deleting_stops_a_running_job(node: Node) -> None:
    ANSWERS["a"] = [30.0]
    uuid = await _submit(node, "a")

    async def running() -> bool:
        return bool(RUNS)

    await _until(running)
    await node.gc.delete(uuid)
    assert await node.gc.open_jobs() == []


async def test_jobs_survive_the_node_and_are_adopted(tmp_path: Any) -> None:
    async with EmbeddedCloud(tmp_path, []) as cloud:
        ANSWERS["running"] = [30.0]
        running = await _submit(cloud.node, "running")
        waiting = await _submit(cloud.node, "waiting", interval=3600, on_event=TestHostConnected)

        async def begun() -> bool:
            return (await _row(cloud.node, running)).status == "Processing"

        await _until(begun)
    RUNS.clear()
    async with EmbeddedCloud(tmp_path, []) as cloud:
        await _done(cloud.node, running)
        cloud.node.bus.publish(TestHostConnected(host_uuid="any"))
        await _done(cloud.node, waiting)
    assert [one["id"] for one in RUNS] == ["running", "waiting"]


async def test_only_what_the_ring_gives_is_adopted(node: Node) -> None:
    uuids = [await _submit(node, f"job {number}", interval=3600) for number in range(20)]
    row = GarbageCollectorModel
    async with node.db.transaction() as tx:
        await tx.execute(update(row).values(management_node_uuid="dead", status="Processing"))
    node.ring.join("other")
    try:
        await node.gc.adopt(["dead"])
        async with node.db.read() as session:
            mine = set(await session.scalars(select(row.uuid).where(row.management_node_uuid == node.uuid)))
        assert mine == {uuid for uuid in uuids if node.ring.owns(uuid)}
        assert 0 < len(mine) < 20
    finally:
        node.ring.leave("other")
    await node.gc.adopt()
    async with node.db.read() as session:
        assert await session.scalar(select(row.uuid).where(row.management_node_uuid.is_(None))) is None


async def test_old_jobs_are_forgotten(node: Node) -> None:
    uuid = await _submit(node, "a")
    kept = await _submit(node, "b", interval=3600)
    await _done(node, uuid)
    collector = GarbageCollector(node)
    collector._cleaned = utcnow().replace(year=2000)
    async with node.db.transaction() as tx:
        await tx.execute(update(GarbageCollectorModel).values(last_op_date=utcnow().replace(year=2000)))
    await collector.clean_up()
    async with node.db.read() as session:
        assert list(await session.scalars(select(GarbageCollectorModel.uuid))) == [kept]
