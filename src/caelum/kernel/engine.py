"""One run of a durable workflow, from wherever its journal says it is to its end.

Invariant: the journal never claims more than is true: progress is written after a step's effect, so a step may run
again but is never left out; a step that failed, or whose effect is unknown, is undone with the others. A run that was
taken over by another node (`StaleAttempt`), whose node stops, or whose process dies does nothing more: it neither
undoes nor writes. When the connection to the database is lost during a commit, the journal tells whether it happened,
before anything is tried again or undone: a step of the database has its effect once.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy.exc import DBAPIError, IntegrityError

from caelum.kernel import context, journal
from caelum.kernel.crashpoints import ProcessDied
from caelum.kernel.errors import CANCELED, TIMEOUT, CloudError, as_cloud_error
from caelum.kernel.flow import Retry, Run, Step, Workflow
from caelum.kernel.jobs import MANAGEMENT_NODE_UNAVAILABLE, progress_in
from caelum.kernel.journal import DONE, RUNNING, UNDOING, UNDONE, JournalModel, StaleAttempt
from caelum.kernel.membership import is_of_cluster
from caelum.kernel.postgresql import PASSING

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from caelum.kernel.node import Node

log = logging.getLogger(__name__)

UNDO_RETRY = Retry(times=2, on=lambda _error: True, delay=0.2)
"""Before an undo is left to the garbage collector."""
END_RETRY = Retry(times=4, on=lambda _error: True, delay=0.5)
CERTAIN_RETRY = Retry(times=sys.maxsize, on=lambda _error: True, delay=0.2)
"""Behind the pivot."""
UNDO_RUNNER = "workflow.undo"
RESUME_RUNNER = "workflow.resume"
_LONGEST_PAUSE = 30.0
_AWAY_TRIES = 30
"""How often a step is repeated because the database is away or nodes leave: some ten minutes."""


class Abandoned(Exception):  # noqa: N818 - not an error of the workflow
    """The run goes on elsewhere, or later: this node must not touch it any more."""


class Execution:
    """A run of a workflow on this node. `row` is this node's copy of its journal row, kept in step with it."""

    def __init__(self, node: Node, flow: Workflow[Any, Any], row: JournalModel, ctx: Any, *, resumed: bool) -> None:
        self.node, self.flow, self.row, self.resumed = node, flow, row, resumed
        self.run = Run(node, row.uuid, row.subject, row.attempt, ctx)
        self.run.error = row.cloud_error()
        self.stopping = False
        self._unsure = False
        self._cancelled: str | None = None
        self._interruptible: asyncio.Task[Any] | None = None

    def cancel(self, reason: str) -> bool:
        """Stop before the next step, or in the middle of a step that runs, and undo; False when it undoes already."""
        if self.row.state != RUNNING or self._certain:
            return False
        self._cancelled = reason
        if self._interruptible is not None:
            self._interruptible.cancel()
        return True

    async def drive(self) -> Any:
        """Run to the end: the result, or the first error after everything was undone."""
        if self.row.state == RUNNING:
            await self._forward()
        if self.row.state == UNDOING:
            await self._backward()
        if self.run.error is not None:
            raise self.run.error
        self._hit("end")
        return await self.flow.result(self.run.ctx)

    # --- forward ------------------------------------------------------------------------------------------------------

    async def _forward(self) -> None:
        if self.resumed and self.flow.resume == "unwind" and not self._certain:
            details = f"the node that ran {self.flow.name} stopped, and this workflow is not resumed but undone"
            await self._fail(CloudError(MANAGEMENT_NODE_UNAVAILABLE, details), self._current_step())
            return
        self._hit("begin")
        step: Step | None = None
        try:
            while (step := self._current_step()) is not None:
                await self._step(step)
            self._refuse_if_over(None)
            await self._tries(CERTAIN_RETRY if self._certain else None, None, lambda _step: self._complete())
        except (StaleAttempt, Abandoned, ProcessDied):
            raise
        except (Exception, asyncio.CancelledError) as error:
            await self._fail(self._reason(error, step), step)

    def _current_step(self) -> Step | None:
        steps = self.flow.steps
        return steps[self.row.position] if self.row.position < len(steps) else None

    async def _step(self, step: Step) -> None:
        if step.skip is not None and step.skip(self.run.ctx):
            self.row.skipped = [*self.row.skipped, self.row.position]
            self.row.position += 1
            return
        self._refuse_if_over(step)
        point = f"{step.name}/"
        call = self._transactional_step if step.transactional else self._plain_step

        async def attempt(step: Step) -> None:
            self._hit(point + "before")
            await call(step)

        with self._in_step(step, "run"):
            await self._tries(CERTAIN_RETRY if self._certain else step.retry, step, attempt)
        self._hit(point + "saved")
        await self._told_progress(step)

    async def _plain_step(self, step: Step) -> None:
        for _ in range(self.node.workflows.crashpoints.times):
            async with self._interruptions(step):
                await getattr(self.flow, step.name)(self.run)
        self._hit(f"{step.name}/after")
        await self._persist(lambda tx: self._save_step(tx, step))
        self.row.position += 1

    async def _transactional_step(self, step: Step) -> None:
        async def write(tx: AsyncSession) -> None:
            await getattr(self.flow, step.name)(tx, self.run)
            self._hit(f"{step.name}/after")
            await self._save_step(tx, step)

        async with self._timeout(step):
            await self._once(write, RUNNING, self.row.position + 1)
        self.row.position += 1

    async def _save_step(self, tx: AsyncSession, step: Step) -> None:
        await self._advance(tx, position=self.row.position + 1, skipped=self.row.skipped, ctx=self._ctx())
        if step.progress is not None and self._answers_job:
            await progress_in(tx, self.row.job_uuid or "", step.progress, step.name)

    async def _told_progress(self, step: Step) -> None:
        if step.progress is not None and self._answers_job:
            await self.node.jobs.tell_progress(self.row.job_uuid or "")

    @property
    def _answers_job(self) -> bool:
        return self.row.answers and self.row.job_uuid is not None

    async def _complete(self) -> None:
        self._hit("complete")
        end = len(self.flow.steps)

        async def write(tx: AsyncSession) -> None:
            await self.flow.complete(tx, self.run.ctx)
            await self._advance(tx, state=DONE, position=end, skipped=self.row.skipped, ctx=self._ctx())

        await self._once(write, DONE, end)
        self.row.state = DONE

    @property
    def _certain(self) -> bool:
        """Whether the pivot is behind: from here on nothing is undone, however long it takes."""
        return self.row.position >= self.flow.certain_from()

    def _refuse_if_over(self, step: Step | None) -> None:
        if self._certain:
            context.enter(context.with_deadline(context.current(), None))
            return
        if self._cancelled is not None:
            before = "its end" if step is None else f"step {step.name}"
            raise CloudError(CANCELED, f"{self.flow.name} was cancelled before {before}: {self._cancelled}")
        context.current().remaining()

    # --- failure ------------------------------------------------------------------------------------------------------

    def _reason(self, error: BaseException, step: Step | None) -> CloudError:
        """What the caller gets. Raises `Abandoned` when it was this node that stopped, and not the step that failed."""
        where = f"{self.flow.name}/{'complete' if step is None else step.name}"
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if self.stopping or (self._cancelled is None and task is not None and task.cancelling()):
                raise Abandoned from error
            while task is not None and task.cancelling():
                task.uncancel()
            return CloudError(CANCELED, f"{where} was cancelled: {self._cancelled or 'a part of it was'}", step=where)
        if not isinstance(error, (CloudError, TimeoutError)):
            log.error("step %s of workflow %s failed", where, self.row.uuid, exc_info=error)
        reason = as_cloud_error(error)
        reason.facts.setdefault("step", where)
        return reason

    async def _fail(self, error: CloudError, step: Step | None) -> None:
        log.info("workflow %s %s of %s is undone: %s", self.flow.name, self.row.uuid, self.row.subject, error)
        self.run.error = error
        await self._persist(lambda tx: self._turn_back(tx, step))
        self.row.state = UNDOING

    async def _turn_back(self, tx: AsyncSession, step: Step | None) -> None:
        # A transactional step that raised may have committed all the same (a cancellation comes after the commit): only
        # the journal knows. A plain step's effect is unknown, so it counts as done.
        kept = await tx.get_one(JournalModel, self.row.uuid)
        position = max(self.row.position, kept.position)
        if step is not None and not step.transactional and position < len(self.flow.steps):
            position = max(position, self.flow.steps.index(step) + 1)
        await self._advance(
            tx, state=UNDOING, position=position, skipped=self.row.skipped, ctx=self._ctx(),
            error=journal.encode_error(self._why()),
        )  # fmt: skip
        self.row.position = position

    # --- backward -----------------------------------------------------------------------------------------------------

    async def _backward(self) -> None:
        self._hit("undoing")
        context.enter(context.with_deadline(context.current(), None))
        while self.row.position > 0:
            index = self.row.position - 1
            step = self.flow.steps[index]
            if index not in self.row.skipped and step.undo_function is not None:
                await self._undo(step)
            self.row.position = index
        try:
            await self._tries(END_RETRY, None, lambda _step: self._abort())
        except (StaleAttempt, Abandoned, ProcessDied):
            raise
        except Exception:
            log.exception(
                "workflow %s %s cannot be ended; the garbage collector tries on", self.flow.name, self.row.uuid
            )
            await self._persist(self._resume_later)
            return
        self.row.state = UNDONE

    async def _undo(self, step: Step) -> None:
        self._hit(f"{step.name}/undo-before")
        call = self._transactional_undo if step.transactional else self._plain_undo
        try:
            with self._in_step(step, "undo"):
                await self._tries(UNDO_RETRY, step, call)
        except (StaleAttempt, Abandoned, ProcessDied):
            raise
        except Exception as error:
            log.warning("undo of %s/%s of %s failed, it is tried on later: %s",
                        self.flow.name, step.name, self.row.subject, error)  # fmt: skip
            await self._persist(lambda tx: self._undo_later(tx, step))
        self._hit(f"{step.name}/undo-saved")

    async def _plain_undo(self, step: Step) -> None:
        for _ in range(self.node.workflows.crashpoints.times):
            async with self._timeout(step):
                await call_undo(self.flow, step, None, self.run)
        self._hit(f"{step.name}/undo-after")
        await self._persist(self._save_undo)

    async def _transactional_undo(self, step: Step) -> None:
        async def write(tx: AsyncSession) -> None:
            await call_undo(self.flow, step, tx, self.run)
            self._hit(f"{step.name}/undo-after")
            await self._save_undo(tx)

        async with self._timeout(step):
            await self._once(write, UNDOING, self.row.position - 1)

    async def _save_undo(self, tx: AsyncSession) -> None:
        await self._advance(tx, position=self.row.position - 1, ctx=self._ctx())

    async def _undo_later(self, tx: AsyncSession, step: Step) -> None:
        job = {
            "uuid": self.row.uuid,
            "name": self.flow.name,
            "step": step.name,
            "subject": self.row.subject,
            "attempt": self.row.attempt,
            "ctx": self._ctx(),
            "error": journal.encode_error(self._why()),
        }
        name = undo_name(self.flow.name, step.name, self.row.uuid)
        await self.node.gc.submit(tx, name, UNDO_RUNNER, job, interval=10)
        await self._save_undo(tx)

    async def _abort(self) -> None:
        self._hit("abort")

        async def write(tx: AsyncSession) -> None:
            await self.flow.abort(tx, self.run.ctx, self._why())
            await self._advance(tx, state=UNDONE, position=0, ctx=self._ctx())

        await self._once(write, UNDONE, 0)

    async def _resume_later(self, tx: AsyncSession) -> None:
        name = f"resume {self.flow.name} {self.row.uuid}"
        await self.node.gc.submit(tx, name, RESUME_RUNNER, {"uuid": self.row.uuid}, interval=10)

    # --- common -------------------------------------------------------------------------------------------------------

    def _hit(self, point: str) -> None:
        if self.stopping:
            raise Abandoned
        self.node.workflows.crashpoints.hit(f"{self.flow.name}/{point}")

    def _why(self) -> CloudError:
        return self.run.error or CloudError(CANCELED, f"{self.flow.name} was cancelled")

    def _ctx(self) -> str:
        return msgspec.json.encode(self.run.ctx).decode()

    async def _advance(self, tx: AsyncSession, **values: Any) -> None:
        await journal.advance(tx, self.row.uuid, self.row.owner, self.row.attempt, **values)

    async def _once(self, write: Callable[[AsyncSession], Awaitable[None]], state: str, position: int) -> None:
        """Write in one transaction; after it, the journal is in this state at this position.

        A lost connection leaves open whether a commit happened: then the journal is asked before the error is raised.
        So does a time-out or a cancellation during the commit: then it is asked before anything is written again.
        """
        if self._unsure and await self._is_written(state, position):
            self._unsure = False
            return
        self._unsure = True
        try:
            async with self.node.db.transaction() as tx:
                await write(tx)
        except CloudError as error:
            self._unsure = False
            if "ambiguous" not in error.facts or not await self._is_written(state, position):
                raise
            log.info("the journal of %s was written though the connection was lost", self.row.uuid)
        except Exception:
            self._unsure = False
            raise
        self._unsure = False

    async def _is_written(self, state: str, position: int) -> bool:
        found: list[bool] = []

        async def look(tx: AsyncSession) -> None:
            kept = await tx.get_one(JournalModel, self.row.uuid)
            if (kept.owner, kept.attempt) != (self.row.owner, self.row.attempt):
                raise StaleAttempt(f"workflow {self.row.uuid} is no longer in attempt {self.row.attempt}")
            found.append((kept.state, kept.position) == (state, position))

        await self._persist(look)
        return found[-1]

    async def _persist(self, write: Callable[[AsyncSession], Awaitable[None]]) -> None:
        """Write progress, however long the database is away: giving up would leave the resource in between.

        What is written may have been written already by an attempt whose connection was lost.
        """
        pause = 0.1
        while True:
            try:
                async with self.node.db.transaction() as tx:
                    await write(tx)
                return
            except IntegrityError:
                raise
            except (DBAPIError, CloudError) as error:
                if isinstance(error, CloudError) and error.kind not in PASSING:
                    raise
                log.error("the journal of %s cannot be written, it is tried again: %s", self.row.uuid, error)
                if self.stopping:
                    raise Abandoned from error
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _tries(self, retry: Retry | None, step: Step | None, call: Callable[[Any], Awaitable[None]]) -> None:
        left, pause = (0, 0.2) if retry is None else (retry.times, retry.delay)
        away = _AWAY_TRIES
        while True:
            try:
                await call(step)
                return
            except (StaleAttempt, Abandoned):
                raise
            except Exception as error:
                if self._cancelled is not None:
                    raise
                if is_of_cluster(error) and away > 0:
                    # It says nothing of the step, which may be repeated as after a crash.
                    away -= 1
                elif retry is not None and left > 0 and retry.on(error):
                    left -= 1
                else:
                    raise
                log.info("%s of %s failed and is tried again: %s", step and step.name, self.row.uuid, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            if self.row.state == RUNNING and step is not None:
                self._refuse_if_over(step)

    def _in_step(self, step: Step, phase: str) -> Any:
        inside = context.current()
        return context.use(
            msgspec.structs.replace(inside, step_key=f"{self.row.uuid}/{step.name}/{phase}", fence=self.run.fence)
        )

    @asynccontextmanager
    async def _interruptions(self, step: Step) -> AsyncIterator[None]:
        """Only the step's own code can be cancelled, never the journal's writing."""
        async with self._timeout(step):
            self._interruptible = asyncio.current_task()
            try:
                yield
            finally:
                self._interruptible = None

    @asynccontextmanager
    async def _timeout(self, step: Step) -> AsyncIterator[None]:
        left = context.current().remaining()
        limit = step.timeout if left is None else min(step.timeout, left)
        clock = asyncio.timeout(limit)
        try:
            async with clock:
                yield
        except TimeoutError as error:
            if not clock.expired():
                raise
            details = f"step {step.name} of {self.flow.name} took longer than {limit:.1f} s"
            raise CloudError(TIMEOUT, details, seconds=limit) from error


def undo_name(flow: str, step: str, uuid: str) -> str:
    """What the garbage collector calls the undo of a step that had failed."""
    return f"undo {flow}/{step} {uuid}"


async def call_undo(flow: Workflow[Any, Any], step: Step, tx: AsyncSession | None, run: Run[Any]) -> None:
    """Run a step's undo, in the transaction when it is a step of the database."""
    if step.undo_function is None:
        return
    undo = getattr(flow, step.undo_function.__name__)
    await (undo(run) if tx is None else undo(tx, run))
