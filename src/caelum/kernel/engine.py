"""One run of a durable workflow, from wherever its journal says it is to its end.

Invariant: the journal never claims more than is true: progress is written after a step's effect, so a step may run
again but is never left out; a step that failed, or whose effect is unknown, is undone with the others. Steps of the
database that follow each other, and the completion behind them, commit as one: of such a stretch all has happened, or
nothing. The progress of the step before it is written with it; until then that step counts as not done for whoever
takes the run up, and nothing that could not be repeated with it has begun. A run that was taken over by another node
(`StaleAttempt`), whose node stops, or whose process dies does nothing more: it neither undoes nor writes. Its undo is
an attempt of its own: hosts refuse what a step asked for and what comes to them, or goes on there, behind the undo.
When the connection to the database is lost during a commit, the journal tells whether it happened, before anything is
tried again or undone: a step of the database has its effect once.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from sqlalchemy.exc import DBAPIError, IntegrityError

from caelum.kernel import context, journal
from caelum.kernel.crashpoints import ProcessDied
from caelum.kernel.errors import CANCELED, TIMEOUT, CloudError, as_cloud_error
from caelum.kernel.flow import Retry, Run, Step, Workflow
from caelum.kernel.jobs import MANAGEMENT_NODE_UNAVAILABLE, progress_in
from caelum.kernel.journal import DONE, RUNNING, UNDOING, UNDONE, JournalModel, StaleAttempt
from caelum.kernel.membership import is_of_cluster
from caelum.kernel.patience import Patience
from caelum.kernel.postgresql import PASSING
from caelum.kernel.views import reply_body

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


class Abandoned(Exception):  # noqa: N818 - not an error of the workflow
    """The run goes on elsewhere, or later: this node must not touch it any more."""


class _Mark(NamedTuple):
    """Where a run stands: what a stretch that fails returns to."""

    position: int
    skipped: list[Any]
    ctx: str


class Execution:
    """A run of a workflow on this node. `row` is this node's copy of its journal row, kept in step with it."""

    def __init__(self, node: Node, flow: Workflow[Any, Any], row: JournalModel, ctx: Any, *, resumed: bool) -> None:
        self.node, self.flow, self.row, self.resumed = node, flow, row, resumed
        self.run = Run(node, row.uuid, row.subject, row.attempt, ctx)
        self.run.error = row.cloud_error()
        self.stopping = False
        self._written: tuple[str, int] | None = None
        """What the journal says if a commit happened of which nobody knows whether it did."""
        self._unsaved: list[Step] = []
        """The step that is done, but not in the journal."""
        self._failing: Step | None = None
        """Whose failure it is when something fails now; None: the completion's."""
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
        while self.row.state == RUNNING:
            self._failing = step = self._current_step()
            try:
                await (self._stretch(step) if step is None or step.transactional else self._step(step))
            except (StaleAttempt, Abandoned, ProcessDied):
                raise
            except (Exception, asyncio.CancelledError) as error:
                reason = self._reason(error, self._failing)
                if not self._certain:
                    await self._fail(reason, self._failing)
                    return
                log.error("workflow %s behind its pivot cannot go on, it is tried again: %s", self.row.uuid, reason)
                await asyncio.sleep(_LONGEST_PAUSE)

    def _current_step(self) -> Step | None:
        steps = self.flow.steps
        return steps[self.row.position] if self.row.position < len(steps) else None

    async def _step(self, step: Step) -> None:
        """Run a step that has its effect outside of the database."""
        if self._is_skipped(step):
            return
        self._refuse_if_over(step)
        with self._in_step(step, "run"):
            await self._tries(CERTAIN_RETRY if self._certain else step.retry, step, self._plain_step)
        self._hit(f"{step.name}/saved")
        if not self._unsaved:
            await self._told_progress([step])

    def _is_skipped(self, step: Step) -> bool:
        """Whether the step that comes now is left out; if so, it is passed."""
        if step.skip is None or not step.skip(self.run.ctx):
            return False
        self.row.skipped = [*self.row.skipped, self.row.position]
        self.row.position += 1
        return True

    async def _plain_step(self, step: Step) -> None:
        self._hit(f"{step.name}/before")
        for _ in range(self.node.workflows.crashpoints.times):
            async with self._time_of(step):
                # Only the step's own code can be cancelled, never the journal's writing.
                self._interruptible = asyncio.current_task()
                try:
                    await getattr(self.flow, step.name)(self.run)
                finally:
                    self._interruptible = None
        self._hit(f"{step.name}/after")
        if self._is_before_stretch() and self.row.position + 1 != self.flow.certain_from():
            self._unsaved = [step]
        elif not step.idle:
            await self._persist(lambda tx: self._save(tx, [step], self.row.position + 1))
        self.row.position += 1

    def _is_before_stretch(self) -> bool:
        """Whether the progress of the step that has just run can wait for the next transaction: it comes at once."""
        later = (one for one in self.flow.steps[self.row.position + 1 :] if not one.skip or not one.skip(self.run.ctx))
        following = next(later, None)
        return following is None or following.transactional

    async def _stretch(self, step: Step | None) -> None:
        """Run what follows in the database: this step and others, and the completion if it comes then."""
        retry = None if step is None else step.retry
        if self._certain:
            retry = CERTAIN_RETRY
        try:
            await self._tries(retry, step, lambda _step: self._commit_stretch())
        except (DBAPIError, CloudError) as error:
            if not self._unsaved or (isinstance(error, CloudError) and error.kind not in PASSING):
                raise
            # It may be that nothing can be written now: as after any other step, its progress waits until it can.
            await self._persist(lambda tx: self._save(tx, self._unsaved, self.row.position))
            await self._told_progress(self._unsaved)
            self._unsaved = []

    async def _commit_stretch(self) -> None:
        before = _Mark(self.row.position, self.row.skipped, self._ctx())
        ran: list[Step] = []

        async def write(tx: AsyncSession) -> tuple[str, int]:
            ran.clear()
            completes = await self._run_stretch(tx, ran)
            state, position = (DONE if completes else RUNNING), self.row.position
            await self._save(tx, [*self._unsaved, *ran], position, state)
            if completes:
                await self._answer_job(tx)
            return state, position

        try:
            state = await self._once(write)
        except BaseException:
            self._return_to(before)
            raise
        for step in ran:
            self._hit(f"{step.name}/saved")
        self.row.state = state
        told, self._unsaved = [*self._unsaved, *ran], []
        if state != DONE:
            await self._told_progress(told)

    async def _run_stretch(self, tx: AsyncSession, ran: list[Step]) -> bool:
        """Run the steps of the database from here on; whether the workflow is completed with them."""
        certain = self._certain
        while self._certain == certain and (step := self._current_step()) is not None:
            if not self._is_skipped(step):
                if not step.transactional or (step.retry is not None and ran):
                    return False
                self._failing = step
                await self._run_in(tx, step)
                ran.append(step)
                self.row.position += 1
        if self._certain != certain or self._current_step() is not None:
            return False
        self._failing = None
        self._refuse_if_over(None)
        self._hit("complete")
        await self.flow.complete(tx, self.run.ctx)
        return True

    async def _run_in(self, tx: AsyncSession, step: Step) -> None:
        self._refuse_if_over(step)
        self._hit(f"{step.name}/before")
        with self._in_step(step, "run"):
            async with self._time_of(step):
                await getattr(self.flow, step.name)(tx, self.run)
        self._hit(f"{step.name}/after")

    async def _save(self, tx: AsyncSession, steps: list[Step], position: int, state: str = RUNNING) -> None:
        """Note in the journal that these steps are done. How far a job is need not be told once it is about to end."""
        # Written only when it changes: the database keeps an index of it.
        changed = {} if state == self.row.state else {"state": state}
        await self._advance(tx, position=position, skipped=self.row.skipped, ctx=self._ctx(), **changed)
        told = [one for one in steps if one.progress is not None]
        if told and self._answers_job and state != DONE:
            await progress_in(tx, self.row.job_uuid or "", told[-1].progress or 0, told[-1].name)

    async def _answer_job(self, tx: AsyncSession) -> None:
        """With its end the workflow answers its job, where the answer is known and the job is this node's."""
        known, job = self.flow.known_result(), self.row.job_uuid
        if known is not None and job is not None and self.row.answers and self.node.jobs.is_open(job):
            await self.node.jobs.finish_in(tx, job, reply_body(self.row.api or "", known[0]))

    async def _told_progress(self, steps: list[Step]) -> None:
        """Tell those who watch; that they cannot be told is no failure of what is done."""
        if self._answers_job and any(one.progress is not None for one in steps):
            try:
                await self.node.jobs.tell_progress(self.row.job_uuid or "")
            except Exception as error:
                log.warning("the progress of job %s cannot be told: %s", self.row.job_uuid, error)

    def _return_to(self, mark: _Mark) -> None:
        """What the stretch changed did not happen."""
        self.row.position, self.row.skipped = mark.position, mark.skipped
        self._take_ctx(mark.ctx)

    def _take_ctx(self, text: str) -> None:
        restore(self.run.ctx, text)

    @property
    def _answers_job(self) -> bool:
        return self.row.answers and self.row.job_uuid is not None

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
        self.run.attempt = self.row.attempt = self.row.attempt + 1

    async def _turn_back(self, tx: AsyncSession, step: Step | None) -> None:
        # A transactional step that raised may have committed all the same (a cancellation comes after the commit): only
        # the journal knows. A plain step's effect is unknown, so it counts as done.
        kept = await tx.get_one(JournalModel, self.row.uuid)
        mine = (self.row.owner, self.row.attempt + 1, UNDOING)
        if (kept.owner, kept.attempt, kept.state) == mine:
            return  # it was written, and the answer lost
        if kept.position > self.row.position:
            self.row.position, self.row.skipped = kept.position, kept.skipped
            self._take_ctx(kept.ctx)
        position = self.row.position
        if step is not None and not step.transactional and position < len(self.flow.steps):
            position = max(position, self.flow.steps.index(step) + 1)
        await self._advance(
            tx, state=UNDOING, attempt=self.row.attempt + 1, position=position, skipped=self.row.skipped,
            ctx=self._ctx(), error=journal.encode_error(self._why()),
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
        self._written = None
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
        self._written = None
        call = self._transactional_undo if step.transactional else self._plain_undo
        try:
            with self._in_step(step, "undo"):
                await self._tries(UNDO_RETRY, step, call)
        except (StaleAttempt, Abandoned, ProcessDied):
            raise
        except Exception as error:
            if self._written is not None and await self._is_written(*self._written):
                return  # its time was over while it was committed
            log.warning("undo of %s/%s of %s failed, it is tried on later: %s",
                        self.flow.name, step.name, self.row.subject, error)  # fmt: skip
            await self._persist(lambda tx: self._undo_later(tx, step))
        self._hit(f"{step.name}/undo-saved")

    async def _plain_undo(self, step: Step) -> None:
        for _ in range(self.node.workflows.crashpoints.times):
            async with self._time_of(step):
                await call_undo(self.flow, step, None, self.run)
        self._hit(f"{step.name}/undo-after")
        await self._persist(self._save_undo)

    async def _transactional_undo(self, step: Step) -> None:
        async def write(tx: AsyncSession) -> tuple[str, int]:
            await call_undo(self.flow, step, tx, self.run)
            self._hit(f"{step.name}/undo-after")
            await self._save_undo(tx)
            return UNDOING, self.row.position - 1

        async with self._time_of(step):
            await self._once(write)

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

        async def write(tx: AsyncSession) -> tuple[str, int]:
            await self.flow.abort(tx, self.run.ctx, self._why())
            await self._advance(tx, state=UNDONE, position=0, ctx=self._ctx())
            return UNDONE, 0

        await self._once(write)

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

    async def _once(self, write: Callable[[AsyncSession], Awaitable[tuple[str, int]]]) -> str:
        """Write in one transaction; the state that the journal is in then, which `write` tells with the position.

        A lost connection leaves open whether a commit happened: then the journal is asked before the error is raised.
        So does a time-out or a cancellation during the commit: then it is asked before anything is written again.
        """
        if self._written is not None and await self._is_written(*self._written):
            (state, _), self._written = self._written, None
            return state
        self._written = None
        try:
            async with self.node.db.transaction() as tx:
                self._written = await write(tx)
        except CloudError as error:
            written, self._written = self._written, None
            if "ambiguous" not in error.facts or written is None or not await self._is_written(*written):
                raise
            log.info("the journal of %s was written though the connection was lost", self.row.uuid)
            return written[0]
        except Exception:
            self._written = None
            raise
        (state, _), self._written = self._written, None
        return state

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
        away = Patience(is_of_cluster)
        while True:
            try:
                await call(step)
                return
            except (StaleAttempt, Abandoned):
                raise
            except Exception as error:
                if self._cancelled is not None and self.row.state == RUNNING and not self._certain:
                    raise
                if away.bears(error):
                    pass  # it says nothing of the step, which may be repeated as after a crash
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
        return context.use(context.in_step(context.current(), f"{self.row.uuid}/{step.name}/{phase}", self.run.fence))

    def _time_of(self, step: Step) -> _TimeLimit:
        """What ends a step whose time is over."""
        left = context.current().remaining()
        limit = step.timeout if left is None else min(step.timeout, left)
        return _TimeLimit(f"step {step.name} of {self.flow.name}", limit)


class _TimeLimit:
    """A block that takes no longer than so many seconds. Raises TIMEOUT, which says `what` took longer."""

    __slots__ = ("_clock", "_seconds", "_what")

    def __init__(self, what: str, seconds: float) -> None:
        self._what, self._seconds = what, seconds
        self._clock = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._clock.__aenter__()

    async def __aexit__(self, *failure: Any) -> None:
        try:
            await self._clock.__aexit__(*failure)
        except TimeoutError as error:
            details = f"{self._what} took longer than {self._seconds:.1f} s"
            raise CloudError(TIMEOUT, details, seconds=self._seconds) from error


def restore(ctx: msgspec.Struct, text: str | bytes) -> None:
    """Make a context what it was when it was written as this JSON."""
    former = msgspec.json.decode(text, type=type(ctx))
    for name in former.__struct_fields__:
        setattr(ctx, name, getattr(former, name))


def undo_name(flow: str, step: str, uuid: str) -> str:
    """What the garbage collector calls the undo of a step that had failed."""
    return f"undo {flow}/{step} {uuid}"


async def call_undo(flow: Workflow[Any, Any], step: Step, tx: AsyncSession | None, run: Run[Any]) -> None:
    """Run a step's undo, in the transaction when it is a step of the database."""
    if step.undo_function is None:
        return
    undo = getattr(flow, step.undo_function.__name__)
    await (undo(run) if tx is None else undo(tx, run))
