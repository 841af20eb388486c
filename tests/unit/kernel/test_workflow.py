"""Durable workflows: order, undoing, retries, time, cancelling, nesting, taking over."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession
from tests.unit.kernel.bakery import (
    BakeCake,
    BakeContext,
    BakeFlow,
    BakeryService,
    CakeModel,
    FlourModel,
    IceCake,
    IceContext,
    IceFlow,
    oven_of,
)

from caelum.kernel import context, journal
from caelum.kernel.errors import CANCELED, OPERATION_ERROR, TIMEOUT, CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.journal import JournalModel
from caelum.kernel.node import Node
from caelum.kernel.postgresql import DATABASE_UNAVAILABLE
from caelum.kernel.workflow import Retry, Run, Workflow, db_step, is_transient, step
from caelum.testing.cloud import EmbeddedCloud


class TraceContext(msgspec.Struct, kw_only=True):
    """What the flows of this module do, by step: fail, wait."""

    uuid: str = "t"
    fail: dict[str, int] = {}
    wait: dict[str, float] = {}
    transient: bool = False
    log: list[str] = []


TRACE: list[str] = []


async def _act(run: Run[TraceContext], what: str) -> None:
    TRACE.append(what)
    run.ctx.log.append(what)
    await asyncio.sleep(run.ctx.wait.get(what, 0))
    if run.ctx.fail.get(what, 0) > 0:
        run.ctx.fail[what] -= 1
        raise CloudError(TIMEOUT if run.ctx.transient else OPERATION_ERROR, f"{what} fails")


class TraceFlow(Workflow[TraceContext, list[str]]):
    """Writes down what it does."""

    name = "test.trace"
    rehearsal = "test_trace"

    def subject(self, ctx: TraceContext) -> str:
        return ctx.uuid

    def queue(self, ctx: TraceContext) -> str:
        return f"trace-{ctx.uuid}"

    async def abort(self, tx: Any, ctx: TraceContext, error: CloudError) -> None:
        TRACE.append("abort")
        if TRACE.count("abort") <= ctx.fail.get("abort", 0):
            raise ValueError("the abort fails")

    async def result(self, ctx: TraceContext) -> list[str]:
        return ctx.log

    @step(timeout=0.3, retry=Retry(times=2, delay=0.01))
    async def first(self, run: Run[TraceContext]) -> None:
        await _act(run, "first")

    @first.undo
    async def unfirst(self, run: Run[TraceContext]) -> None:
        await _act(run, "unfirst")

    @db_step
    async def second(self, tx: Any, run: Run[TraceContext]) -> None:
        await _act(run, "second")

    @second.undo
    async def unsecond(self, tx: Any, run: Run[TraceContext]) -> None:
        await _act(run, "unsecond")

    @step(no_undo="a notice cannot be taken back")
    async def notify(self, run: Run[TraceContext]) -> None:
        await _act(run, "notify")

    @step()
    async def last(self, run: Run[TraceContext]) -> None:
        await _act(run, "last")

    @last.undo
    async def unlast(self, run: Run[TraceContext]) -> None:
        assert run.error is not None
        await _act(run, "unlast")


class UnwindFlow(TraceFlow):
    """The same, but undone after a crash."""

    name = "test.unwind"
    resume = "unwind"


class LookFlow(Workflow[TraceContext, None]):
    """Its first step is there for its undo."""

    name = "test.look"
    rehearsal = "test_trace"

    def subject(self, ctx: TraceContext) -> str:
        return ctx.uuid

    @step(idle=True)
    async def look_when_undone(self, run: Run[TraceContext]) -> None: ...

    @look_when_undone.undo
    async def look(self, run: Run[TraceContext]) -> None:
        await _act(run, "look")

    @step(no_undo="nothing was done")
    async def work(self, run: Run[TraceContext]) -> None:
        await _act(run, "work")


@pytest.fixture(autouse=True)
def _clear() -> None:
    TRACE.clear()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with EmbeddedCloud(tmp_path, [BakeryService]) as cloud:
        yield cloud.node


async def _rows(node: Node, name: str = "test.trace") -> list[JournalModel]:
    async with node.db.read() as session:
        query = select(JournalModel).where(JournalModel.name == name).order_by(JournalModel.create_date)
        return list(await session.scalars(query))


async def _fails(node: Node, ctx: TraceContext, match: str) -> CloudError:
    with pytest.raises(CloudError, match=match) as caught:
        await node.workflows.run(TraceFlow, ctx)
    return caught.value


async def _until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110 - the condition is in the database
            await asyncio.sleep(0.01)


# --- the order of things ----------------------------------------------------------------------------------------------


async def test_steps_run_in_order_and_the_journal_knows(node: Node) -> None:
    assert await node.workflows.run(TraceFlow, TraceContext()) == ["first", "second", "notify", "last"]
    (row,) = await _rows(node)
    assert (row.state, row.position, row.attempt, row.subject, row.error) == ("Done", 4, 1, "t", None)
    assert node.workflows.dump() == []


async def test_a_failure_undoes_in_reverse_with_the_failing_step(node: Node) -> None:
    error = await _fails(node, TraceContext(fail={"last": 1}), "last fails")
    assert TRACE == ["first", "second", "notify", "last", "unlast", "unsecond", "unfirst", "abort"]
    assert error.facts["step"] == "test.trace/last"
    (row,) = await _rows(node)
    assert (row.state, row.position) == ("Undone", 0)
    kept = row.cloud_error()
    assert kept is not None
    assert kept.details == "last fails"


async def test_a_database_step_that_failed_did_nothing_and_is_not_undone(node: Node) -> None:
    await _fails(node, TraceContext(fail={"second": 1}), "second fails")
    assert TRACE == ["first", "second", "unfirst", "abort"]


async def test_transient_errors_are_tried_again_others_are_not(node: Node) -> None:
    await node.workflows.run(TraceFlow, TraceContext(fail={"first": 2}, transient=True))
    assert TRACE[:4] == ["first", "first", "first", "second"]
    TRACE.clear()
    await _fails(node, TraceContext(fail={"first": 1}), "first fails")
    assert TRACE == ["first", "unfirst", "abort"]


def test_what_is_transient() -> None:
    assert is_transient(CloudError(TIMEOUT, ""))
    assert is_transient(CloudError(OPERATION_ERROR, "", transient=True))
    assert is_transient(TimeoutError())
    assert not is_transient(CloudError(OPERATION_ERROR, ""))
    assert not is_transient(ValueError())


async def test_an_unexpected_exception_is_an_internal_error_and_undone(node: Node) -> None:
    class OddFlow(Workflow[TraceContext, None]):
        """Fails in completing."""

        name = "test.odd"
        rehearsal = "test_odd"

        def subject(self, ctx: TraceContext) -> str:
            return ctx.uuid

        async def complete(self, tx: Any, ctx: TraceContext) -> None:
            raise KeyError("lost")

        @step()
        async def only(self, run: Run[TraceContext]) -> None:
            TRACE.append("only")

        @only.undo
        async def undo_only(self, run: Run[TraceContext]) -> None:
            TRACE.append("undo")

    with pytest.raises(CloudError, match=r"SYS\.1000.*KeyError") as caught:
        await node.workflows.run(OddFlow, TraceContext())
    assert caught.value.facts["step"] == "test.odd/complete"
    assert TRACE == ["only", "undo"]


async def test_nothing_is_written_when_it_cannot_begin(node: Node) -> None:
    cake = BakeCake(uuid=new_uuid())
    await node.bus.call(cake)
    with pytest.raises(CloudError):
        await node.bus.call(cake)
    assert [row.state for row in await _rows(node, "cake.bake")] == ["Done"]


async def test_a_workflow_in_a_transaction_is_refused(node: Node) -> None:
    async with node.db.transaction():
        with pytest.raises(RuntimeError, match=r"run workflow test\.trace"):
            await node.workflows.run(TraceFlow, TraceContext())


# --- time and cancelling ----------------------------------------------------------------------------------------------


async def test_a_step_has_its_time(node: Node) -> None:
    ctx = TraceContext(wait={"first": 5})
    begun = time.monotonic()
    error = await _fails(node, ctx, "first of test.trace took longer than 0.3 s")
    assert error.code == "SYS.1001"
    assert time.monotonic() - begun < 4
    assert TRACE == ["first"] * 3 + ["unfirst", "abort"]


async def test_the_callers_deadline_ends_the_steps_but_not_the_undoing(node: Node) -> None:
    ctx = TraceContext(wait={"last": 30, "unlast": 0.3})
    with context.use(context.TaskContext(deadline=time.monotonic() + 2)):
        await _fails(node, ctx, "took longer|deadline")
    assert TRACE[-4:] == ["unlast", "unsecond", "unfirst", "abort"]


async def test_cancelling_stops_the_running_step_and_undoes(node: Node) -> None:
    task = asyncio.create_task(node.workflows.run(TraceFlow, TraceContext(wait={"last": 5})))

    async def waits() -> bool:
        return "last" in TRACE

    await _until(waits)
    (running,) = node.workflows.dump()
    assert not node.workflows.cancel("nothing")
    assert node.workflows.cancel(running["uuid"], "the user said so")
    with pytest.raises(CloudError, match="the user said so") as caught:
        await task
    assert caught.value.code == CANCELED.code
    assert TRACE[-4:] == ["unlast", "unsecond", "unfirst", "abort"]


async def test_cancelling_by_job_between_steps(node: Node) -> None:
    job = new_uuid()
    with context.use(context.TaskContext(job_uuid=job)):
        task = asyncio.create_task(node.workflows.run(TraceFlow, TraceContext(wait={"second": 0.2})))

    async def waits() -> bool:
        return "second" in TRACE

    await _until(waits)
    assert node.workflows.cancel(job)
    with pytest.raises(CloudError, match="cancelled before step notify"):
        await task
    assert TRACE == ["first", "second", "unsecond", "unfirst", "abort"]


async def test_a_cancelled_caller_waits_for_the_undoing(node: Node) -> None:
    task = asyncio.create_task(node.workflows.run(TraceFlow, TraceContext(wait={"last": 5})))

    async def waits() -> bool:
        return "last" in TRACE

    await _until(waits)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert TRACE[-1] == "abort"
    assert (await _rows(node))[0].state == "Undone"


# --- undoing that fails -----------------------------------------------------------------------------------------------


async def test_an_undo_that_fails_goes_to_the_garbage_collector_and_the_earlier_ones_go_on(node: Node) -> None:
    oven, uuid = oven_of(node), new_uuid()
    oven.smoke["empty_tin"] = 4
    with pytest.raises(CloudError, match="burnt"):
        await node.bus.call(BakeCake(uuid=uuid, burn=True))
    assert len(oven.tins) == 1
    async with node.db.read() as session:
        assert await session.scalar(select(FlourModel.used)) == 0
        assert await session.get(CakeModel, uuid) is None
    (job,) = await node.gc.open_jobs()
    assert job.startswith("undo cake.bake/fill_tin")
    await node.gc.trigger_all()

    async def clean() -> bool:
        await node.gc.trigger_all()
        return not await node.gc.open_jobs()

    await _until(clean)
    assert oven.tins == {}


async def test_an_undo_that_fails_once_is_tried_at_once(node: Node) -> None:
    await _fails(node, TraceContext(fail={"last": 1, "unsecond": 1}), "last fails")
    assert TRACE.count("unsecond") == 2
    assert await node.gc.open_jobs() == []


async def test_an_abort_that_fails_is_tried_until_it_holds(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caelum.kernel.engine.END_RETRY", Retry(times=0, delay=0.0))
    await _fails(node, TraceContext(fail={"last": 1, "abort": 2}), "last fails")
    assert (await _rows(node))[0].state == "Undoing"

    async def ended() -> bool:
        await node.gc.trigger_all()
        return (await _rows(node))[0].state == "Undone"

    await _until(ended)
    assert TRACE.count("unfirst") == 1


async def test_a_database_that_is_away_delays_but_loses_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = journal.advance, 3

    async def flaky(*args: Any, **values: Any) -> None:
        nonlocal failures
        await real(*args, **values)
        if failures > 0:
            failures -= 1
            raise OperationalError("update", {}, ValueError("disk full"))

    monkeypatch.setattr(journal, "advance", flaky)
    assert await node.workflows.run(TraceFlow, TraceContext()) == ["first", "second", "notify", "last"]
    assert failures == 0


async def test_a_beginning_that_the_database_does_not_take_is_tried_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = node.db._commit, 1

    async def flaky(session: Any) -> None:
        nonlocal failures
        if failures > 0:
            failures -= 1
            raise CloudError(DATABASE_UNAVAILABLE, "away")
        await real(session)

    monkeypatch.setattr(node.db, "_commit", flaky)
    assert await node.workflows.run(TraceFlow, TraceContext()) == ["first", "second", "notify", "last"]
    assert failures == 0


class PivotFlow(TraceFlow):
    """Cannot be taken back once it has notified."""

    name = "test.pivot"
    pivot = "notify"


async def test_behind_the_pivot_nothing_is_undone_but_tried_until_it_holds(node: Node) -> None:
    await node.workflows.run(PivotFlow, TraceContext(fail={"last": 2}))
    assert TRACE == ["first", "second", "notify", "last", "last", "last"]


async def test_before_the_pivot_a_failure_is_undone(node: Node) -> None:
    with pytest.raises(CloudError, match="second fails"):
        await node.workflows.run(PivotFlow, TraceContext(fail={"second": 1}))
    assert TRACE == ["first", "second", "unfirst", "abort"]


async def test_behind_the_pivot_it_cannot_be_cancelled(node: Node) -> None:
    task = asyncio.create_task(node.workflows.run(PivotFlow, TraceContext(wait={"last": 0.2})))

    async def waits() -> bool:
        return "last" in TRACE

    await _until(waits)
    assert not node.workflows.cancel(node.workflows.dump()[0]["uuid"])
    await task
    assert TRACE[-1] == "last"


async def test_a_cancellation_that_comes_while_the_pivot_is_noted_is_too_late(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = journal.advance

    async def advance(*args: Any, **values: Any) -> None:
        if TRACE[-1:] == ["notify"] and values["position"] == 3:
            assert node.workflows.cancel(node.workflows.dump()[0]["uuid"])
        await real(*args, **values)

    monkeypatch.setattr(journal, "advance", advance)
    await node.workflows.run(PivotFlow, TraceContext(fail={"last": 1}))
    assert TRACE == ["first", "second", "notify", "last", "last"]


async def test_what_a_cancelled_run_undoes_is_tried_again_too(node: Node) -> None:
    task = asyncio.create_task(node.workflows.run(TraceFlow, TraceContext(wait={"last": 5}, fail={"unsecond": 1})))

    async def waits() -> bool:
        return "last" in TRACE

    await _until(waits)
    assert node.workflows.cancel(node.workflows.dump()[0]["uuid"])
    with pytest.raises(CloudError, match="cancelled"):
        await task
    assert TRACE[-5:] == ["unlast", "unsecond", "unsecond", "unfirst", "abort"]
    assert await node.gc.open_jobs() == []


async def test_progress_that_cannot_be_told_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_uuid: str) -> None:
        raise CloudError(OPERATION_ERROR, "nobody listens")

    job = new_uuid()
    async with EmbeddedCloud(tmp_path, [BakeryService]) as cloud:
        monkeypatch.setattr(cloud.node.jobs, "tell_progress", refuse)
        await cloud.node.jobs.create(job, "APIBakeCakeMsg")
        with context.use(context.TaskContext(job_uuid=job, api="APIBakeCakeMsg")):
            assert (await cloud.node.bus.call(BakeCake(uuid=new_uuid()))).state == "Baked"


# --- jobs -------------------------------------------------------------------------------------------------------------


class QuietFlow(Workflow[TraceContext, None]):
    """It has no result to look for."""

    name = "test.quiet"
    rehearsal = "test_quiet"

    def subject(self, ctx: TraceContext) -> str:
        return ctx.uuid

    @step(no_undo="nothing is done")
    async def first(self, run: Run[TraceContext]) -> None:
        """Nothing."""


async def _answering(node: Node, job: str) -> None:
    with context.use(context.TaskContext(job_uuid=job, api="APIBakeCakeMsg")):
        await node.workflows.run(QuietFlow, TraceContext(), answers=True)


async def test_a_job_ends_in_the_transaction_that_ends_its_workflow(node: Node) -> None:
    job, other = new_uuid(), new_uuid()
    for one in (job, other):
        await node.jobs.create(one, "APIBakeCakeMsg")
    waiting = asyncio.create_task(node.jobs.wait(job))
    await _answering(node, job)
    found = await waiting
    assert found is not None
    assert (found.done, found.result) == (True, "{}")
    assert [node.jobs.take_ended(job), node.jobs.take_ended(job), node.jobs.is_open(job)] == [True, False, False]
    assert not await node.jobs.finish(job, CloudError(CANCELED, "too late"))
    assert (node.jobs.take_ended(other), node.jobs.is_open(other)) == (False, True)


async def test_a_job_stays_open_when_the_end_of_its_workflow_is_taken_back(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_in = node.jobs.finish_in

    async def then_fail(tx: Any, uuid: str, answer: str) -> None:
        await finish_in(tx, uuid, answer)
        raise CloudError(OPERATION_ERROR, "not committed")

    monkeypatch.setattr(node.jobs, "finish_in", then_fail)
    job = new_uuid()
    await node.jobs.create(job, "APIBakeCakeMsg")
    with pytest.raises(CloudError, match="not committed"):
        await _answering(node, job)
    found = await node.jobs.get(job)
    assert found is not None
    assert (found.done, node.jobs.take_ended(job), node.jobs.is_open(job)) == (False, False, True)
    assert await node.jobs.finish(job, CloudError(CANCELED, "undone"))


# --- nesting ----------------------------------------------------------------------------------------------------------


def _in_step(key: str) -> Any:
    return context.use(context.TaskContext(step_key=key))


class LateFlow(Workflow[TraceContext, None]):
    """Its step keeps the context in which it asks others."""

    name = "test.late"
    rehearsal = "test_late"
    asking: dict[str, context.TaskContext]

    def subject(self, ctx: TraceContext) -> str:
        return ctx.uuid

    @step()
    async def ask(self, run: Run[TraceContext]) -> None:
        LateFlow.asking["run"] = asking = context.current()
        await refuse_late_in(run.node, asking)
        with pytest.raises(CloudError):  # what another attempt asked for
            await refuse_late_in(run.node, msgspec.structs.replace(asking, fence=f"{run.uuid}:{run.attempt + 1}"))
        await _act(run, "ask")

    @ask.undo
    async def unask(self, run: Run[TraceContext]) -> None:
        LateFlow.asking["undo"] = context.current()
        with pytest.raises(CloudError):
            await refuse_late_in(run.node, LateFlow.asking["run"])

    async def abort(self, tx: Any, ctx: TraceContext, error: CloudError) -> None:
        """Nothing was changed."""


async def refuse_late_in(node: Node, asking: context.TaskContext) -> None:
    """What a handler does in whose context it was asked."""
    with context.use(asking):
        async with node.db.transaction() as tx:
            await journal.refuse_late(tx)


async def test_what_a_step_asked_for_is_refused_once_its_run_has_turned_back_or_is_over(node: Node) -> None:
    LateFlow.asking = {}
    with pytest.raises(CloudError):
        await node.workflows.run(LateFlow, TraceContext(fail={"ask": 1}))
    assert {name: (one.fence or "")[-2:] for name, one in LateFlow.asking.items()} == {"run": ":1", "undo": ":2"}
    await refuse_late_in(node, LateFlow.asking["undo"])
    await refuse_late_in(node, context.TaskContext())
    await node.workflows.run(LateFlow, TraceContext(uuid="done"))
    with pytest.raises(CloudError, match="does not want it any more") as caught:
        await refuse_late_in(node, LateFlow.asking["run"])
    assert caught.value.kind is CANCELED


async def test_a_nested_run_is_found_again_by_its_step(node: Node) -> None:
    uuid = new_uuid()
    await node.bus.call(BakeCake(uuid=uuid, ice=False))
    with _in_step("w/ice/run"):
        assert [await node.bus.call(IceCake(uuid=uuid)) for _ in range(3)] == [1, 1, 1]
    with _in_step("w/again/run"):
        assert await node.bus.call(IceCake(uuid=uuid)) == 2
    assert await node.bus.call(IceCake(uuid=uuid)) == 3


async def test_a_nested_run_that_is_live_is_joined(node: Node) -> None:
    oven, uuid = oven_of(node), new_uuid()
    await node.bus.call(BakeCake(uuid=uuid, ice=False))
    oven.slow["spread"] = 0.1
    with _in_step("w/ice/run"):
        first = asyncio.create_task(node.bus.call(IceCake(uuid=uuid)))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(node.bus.call(IceCake(uuid=uuid)))
    assert await asyncio.gather(first, second) == [1, 1]
    assert oven.log.count("spread") == 1


async def test_a_nested_run_of_another_node_is_joined_and_taken_over_meanwhile(node: Node) -> None:
    """It gets the turn of the task that waits for it: behind that it would wait for ever."""
    uuid, ctx, flow = new_uuid(), IceContext(new_uuid()), IceFlow(node)
    await node.bus.call(BakeCake(uuid=ctx.uuid, ice=False))
    run = JournalModel(
        uuid=uuid, name=IceFlow.name, subject=flow.subject(ctx), queue=f"icing-{ctx.uuid}", parent="w/ice/run",
        identity=flow.identity(ctx), owner="e" * 32, attempt=1, steps=flow.step_names(), position=0, skipped=[],
        state=journal.RUNNING, ctx=msgspec.json.encode(ctx).decode(), answers=False,
        actor=msgspec.to_builtins(context.SYSTEM),
    )  # fmt: skip
    async with node.db.transaction() as tx:
        tx.add(run)
    with _in_step("w/ice/run"):
        asked = asyncio.create_task(node.bus.call(IceCake(uuid=ctx.uuid)))
    await asyncio.sleep(0.2)
    assert not asked.done()
    assert await node.workflows.recover(["e" * 32]) == 1
    assert await asyncio.wait_for(asked, 10) == 1


async def test_a_nested_run_that_was_undone_is_tried_anew(node: Node) -> None:
    oven, uuid = oven_of(node), new_uuid()
    await node.bus.call(BakeCake(uuid=uuid, ice=False))
    oven.smoke["spread"] = 1
    with _in_step("w/ice/run"):
        with pytest.raises(CloudError, match="smoke"):
            await node.bus.call(IceCake(uuid=uuid))
        assert await node.bus.call(IceCake(uuid=uuid)) == 1
    assert [row.state for row in await _rows(node, "cake.ice")] == ["Undone", "Done"]


class PairContext(msgspec.Struct):
    left: str
    right: str
    note: str | None = None


class PairFlow(Workflow[PairContext, str]):
    """About two resources."""

    name = "test.pair"
    rehearsal = "test_pair"

    def subject(self, ctx: PairContext) -> str:
        return ctx.left

    async def begin(self, tx: Any, ctx: PairContext) -> None:
        ctx.note = new_uuid()

    async def result(self, ctx: PairContext) -> str:
        return ctx.right

    @step(no_undo="does nothing")
    async def join(self, run: Run[PairContext]) -> None:
        TRACE.append(run.ctx.right)


async def test_runs_about_the_same_subject_with_another_partner_are_other_runs(node: Node) -> None:
    left, one, two = new_uuid(), new_uuid(), new_uuid()
    with _in_step("w/pairs/run"):
        answers = [await node.workflows.run(PairFlow, PairContext(left, right)) for right in (one, two, one, two)]
    assert answers == [one, two, one, two]
    assert len(TRACE) == 2


async def test_a_job_has_one_run_that_answers_it(node: Node) -> None:
    """As when what a dead node was to do is done anew while another node that it had asked begins it all the same."""
    cake, job = new_uuid(), new_uuid()

    async def bake(name: str, cake: str) -> str:
        ctx = BakeContext(uuid=cake, name=name, flour=3, ice=True, burn=False)
        with context.use(context.TaskContext(job_uuid=job, api="BakeCake")):
            return (await node.workflows.run(BakeFlow, ctx, answers=True)).uuid

    # The second fails in its `begin`, the third would make a cake of its own; the fourth comes when all is over.
    first = [bake("sacher", cake), bake("sacher", cake), bake("linzer", new_uuid())]
    assert await asyncio.gather(*first) == [cake] * 3
    assert await bake("sacher", cake) == cake
    async with node.db.read() as session:
        assert [one.uuid for one in await session.scalars(select(CakeModel))] == [cake]
        assert (await session.get_one(FlourModel, "wheat")).used == 3
        runs = list(
            await session.scalars(select(JournalModel).where(JournalModel.job_uuid == job, JournalModel.answers))
        )
    assert len(runs) == 1
    assert oven_of(node).log.count("heat") == 1


async def test_a_beginning_whose_commit_is_seen_late_is_driven(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    transaction, begun, tries, looks = node.db.transaction, node.workflows._begun, 0, 0

    @contextlib.asynccontextmanager
    async def lost_at_first() -> AsyncIterator[AsyncSession]:
        nonlocal tries
        tries += 1
        first = tries == 1
        async with transaction() as tx:
            yield tx
        if first:
            raise CloudError(DATABASE_UNAVAILABLE, "connection lost", ambiguous=True)

    async def late(row: JournalModel) -> JournalModel | None:
        nonlocal looks
        looks += 1
        return None if looks == 1 else await begun(row)

    monkeypatch.setattr(node.db, "transaction", lost_at_first)
    monkeypatch.setattr(node.workflows, "_begun", late)
    ctx = BakeContext(uuid=new_uuid(), name="sacher", flour=3, ice=False, burn=False)
    with context.use(context.TaskContext(job_uuid=new_uuid(), api="BakeCake", deadline=time.monotonic() + 10)):
        assert (await node.workflows.run(BakeFlow, ctx, answers=True)).name == "sacher"
    async with node.db.read() as session:
        assert list(await session.scalars(select(JournalModel.state))) == ["Done"]


async def test_an_error_of_the_run_is_that_of_all_who_join_it(node: Node) -> None:
    job = new_uuid()

    async def bake() -> None:
        ctx = BakeContext(uuid=new_uuid(), name="burnt", flour=3, ice=False, burn=True)
        with context.use(context.TaskContext(job_uuid=job, api="BakeCake")):
            await node.workflows.run(BakeFlow, ctx, answers=True)

    errors = await asyncio.gather(bake(), bake(), return_exceptions=True)
    assert [isinstance(one, CloudError) and one.details for one in errors] == ["burnt", "burnt"]
    assert oven_of(node).log.count("heat") == 1


async def test_another_workflow_does_not_begin_for_a_job_that_has_its_run(node: Node) -> None:
    job = new_uuid()
    with context.use(context.TaskContext(job_uuid=job, api="BakeCake")):
        await node.workflows.run(QuietFlow, TraceContext(), answers=True)
        with pytest.raises(CloudError, match=r"test\.quiet answers job") as refused:
            await node.workflows.run(IceFlow, IceContext(new_uuid()), answers=True)
    assert refused.value.kind is CANCELED


# --- crashes ----------------------------------------------------------------------------------------------------------


async def test_a_stopped_node_is_taken_up_where_it_was_and_the_job_is_answered(tmp_path: Path) -> None:
    job, uuid = new_uuid(), new_uuid()
    async with EmbeddedCloud(tmp_path, [BakeryService]) as cloud:
        node = cloud.node
        oven = oven_of(node)
        oven.slow["fill_tin"] = 30
        await node.jobs.create(job, "APIBakeCakeMsg")
        with context.use(context.TaskContext(job_uuid=job, api="APIBakeCakeMsg")):
            task = asyncio.create_task(node.bus.call(BakeCake(uuid=uuid)))

        async def filled() -> bool:
            return bool(oven.tins)

        await _until(filled)
        progress = await node.jobs.get(job)
        assert progress is not None
        assert progress.percent == 20
        await node.workflows.stop()
        assert not await node.jobs.finish(job, CloudError(CANCELED, "by the stop"))
        task.cancel()
    oven.slow.clear()
    async with EmbeddedCloud(tmp_path, [BakeryService]) as cloud:
        found = await asyncio.wait_for(cloud.node.jobs.wait(job), 10)
        assert found is not None
        assert found.error is None
        assert msgspec.json.decode(found.result or "")["state"] == "Baked"
        (row,) = await _rows(cloud.node, "cake.bake")
        assert (row.state, row.attempt, row.owner) == ("Done", 2, cloud.node.uuid)
    assert len(oven.tins) == 1
    assert [fence.rpartition(":")[2] for fence in oven.fences] == ["1", "2"]


async def test_what_its_parts_refuse_when_they_stop_undoes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heating, closed = asyncio.Event(), asyncio.Event()

    class ClosingBakery(BakeryService):
        async def stop(self) -> None:
            closed.set()
            await asyncio.sleep(0.1)

    async def refuse(what: str) -> None:
        if what == "heat":
            heating.set()
            await closed.wait()
            raise CloudError(OPERATION_ERROR, "the oven is closed")

    async with EmbeddedCloud(tmp_path, [ClosingBakery]) as cloud:
        oven = oven_of(cloud.node)
        monkeypatch.setattr(oven, "work", refuse)
        task = asyncio.create_task(cloud.node.bus.call(BakeCake(uuid=new_uuid())))
        await heating.wait()
    assert closed.is_set()
    await asyncio.wait([task])
    monkeypatch.undo()
    async with EmbeddedCloud(tmp_path, [BakeryService]) as cloud:
        (row,) = await _rows(cloud.node, "cake.bake")
        assert row.error is None

        async def ended() -> bool:
            return (await _rows(cloud.node, "cake.bake"))[0].state == "Done"

        await _until(ended)


async def test_new_work_of_the_subject_waits_for_the_resumed_one(tmp_path: Path) -> None:
    uuid = new_uuid()
    async with EmbeddedCloud(tmp_path, [BakeryService]) as cloud:
        oven = oven_of(cloud.node)
        oven.slow["heat"] = 30
        task = asyncio.create_task(cloud.node.bus.call(BakeCake(uuid=uuid)))

        async def heats() -> bool:
            return "heat" in oven.log or len(await _rows(cloud.node, "cake.ice")) == 1

        await _until(heats)
        await cloud.node.workflows.stop()
        task.cancel()
    oven.slow = {"heat": 0.2}
    async with EmbeddedCloud(tmp_path, [BakeryService]) as cloud:
        with pytest.raises(CloudError, match=r"UNIQUE|unique"):
            await cloud.node.bus.call(BakeCake(uuid=uuid))
        assert [row.state for row in await _rows(cloud.node, "cake.bake")] == ["Done"]


async def test_a_workflow_that_is_not_resumed_is_unwound(tmp_path: Path) -> None:
    async with EmbeddedCloud(tmp_path, []) as cloud:
        task = asyncio.create_task(cloud.node.workflows.run(UnwindFlow, TraceContext(wait={"last": 30})))

        async def waits() -> bool:
            return "last" in TRACE

        await _until(waits)
        await cloud.node.workflows.stop()
        task.cancel()
    async with EmbeddedCloud(tmp_path, []) as cloud:

        async def ended() -> bool:
            return (await _rows(cloud.node, "test.unwind"))[0].state == "Undone"

        await _until(ended)
    assert TRACE == ["first", "second", "notify", "last", "unlast", "unsecond", "unfirst", "abort"]


async def test_a_job_whose_workflow_had_ended_is_answered_at_the_next_start(tmp_path: Path) -> None:
    jobs = {"good": new_uuid(), "bad": new_uuid(), "lost": new_uuid()}
    async with EmbeddedCloud(tmp_path, [BakeryService]) as cloud:
        node = cloud.node
        for name, job in jobs.items():
            await node.jobs.create(job, "APIBakeCakeMsg")
            if name != "lost":
                with context.use(context.TaskContext(job_uuid=job, api="APIBakeCakeMsg")):
                    await asyncio.wait(
                        [asyncio.create_task(node.bus.call(BakeCake(uuid=new_uuid(), burn=name == "bad")))]
                    )
    async with EmbeddedCloud(tmp_path, [BakeryService]) as cloud:
        found = {name: await cloud.node.jobs.get(job) for name, job in jobs.items()}
    good, bad, lost = found["good"], found["bad"], found["lost"]
    assert good is not None
    assert good.result is not None
    assert bad is not None
    assert bad.error is not None
    assert bad.error.details == "burnt"
    assert lost is not None
    assert lost.error is not None
    assert lost.error.code == "SYS.1012"


async def test_a_late_writer_is_refused_and_its_caller_gets_the_true_outcome(node: Node) -> None:
    task = asyncio.create_task(node.workflows.run(TraceFlow, TraceContext(wait={"notify": 0.2})))

    async def waits() -> bool:
        return "notify" in TRACE

    await _until(waits)
    async with node.db.transaction() as tx:
        await tx.execute(update(JournalModel).values(attempt=2, owner="another"))
    await asyncio.sleep(0.4)
    assert not task.done()
    assert TRACE == ["first", "second", "notify"], "a run that was taken over goes on"
    async with node.db.transaction() as tx:
        await tx.execute(
            update(JournalModel).values(state="Done", ctx=msgspec.json.encode(TraceContext(log=["other"])).decode())
        )
    assert await asyncio.wait_for(task, 5) == ["other"]


async def test_a_dead_nodes_runs_are_taken_over_as_the_ring_says(node: Node) -> None:
    subjects = [new_uuid() for _ in range(12)]
    node.ring.join("other")
    async with node.db.transaction() as tx:
        for subject in subjects:
            ctx = msgspec.json.encode(TraceContext(uuid=subject)).decode()
            tx.add(
                JournalModel(
                    uuid=new_uuid(),
                    name="test.trace",
                    subject=subject,
                    owner="dead",
                    ctx=ctx,
                    actor=msgspec.to_builtins(context.SYSTEM),
                )
            )  # noqa: E501
    mine = [subject for subject in subjects if node.ring.owns(subject)]
    assert await node.workflows.recover(["dead"]) == len(mine)
    assert await node.workflows.recover(["dead"]) == 0

    async def ended() -> bool:
        return sum(row.state == "Done" for row in await _rows(node)) == len(mine)

    await _until(ended)
    assert {row.owner for row in await _rows(node) if row.state != "Done"} == {"dead"}
    node.ring.leave("other")


async def test_a_workflow_that_is_no_longer_installed_is_left_alone(node: Node) -> None:
    async with node.db.transaction() as tx:
        tx.add(JournalModel(uuid=new_uuid(), name="test.gone", subject="x", owner="dead", ctx="{}", actor={}))
    assert await node.workflows.recover() == 0


async def test_ended_runs_are_forgotten_in_time(node: Node) -> None:
    await node.workflows.run(TraceFlow, TraceContext())
    await node.workflows.purge()
    assert len(await _rows(node)) == 1
    async with node.db.transaction() as tx:
        await tx.execute(
            update(JournalModel).values(last_op_date=JournalModel.last_op_date.type.python_type(2000, 1, 1))
        )
    await node.workflows.purge()
    assert await _rows(node) == []


async def test_a_stopping_node_begins_nothing(node: Node) -> None:
    await node.workflows.stop()
    with pytest.raises(CloudError, match="is stopping"):
        await node.workflows.run(TraceFlow, TraceContext())


# --- declarations -----------------------------------------------------------------------------------------------------


def test_a_workflow_without_rehearsal_cannot_be_declared() -> None:
    with pytest.raises(TypeError, match="has no rehearsal"):

        class _Flow(Workflow[TraceContext, None]):
            name = "test.unrehearsed"

            @step(no_undo="x")
            async def one(self, run: Run[TraceContext]) -> None: ...


async def test_an_idle_step_writes_nothing_and_is_undone_all_the_same(node: Node) -> None:
    before = node.db.transactions
    await node.workflows.run(LookFlow, TraceContext())
    assert node.db.transactions - before == 2  # the beginning; the work with the end
    with pytest.raises(CloudError):
        await node.workflows.run(LookFlow, TraceContext(uuid="u", fail={"work": 1}))
    assert TRACE == ["work", "work", "look"]


def test_an_idle_step_is_not_for_workflows_that_are_undone_after_a_crash() -> None:
    with pytest.raises(TypeError, match="is idle"):

        class _Flow(LookFlow):
            name = "test.idle"
            resume = "unwind"


def test_a_step_without_undo_says_why() -> None:
    with pytest.raises(TypeError, match="step one of workflow _Flow has neither an undo nor a no_undo reason"):

        class _Flow(Workflow[TraceContext, None]):
            name = "test.leaks"
            rehearsal = "x"

            @step()
            async def one(self, run: Run[TraceContext]) -> None: ...


def test_steps_have_the_right_form() -> None:
    with pytest.raises(TypeError, match=r"must be declared as: async def one\(self, tx, run\)"):

        class _Flow(Workflow[TraceContext, None]):
            name = "test.form"
            rehearsal = "x"

            @db_step(no_undo="x")
            async def one(self, run: Run[TraceContext]) -> None: ...


def test_a_workflow_has_steps_and_types() -> None:
    with pytest.raises(TypeError, match="has no steps"):

        class _Empty(Workflow[TraceContext, None]):
            name = "test.empty"
            rehearsal = "x"

    with pytest.raises(TypeError, match="no msgspec struct"):

        class _Untyped(Workflow[dict, None]):  # type: ignore[type-var]
            name = "test.untyped"
            rehearsal = "x"

            @step(no_undo="x")
            async def one(self, run: Any) -> None: ...


def test_names_are_unique() -> None:
    with pytest.raises(TypeError, match=r"workflow cake\.bake is declared by BakeFlow and"):

        class _Flow(Workflow[TraceContext, None]):
            name = "cake.bake"
            rehearsal = "x"

            @step(no_undo="x")
            async def one(self, run: Run[TraceContext]) -> None: ...


def test_types_come_through_generic_bases() -> None:
    assert (UnwindFlow.context_type, UnwindFlow.result_type) == (TraceContext, list[str])
    assert [one.name for one in UnwindFlow.steps] == ["first", "second", "notify", "last"]
    assert (BakeFlow.context_type, IceFlow.result_type) == (BakeContext, int)


async def test_uuids_for_a_purpose_are_the_same_again(node: Node) -> None:
    run = Run(node, "u", "s", 1, TraceContext())
    assert run.uuid_for("tin") == Run(node, "u", "s", 2, TraceContext()).uuid_for("tin")
    assert run.uuid_for("tin") != run.uuid_for("lid")
    assert run.fence == "u:1"
