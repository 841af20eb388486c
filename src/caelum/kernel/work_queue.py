"""Work queues in the database: for what has no UUID yet that the ring could give to one node, and must be done by one.

A virtual router that several nodes need for a network at the same moment is such a thing: nobody made it, so nobody
owns it. Everything else belongs into the queues of `queue.py`, which cost nothing.

Invariant: of a queue's entries one is Processing at a time, in the order in which they came, whatever nodes ask; a
unique column holds that. An entry runs at the node that asked, and goes with a caller that leaves before, though its
commit was lost or nobody knows whether it happened. When that node dies, an entry that waited goes, and one
that was under way is run again by another node if its runner is `restartable`, else it has failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, ContextVar
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Index, String, Text, delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from caelum.kernel import context, freshness, journal
from caelum.kernel.database import Base, is_unique_violation, refuse_in_transaction, update_where, utcnow
from caelum.kernel.errors import CloudError
from caelum.kernel.events import CanonicalEvent, canonical
from caelum.kernel.ids import derived_uuid, new_uuid
from caelum.kernel.jobs import MANAGEMENT_NODE_UNAVAILABLE
from caelum.kernel.queue import QUEUE_REENTERED, outside

if TYPE_CHECKING:
    from caelum.kernel.node import Node

log = logging.getLogger(__name__)

Runner = Callable[[Any, dict[str, Any]], Awaitable[Any]]
R = TypeVar("R", bound=Runner)

PENDING, PROCESSING, DONE, FAILED = "Pending", "Processing", "Completed", "Error"
OPEN = (PENDING, PROCESSING)
RETENTION = timedelta(days=1)
"""How long ended entries are kept: longer than any step may be repeated."""
_LOOK_AGAIN = 0.5

_inside: ContextVar[tuple[str, ...]] = ContextVar("work_queues", default=())


class WorkQueueEntryModel(Base):
    """An entry of a queue. `running` is the queue's name while the entry is Processing: what makes it the only one."""

    __tablename__ = "work_queue_entry"
    __table_args__ = (Index("ix_work_queue_entry_queue", "queue", "state"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    uuid: Mapped[str] = mapped_column(String(32), unique=True)
    queue: Mapped[str] = mapped_column(String(255))
    running: Mapped[str | None] = mapped_column(String(255), unique=True)
    runner: Mapped[str] = mapped_column(String(255))
    context: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16), default=PENDING)
    node_uuid: Mapped[str] = mapped_column(String(32))
    attempt: Mapped[int] = mapped_column(default=0)
    result: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    create_date: Mapped[datetime] = mapped_column(default=utcnow)
    taken_date: Mapped[datetime | None]
    done_date: Mapped[datetime | None]


@canonical("/workqueue/moved")
class WorkQueueMoved(CanonicalEvent):
    """An entry of a work queue ended: the next one's turn has come."""

    queue: str


class _Declared(msgspec.Struct, frozen=True):
    run: Runner
    restartable: bool


_runners: dict[str, _Declared] = {}


def queue_runner(name: str, *, restartable: bool = False) -> Callable[[R], R]:
    """Declare `async run(node, context)` as the runner of this name; its result is plain JSON values.

    `restartable` says that another node may run it again when its node died in the middle of it.
    """

    def declare(run: R) -> R:
        known = _runners.setdefault(name, _Declared(run, restartable))
        if known.run.__module__ != run.__module__:
            raise TypeError(f"queue runner {name} is declared by {known.run.__module__} and {run.__module__}")
        _runners[name] = _Declared(run, restartable)
        return run

    return declare


def runners() -> frozenset[str]:
    """The names of all declared runners."""
    return frozenset(_runners)


class WorkQueue:
    """The work queues of the cloud, seen from one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._tasks: set[asyncio.Task[Any]] = set()
        self._leaving: dict[asyncio.Task[None], str] = {}
        self._moved = asyncio.Event()

    async def start(self) -> None:
        """Hear of turns that come."""
        self._node.bus.subscribe(WorkQueueMoved, self._on_moved)
        self._node.timers.every(3600.0, self.purge, name="work-queue.purge")

    async def stop(self) -> None:
        """Abandon what runs, as a crash would."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def run(self, queue: str, runner: str, work: dict[str, Any]) -> Any:
        """Run the runner with `work` when its turn in the queue comes, and return its result. Raises CloudError.

        Inside a workflow step, whoever asks for the same work, as a repetition of the step does, finds what was asked
        for first: it waits for it, or has its result; what failed is tried anew. A caller that is cancelled leaves the
        queue, but does not tear what runs.
        """
        refuse_in_transaction(f"wait in work queue {queue}")
        if queue in _inside.get():
            raise CloudError(QUEUE_REENTERED, f"a task of work queue {queue} may not wait for another one of it")
        step = context.current().step_key
        text = msgspec.json.encode(work, order="sorted").decode()
        uuid = new_uuid() if step is None else derived_uuid(step, "work queue", queue, runner, text)
        while True:
            # Of two tasks of a step one enters at a time: one that fails to would take back the entry of the other.
            async with self._node.queues.turn(f"work-queue-{uuid}", name="enter"):
                entered = await self._enter(uuid, queue, runner, text)
            if entered:
                return await self._wait_and_run(uuid, queue)
            known = await self._follow(uuid)
            if known is not None:
                return _outcome(known)

    async def adopt(self, dead: Sequence[str] | None) -> None:
        """Take up, or fail, what dead nodes had under way, and drop what waited; None: of every node but this one."""
        row = WorkQueueEntryModel
        theirs = row.node_uuid != self._node.uuid if dead is None else row.node_uuid.in_(dead)
        async with self._node.db.read() as session:
            found = list(await session.scalars(select(row).where(row.state.in_(OPEN), theirs).order_by(row.id)))
        for one in found:
            if dead is None or self._node.ring.owns(one.uuid):
                await self._adopt(one)

    async def purge(self) -> None:
        """Forget entries that ended long ago."""
        row = WorkQueueEntryModel
        async with self._node.db.transaction() as tx:
            await tx.execute(delete(row).where(row.state.not_in(OPEN), row.done_date < utcnow() - RETENTION))

    # --- one entry ----------------------------------------------------------------------------------------------------

    async def _enter(self, uuid: str, queue: str, runner: str, work: str) -> bool:
        """Enter the queue; False when this entry is in it, or was done, already."""
        await self._left(uuid)
        row = WorkQueueEntryModel
        entry = row(uuid=uuid, queue=queue, runner=runner, context=work, node_uuid=self._node.uuid)
        try:
            async with self._node.db.transaction() as tx:
                await tx.execute(delete(row).where(row.uuid == uuid, row.state == FAILED))
                tx.add(entry)
        except IntegrityError as error:
            if not is_unique_violation(error):
                raise
            return False
        except BaseException:
            self._abandon(uuid, queue, PENDING)
            raise
        return True

    async def _wait_and_run(self, uuid: str, queue: str) -> Any:
        try:
            while (entry := await self._claim(uuid)) is None:
                await self._pause()
        except BaseException:
            self._abandon(uuid, queue, *OPEN)
            raise
        return _outcome(await asyncio.shield(self._begin(entry)))

    async def _claim(self, uuid: str) -> WorkQueueEntryModel | None:
        """Take the entry when it is the first of its queue that is open, and no other one runs."""
        row = WorkQueueEntryModel
        try:
            async with self._node.db.transaction() as tx:
                entry = await tx.scalar(select(row).where(row.uuid == uuid, row.state == PENDING))
                if entry is None:
                    raise _gone(uuid)
                first = await tx.scalar(select(func.min(row.id)).where(row.queue == entry.queue, row.state.in_(OPEN)))
                if first != entry.id:
                    return None
                entry.state, entry.running, entry.taken_date = PROCESSING, entry.queue, utcnow()
                entry.attempt += 1
        except IntegrityError as error:
            if not is_unique_violation(error):
                raise
            return None
        return entry

    def _begin(self, entry: WorkQueueEntryModel) -> asyncio.Task[WorkQueueEntryModel]:
        # Its own task: a caller that leaves does not tear what has begun.
        task = asyncio.get_running_loop().create_task(self._work(entry), context=outside(deadline=False))
        self._keep(task)
        return task

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, entry: WorkQueueEntryModel) -> WorkQueueEntryModel:
        _inside.set((*_inside.get(), entry.queue))
        declared = _runners.get(entry.runner)
        try:
            if declared is None:
                raise CloudError(MANAGEMENT_NODE_UNAVAILABLE, f"no queue runner {entry.runner} is installed here")
            result = await declared.run(self._node, msgspec.json.decode(entry.context))
            values: dict[str, Any] = {"state": DONE, "result": msgspec.json.encode(result).decode()}
        except Exception as error:
            if not isinstance(error, CloudError):
                log.exception("work of queue %s failed", entry.queue)
            values = {"state": FAILED, "error": journal.encode_error(error)}
        for name, value in values.items():
            setattr(entry, name, value)
        await self._finish(entry, values)
        return entry

    async def _finish(self, entry: WorkQueueEntryModel, values: dict[str, Any]) -> None:
        row = WorkQueueEntryModel
        mine = (row.uuid == entry.uuid, row.node_uuid == entry.node_uuid, row.attempt == entry.attempt)
        values = {**values, "running": None, "done_date": utcnow()}
        await self._node.db.write_surely(lambda tx: update_where(tx, row, values, *mine, row.state == PROCESSING))
        self._tell(entry.queue)

    def _abandon(self, uuid: str, queue: str, *states: str) -> None:
        """The caller leaves before its work has begun. It may be cancelled, so this is done by a task of its own."""
        task = asyncio.get_running_loop().create_task(self._drop(uuid, queue, states), context=Context())
        self._keep(task)
        self._leaving[task] = uuid
        task.add_done_callback(self._leaving.pop)

    async def _left(self, uuid: str) -> None:
        """Wait until nobody leaves the queue with this entry any more, or one made now would be dropped for the former.

        Raises TIMEOUT at the deadline.
        """
        while leaving := [task for task, left in self._leaving.items() if left == uuid]:
            await asyncio.wait(leaving, timeout=context.current().remaining())

    async def _drop(self, uuid: str, queue: str, states: Sequence[str]) -> None:
        """Leave the queue with an entry of these states that nobody has begun.

        Who never heard that its entry is there has claimed nothing: what is under way by this name was begun for a
        former run of the step, or taken over from a dead node.
        """
        row = WorkQueueEntryModel
        mine = (row.uuid == uuid, row.node_uuid == self._node.uuid, row.state.in_(states))
        await self._node.db.write_surely(lambda tx: tx.execute(delete(row).where(*mine)))
        self._tell(queue)

    async def _follow(self, uuid: str) -> WorkQueueEntryModel | None:
        """Wait for an entry that another task or node runs; None when it was dropped, so that it is to be made anew."""
        row = WorkQueueEntryModel
        while True:
            async with self._node.db.read() as session:
                entry = await session.scalar(select(row).where(row.uuid == uuid))
            if entry is None or entry.state not in OPEN:
                freshness.heard()
                return entry
            await self._pause()

    # --- dead nodes ---------------------------------------------------------------------------------------------------

    async def _adopt(self, entry: WorkQueueEntryModel) -> None:
        declared, row = _runners.get(entry.runner), WorkQueueEntryModel
        as_it_was: tuple[ColumnElement[bool], ...] = (
            row.uuid == entry.uuid, row.state == entry.state, row.node_uuid == entry.node_uuid,
            row.attempt == entry.attempt,
        )  # fmt: skip
        if entry.state == PROCESSING and declared is not None and declared.restartable:
            if await self._take(entry, as_it_was):
                log.info("work %s of queue %s is run again", entry.uuid, entry.queue)
                self._begin(entry)
            return
        if entry.state == PROCESSING:
            details = f"node[{entry.node_uuid}] stopped during this work of queue[{entry.queue}]"
            error = journal.encode_error(CloudError(MANAGEMENT_NODE_UNAVAILABLE, details))
            await self._change({"state": FAILED, "error": error, "running": None, "done_date": utcnow()}, as_it_was)
        else:
            async with self._node.db.transaction() as tx:
                await tx.execute(delete(row).where(*as_it_was))
        self._tell(entry.queue)

    async def _change(self, values: dict[str, Any], conditions: tuple[ColumnElement[bool], ...]) -> bool:
        async with self._node.db.transaction() as tx:
            return await update_where(tx, WorkQueueEntryModel, values, *conditions) > 0

    async def _take(self, entry: WorkQueueEntryModel, as_it_was: tuple[ColumnElement[bool], ...]) -> bool:
        """Make an entry of a dead node this node's; whether it is."""
        values: dict[str, Any] = {"node_uuid": self._node.uuid, "attempt": entry.attempt + 1}
        try:
            taken = await self._change(values, as_it_was)
        except CloudError as error:
            if "ambiguous" not in error.facts:
                raise
            taken = await self._is_ours(entry.uuid, values["attempt"])
        if taken:
            entry.node_uuid, entry.attempt = values["node_uuid"], values["attempt"]
        return taken

    async def _is_ours(self, uuid: str, attempt: int) -> bool:
        """Whether a commit happened whose connection was lost: an entry that is this
        node's and that it does not know of would hold up its queue."""
        row = WorkQueueEntryModel
        ours = select(row.id).where(row.uuid == uuid, row.node_uuid == self._node.uuid, row.attempt == attempt)
        return await self._node.db.read_surely(lambda session: session.scalar(ours)) is not None

    # --- turns --------------------------------------------------------------------------------------------------------

    def _tell(self, queue: str) -> None:
        self._node.bus.publish(WorkQueueMoved(queue=queue))

    async def _on_moved(self, _event: WorkQueueMoved) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def _pause(self) -> None:
        """Until something moved, or some time is over: news may be lost. Raises TIMEOUT at the deadline."""
        left = context.current().remaining()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._moved.wait(), _LOOK_AGAIN if left is None else min(left, _LOOK_AGAIN))


def _outcome(entry: WorkQueueEntryModel) -> Any:
    if entry.error is not None:
        raise journal.decode_error(entry.error)
    return msgspec.json.decode(entry.result or "null")


def _gone(uuid: str) -> CloudError:
    return CloudError(
        MANAGEMENT_NODE_UNAVAILABLE, f"work {uuid} is no longer in its queue: its node was taken for dead"
    )
