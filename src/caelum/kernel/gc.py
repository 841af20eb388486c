"""The garbage collector: what could not be done now is done later, however often it takes.

Invariant: a job that was submitted in a committed transaction is run until its runner says that it holds; at most one
node runs it at a time; while a job of a name is open, a second one of that name is not made. Jobs of a node that
died are adopted by the node that the ring names.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from sqlalchemy import Index, String, Text, delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from caelum.kernel import context, events
from caelum.kernel.database import Resource, after_commit, update_where, utcnow
from caelum.kernel.ids import new_uuid
from caelum.kernel.settings import Seconds, setting

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from caelum.kernel.events import CanonicalEvent
    from caelum.kernel.node import Node

log = logging.getLogger(__name__)

Runner = Callable[[Any, dict[str, Any]], Awaitable[bool]]
R = TypeVar("R", bound=Runner)

IDLE, PROCESSING, DONE = "Idle", "Processing", "Done"
TIME_BASED, EVENT_BASED = "TimeBased", "EventBased"

PARALLELISM = 20
"""Jobs that one node runs at once."""
LONGEST_DELAY = 3600.0
"""Seconds that a failing job waits at most before it is tried again."""
RUN_TIMEOUT = 1800.0
"""Seconds that one run may take."""
_LONGEST_SLEEP = 30.0

ORPHAN_SCAN = setting(
    "gc", "orphanJobScanInterval", "60", Seconds,
    "the interval to scan orphan GC jobs not managed by any management nodes, in seconds", minimum=2,
)  # fmt: skip
CLEAN_UP = setting(
    "gc", "cleanUpCompletedJobInterval", 24, int,
    "the interval to clean up completed GC jobs, in hours", minimum=2,
)  # fmt: skip
RETENTION = setting("gc", "retentionTime", "14d", Seconds, "GarbageCollectorVO retention time")


class GarbageCollectorModel(Resource):
    """A job of the garbage collector."""

    __tablename__ = "garbage_collector"
    __vo__ = "GarbageCollectorVO"
    __table_args__ = (Index("ix_garbage_collector_due", "management_node_uuid", "status", "next_run"),)

    name: Mapped[str] = mapped_column(String(1024))
    open_name: Mapped[str | None] = mapped_column(String(1024), unique=True)
    """The name while the job is open: what makes it unique."""
    runner_class: Mapped[str] = mapped_column(String(512))
    context: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(64), default=IDLE)
    management_node_uuid: Mapped[str | None] = mapped_column(String(32))
    type: Mapped[str] = mapped_column(String(64))
    interval_seconds: Mapped[float]
    event_path: Mapped[str | None] = mapped_column(String(255), index=True)
    event_match: Mapped[dict[str, Any] | None]
    attempts: Mapped[int] = mapped_column(default=0)
    next_run: Mapped[datetime]
    last_error: Mapped[str | None] = mapped_column(Text)


_runners: dict[str, Runner] = {}


def gc_runner(name: str) -> Callable[[R], R]:
    """Declare `async run(node, context) -> bool` as the runner of this name; True means that nothing is left to do."""

    def declare(run: R) -> R:
        known = _runners.setdefault(name, run)
        if known.__module__ != run.__module__:
            raise TypeError(f"gc runner {name} is declared by {known.__module__} and {run.__module__}")
        _runners[name] = run
        return run

    return declare


def runners() -> frozenset[str]:
    """The names of all declared runners."""
    return frozenset(_runners)


class GarbageCollector:
    """The garbage collector of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._subscribed: dict[str, Callable[[], None]] = {}
        self._cleaned = utcnow()

    async def start(self) -> None:
        """Begin to run what is due; jobs of other nodes come by `adopt`."""
        row = GarbageCollectorModel
        async with self._node.db.read() as session:
            paths = await session.scalars(select(row.event_path).where(row.status != DONE, row.event_path.is_not(None)))
            known = [path for path in paths.unique() if path is not None]
        for path in known:
            self._subscribe(events.events().get(path))
        self._node.timers.every(ORPHAN_SCAN, self.adopt, name="gc.adopt")
        self._node.timers.every(3600.0, self.clean_up, name="gc.clean-up")
        await self.adopt()
        self._loop = asyncio.create_task(self._run_due(), name="gc", context=Context())

    async def stop(self) -> None:
        """Abandon what runs; it is repeated after the next start."""
        tasks = [task for task in (self._loop, *self._running.values()) if task is not None]
        for task in tasks:
            task.cancel()
        for unsubscribe in self._subscribed.values():
            unsubscribe()
        self._subscribed.clear()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def submit(
        self,
        tx: AsyncSession,
        name: str,
        runner: str,
        context: dict[str, Any],
        *,
        interval: float = 60.0,
        on_event: type[CanonicalEvent] | None = None,
        match: dict[str, Any] | None = None,
        delay: float | None = None,
    ) -> str:
        """Record a job in the caller's transaction and give its UUID, or that of the open job of the same name.

        It runs after `delay` (default: `interval`) seconds, then again after `interval`, doubled with each failure.
        With `on_event` it also runs as soon as such an event comes whose fields equal `match`.
        """
        row = GarbageCollectorModel
        known = await tx.scalar(select(row.uuid).where(row.open_name == name))
        if known is not None:
            return known
        job = row(
            uuid=new_uuid(),
            name=name,
            open_name=name,
            runner_class=runner,
            context=msgspec.json.encode(context).decode(),
            management_node_uuid=self._node.uuid,
            type=TIME_BASED if on_event is None else EVENT_BASED,
            interval_seconds=interval,
            event_path=None if on_event is None else on_event.__path__,
            event_match=match,
            next_run=_later(interval if delay is None else delay),
        )
        try:
            async with tx.begin_nested():
                tx.add(job)
        except IntegrityError:
            # Another node submitted it at the same moment.
            return (await tx.scalars(select(row.uuid).where(row.open_name == name))).one()
        self._subscribe(on_event)
        after_commit(tx, self._wake.set)
        return job.uuid

    async def close_in(self, tx: AsyncSession, name: str) -> bool:
        """Note in the transaction of its effect that an open job is done; False when it is so already."""
        row = GarbageCollectorModel
        values = {"status": DONE, "open_name": None, "last_error": None}
        return await update_where(tx, row, values, row.open_name == name) > 0

    async def trigger(self, uuid: str) -> bool:
        """Run an open job now, on this node; False when it runs already or is done."""
        row = GarbageCollectorModel
        values = {"next_run": utcnow(), "management_node_uuid": self._node.uuid}
        async with self._node.db.transaction() as tx:
            moved = await update_where(tx, row, values, row.uuid == uuid, row.status == IDLE)
        self._wake.set()
        return moved > 0

    async def trigger_all(self) -> None:
        """Run every open job of this node now."""
        row = GarbageCollectorModel
        mine = (row.management_node_uuid == self._node.uuid, row.status == IDLE)
        async with self._node.db.transaction() as tx:
            await update_where(tx, row, {"next_run": utcnow()}, *mine)
        self._wake.set()

    async def delete(self, uuid: str) -> None:
        """Forget a job, done or not."""
        task = self._running.get(uuid)
        if task is not None:
            task.cancel()
        async with self._node.db.transaction() as tx:
            await tx.execute(delete(GarbageCollectorModel).where(GarbageCollectorModel.uuid == uuid))

    async def adopt(self, dead: Sequence[str] | None = ()) -> None:
        """Take over open jobs without a node, and those of `dead` nodes, as far as the ring gives them to this one.

        None means that this is the only node, so that every other node is dead.
        """
        row = GarbageCollectorModel
        async with self._node.db.transaction() as tx:
            if dead is None or dead:
                owner = row.management_node_uuid
                theirs = owner != self._node.uuid if dead is None else owner.in_(dead)
                values = {"management_node_uuid": None, "status": IDLE}
                await update_where(tx, row, values, theirs, row.status != DONE)
            free = select(row.uuid, row.event_path).where(row.management_node_uuid.is_(None), row.status != DONE)
            mine = [one for one in await tx.execute(free) if self._node.ring.owns(one.uuid)]
            if mine:
                values = {"management_node_uuid": self._node.uuid, "status": IDLE}
                uuids = [one.uuid for one in mine]
                await update_where(tx, row, values, row.uuid.in_(uuids), row.management_node_uuid.is_(None))
        for path in {one.event_path for one in mine if one.event_path is not None}:
            self._subscribe(events.events().get(path))
        self._wake.set()

    async def clean_up(self) -> None:
        """Forget jobs that were done long ago."""
        now, settings = utcnow(), self._node.settings
        if now - self._cleaned < timedelta(hours=settings.get(CLEAN_UP)):
            return
        self._cleaned, row = now, GarbageCollectorModel
        until = now - timedelta(seconds=settings.get(RETENTION))
        async with self._node.db.transaction() as tx:
            await tx.execute(delete(row).where(row.status == DONE, row.last_op_date < until))

    async def open_jobs(self) -> list[str]:
        """The names of all jobs that are not done."""
        row = GarbageCollectorModel
        async with self._node.db.read() as session:
            return list(await session.scalars(select(row.name).where(row.status != DONE).order_by(row.name)))

    def _subscribe(self, cls: type[CanonicalEvent] | None) -> None:
        if cls is not None and cls.__path__ not in self._subscribed:
            self._subscribed[cls.__path__] = self._node.bus.subscribe(cls, self._on_event)

    async def _on_event(self, news: CanonicalEvent) -> None:
        row = GarbageCollectorModel
        query = select(row.uuid, row.event_match).where(
            row.event_path == news.__path__, row.status == IDLE, row.management_node_uuid == self._node.uuid
        )
        async with self._node.db.read() as session:
            waiting = (await session.execute(query)).all()
        due = [uuid for uuid, match in waiting if _fits(news, match)]
        if due:
            async with self._node.db.transaction() as tx:
                await update_where(tx, row, {"next_run": utcnow()}, row.uuid.in_(due), row.status == IDLE)
            self._wake.set()

    async def _run_due(self) -> None:
        while True:
            self._wake.clear()
            try:
                sleep = await self._start_due()
            except Exception:
                log.exception("the garbage collector could not look for due jobs")
                sleep = _LONGEST_SLEEP
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(sleep):
                    await self._wake.wait()

    async def _start_due(self) -> float:
        """Start what is due; the seconds until the next job is."""
        await self._free_stranded()
        row = GarbageCollectorModel
        mine = (row.management_node_uuid == self._node.uuid, row.status == IDLE)
        room, now = PARALLELISM - len(self._running), utcnow()
        async with self._node.db.read() as session:
            due = select(row.uuid).where(*mine, row.next_run <= now).order_by(row.next_run).limit(max(room, 0))
            ready = list(await session.scalars(due))
            following = await session.scalar(select(func.min(row.next_run)).where(*mine, row.next_run > now))
        for uuid in ready:
            if uuid not in self._running:
                self._running[uuid] = asyncio.create_task(self._run(uuid), name=f"gc:{uuid}", context=Context())
        if following is None:
            return _LONGEST_SLEEP
        return min(_LONGEST_SLEEP, max(0.0, (following - utcnow()).total_seconds()))

    async def _free_stranded(self) -> None:
        """Have jobs run again whose end could not be written: they are Processing, and nobody here works on them."""
        row = GarbageCollectorModel
        stranded = (
            row.management_node_uuid == self._node.uuid, row.status == PROCESSING, row.uuid.not_in(list(self._running)),
        )  # fmt: skip
        async with self._node.db.read() as session:
            found = list(await session.scalars(select(row.uuid).where(*stranded)))
        if found:
            log.warning("%d clean-ups did not get to note their end, and are repeated", len(found))
            async with self._node.db.transaction() as tx:
                await update_where(tx, row, {"status": IDLE}, row.uuid.in_(found), *stranded)

    async def _run(self, uuid: str) -> None:
        try:
            job = await self._claim(uuid)
            if job is not None:
                done, error = await self._attempt(job)
                await self._settle(job, done, error)
        except Exception:
            log.exception("gc job %s", uuid)
        finally:
            self._running.pop(uuid, None)
            self._wake.set()

    async def _claim(self, uuid: str) -> GarbageCollectorModel | None:
        row = GarbageCollectorModel
        async with self._node.db.transaction() as tx:
            mine = (row.uuid == uuid, row.status == IDLE, row.management_node_uuid == self._node.uuid)
            values = {"status": PROCESSING, "attempts": row.attempts + 1}
            return await tx.get(row, uuid) if await update_where(tx, row, values, *mine) else None

    async def _attempt(self, job: GarbageCollectorModel) -> tuple[bool, str | None]:
        runner = _runners.get(job.runner_class)
        if runner is None:
            return False, f"no runner {job.runner_class} is installed"
        task_context = context.TaskContext(api=f"gc:{job.runner_class}")
        try:
            with context.use(task_context):
                async with asyncio.timeout(RUN_TIMEOUT):
                    return await runner(self._node, msgspec.json.decode(job.context)), None
        except Exception as error:
            log.warning("gc job %s, attempt %d, failed: %s", job.name, job.attempts, error)
            return False, f"{type(error).__name__}: {error}"

    async def _settle(self, job: GarbageCollectorModel, done: bool, error: str | None) -> None:
        values: dict[str, Any] = {"status": DONE, "open_name": None, "last_error": None}
        if not done:
            delay = min(job.interval_seconds * 2 ** min(job.attempts - 1, 20), LONGEST_DELAY)
            values = {"status": IDLE, "next_run": _later(delay), "last_error": error}
        row = GarbageCollectorModel
        mine = (row.uuid == job.uuid, row.status == PROCESSING, row.management_node_uuid == self._node.uuid)
        async with self._node.db.transaction() as tx:
            await update_where(tx, row, values, *mine)


def _later(seconds: float) -> datetime:
    """Some seconds from now, spread a little so that many jobs do not come at once."""
    return utcnow() + timedelta(seconds=seconds * (1 + random.uniform(0, 0.1)))  # noqa: S311 - spreads load


def _fits(news: CanonicalEvent, match: dict[str, Any] | None) -> bool:
    return all(getattr(news, name, None) == value for name, value in (match or {}).items())
