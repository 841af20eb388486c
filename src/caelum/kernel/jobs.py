"""API jobs: what clients poll. A job lives in the database, so any node can answer for it, also after a crash.

Invariant: a job is finished exactly once: the first answer counts. A job whose work nobody does any more (its node
died before a durable workflow took it over) is taken over by another node when what was asked for is kept with it, and
otherwise answered with an error, never left Processing. A job that this node works on is known to be open without a
look into the database, until its answer is about to be written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
from sqlalchemy import (
    BigInteger,
    Index,
    String,
    Table,
    Text,
    bindparam,
    delete,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Mapped, mapped_column

from caelum.kernel import journal, message
from caelum.kernel.context import SYSTEM, Actor
from caelum.kernel.database import Base, after_commit, is_unique_violation, update_where, utcnow
from caelum.kernel.errors import INVALID_ARGUMENT, CloudError, ErrorCode, error_type, to_wire
from caelum.kernel.job_events import JobMoved, JobNews, JobsProgressed
from caelum.kernel.prepared import Prepared
from caelum.kernel.rows import read_row, update_row
from caelum.kernel.settings import Seconds, setting
from caelum.kernel.vault import PREFIX as SEALED

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from caelum.kernel.node import Node

log = logging.getLogger(__name__)
T = TypeVar("T")

MANAGEMENT_NODE_UNAVAILABLE = error_type(
    "SYS.1012",
    "The management node is unavailable",
    "The node that did this work stopped before it was done; look at the resource, then repeat the request.",
    transient=True,
)

LAST_WORDS = timedelta(minutes=1)
"""How long before its end was noticed a node may have finished jobs that it could not tell of any more."""

EXPIRED_PERIOD = setting(
    "rest", "completedApi.expiredPeriod", "10800", Seconds,
    "How long a completed API can stay in the database before it's deleted, in seconds", minimum=1,
)  # fmt: skip
SCAN_INTERVAL = setting(
    "rest", "expiredApi.scanInterval", "3600", Seconds,
    "The interval the GC thread scans the database for completed, expired API records, in seconds", minimum=2,
)  # fmt: skip

LOOK_SECONDS = 1.0
_PROGRESS_PAUSE = 1.0
"""Seconds that news of a job's progress waits before it is told to other nodes: most jobs are finished by then."""
_FINISH_PAUSES = (0.2, 1.0, 5.0)
"""Seconds until an answer is written again after an error of the database."""
PROCESSING = "Processing"
DONE = "Done"


_HAS_HOOK = text("web_hook IS NOT NULL")


class JobModel(Base):
    """An API job. `result` is the body of its answer as JSON text, sealed when the operation is declared to answer with
    a secret; exactly one of it and `error` is set when Done.
    """

    __tablename__ = "api_job"
    __table_args__ = (
        Index("ix_api_job_state", "state", "node_uuid"),
        Index("ix_api_job_finish", "finish_date"),
        # Few jobs have a web hook, and those that wait are looked for again and again.
        Index("ix_api_job_web_hook", "node_uuid", sqlite_where=_HAS_HOOK, postgresql_where=_HAS_HOOK),
    )

    uuid: Mapped[str] = mapped_column(String(32), primary_key=True)
    api: Mapped[str] = mapped_column(String(255))
    actor: Mapped[dict[str, Any]]
    body: Mapped[str | None] = mapped_column(Text)
    """What was asked for, sealed, of a job that another node may take over; nothing once it is Done."""
    web_hook: Mapped[str | None] = mapped_column(Text)
    """Where the answer is still to be sent; nothing once it was."""
    node_uuid: Mapped[str] = mapped_column(String(32))
    """Who works on it; once it is Done, who sends its web hook."""
    state: Mapped[str] = mapped_column(String(16), default=PROCESSING)
    result: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    percent: Mapped[int] = mapped_column(default=0)
    text: Mapped[str | None] = mapped_column(Text)
    create_date: Mapped[datetime] = mapped_column(default=utcnow)
    finish_date: Mapped[datetime | None]


class Job(msgspec.Struct, frozen=True):
    """What is known of a job. `result` is JSON text."""

    uuid: str
    api: str
    actor: Actor
    state: str
    create_date: datetime
    web_hook: str | None = None
    result: str | None = None
    error: ErrorCode | None = None
    percent: int = 0
    text: str | None = None
    finish_date: datetime | None = None

    @property
    def done(self) -> bool:
        """Whether it has its answer."""
        return self.state == DONE


Listener = Callable[[Job], None]
IsAnswered = Callable[["AsyncSession", str], Awaitable[bool]]
Begin = Callable[[], None]
Heir = Callable[[Job, str], Begin | None]
"""Given a job that a dead node left undone, and what was asked for: what begins with it here, or None when it must not
be done any more."""


class Jobs:
    """The jobs of the cloud, seen from one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._closed = False
        self._heir: Heir | None = None
        self._settling = asyncio.Lock()
        self._open: dict[str, str] = {}
        """The operation of each job that this node works on."""
        self._ended: set[str] = set()
        """Those that ended with their workflow, until who works on them asks."""
        self._waiting: dict[str, asyncio.Future[Job]] = {}
        self._looking: set[asyncio.Task[None]] = set()
        self._untold: set[str] = set()
        """Jobs whose progress the other nodes will hear of."""
        self._telling: asyncio.TimerHandle | None = None
        self._finish_listeners: list[Listener] = []
        self._news_listeners: list[tuple[Listener, Callable[[], bool]]] = []

    async def start(self) -> None:
        """Begin to purge old jobs, and to hear of those that other nodes work on."""
        # By one subscription, which is served in order: nobody is told of a job's progress after its end.
        self._node.bus.subscribe(JobNews, self._moved_elsewhere, self._is_waited_for)
        self._node.timers.every(SCAN_INTERVAL, self.purge, name="jobs.purge")

    async def stop(self) -> None:
        """Let nobody wait for ever."""
        self.close()
        for future in self._waiting.values():
            future.cancel()
        if self._telling is not None:
            self._telling.cancel()

    async def create(
        self, uuid: str, api: str, actor: Actor = SYSTEM, request: str | None = None, *, web_hook: str | None = None
    ) -> None:
        """Record a new job; from here on it gets an answer. INVALID_ARGUMENT when the UUID is used already.

        `request` is what was asked for, for a node that takes the job over (`on_orphan`); it is kept sealed, because it
        may hold secrets, for as long as the job is open.
        """
        body = None if request is None else self._node.vault.seal(request, _request_of(uuid))
        try:
            async with self._node.db.transaction() as tx:
                await _INSERT.run(
                    tx, uuid=uuid, api=api, actor=msgspec.to_builtins(actor), body=body, web_hook=web_hook,
                    node_uuid=self._node.uuid,
                )  # fmt: skip
        except IntegrityError as error:
            if not is_unique_violation(error):
                raise
            raise CloudError(INVALID_ARGUMENT, f"Duplicate job uuid[{uuid}]") from None
        except CloudError as error:
            if "ambiguous" not in error.facts or not await self._is_recorded(uuid):
                raise
            log.info("job %s was recorded though the connection was lost", uuid)
        self._open[uuid] = api

    def is_open(self, uuid: str) -> bool:
        """Whether this node works on the job and has no answer yet, known without a look into the database.

        False says nothing. While this node has its lease, nobody else answers a job that it works on.
        """
        return uuid in self._open and self._node.membership.serving

    async def _is_recorded(self, uuid: str) -> bool:
        """Whether this node's row was committed before the connection was lost.

        A job that was recorded and that nobody works on would never have an answer.
        """
        job = await self._node.db.read_surely(lambda session: session.get(JobModel, uuid))
        return job is not None and job.node_uuid == self._node.uuid

    async def finish(
        self, uuid: str, answer: str | bytes | ErrorCode | BaseException, *, unless: IsAnswered | None = None
    ) -> bool:
        """Answer the job: the body's JSON text, or an error. False when it has its answer already (or is unknown), or
        when `unless(tx, uuid)`: a workflow has begun that answers it.

        Tried until the database takes it: of a job whose answer is lost, nobody would ever hear. An error that does not
        say that it passes is raised when it came several times.
        """
        if self._closed:
            return False
        self._ended.discard(uuid)
        api = self._open.pop(uuid, None)  # from here on only the database knows

        async def write(tx: AsyncSession) -> Job | None:
            if self._closed or (unless is not None and await self._is_left_alone(tx, uuid, unless)):
                return None
            return await self._finish_in(tx, uuid, answer, api)

        finished = await self._write_stubbornly(uuid, write)
        if finished is not None:
            self.tell(finished)
        elif uuid in self._waiting and (job := await self.get(uuid)) is not None and job.done:
            self._resolve(job)  # perhaps by a try of which it was not known that it had been committed
        return finished is not None

    async def finish_in(self, tx: AsyncSession, uuid: str, answer: str) -> None:
        """Answer a job that `is_open` with the body's JSON text, if the transaction is committed."""
        job = await self._finish_in(tx, uuid, answer, self._open.get(uuid))
        if job is not None:
            after_commit(tx, partial(self._finished_with, job))

    def _finished_with(self, job: Job) -> None:
        if self._open.pop(job.uuid, None) is not None:
            self._ended.add(job.uuid)
        self.tell(job)

    def take_ended(self, uuid: str) -> bool:
        """Whether `finish_in` answered the job, so that nothing is left to do. True once, for who works on it."""
        ended = uuid in self._ended
        self._ended.discard(uuid)
        return ended

    async def _is_left_alone(self, tx: AsyncSession, uuid: str, is_answered: IsAnswered) -> bool:
        await _locked(tx, uuid)
        return await is_answered(tx, uuid)

    async def _write_stubbornly(self, uuid: str, write: Callable[[AsyncSession], Awaitable[T]]) -> T:
        for pause in _FINISH_PAUSES:
            try:
                return await self._node.db.write_surely(write)
            except SQLAlchemyError as error:
                log.warning("the answer of job %s could not be written, and is tried again: %s", uuid, error)
            await asyncio.sleep(pause)
        return await self._node.db.write_surely(write)

    async def _finish_in(
        self, tx: AsyncSession, uuid: str, answer: str | bytes | ErrorCode | BaseException, api: str | None = None
    ) -> Job | None:
        """The job as it is finished; None when it was already. `api` is its operation, where that is known."""
        result = error = None
        if isinstance(answer, (str, bytes)):
            result = await self._sealed(tx, uuid, answer if isinstance(answer, str) else answer.decode(), api)
        else:
            error = msgspec.json.encode(to_wire(answer)).decode()
        # The job's web hook is this node's business from now on.
        values = {
            "finish_date": utcnow(), "node_uuid": self._node.uuid, "result": result, "error": error, "body": None,
        }  # fmt: skip
        found = await update_row(tx, JobModel, uuid, {"state": DONE, "percent": 100, **values}, state=PROCESSING)
        return None if found is None else self._job(found)

    async def _sealed(self, tx: AsyncSession, uuid: str, text: str, api: str | None) -> str:
        """The answer as it is kept."""
        if api is None:
            row = await read_row(tx, JobModel, uuid)
            api = None if row is None else row.api
        meta = None if api is None else message.api(api)
        return self._node.vault.seal(text, uuid) if meta is not None and meta.secret else text

    def _job(self, row: JobModel) -> Job:
        error = None if row.error is None else msgspec.json.decode(row.error, type=ErrorCode)
        result = row.result
        if result is not None and result.startswith(SEALED):
            try:
                result = self._node.vault.open(result, row.uuid)
            except CloudError as unreadable:
                result, error = None, unreadable.to_wire()
        return Job(
            row.uuid, row.api, msgspec.convert(row.actor, Actor), row.state, row.create_date, row.web_hook, result,
            error, row.percent, row.text, row.finish_date,
        )  # fmt: skip

    def tell(self, job: Job) -> None:
        """Tell those who wait that the job is finished; to be called after the transaction that finished it."""
        self._tell_others(job.uuid)
        self._resolve(job)
        _notify([*self._finish_listeners, *self._wanted_news()], job)

    def _wanted_news(self) -> list[Listener]:
        return [listener for listener, wanted in self._news_listeners if wanted()]

    def _resolve(self, job: Job) -> None:
        future = self._waiting.pop(job.uuid, None)
        if future is not None and not future.done():
            future.set_result(job)

    def _tell_others(self, uuid: str) -> None:
        self._untold.discard(uuid)
        if not self._node.ring.alone:
            self._node.bus.publish(JobMoved(uuid=uuid, node_uuid=self._node.uuid))

    def _tell_others_soon(self, uuid: str) -> None:
        if self._node.ring.alone:
            return
        self._untold.add(uuid)
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(_PROGRESS_PAUSE, self._tell_progress_elsewhere)

    def _tell_progress_elsewhere(self) -> None:
        self._telling = None
        if self._untold:
            self._node.bus.publish(JobsProgressed(uuids=sorted(self._untold), node_uuid=self._node.uuid))
            self._untold.clear()

    def _is_waited_for(self, event: JobNews) -> bool:
        if event.node_uuid == self._node.uuid:
            return False
        return bool(self._wanted_news()) or any(uuid in self._waiting for uuid in event.about)

    async def _moved_elsewhere(self, event: JobNews) -> None:
        for uuid in event.about:
            if uuid in self._waiting or self._wanted_news():
                with contextlib.suppress(CloudError):  # who waits looks again, and there is more news to come
                    await self._look_at(uuid)

    async def _look_at(self, uuid: str) -> None:
        """See how far another node's job is, and tell whoever wants to know."""
        news, job = self._wanted_news(), await self.get(uuid)
        if job is not None:
            if job.done:
                self._resolve(job)
            _notify(news, job)

    async def get(self, uuid: str) -> Job | None:
        """What is known of the job, or None when there is none (any more)."""
        row = await read_row(self._node.db.once, JobModel, uuid)
        return None if row is None else self._job(row)

    async def wait(self, uuid: str) -> Job | None:
        """Wait until the job is finished, by whichever node; None when there is none."""
        future = self._waiting.get(uuid)
        if future is None:
            # Registered before the look: a job that finishes in between is not missed.
            future = self._waiting[uuid] = asyncio.get_running_loop().create_future()
        if self.is_open(uuid):
            return await self._finished(uuid, future)
        job = await self.get(uuid)
        if job is None or job.done:
            self._waiting.pop(uuid, None)
            if job is not None and not future.done():
                future.set_result(job)
            return job
        return await self._finished(uuid, future)

    async def _finished(self, uuid: str, future: asyncio.Future[Job]) -> Job | None:
        """Looks at the database now and then: news of another node's job may be lost with that node."""
        while not (await asyncio.wait([future], timeout=None if self._node.ring.alone else LOOK_SECONDS))[0]:
            if self.is_open(uuid):
                continue
            job = await self.get(uuid)
            if job is None or job.done:
                self._waiting.pop(uuid, None)
                return job
        return future.result()

    async def progress(self, uuid: str, percent: int, text: str | None = None) -> None:
        """Note how far a job is; it never goes back."""
        async with self._node.db.transaction() as tx:
            moved = await progress_in(tx, uuid, percent, text)
        if moved:
            await self.tell_progress(uuid)

    async def tell_progress(self, uuid: str) -> None:
        """Tell the listeners how far the job is; those at other nodes a little later, unless it is finished by then."""
        self._tell_others_soon(uuid)
        news = self._wanted_news()
        if news and (job := await self.get(uuid)) is not None:
            _notify(news, job)

    def on_finish(self, listener: Listener) -> None:
        """Call `listener(job)` for each job that this node finishes (web hooks)."""
        self._finish_listeners.append(listener)

    def on_news(self, listener: Listener, wanted: Callable[[], bool] = lambda: True) -> None:
        """Call `listener(job)` for each job that is finished or further on, at any node, while `wanted()` is true."""
        self._news_listeners.append((listener, wanted))

    def look_again(self, dead: str) -> None:
        """Tell those of `on_news`, in the background, of what a node finished shortly before it died.

        It may have had no time to tell. What it did tell, they hear twice.
        """
        if news := self._wanted_news():
            task = asyncio.get_running_loop().create_task(self._last_words(dead, news), name=f"last words of {dead}")
            self._looking.add(task)
            task.add_done_callback(self._looking.discard)

    async def _last_words(self, dead: str, news: list[Listener]) -> None:
        row = JobModel
        recent = row.finish_date > utcnow() - LAST_WORDS
        last = select(row).where(row.node_uuid == dead, row.state == DONE, recent).order_by(row.finish_date)
        try:
            async with self._node.db.read() as session:
                jobs = [self._job(one) for one in await session.scalars(last)]
        except CloudError as error:
            log.info("what node %s finished last is not told again: %s", dead, error)
            return
        for job in jobs:
            _notify(news, job)

    def close(self) -> None:
        """Answer nothing more: what is cut off while the node stops is answered by whoever takes it up."""
        self._closed = True

    async def orphans(self, dead: Sequence[str] | None) -> list[str]:
        """The unanswered jobs of dead nodes; None: of every node but this one."""
        row = JobModel
        theirs = row.node_uuid != self._node.uuid if dead is None else row.node_uuid.in_(dead)
        async with self._node.db.read() as session:
            return list(await session.scalars(select(row.uuid).where(row.state == PROCESSING, theirs)))

    def on_orphan(self, heir: Heir) -> None:
        """Have this node take over jobs of dead nodes of which nothing was done yet. `heir` says which, and begins."""
        self._heir = heir

    async def settle_orphans(self, dead: Sequence[str] | None, is_answered: IsAnswered) -> list[str]:
        """Take over the jobs that dead nodes left, or else answer them with an error; which ones got that.

        Left alone are those for which `is_answered(tx, uuid)`: a workflow does it.
        """
        failed = []
        # One at a time: what the one has taken over must not look like an orphan to the other.
        async with self._settling:
            for uuid in await self.orphans(dead):
                if self._closed:
                    break
                if await self._settle(uuid, dead, is_answered):
                    failed.append(uuid)
        return sorted(failed)

    async def _settle(self, uuid: str, dead: Sequence[str] | None, is_answered: IsAnswered) -> bool:
        """Settle one; whether it was answered with an error."""
        begin: Begin | None = None

        async def settle(tx: AsyncSession) -> Job | None:
            nonlocal begin
            row = await _locked(tx, uuid)
            if row is None or row.state != PROCESSING:
                begin = None
                return None
            if row.node_uuid == self._node.uuid:
                return None  # taken over by a try of which it was not known that it had been committed
            begin = None
            if (dead is not None and row.node_uuid not in dead) or await is_answered(tx, uuid):
                return None
            begin = self._inherited(row) if await self._node.membership.may_do_anew(tx) else None
            if begin is None:
                return await self._finish_in(tx, uuid, _restarted())
            await update_row(tx, JobModel, uuid, {"node_uuid": self._node.uuid})
            return None

        failed = await self._node.db.write_surely(settle)
        if failed is not None:
            self.tell(failed)
        elif begin is not None:
            log.info("job %s is taken over: its node died before anything of it was done", uuid)
            begin()
        return failed is not None

    def _inherited(self, row: JobModel) -> Begin | None:
        """What begins with a dead node's job here; `is_open` from then on."""
        if self._heir is None or row.body is None:
            return None
        try:
            begin = self._heir(self._job(row), self._node.vault.open(row.body, _request_of(row.uuid)))
        except CloudError as error:
            log.warning("job %s is not taken over: %s", row.uuid, error)
            return None
        return None if begin is None else partial(self._begin, row.uuid, row.api, begin)

    def _begin(self, uuid: str, api: str, begin: Begin) -> None:
        self._open[uuid] = api
        begin()

    async def is_given_up(self, tx: AsyncSession, uuid: str) -> bool:
        """Whether the job has its answer already, given for a node that died; it stays as it is while `tx` is open.

        Asked in clusters only: a single node has no work of others in its queues.
        """
        if self._node.db.sqlite:
            return False
        return any(state == DONE for (state,) in await _LOCKED_STATE.rows(tx, key_uuid=uuid))

    async def tell_undelivered(self, limit: int) -> None:
        """Tell those of `on_finish` again of answered jobs of this node whose hook is neither settled nor given up."""
        row = JobModel
        mine = (row.node_uuid == self._node.uuid, row.state == DONE, row.web_hook.is_not(None))
        waiting = select(row).where(*mine).order_by(row.finish_date).limit(limit)
        async with self._node.db.read() as session:
            jobs = [self._job(one) for one in await session.scalars(waiting)]
        for job in jobs:
            _notify(self._finish_listeners, job)

    async def hook_settled(self, uuid: str) -> None:
        """The job's web hook is delivered, or given up: nobody tries it again."""
        async with self._node.db.transaction() as tx:
            await update_where(tx, JobModel, {"web_hook": None}, JobModel.uuid == uuid)

    async def inherit_hooks(self, dead: Sequence[str] | None) -> None:
        """Deliver from here what dead nodes did not; None: every node but this one is dead."""
        row = JobModel
        theirs = row.node_uuid != self._node.uuid if dead is None else row.node_uuid.in_(dead)
        async with self._node.db.transaction() as tx:
            values = {"node_uuid": self._node.uuid}
            await update_where(tx, row, values, row.state == DONE, row.web_hook.is_not(None), theirs)

    async def purge(self) -> None:
        """Forget jobs that were finished long ago."""
        until = utcnow() - timedelta(seconds=self._node.settings.get(EXPIRED_PERIOD))
        async with self._node.db.transaction() as tx:
            old = JobModel.state == DONE, JobModel.finish_date < until
            await journal.forget_answers(tx, select(JobModel.uuid).where(*old))
            await tx.execute(delete(JobModel).where(*old))


async def _locked(tx: AsyncSession, uuid: str) -> JobModel | None:
    """The job's row, locked: until the end of the transaction no workflow begins that would answer it."""
    return await tx.get(JobModel, uuid, with_for_update=True)


async def progress_in(tx: AsyncSession, uuid: str, percent: int, text: str | None = None) -> bool:
    """`Jobs.progress` inside the caller's transaction."""
    return await _PROGRESS.run(tx, percent=percent, text=text, key_uuid=uuid) > 0


_TABLE = cast("Table", JobModel.__table__)
_HERE = _TABLE.c
_INSERT = Prepared(insert(_TABLE), "uuid", "api", "actor", "body", "web_hook", "node_uuid")
_LOCKED_STATE = Prepared(select(_HERE.state).where(_HERE.uuid == bindparam("key_uuid")).with_for_update())
_OPEN = (_HERE.uuid == bindparam("key_uuid"), _HERE.state == PROCESSING)
_PERCENT = bindparam("percent", type_=BigInteger)
_TOLD = func.coalesce(bindparam("text", type_=Text), _HERE.text)
_PROGRESS = Prepared(update(_TABLE).where(*_OPEN, _HERE.percent <= _PERCENT).values(percent=_PERCENT, text=_TOLD))


def _request_of(uuid: str) -> str:
    """What a job's request is sealed for: it must not open as the job's answer."""
    return f"{uuid}/request"


def _restarted() -> CloudError:
    return CloudError(
        MANAGEMENT_NODE_UNAVAILABLE, "the management node was restarted before it had done what was asked"
    )


def _notify(listeners: list[Listener], job: Job) -> None:
    for listener in listeners:
        try:
            listener(job)
        except Exception:
            log.exception("a listener failed on job %s", job.uuid)
