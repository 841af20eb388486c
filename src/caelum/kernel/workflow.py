"""Durable workflows: started, joined when a repeated step asks for them again, and taken up after a crash.

Invariant: a workflow that was begun ends, Done or Undone, whatever happens to nodes in between; while it has not, its
row is in the journal, and exactly one node drives it. Of several nodes, one at a time is at work in a queue: when the
ring has given a resource to another node, the former owner's runs end where they are, and a new one waits until then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextvars import Context
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from caelum.kernel import context, freshness, journal
from caelum.kernel.crashpoints import Crashpoints, ProcessDied
from caelum.kernel.database import refuse_in_transaction, utcnow
from caelum.kernel.engine import RESUME_RUNNER, UNDO_RUNNER, Abandoned, Execution, call_undo, restore, undo_name
from caelum.kernel.errors import CANCELED, UNDELIVERABLE, CloudError
from caelum.kernel.flow import (
    BEGIN,
    DEFAULT_STEP_TIMEOUT,
    Retry,
    Run,
    Step,
    Workflow,
    db_step,
    flows,
    is_transient,
    step,
)  # fmt: skip
from caelum.kernel.gc import gc_runner
from caelum.kernel.ids import derived_uuid, new_uuid
from caelum.kernel.journal import DONE, LIVE, UNDONE, JournalModel, StaleAttempt
from caelum.kernel.patience import Patience
from caelum.kernel.postgresql import is_passing
from caelum.kernel.queue import holds
from caelum.kernel.relocation import relocate
from caelum.kernel.rows import new_row
from caelum.kernel.views import reply_body

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from caelum.kernel.node import Node

__all__ = [
    "BEGIN", "DEFAULT_STEP_TIMEOUT",
    "Retry", "Run", "StaleAttempt", "Step", "Workflow", "Workflows", "db_step", "flows",
    "is_transient", "step",
]  # fmt: skip

log = logging.getLogger(__name__)

C = TypeVar("C", bound=msgspec.Struct)
R = TypeVar("R")

RETENTION = timedelta(days=1)
"""How long ended runs are kept: longer than any step may be repeated."""
_LOOK_AGAIN = 0.5


class Workflows:
    """The durable workflows of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.crashpoints = Crashpoints()
        self._live: dict[str, Execution] = {}
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._waiting: dict[str, Execution] = {}
        self._queued: set[asyncio.Task[Any]] = set()
        self._beginning: set[str] = set()
        self._stopping = False
        self._purging = False

    async def run(self, cls: type[Workflow[C, R]], ctx: C, *, answers: bool = False) -> R:
        """Run a workflow to its end: its result, or the first error after everything was undone.

        `answers` says that the result answers the API job of the current context, so that a run that is resumed after a
        crash answers it. A job has one such run: whoever would begin another one, because a node died and what was
        asked for is done anew, joins that one. Inside a step of another workflow, a run that the step had started
        before is joined, and one that it had finished is not repeated; one that was undone is tried anew. A caller that
        is cancelled cancels the workflow and waits until it is undone.
        """
        refuse_in_transaction(f"run workflow {cls.name}")
        if self._stopping:
            details = f"node[{self._node.uuid}] is stopping and begins no {cls.name}"
            raise CloudError(UNDELIVERABLE, details, node=self._node.uuid, stopping=True)
        flow = cls(self._node)
        known = await self._known(flow, ctx)
        if known is not None and known.state == DONE:
            return await self._outcome(flow, known)
        if known is not None and known.state in LIVE:
            return await self._join(flow, known.uuid)
        row = self._row(flow, ctx, known, answers)
        execution = await self._begin(flow, row, ctx)
        if execution is None:
            return await self._join(flow, row.uuid)
        return await self._wait(flow, execution.row.uuid, self._start(execution))

    def cancel(self, uuid: str, reason: str = "on request") -> bool:
        """Cancel the run with this UUID, or that of this API job, and undo it; False when there is none to cancel."""
        found = [one for one in self._live.values() if uuid == one.row.uuid or self._is_of_job(one, uuid)]
        return sum(one.cancel(reason) for one in found) > 0

    def runs_of(self, name: str, subject: str) -> list[str]:
        """The runs here of the workflow of this name on this subject."""
        here = (*self._live.values(), *self._waiting.values())
        return [one.row.uuid for one in here if one.row.subject == subject and one.row.name == name]

    def dump(self) -> list[dict[str, Any]]:
        """What runs here, for diagnosis."""
        return [_summary(one.row) for one in (*self._live.values(), *self._waiting.values())]

    async def recover(self, dead: Sequence[str] | None = None) -> int:
        """Take up what other nodes left unfinished; how many runs that are.

        `dead` are nodes whose lease is over; of theirs, this node takes what the ring gives it. None means that this is
        the only node, so that nobody but a former process can own anything. When this returns, every run is in the
        queue of its subject, before any new work of it, and every job that nobody would answer is taken over or has got
        an error.
        """
        if not self._purging:
            self._purging = True
            self._node.timers.every(3600.0, self.purge, name="workflows.purge")
        taken = await self._take_over(dead)
        for execution in taken:
            self._waiting[execution.row.uuid] = execution
        for execution in taken:
            self._enqueue(execution)
        await self._settle_jobs(dead)
        await self._node.gc.adopt(dead)
        await self._node.workqueue.adopt(dead)
        return len(taken)

    async def stop(self) -> None:
        """Abandon every run where it stands, as a crash would; the next start, or another node, takes it up."""
        self._stopping = True
        self._node.jobs.close()
        tasks = [*self._tasks.values(), *self._queued]
        for execution in self._live.values():
            execution.stopping = True
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def purge(self) -> None:
        """Forget runs that ended long ago."""
        async with self._node.db.transaction() as tx:
            await journal.purge(tx, utcnow() - RETENTION)

    # --- starting and joining -----------------------------------------------------------------------------------------

    async def _known(self, flow: Workflow[C, Any], ctx: C) -> JournalModel | None:
        """The latest run of this workflow that the current step has started for the same purpose, if any."""
        parent = context.current().step_key
        if parent is None:
            return None
        async with self._node.db.read() as session:
            return await journal.latest_child(session, parent, flow.name, flow.identity(ctx))

    def _row(self, flow: Workflow[C, Any], ctx: C, former: JournalModel | None, answers: bool) -> JournalModel:
        """The journal's row of a new run."""
        inside = context.current()
        parent = inside.step_key
        answers = answers and parent is None
        uuid, identity = new_uuid(), None
        if parent is not None:
            identity = flow.identity(ctx)
            uuid = derived_uuid(parent, flow.name, identity, "" if former is None else former.uuid)
        elif answers and inside.job_uuid is not None:
            uuid = derived_uuid("answer", inside.job_uuid)
        return new_row(
            JournalModel, uuid=uuid, name=flow.name, subject=flow.subject(ctx), queue=flow.queue(ctx), parent=parent,
            identity=identity, owner=self._node.uuid, attempt=1, steps=flow.step_names(), position=0, skipped=[],
            state=journal.RUNNING, job_uuid=inside.job_uuid, api=inside.api, answers=answers,
            actor=msgspec.to_builtins(inside.actor), trace=inside.trace,
        )  # fmt: skip

    async def _begin(self, flow: Workflow[C, Any], row: JournalModel, ctx: C) -> Execution | None:
        """Write a new run down; None when the job that it would answer has its run already."""
        while row.uuid in self._beginning:  # noqa: ASYNC110 - nodes died, so that two do the same: nobody waits long
            context.current().remaining()
            await asyncio.sleep(_LOOK_AGAIN)
        self._beginning.add(row.uuid)
        try:
            return await self._begin_alone(flow, row, ctx)
        finally:
            self._beginning.discard(row.uuid)

    async def _begin_alone(self, flow: Workflow[C, Any], row: JournalModel, ctx: C) -> Execution | None:
        before, away, lost = msgspec.json.encode(ctx), Patience(is_passing), False
        while True:
            try:
                if await self._write_beginning(flow, row, ctx):
                    return Execution(self._node, flow, row, ctx, resumed=False)
                await asyncio.sleep(_LOOK_AGAIN)
                freshness.heard()
            except (CloudError, IntegrityError) as error:
                lost |= isinstance(error, CloudError) and "ambiguous" in error.facts
                if not away.bears(error):
                    if lost and (kept := await self._begun(row)) is not None:
                        row.ctx = kept.ctx
                        restore(ctx, row.ctx)
                        return Execution(self._node, flow, row, ctx, resumed=False)
                    if await self._is_begun_elsewhere(row):
                        return None
                    raise
                restore(ctx, before)
                await away.pause()
            context.current().remaining()

    async def _is_begun_elsewhere(self, row: JournalModel) -> bool:
        """Whether the job that a run would answer has its run, which is why this one cannot begin. CANCELED when that
        is another workflow, because things had changed in between."""
        if not row.answers or row.job_uuid is None:
            return False
        kept = await self._node.db.read_surely(lambda session: session.get(JournalModel, row.uuid))
        if kept is not None and kept.name != row.name:
            raise CloudError(CANCELED, f"{row.name} does not begin: {kept.name} answers job[{row.job_uuid}] already")
        return kept is not None

    async def _write_beginning(self, flow: Workflow[C, Any], row: JournalModel, ctx: C) -> bool:
        """Write the first row of a run; False, and nothing is written, while another node is at work in its queue."""
        try:
            async with self._node.db.transaction() as tx:
                if await journal.is_held_elsewhere(tx, row):
                    return False
                if row.answers and row.job_uuid is not None and await self._node.jobs.is_given_up(tx, row.job_uuid):
                    details = f"{row.name} does not begin: its job was answered when the node died that had taken it"
                    raise CloudError(CANCELED, details)
                await flow.begin(tx, ctx)
                row.ctx = msgspec.json.encode(ctx).decode()
                await journal.insert(tx, row)
        except CloudError as error:
            if "ambiguous" not in error.facts or await self._begun(row) is None:
                raise
        return True

    async def _begun(self, row: JournalModel) -> JournalModel | None:
        """The row as it was committed before the connection was lost; None when it was not, or is another one of the
        same job. It may be seen only later: the server itself may have waited before the commit took effect.
        """
        kept = await self._node.db.read_surely(lambda session: session.get(JournalModel, row.uuid))
        if kept is None or (kept.owner, kept.attempt) != (row.owner, row.attempt) or kept.state not in LIVE:
            return None
        return None if row.uuid in self._live or row.uuid in self._waiting else kept

    def _start(self, execution: Execution) -> asyncio.Task[Any]:
        uuid = execution.row.uuid
        self._live[uuid] = execution
        # Its own task, so that cancelling the caller is a request to undo and not a tear in the middle of it.
        task = asyncio.create_task(
            self._drive(execution), name=f"workflow:{execution.row.name}:{execution.row.subject}"
        )
        self._tasks[uuid] = task
        task.add_done_callback(_look_at_error)
        return task

    async def _drive(self, execution: Execution) -> Any:
        uuid = execution.row.uuid
        try:
            result = await execution.drive()
            if execution.row.parent is not None:
                await self._keep_result(uuid, result)
            return result
        finally:
            self._live.pop(uuid, None)
            self._tasks.pop(uuid, None)

    async def _wait(self, flow: Workflow[Any, R], uuid: str, task: asyncio.Task[R]) -> R:
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                if self._stopping:
                    raise
                cancelled = error
                self.cancel(uuid, "its caller was cancelled")
        freshness.heard()  # the run is work of its own
        if cancelled is not None:
            raise cancelled
        try:
            return task.result()
        except (StaleAttempt, Abandoned):
            if self._stopping:
                raise asyncio.CancelledError from None
            return await self._follow(flow, uuid)

    async def _join(self, flow: Workflow[Any, R], uuid: str) -> R:
        """Wait for a run that the current step started before, wherever it is driven now."""
        execution = self._waiting.pop(uuid, None)
        if execution is not None:
            # It waits for its turn after a crash, perhaps behind the very task that asks for it: it gets that task's.
            return await self._wait(flow, uuid, self._start(execution))
        task = self._tasks.get(uuid)
        if task is not None:
            return await self._wait(flow, uuid, task)
        return await self._follow(flow, uuid)

    async def _follow(self, flow: Workflow[Any, R], uuid: str) -> R:
        """Wait for a run that another node drives, or this one when it has taken it over. That must not wait for the
        turn in which this task waits for it."""
        while True:
            taken_over = self._waiting.get(uuid)
            if taken_over is not None and holds(taken_over.row.queue):
                return await self._join(flow, uuid)
            async with self._node.db.read() as session:
                row = await session.get_one(JournalModel, uuid)
            if row.state not in LIVE:
                freshness.heard()
                return await self._outcome(flow, row)
            context.current().remaining()
            await asyncio.sleep(_LOOK_AGAIN)

    async def _outcome(self, flow: Workflow[Any, R], row: JournalModel) -> R:
        error = row.cloud_error()
        if error is not None:
            raise error
        if row.result is not None:
            kept: R = msgspec.json.decode(row.result, type=flow.result_type)
            return kept
        return await flow.result(msgspec.json.decode(row.ctx, type=flow.context_type))

    async def _keep_result(self, uuid: str, result: Any) -> None:
        """Keep what a nested run answered: its step may be repeated when the resource has changed already."""
        text = msgspec.json.encode(result).decode()
        async with self._node.db.transaction() as tx:
            await journal.keep_result(tx, uuid, text)

    def _is_of_job(self, execution: Execution, job_uuid: str) -> bool:
        return execution.row.parent is None and execution.row.job_uuid == job_uuid

    # --- recovery -----------------------------------------------------------------------------------------------------

    async def _take_over(self, dead: Sequence[str] | None) -> list[Execution]:
        taken: list[Execution] = []
        try:
            async with self._node.db.transaction() as tx:
                for row in await journal.unfinished(tx, dead):
                    if row.uuid in self._live or row.uuid in self._waiting:
                        continue
                    if dead is not None and not self._node.ring.owns(row.subject):
                        continue
                    execution = self._resumable(row)
                    if execution is not None and await journal.claim(tx, row, self._node.uuid):
                        execution.run.attempt = row.attempt
                        taken.append(execution)
        except CloudError as error:
            if "ambiguous" not in error.facts or not taken or not await self._is_mine(taken[0].row):
                raise
        return taken

    def _resumable(self, row: JournalModel) -> Execution | None:
        """What goes on with a run; None, and the run stays where it is, when this version cannot."""
        cls = flows().get(row.name)
        if cls is None:
            log.error("workflow %s of %s cannot be resumed: %s is not installed", row.uuid, row.subject, row.name)
            return None
        try:
            ctx = msgspec.json.decode(row.ctx, type=cls.context_type)
        except msgspec.MsgspecError:
            log.exception("workflow %s of %s cannot be resumed: its context is of another version", row.uuid, row.name)
            return None
        relocate(cls, row)
        return Execution(self._node, cls(self._node), row, ctx, resumed=True)

    async def _is_mine(self, row: JournalModel) -> bool:
        """Whether a take-over was committed before the connection was lost."""
        kept = await self._node.db.read_surely(lambda session: session.get_one(JournalModel, row.uuid))
        return (kept.owner, kept.attempt) == (row.owner, row.attempt)

    def _enqueue(self, execution: Execution) -> None:
        """Enter the queue of the subject now; the run begins when its turn comes."""
        uuid, signature = execution.row.uuid, execution.row.queue
        if signature is None:
            task = asyncio.create_task(self._resume(uuid), name=f"resume:{uuid}", context=Context())
            self._queued.add(task)
            task.add_done_callback(self._queued.discard)
        else:
            self._node.queues.submit(signature, 1, self._resume, uuid, name=f"resume {execution.row.name}")

    async def _resume(self, uuid: str) -> None:
        if (waiting := self._waiting.get(uuid)) is not None:
            await self._wait_for_earlier(waiting.row)
        execution = self._waiting.pop(uuid, None)
        if execution is None or self._stopping:
            return  # a step that was repeated needed it earlier
        context.enter(execution.row.task_context())
        log.info("workflow %s %s of %s goes on, attempt %d",
                 execution.row.name, uuid, execution.row.subject, execution.row.attempt)  # fmt: skip
        task = self._start(execution)
        await asyncio.wait([task])
        if not execution.row.answers or execution.row.job_uuid is None or task.cancelled():
            return
        await self._answer(execution, task)

    async def _wait_for_earlier(self, row: JournalModel) -> None:
        """Wait while another node drives an earlier run in the same queue: the ring had given it to that node."""

        async def is_held(tx: AsyncSession) -> bool:
            return await journal.is_held_elsewhere(tx, row, before=row.create_date)

        db = self._node.db
        while not db.sqlite and await db.write_surely(is_held):  # noqa: ASYNC110 - other nodes wake nobody
            await asyncio.sleep(_LOOK_AGAIN)

    async def _answer(self, execution: Execution, task: asyncio.Task[Any]) -> None:
        error = task.exception()
        if isinstance(error, (StaleAttempt, Abandoned, ProcessDied)):
            return
        job_uuid, api = execution.row.job_uuid or "", execution.row.api or ""
        await self._node.jobs.finish(job_uuid, reply_body(api, task.result()) if error is None else error)

    async def _settle_jobs(self, dead: Sequence[str] | None) -> None:
        """Answer the jobs of dead nodes, or take them over, except those that a resumed run will answer."""
        orphans = await self._node.jobs.orphans(dead)
        async with self._node.db.read() as session:
            rows = await session.scalars(
                select(JournalModel).where(JournalModel.job_uuid.in_(orphans), JournalModel.answers.is_(True))
            )
            answering = list(rows)
        for row in answering:
            if row.state in (DONE, UNDONE):
                await self._answer_ended(row)
        await self._node.jobs.settle_orphans(dead, _is_answered)
        await self._node.jobs.inherit_hooks(dead)

    async def _answer_ended(self, row: JournalModel) -> None:
        if row.job_uuid is not None and (answer := await self._answer_of(row)) is not None:
            await self._node.jobs.finish(row.job_uuid, answer)

    async def _answer_of(self, row: JournalModel) -> str | Exception | None:
        cls = flows().get(row.name)
        if cls is None:
            return None
        try:
            return reply_body(row.api or "", await self._outcome(cls(self._node), row))
        except Exception as error:
            return error

    async def answer_of_job(self, job_uuid: str) -> str | Exception | None:
        """What the run that answers this job comes to, wherever it goes on; None when there is no such run.

        For a job whose work was at a node that went away: what became of the run is the truth, not that the node did.
        """
        row = JournalModel
        query = select(row).where(row.job_uuid == job_uuid, row.answers.is_(True)).order_by(row.create_date.desc())
        while True:
            found = await self._node.db.read_surely(lambda session: session.scalar(query.limit(1)))
            if found is None:
                return None
            if found.state not in LIVE:
                return await self._answer_of(found)
            await asyncio.sleep(_LOOK_AGAIN)

    async def finish_job(self, job_uuid: str, answer: str | Exception) -> None:
        """Answer a job for which no run was found; with what a run comes to if one has begun meanwhile."""
        if not await self._node.jobs.finish(job_uuid, answer, unless=_is_answered):
            truth = await self.answer_of_job(job_uuid)
            if truth is not None:
                await self._node.jobs.finish(job_uuid, truth)

    async def take_up(self, uuid: str) -> bool:
        """Go on with a run whose end could not be written; True when it has ended."""
        if uuid in self._live or uuid in self._waiting:
            return False
        async with self._node.db.transaction() as tx:
            row = await tx.get(JournalModel, uuid)
            if row is None or row.state not in LIVE:
                return True
            tx.expunge(row)
            if row.owner != self._node.uuid and await self._node.membership.is_member(tx, row.owner):
                return False  # it was taken over meanwhile, and goes on there
            execution = self._resumable(row)
            if execution is None or not await journal.claim(tx, row, self._node.uuid):
                return False
            execution.run.attempt = row.attempt
        context.enter(row.task_context())
        await asyncio.wait([self._start(execution)])
        return execution.row.state not in LIVE


async def _is_answered(tx: AsyncSession, job_uuid: str) -> bool:
    """Whether a run answers, or has answered, this job."""
    row = JournalModel
    return await tx.scalar(select(row.uuid).where(row.job_uuid == job_uuid, row.answers.is_(True)).limit(1)) is not None


def _summary(row: JournalModel) -> dict[str, Any]:
    fields = ("uuid", "name", "subject", "state", "position", "attempt", "job_uuid")
    return {name: getattr(row, name) for name in fields}


@gc_runner(UNDO_RUNNER)
async def _undo(node: Node, job: dict[str, Any]) -> bool:
    """Try an undo again that had failed while its workflow was undone."""
    cls = flows()[job["name"]]
    flow = cls(node)
    one = next(one for one in cls.steps if one.name == job["step"])
    ctx = msgspec.json.decode(job["ctx"], type=cls.context_type)
    async with node.db.read() as session:
        # It may have been taken over since, and hosts refuse the attempt of that time.
        attempt = await journal.attempt_of(session, job["uuid"]) or job["attempt"]
    run: Run[Any] = Run(node, job["uuid"], job["subject"], attempt, ctx)
    run.error = journal.decode_error(job["error"])
    inside = msgspec.structs.replace(context.current(), step_key=f"{job['uuid']}/{one.name}/undo", fence=run.fence)
    with context.use(inside):
        async with asyncio.timeout(one.timeout):
            if not one.transactional:
                await call_undo(flow, one, None, run)
                return True
            async with node.db.transaction() as tx:
                # Its end is noted with its effect: an undo of the database alone happens exactly once.
                if await node.gc.close_in(tx, undo_name(job["name"], job["step"], job["uuid"])):
                    await call_undo(flow, one, tx, run)
    return True


@gc_runner(RESUME_RUNNER)
async def _take_up(node: Node, job: dict[str, Any]) -> bool:
    return await node.workflows.take_up(job["uuid"])


def _look_at_error(task: asyncio.Task[Any]) -> None:
    """The waiting caller reports the error; a run without one must not warn that nobody did."""
    if not task.cancelled():
        task.exception()
