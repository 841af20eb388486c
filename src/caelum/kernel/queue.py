"""Work queues instead of locks: tasks of one signature run in order, at most `level` at a time.

Invariant: a queue exists while it has running or waiting tasks and is forgotten with the last one; every turn that was
given is taken back exactly once, however its task ends, so no queue can get stuck.

Level 1 runs tasks one after another, level n up to n at once, level 0 all at once; tasks start in order of arrival.
The level of the latest task counts. A task waits no longer than its context's deadline. A task that waits for a task of
a queue in which it runs itself would wait for ever: that is refused (`QUEUE_REENTERED`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from contextvars import Context, ContextVar
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

import msgspec

from caelum.kernel import context, freshness
from caelum.kernel.errors import CANCELED, TIMEOUT, CloudError, error_type
from caelum.kernel.ids import new_uuid

log = logging.getLogger(__name__)

T = TypeVar("T")
Function = Callable[..., Coroutine[Any, Any, T]]

DEFAULT_CAP = 50_000
"""Tasks that may wait in one queue."""
_FIRST_WARNING = 50
_WARNING_FACTOR = 5

QUEUE_FULL = error_type(
    "CAELUM.1001",
    "Too many tasks wait in a queue",
    "Wait until the tasks before are done, then repeat.",
    transient=True,
)
QUEUE_REENTERED = error_type(
    "CAELUM.1002", "A task waits for a task of its own queue", "This is a defect of the service; report it."
)


class TaskDump(msgspec.Struct, frozen=True):
    """A task in a queue; `age` is in seconds since it began to wait or to run."""

    name: str
    age: float
    job_uuid: str | None = None


class QueueDump(msgspec.Struct, frozen=True):
    """What a queue holds now."""

    level: int
    running: list[TaskDump]
    pending: list[TaskDump]


class _Turn:
    """A task's place in a queue: waiting while `granted` is an unfinished future, running once it is done or None."""

    __slots__ = ("__weakref__", "granted", "job_uuid", "live", "name", "public_name", "queue", "since")

    def __init__(self, queue: _Queue, name: str) -> None:
        self.queue = queue
        self.name = name
        self.since = time.monotonic()
        self.job_uuid = context.current().job_uuid
        self.granted: asyncio.Future[None] | None = None
        self.live = False
        self.public_name: str | None = None

    def dump(self, now: float) -> TaskDump:
        return TaskDump(self.name, now - self.since, self.job_uuid)


class _Queue:
    __slots__ = ("flights", "level", "pending", "running", "signature", "waiting", "warn_at")

    def __init__(self, signature: str) -> None:
        self.signature = signature
        self.level = 1
        self.running: dict[_Turn, None] = {}
        self.pending: OrderedDict[_Turn, None] = OrderedDict()
        self.waiting: dict[str, QueueTask[Any]] = {}
        self.flights: dict[str, QueueTask[Any]] = {}
        self.warn_at = _FIRST_WARNING

    @property
    def free(self) -> bool:
        return self.level <= 0 or len(self.running) < self.level


# The turns in which the running task (or the task that waits for it) runs. Inherited by tasks that it starts; a turn
# that has ended is dead, so a background task that outlives its creator is not taken for it.
_held: ContextVar[tuple[_Turn, ...]] = ContextVar("queue_turns", default=())
# The same for turns in other processes, by the names that those gave them.
_held_elsewhere: ContextVar[tuple[str, ...]] = ContextVar("queue_turns_elsewhere", default=())
_named: WeakValueDictionary[str, _Turn] = WeakValueDictionary()


def name_turns() -> list[str]:
    """Names for the turns in which the running task runs, by which a message that comes back here finds them."""
    names = list(_held_elsewhere.get())
    for turn in _held.get():
        if turn.live and turn.queue.level > 0:
            if turn.public_name is None:
                turn.public_name = new_uuid()
                _named[turn.public_name] = turn
            names.append(turn.public_name)
    return names


def enter_turns(names: Sequence[str]) -> None:
    """Run the rest of the running asyncio task in the turns that a message from elsewhere names."""
    found = {name: turn for name in names if (turn := _named.get(name)) is not None}
    _held.set(tuple(found.values()))
    _held_elsewhere.set(tuple(name for name in names if name not in found))


def holds(signature: str | None) -> bool:
    """Whether the running task runs in a turn of this queue."""
    return any(turn.live and turn.queue.signature == signature for turn in _held.get())


class QueueTask(Generic[T]):
    """A submitted task: await it for the result, `cancel()` it while it waits or runs."""

    def __init__(self, queues: WorkQueues, turn: _Turn, task: asyncio.Task[T]) -> None:
        self._queues = queues
        self._turn = turn
        self._task = task
        self._waiters = 0

    def cancel(self) -> bool:
        """Take the task out of the queue, or cancel it where it runs; False when it is already done."""
        return self._task.cancel()

    def done(self) -> bool:
        """Whether the task has ended."""
        return self._task.done()

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()

    async def _wait(self) -> T:
        self._queues.refuse_reentrance(self._turn.queue.signature)
        self._waiters += 1
        try:
            return await asyncio.shield(self._task)
        except asyncio.CancelledError:
            if self._task.cancelled() and not _being_cancelled():
                raise CloudError(CANCELED, f"the task was cancelled in queue {self._turn.queue.signature}") from None
            # Nobody else wants the result and nothing was done yet: the place in the queue goes to the next.
            if self._waiters == 1 and not self._turn.live:
                self._task.cancel()
            raise
        finally:
            self._waiters -= 1
            freshness.heard()  # the task may be another's work, which heard more than this

    def landed(self) -> None:
        """Report a failure that nobody waits for."""
        if not self._task.cancelled() and (error := self._task.exception()) is not None and self._waiters == 0:
            log.error("task %s in queue %s failed", self._turn.name, self._turn.queue.signature, exc_info=error)


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class WorkQueues:
    """All queues of a node. `cap` limits the waiting tasks of each queue."""

    def __init__(self, cap: int = DEFAULT_CAP) -> None:
        self._cap = cap
        self._queues: dict[str, _Queue] = {}

    async def run(
        self,
        signature: str,
        level: int,
        function: Function[T],
        *args: Any,
        name: str | None = None,
        dedup: str | None = None,
        single_flight: str | None = None,
    ) -> T:
        """Run `function(*args)` when its turn comes and return its result.

        `dedup` joins a task of the same key that still waits; `single_flight` also one that already runs. A caller
        that is cancelled leaves the queue; a joined task goes on while anyone waits for it.
        """
        if dedup is not None or single_flight is not None:
            self.refuse_reentrance(signature)
            return await self.submit(
                signature, level, function, *args, name=name, dedup=dedup, single_flight=single_flight
            )
        turn = self._enter(signature, level, name or function.__name__)
        if turn.granted is not None:
            await self._wait(turn, turn.granted)
        token = _held.set((*_held.get(), turn))
        try:
            return await function(*args)
        finally:
            _held.reset(token)
            self._leave(turn)

    def submit(
        self,
        signature: str,
        level: int,
        function: Function[T],
        *args: Any,
        name: str | None = None,
        dedup: str | None = None,
        single_flight: str | None = None,
    ) -> QueueTask[T]:
        """Like `run`, without waiting: the task is in the queue when this returns."""
        queue = self._queues.get(signature)
        if queue is not None:
            joined = queue.waiting.get(dedup or "") or queue.flights.get(single_flight or "")
            if joined is not None:
                return joined
        turn = self._enter(signature, level, name or function.__name__, waits=False)
        return self._start(turn, function, args, dedup, single_flight)

    @contextlib.asynccontextmanager
    async def turn(self, signature: str, level: int = 1, name: str = "turn") -> AsyncIterator[None]:
        """Hold a place in the queue for a block."""
        turn = self._enter(signature, level, name)
        if turn.granted is not None:
            await self._wait(turn, turn.granted)
        token = _held.set((*_held.get(), turn))
        try:
            yield
        finally:
            _held.reset(token)
            self._leave(turn)

    def hold(
        self,
        signature: str,
        level: int,
        function: Callable[[Callable[[], None]], Coroutine[Any, Any, T]],
        *,
        name: str | None = None,
    ) -> QueueTask[T]:
        """The completion-notice form: `function(done)` may return early, its turn lasts until `done()` is called.

        Only the first notice counts. An exception ends the turn, and so does the context's deadline.
        """

        async def until_done() -> T:
            notice = asyncio.get_running_loop().create_future()
            result = await function(lambda: None if notice.done() else notice.set_result(None))
            try:
                async with asyncio.timeout(context.current().remaining()):
                    await notice
            except TimeoutError:
                raise CloudError(TIMEOUT, f"no completion notice in queue {signature} before the deadline") from None
            return result

        return self.submit(signature, level, until_done, name=name or function.__name__)

    def dump(self) -> dict[str, QueueDump]:
        """What runs and what waits, by signature."""
        now = time.monotonic()
        return {
            queue.signature: QueueDump(
                queue.level, [turn.dump(now) for turn in queue.running], [turn.dump(now) for turn in queue.pending]
            )
            for queue in self._queues.values()
        }

    def depth(self) -> tuple[int, int, int]:
        """How many queues exist, how many tasks run in them, and how many wait."""
        queues = self._queues.values()
        return len(queues), sum(len(one.running) for one in queues), sum(len(one.pending) for one in queues)

    def refuse_reentrance(self, signature: str) -> None:
        """Raise QUEUE_REENTERED when the running task holds a turn of this queue."""
        for held in _held.get():
            if held.live and held.queue.level > 0 and self._queues.get(signature) is held.queue:
                raise CloudError(
                    QUEUE_REENTERED,
                    f"task {held.name} runs in queue {signature} since {time.monotonic() - held.since:.1f} s and may"
                    " not wait for another task of it",
                    queue=signature,
                )

    def _enter(self, signature: str, level: int, name: str, waits: bool = True) -> _Turn:
        queue = self._queues.get(signature)
        if queue is None:
            queue = self._queues[signature] = _Queue(signature)
        elif waits and level > 0:
            self.refuse_reentrance(signature)
        queue.level = level
        turn = _Turn(queue, name)
        if queue.free and not queue.pending:
            turn.live = True
            queue.running[turn] = None
            return turn
        if len(queue.pending) >= self._cap:
            raise self._full(queue)
        turn.granted = asyncio.get_running_loop().create_future()
        queue.pending[turn] = None
        self._pump(queue)
        self._warn(queue)
        return turn

    def _start(
        self, turn: _Turn, function: Function[T], args: tuple[Any, ...], dedup: str | None, single_flight: str | None
    ) -> QueueTask[T]:
        queue = turn.queue
        coroutine = self._run_turn(turn, function, args, dedup)
        task = asyncio.get_running_loop().create_task(coroutine, name=turn.name, context=outside())
        handle = QueueTask(self, turn, task)
        if dedup is not None and turn.granted is not None:
            queue.waiting[dedup] = handle
        if single_flight is not None:
            queue.flights[single_flight] = handle
        task.add_done_callback(lambda _task: self._landed(turn, handle, dedup, single_flight))
        return handle

    async def _run_turn(self, turn: _Turn, function: Function[T], args: tuple[Any, ...], dedup: str | None) -> T:
        if turn.granted is not None:
            await self._wait(turn, turn.granted)
            if dedup is not None:
                turn.queue.waiting.pop(dedup, None)
        _held.set((turn,))
        return await function(*args)

    def _landed(self, turn: _Turn, handle: QueueTask[Any], dedup: str | None, single_flight: str | None) -> None:
        # The task may have been cancelled before its first line ran, so the turn is taken back here, not in it.
        queue = turn.queue
        if dedup is not None and queue.waiting.get(dedup) is handle:
            del queue.waiting[dedup]
        if single_flight is not None and queue.flights.get(single_flight) is handle:
            del queue.flights[single_flight]
        self._leave(turn)
        handle.landed()

    async def _wait(self, turn: _Turn, granted: asyncio.Future[None]) -> None:
        expiry: asyncio.TimerHandle | None = None
        try:
            left = context.current().remaining()
            if left is not None:
                expiry = asyncio.get_running_loop().call_later(left, self._expire, turn)
            await granted
            freshness.heard()  # of what was done in the turns before
        except BaseException:
            self._leave(turn)
            raise
        finally:
            if expiry is not None:
                expiry.cancel()

    def _expire(self, turn: _Turn) -> None:
        if turn.granted is not None and not turn.granted.done():
            queue = turn.queue
            turn.granted.set_exception(
                CloudError(
                    TIMEOUT,
                    f"the deadline passed after {time.monotonic() - turn.since:.1f} s in queue {queue.signature},"
                    f" behind {len(queue.running)} running tasks of at most {queue.level}",
                    queue=queue.signature,
                )
            )

    def _leave(self, turn: _Turn) -> None:
        queue = turn.queue
        turn.live = False
        queue.running.pop(turn, None)
        queue.pending.pop(turn, None)
        if queue.pending:
            self._pump(queue)
        elif not queue.running and self._queues.get(queue.signature) is queue:
            del self._queues[queue.signature]

    def _pump(self, queue: _Queue) -> None:
        while queue.pending and queue.free:
            turn, _ = queue.pending.popitem(last=False)
            if turn.granted is not None and not turn.granted.done():
                turn.live = True
                turn.since = time.monotonic()
                queue.running[turn] = None
                turn.granted.set_result(None)

    def _full(self, queue: _Queue) -> CloudError:
        oldest = next(iter(queue.pending))
        return CloudError(
            QUEUE_FULL,
            f"{len(queue.pending)} tasks wait in queue {queue.signature}, and no more than {self._cap} may;"
            f" the oldest waits since {time.monotonic() - oldest.since:.1f} s behind {len(queue.running)} running",
            queue=queue.signature,
            pending=len(queue.pending),
            cap=self._cap,
            running=len(queue.running),
        )

    def _warn(self, queue: _Queue) -> None:
        if len(queue.pending) >= queue.warn_at:
            queue.warn_at *= _WARNING_FACTOR
            now = time.monotonic()
            log.warning(
                "%d tasks wait in queue %s behind %s",
                len(queue.pending),
                queue.signature,
                [turn.dump(now) for turn in queue.running],
            )


def outside(*, deadline: bool = True) -> Context:
    """A context for a background task that keeps the task context (its deadline or not) but no queue turns."""
    inside = context.current()
    fresh = Context()
    fresh.run(freshness.enter, freshness.current())
    fresh.run(context.enter, inside if deadline else context.with_deadline(inside, None))
    return fresh
