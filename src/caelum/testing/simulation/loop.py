"""An event loop on a virtual clock, whose callbacks belong to machines that can be stopped or killed between any two.

Invariant: no callback runs but by this loop, in an order that the program and the seed decide; nothing waits for the
real world. A callback belongs to the machine whose code scheduled it, one of a task to the machine of the task. A
machine that is dead never runs again, not even a `finally`: exactly what the end of a process does.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import weakref
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

R = TypeVar("R")

SHORTEST_THREAD, LONGEST_THREAD = 0.0001, 0.003
"""Seconds that work in a thread takes."""
_LIVELOCK = 2_000_000
_numbers = itertools.count(1)


class StuckError(Exception):
    """The simulated program cannot go on: nothing is left to run, or it runs without an end."""


class Machine:
    """Whose code runs: a process with an address and a clock of its own."""

    def __init__(self, name: str, ip: str) -> None:
        self.name, self.ip = name, ip
        self.alive, self.paused = True, False
        self.clock_offset = 0.0
        self.fuse: int | None = None
        """So many callbacks are left to it; then `on_fuse` is called."""
        self.on_fuse: Callable[[], None] = lambda: None
        self.held: list[OwnedHandle | OwnedTimer] = []

    def __repr__(self) -> str:
        return f"<{self.name}>"


class OwnedHandle(asyncio.Handle):
    """A callback with its machine."""

    __slots__ = ("machine",)
    machine: Machine


class OwnedTimer(asyncio.TimerHandle):
    """A callback at a time, with its machine. Those of one time run in the order in which they were made."""

    __slots__ = ("machine", "number")
    machine: Machine
    number: int

    def __lt__(self, other: Any) -> bool:
        return (self._when, self.number) < (other._when, other.number)  # type: ignore[attr-defined]


class OwnedTask(asyncio.Task[Any]):
    """A task of a machine. Sets of tasks have the same order in every run: a hash is a number, not an address."""

    def __init__(self, coroutine: Any, *, loop: VirtualLoop, context: Context | None = None) -> None:
        self.machine = loop.machine
        self.number = next(_numbers)
        super().__init__(coroutine, loop=loop, context=context)
        # The tasks of a machine that was killed stay as they are.
        self._log_destroy_pending = False
        loop.tasks.add(self)

    def __hash__(self) -> int:
        return self.number


class OrderedFuture(asyncio.Future[Any]):
    """A future with a hash that is the same in every run."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop) -> None:
        self.number = next(_numbers)
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop. `machine` is whose code runs now."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.director = Machine("director", "0.0.0.0")  # noqa: S104 - nothing listens there
        self.machine = self.director
        self.tasks: weakref.WeakSet[OwnedTask] = weakref.WeakSet()
        self.steps = 0
        self._chance = chance
        self._now = 0.0
        self._at_once = 0
        self.set_task_factory(self._new_task)

    def _new_task(
        self, loop: Any, coroutine: Any, context: Context | None = None  # noqa: ARG002 - asyncio's signature
    ) -> OwnedTask:  # fmt: skip
        return OwnedTask(coroutine, loop=self, context=context)

    # --- time and turns -----------------------------------------------------------------------------------------------

    def time(self) -> float:
        """Virtual seconds since the beginning."""
        return self._now

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        """See asyncio."""
        handle = OwnedHandle(callback, args, self, context)
        handle.machine = self._machine_of(callback)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        """See asyncio."""
        return self.call_at_for(self._machine_of(callback), when, callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        """See asyncio."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at_for(
        self, machine: Machine, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> OwnedTimer:
        """`call_at` for another machine: what the world does to it."""
        timer = OwnedTimer(when, callback, args, self, context)
        timer.machine, timer.number = machine, next(_numbers)
        timer._scheduled = True  # type: ignore[attr-defined]
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        return timer

    def _machine_of(self, callback: Any) -> Machine:
        machine = getattr(getattr(callback, "__self__", None), "machine", None)
        return machine if isinstance(machine, Machine) else self.machine

    def _run_once(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]
        scheduled: Any = self._scheduled  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if not ready:
            if not scheduled:
                raise StuckError("nothing is left to run")
            self._advance(scheduled[0]._when)
        while scheduled and scheduled[0]._when <= self._now:
            timer = heapq.heappop(scheduled)
            timer._scheduled = False
            ready.append(timer)
        for _ in range(len(ready)):
            self._turn(ready.popleft())

    def _advance(self, when: float) -> None:
        if when > self._now:
            self._now, self._at_once = when, 0

    def _turn(self, handle: OwnedHandle | OwnedTimer) -> None:
        machine = handle.machine
        if handle._cancelled or not machine.alive:
            return
        if machine.paused:
            machine.held.append(handle)
            return
        if machine.fuse is not None:
            machine.fuse -= 1
            if machine.fuse <= 0:
                machine.fuse = None
                machine.on_fuse()
                self._ready.appendleft(handle)  # type: ignore[attr-defined]
                return
        self.steps += 1
        self._at_once += 1
        if self._at_once > _LIVELOCK:
            raise StuckError(f"time stands still at {self._now:.6f}: {handle!r} of {machine.name}")
        self.machine = machine
        handle._run()
        self.machine = self.director

    # --- machines -----------------------------------------------------------------------------------------------------

    def run_on(self, machine: Machine, coroutine: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        """Start a task of another machine."""
        former, self.machine = self.machine, machine
        try:
            return self.create_task(coroutine, context=Context())
        finally:
            self.machine = former

    def resume(self, machine: Machine) -> None:
        """Let a paused machine go on where it was."""
        machine.paused = False
        held, machine.held = machine.held, []
        self._ready.extend(held)  # type: ignore[attr-defined]

    # --- what would leave the process ---------------------------------------------------------------------------------

    def create_future(self) -> asyncio.Future[Any]:
        """See asyncio."""
        return OrderedFuture(loop=self)

    def run_in_executor(  # type: ignore[override]
        self,
        executor: Any,
        func: Any,
        *args: Any,  # noqa: ARG002 - there are no threads
    ) -> Any:
        """The work is done in one piece, a little later."""
        future = self.create_future()

        def work() -> None:
            if future.cancelled():
                return
            try:
                future.set_result(func(*args))
            except StopIteration as error:
                future.set_exception(RuntimeError(f"StopIteration in a thread: {error}"))
            except Exception as error:
                future.set_exception(error)

        self.call_later(self._chance.uniform(SHORTEST_THREAD, LONGEST_THREAD), work)
        return future

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody waits."""
