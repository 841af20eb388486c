"""How late the event loop is, and how much of that is its own doing.

Invariant: each moment counts. While the loop is held up nothing can look at it, so the looks that were due meanwhile
are made up for, each with the time by which it is late: a stall of a second weighs as much as it lasts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable

log = logging.getLogger(__name__)

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Seconds of lag that are told apart."""
INTERVAL = 0.1
"""Seconds between looks."""
_WARNING = 0.2
"""Seconds of lag that operators are told of."""
_SILENCE = 10.0
"""Seconds until they are told again, so that a busy machine does not fill its log."""
_NANO = 1e-9


class Lags:
    """How often the lag was how long."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one look."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds


class LoopWatch:
    """Measures how late the event loop is: what blocks it shows here.

    `explain` says what was seen at work meanwhile, and forgets it; see `cli/onlooker.py`.
    """

    def __init__(self) -> None:
        self.last = 0.0
        self.worst = 0.0
        self.lags, self.own_lags = Lags(), Lags()
        self.due: float | None = None
        """When the loop is to be looked at next, while it is watched."""
        self.explain: Callable[[], str] = lambda: ""
        self._told = -_SILENCE
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to measure."""
        self._task = asyncio.get_running_loop().create_task(self._watch(), name="loop-watch")

    async def stop(self) -> None:
        """End measuring."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        processor = _Processor()
        try:
            self.due = time.monotonic() + INTERVAL
            while True:
                await asyncio.sleep(self.due - time.monotonic())
                self._look(time.monotonic(), processor.waited())
        finally:
            self.due = None
            processor.close()

    def _look(self, now: float, waited: float) -> None:
        """Note how late it is, and for how long the thread waited for a processor since the look before."""
        due = self.due or now
        self.last = lag = max(0.0, now - due)
        self.worst = max(self.worst, lag)
        # As if it had waited evenly since the look before: nobody tells when it did.
        starved = min(1.0, waited / (lag + INTERVAL))
        while due <= now:
            self.lags.add(now - due)
            self.own_lags.add((now - due) * (1 - starved))
            due += INTERVAL
        self.due = due
        seen = self.explain()
        if lag > _WARNING and now - self._told > _SILENCE:
            self._told = now
            others = f", {lag * starved:.2f} s of it by other programs that had the processors" if starved > 0.1 else ""
            log.warning("the event loop was held up for %.2f s%s%s", lag, others, seen and f"; at work: {seen}")


class _Processor:
    """How long the running thread waits for a processor, as Linux tells; elsewhere it never does."""

    def __init__(self) -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        self._before = 0.0
        self.waited()

    def waited(self) -> float:
        """Seconds since this was asked before."""
        if self._file is None:
            return 0.0
        _, waited, _ = os.pread(self._file, 128, 0).split()
        before, self._before = self._before, int(waited) * _NANO
        return self._before - before

    def close(self) -> None:
        """Ask no more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
