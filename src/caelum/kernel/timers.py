"""Periodic work of a node.

Invariant: a timer runs its function once at a time, outside any queue and without a deadline; an error is logged and
the next run comes. Intervals are jittered, so that timers of many nodes do not beat together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any

from caelum.kernel import context

if TYPE_CHECKING:
    from caelum.kernel.settings import Setting

log = logging.getLogger(__name__)

JITTER = 0.1
"""Largest deviation from the interval, as a share of it."""
_LONGEST_WAIT = 5.0
"""How soon a changed interval is noticed, in seconds."""

Interval = Callable[[], float]


class Timer:
    """One periodic function."""

    def __init__(self, name: str, interval: Interval, function: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.name = name
        self.runs = 0
        self.failures = 0
        self._interval = interval
        self._function = function
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; the first run comes after one interval."""
        if self._task is None:
            # An empty context: the work belongs to nobody's job, deadline or queue turn.
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._tick(), name=f"timer:{self.name}", context=Context())

    def run_now(self) -> None:
        """Let the next run come at once."""
        self._wake.set()

    def cancel(self) -> None:
        """End the timer, and a run that is going on."""
        if self._task is not None:
            self._task.cancel()

    async def stop(self) -> None:
        """End the timer and wait until it has ended."""
        self.cancel()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _tick(self) -> None:
        context.enter(context.TaskContext(api=f"timer:{self.name}"))
        while True:
            await self._sleep()
            self.runs += 1
            try:
                await self._function()
            except Exception:
                self.failures += 1
                log.exception("the periodic task %s failed; it runs again", self.name)

    async def _sleep(self) -> None:
        loop = asyncio.get_running_loop()
        begun, factor = loop.time(), 1 + random.uniform(-JITTER, JITTER)  # noqa: S311 - spreads load, hides nothing
        # The interval is asked again and again, so that a changed setting counts before a long wait is over.
        while not self._wake.is_set() and (left := begun + self._interval() * factor - loop.time()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, _LONGEST_WAIT)):
                    await self._wake.wait()
        self._wake.clear()


class Timers:
    """All timers of a node. Timers that are made before the node starts begin with it."""

    def __init__(self, value_of: Callable[[Any], Any]) -> None:
        self._value_of = value_of
        self._timers: list[Timer] = []
        self._started = False

    def every(
        self, interval: float | Setting[Any], function: Callable[[], Coroutine[Any, Any, Any]], *, name: str = ""
    ) -> Timer:
        """Call `function()` again and again; `interval` is in seconds, or a setting that holds them."""
        seconds = self._reader(interval)
        timer = Timer(name or getattr(function, "__qualname__", repr(function)), seconds, function)
        self._timers.append(timer)
        if self._started:
            timer.start()
        return timer

    def start(self) -> None:
        """Start all timers."""
        self._started = True
        for timer in self._timers:
            timer.start()

    async def stop(self) -> None:
        """Stop all timers and the runs that are going on."""
        self._started = False
        await asyncio.gather(*(timer.stop() for timer in self._timers))

    def _reader(self, interval: float | Setting[Any]) -> Interval:
        if isinstance(interval, int | float):
            fixed = float(interval)
            return lambda: fixed
        return lambda: float(self._value_of(interval))
