"""Work that has no owner: one at a time in a queue, whatever nodes ask, and what becomes of it when they die."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from tests.cluster.bakeries import Bakeries

from caelum.kernel import context
from caelum.kernel.errors import OPERATION_ERROR, TIMEOUT, CloudError
from caelum.kernel.jobs import MANAGEMENT_NODE_UNAVAILABLE
from caelum.kernel.node import Node
from caelum.kernel.postgresql import DATABASE_UNAVAILABLE
from caelum.kernel.queue import QUEUE_REENTERED
from caelum.kernel.work_queue import WorkQueueEntryModel, queue_runner
from caelum.testing.cloud import EmbeddedCloud


class Workshop:
    """What the runners did, and how they are held up."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.running = 0
        self.most = 0
        self.go = asyncio.Event()

    async def work(self, node: Any, work: dict[str, Any]) -> dict[str, Any]:
        self.log.append(work["name"])
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if work.get("waits"):
                await self.go.wait()
            await asyncio.sleep(0.005)
            if work.get("fails"):
                raise CloudError(OPERATION_ERROR, f"{work['name']} failed")
        finally:
            self.running -= 1
        return {"name": work["name"], "node": node.uuid}


_shop: list[Workshop] = []


@pytest.fixture
def shop() -> Workshop:
    _shop[:] = [Workshop()]
    return _shop[0]


@queue_runner("test.once")
async def _once(node: Any, work: dict[str, Any]) -> Any:
    return await _shop[0].work(node, work)


@queue_runner("test.again", restartable=True)
async def _again(node: Any, work: dict[str, Any]) -> Any:
    return await _shop[0].work(node, work)


@queue_runner("test.inside")
async def _inside(node: Any, work: dict[str, Any]) -> Any:
    return await node.workqueue.run(work["queue"], "test.once", {"name": "inner"})


def _ask(cloud: EmbeddedCloud, name: str, runner: str = "test.once", queue: str = "q", **more: Any) -> Any:
    return asyncio.create_task(cloud.node.workqueue.run(queue, runner, {"name": name, **more}))


async def _states(cluster: Bakeries) -> list[tuple[str, str]]:
    row = WorkQueueEntryModel
    async with cluster.nodes[0].db.read() as session:
        found = await session.execute(select(row.context, row.state).order_by(row.id))
        return [(one.context, one.state) for one in found]


async def _entered(cluster: Bakeries, count: int) -> None:
    async def there() -> bool:
        return len(await _states(cluster)) >= count

    await cluster.until(there)


async def test_one_runs_at_a_time_in_the_order_of_coming(tmp_path: Path, shop: Workshop) -> None:
    async with Bakeries(tmp_path, 2) as cluster:
        asked = []
        for number in range(10):
            asked.append(_ask(cluster.clouds[number % 2], str(number)))
            await _entered(cluster, number + 1)
        answers = await asyncio.gather(*asked)
        assert [one["name"] for one in answers] == [str(number) for number in range(10)] == shop.log
        assert shop.most == 1
        assert {one["node"] for one in answers} == {node.uuid for node in cluster.nodes}


async def test_queues_do_not_wait_for_each_other(tmp_path: Path, shop: Workshop) -> None:
    async with Bakeries(tmp_path, 2) as cluster:
        asked = [_ask(cluster.clouds[number % 2], str(number), queue=f"q{number}", waits=True) for number in range(4)]
        await cluster.until(lambda: shop.running == 4)
        shop.go.set()
        await asyncio.gather(*asked)


async def test_a_failure_is_the_callers_and_the_next_has_its_turn(tmp_path: Path, shop: Workshop) -> None:
    async with Bakeries(tmp_path, 2) as cluster:
        bad = _ask(cluster.clouds[0], "bad", fails=True)
        await _entered(cluster, 1)
        good = _ask(cluster.clouds[1], "good")
        with pytest.raises(CloudError, match="bad failed"):
            await bad
        assert (await good)["name"] == "good"


async def test_who_waits_may_leave_and_who_runs_is_not_torn(tmp_path: Path, shop: Workshop) -> None:
    async with Bakeries(tmp_path, 2) as cluster:
        first = _ask(cluster.clouds[0], "first", waits=True)
        await cluster.until(lambda: shop.running == 1)
        second, third = _ask(cluster.clouds[1], "second"), None
        await _entered(cluster, 2)
        third = _ask(cluster.clouds[1], "third")
        await _entered(cluster, 3)
        second.cancel()
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert shop.running == 1
        shop.go.set()
        assert (await third)["name"] == "third"
        assert shop.log == ["first", "third"]


async def test_a_deadline_counts_while_waiting(tmp_path: Path, shop: Workshop) -> None:
    async with Bakeries(tmp_path, 1) as cluster:
        first = _ask(cluster.clouds[0], "first", waits=True)
        await cluster.until(lambda: shop.running == 1)
        inside = context.with_deadline(context.current(), asyncio.get_running_loop().time() + 0.3)
        with context.use(inside), pytest.raises(CloudError) as late:
            await cluster.nodes[0].workqueue.run("q", "test.once", {"name": "late"})
        assert late.value.kind is TIMEOUT
        shop.go.set()
        await first


async def test_waiting_for_the_own_queue_is_refused(tmp_path: Path, shop: Workshop) -> None:
    async with Bakeries(tmp_path, 1) as cluster:
        with pytest.raises(CloudError) as refused:
            await cluster.nodes[0].workqueue.run("q", "test.inside", {"queue": "q"})
        assert refused.value.kind.code == QUEUE_REENTERED.code
        inner = await cluster.nodes[0].workqueue.run("q", "test.inside", {"queue": "another"})
        assert inner["name"] == "inner"


@pytest.mark.parametrize(("runner", "again"), [("test.once", False), ("test.again", True)])
async def test_what_a_dead_node_had_under_way(tmp_path: Path, shop: Workshop, runner: str, again: bool) -> None:
    async with Bakeries(tmp_path, 2) as cluster:
        survivor, victim = cluster.clouds
        step = context.TaskContext(step_key="run/make/run")

        def ask(cloud: EmbeddedCloud) -> Callable[[], Any]:
            with context.use(step):
                return asyncio.create_task(cloud.node.workqueue.run("q", runner, {"name": "router", "waits": True}))  # type: ignore[return-value]

        lost = ask(victim)
        await cluster.until(lambda: shop.running == 1)
        waits = _ask(victim, "gone with its node")
        await _entered(cluster, 2)
        queued = _ask(survivor, "next")
        await _entered(cluster, 3)
        await cluster.kill(victim)
        await cluster.until(lambda: shop.running == int(again), 30)
        shop.go.set()
        assert (await queued)["name"] == "next"
        assert shop.log == (["router", "router", "next"] if again else ["router", "next"])
        assert shop.most == 1
        # The step is repeated by whoever took its workflow over: it has the result, or tries anew.
        repeated = await ask(survivor)  # type: ignore[misc]
        assert repeated["node"] == survivor.node.uuid
        assert shop.log.count("router") == 2
        for one in (lost, waits):
            one.cancel()  # type: ignore[attr-defined]


async def test_an_entry_that_failed_with_its_node_says_so(tmp_path: Path, shop: Workshop) -> None:
    async with Bakeries(tmp_path, 2) as cluster:
        victim = cluster.clouds[1]
        asked = _ask(victim, "router", waits=True)
        await cluster.until(lambda: shop.running == 1)
        await cluster.kill(victim)

        async def failed() -> WorkQueueEntryModel | None:
            row = WorkQueueEntryModel
            async with cluster.nodes[0].db.read() as session:
                return await session.scalar(select(row).where(row.state == "Error"))

        entry = await cluster.until(failed, 30)
        assert MANAGEMENT_NODE_UNAVAILABLE.code in (entry.error or "")
        asked.cancel()


class Trouble:
    """The next transactions of a node are committed, but whoever waits for the commit hears something else."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch, *, after: int, how: str) -> None:
        self._transaction, self._how = node.db.transaction, how
        self.left = after
        monkeypatch.setattr(node.db, "transaction", self.transaction)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        async with self._transaction() as tx:
            yield tx
        self.left -= 1
        if self.left == -1 and self._how == "lost":
            raise CloudError(DATABASE_UNAVAILABLE, "the connection was lost", ambiguous=True)
        if self.left == -1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)


@pytest.mark.parametrize("how", ["lost", "cancelled"])
@pytest.mark.parametrize("after", [0, 1], ids=["enter", "claim"])
async def test_a_caller_that_leaves_in_a_commit_leaves_nothing_behind(
    tmp_path: Path, shop: Workshop, monkeypatch: pytest.MonkeyPatch, after: int, how: str
) -> None:
    async with EmbeddedCloud(tmp_path, [], database_url=f"sqlite+aiosqlite:///{tmp_path}/one.db") as cloud:
        Trouble(cloud.node, monkeypatch, after=after, how=how)
        [left] = await asyncio.gather(_ask(cloud, "left"), return_exceptions=True)
        assert isinstance(left, CloudError if how == "lost" else asyncio.CancelledError)
        assert (await asyncio.wait_for(_ask(cloud, "next"), 10))["name"] == "next"
        assert shop.log == ["next"]


class Outage:
    """The first transactions of a node fail, one after the other, as told; a commit that is lost has happened."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch, *hows: str) -> None:
        self._transaction, self.hows = node.db.transaction, list(hows)
        monkeypatch.setattr(node.db, "transaction", self.transaction)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        how = self.hows.pop(0) if self.hows else "well"
        if how == "refused":
            raise CloudError(DATABASE_UNAVAILABLE, "no connection")
        async with self._transaction() as tx:
            yield tx
        if how == "lost":
            raise CloudError(DATABASE_UNAVAILABLE, "the connection was lost", ambiguous=True)


@pytest.mark.parametrize("hows", [("refused", "refused"), ("refused", "lost"), ("lost", "lost"), ("lost", "refused")])
async def test_a_step_that_is_repeated_while_its_former_run_still_leaves_is_not_dropped(
    tmp_path: Path, shop: Workshop, monkeypatch: pytest.MonkeyPatch, hows: tuple[str, ...]
) -> None:
    """The first of `hows` is what the entering meets, the second what the leaving meets, which then tries again."""
    async with EmbeddedCloud(tmp_path, [], database_url=f"sqlite+aiosqlite:///{tmp_path}/one.db") as cloud:
        outage = Outage(cloud.node, monkeypatch, *hows)
        with context.use(context.TaskContext(step_key="run/make/run")):
            with pytest.raises(CloudError):
                await _ask(cloud, "router", waits=True)
            await cloud.until(lambda: not outage.hows)
            repeated = _ask(cloud, "router", waits=True)
        await cloud.until(lambda: shop.running == 1)
        following = _ask(cloud, "next")
        await asyncio.sleep(1.2)  # longer than the leaving waits before it tries again, and than who waits looks again
        assert shop.log == ["router"]
        shop.go.set()
        await asyncio.gather(repeated, following)
        assert (shop.log, shop.most) == (["router", "next"], 1)


async def test_two_tasks_of_a_step_share_the_same_work_and_no_other(
    tmp_path: Path, shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.go.set()
    async with EmbeddedCloud(tmp_path, [], database_url=f"sqlite+aiosqlite:///{tmp_path}/one.db") as cloud:
        outage = Outage(cloud.node, monkeypatch, "lost", "refused")
        with context.use(context.TaskContext(step_key="run/make/run")):
            asked = [_ask(cloud, name) for name in ("router", "router", "switch")]
        answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20)
        assert not outage.hows
        # Two meet the outage; the entry that is taken back is theirs, and not that of a task that asks with them.
        assert sorted(type(one).__name__ for one in answers) == ["CloudError", "CloudError", "dict"]
        with context.use(context.TaskContext(step_key="run/make/run")):
            again = await asyncio.gather(*(_ask(cloud, name) for name in ("router", "router", "switch")))
        assert [one["name"] for one in again] == ["router", "router", "switch"]
        assert sorted(shop.log) == ["router", "switch"]


async def test_waiting_for_a_former_run_to_leave_ends_at_the_deadline(
    tmp_path: Path, shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with EmbeddedCloud(tmp_path, [], database_url=f"sqlite+aiosqlite:///{tmp_path}/one.db") as cloud:
        Outage(cloud.node, monkeypatch, *["refused"] * 4)
        inside = context.with_deadline(
            context.TaskContext(step_key="run/make/run"), asyncio.get_running_loop().time() + 0.3
        )
        with context.use(inside):
            with pytest.raises(CloudError, match="no connection"):
                await cloud.node.workqueue.run("q", "test.once", {"name": "late"})
            with pytest.raises(CloudError) as late:
                await cloud.node.workqueue.run("q", "test.once", {"name": "late"})
        assert late.value.kind is TIMEOUT
        assert shop.log == []


async def test_a_step_that_fails_to_enter_does_not_drop_what_runs_for_it(
    tmp_path: Path, shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with EmbeddedCloud(tmp_path, [], database_url=f"sqlite+aiosqlite:///{tmp_path}/one.db") as cloud:
        with context.use(context.TaskContext(step_key="run/make/run")):
            former = _ask(cloud, "router", "test.again", waits=True)
            await cloud.until(lambda: shop.running == 1)
            former.cancel()
            Outage(cloud.node, monkeypatch, "refused")
            with pytest.raises(CloudError, match="no connection"):
                await _ask(cloud, "router", "test.again")
        following = _ask(cloud, "next")
        await asyncio.sleep(0.8)  # longer than who waits looks again
        assert shop.log == ["router"]
        shop.go.set()
        await following
        assert (shop.log, shop.most) == (["router", "next"], 1)


async def test_what_is_taken_over_in_a_commit_that_is_lost_runs(
    tmp_path: Path, shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.go.set()
    async with EmbeddedCloud(tmp_path, [], database_url=f"sqlite+aiosqlite:///{tmp_path}/one.db") as cloud:
        async with cloud.node.db.transaction() as tx:
            tx.add(
                WorkQueueEntryModel(
                    uuid="e" * 32, queue="q", running="q", runner="test.again", context='{"name": "router"}',
                    state="Processing", node_uuid="dead", attempt=1,
                )
            )  # fmt: skip
        Trouble(cloud.node, monkeypatch, after=0, how="lost")
        await cloud.node.workqueue.adopt(None)
        assert (await asyncio.wait_for(_ask(cloud, "next"), 10))["name"] == "next"
        assert shop.log == ["router", "next"]


async def test_on_sqlite_it_is_a_queue_like_any_other(tmp_path: Path, shop: Workshop) -> None:
    async with EmbeddedCloud(tmp_path, [], database_url=f"sqlite+aiosqlite:///{tmp_path}/one.db") as cloud:
        asked = [_ask(cloud, str(number)) for number in range(5)]
        assert sorted(one["name"] for one in await asyncio.gather(*asked)) == ["0", "1", "2", "3", "4"]
        assert shop.most == 1
        hanging = _ask(cloud, "hanging", "test.again", waits=True)
        await cloud.until(lambda: shop.running == 1)
    hanging.cancel()
    shop.go.set()
    async with EmbeddedCloud(tmp_path, [], database_url=f"sqlite+aiosqlite:///{tmp_path}/one.db") as cloud:
        await cloud.until(lambda: shop.log.count("hanging") == 2)
