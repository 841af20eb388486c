"""Which statements of SQLite are quick enough to be run on the event loop: those that were so lately.

Invariant: what was slow once in earnest, or was not run for some seconds, is not called quick.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

_QUICK = 0.0005
"""Seconds that a statement may take on average to be run on the event loop."""
_SLICE = 0.005
"""Seconds after which one that runs quick statements lets others have their turn."""
_RISE, _FALL = 0.2, 0.5
"""The weight of the latest duration in the average, when it is longer and when it is shorter. A short one is certain; a
long one may be that of another program that had the processor, or of another thread that had the interpreter."""
_LONGEST = 4 * _QUICK
"""What counts of a duration: one long one does not make a statement slow, two do."""
_STALL = 0.02
"""Seconds for which the event loop was held up in earnest: such a run on it counts whole."""
_FRESH = 10.0
"""Seconds for which it is known how long a statement takes. What comes more rarely may find much more to do."""
_MOST = 5000


class Pace:
    """How long each statement takes lately."""

    def __init__(self) -> None:
        self._average: dict[str, float] = {}
        self._latest: dict[str, float] = {}
        """When each ran."""
        self._turn = time.monotonic()

    def quick(self, statement: str) -> bool:
        """Whether it took next to no time so far."""
        return self._average.get(statement, 1.0) < _QUICK

    def quick_lately(self, statement: str, now: float) -> bool:
        """Whether it took next to no time a moment ago."""
        return self._average.get(statement, 1.0) < _QUICK and now - self._latest.get(statement, -_FRESH) < _FRESH

    def took(self, statement: str, seconds: float, *, here: bool = False) -> None:
        """Note how long it took: in a thread, or `here` on the event loop."""
        known = self._average.get(statement)
        if known is None and len(self._average) >= _MOST:
            self._average.clear()
            self._latest.clear()
        self._latest[statement] = time.monotonic()
        if not here or seconds < _STALL:
            seconds = min(seconds, _LONGEST)
        known = seconds if known is None else known
        self._average[statement] = known + (_RISE if seconds > known else _FALL) * (seconds - known)

    def timed(self, statement: str, work: Callable[[], Any], *, here: bool = False) -> Any:
        """Do the work, and note how long it took."""
        begun = time.monotonic()
        try:
            return work()
        finally:
            self.took(statement, time.monotonic() - begun, here=here)

    @property
    def long(self) -> bool:
        """Whether it is time to let others have their turn."""
        return time.monotonic() - self._turn > _SLICE

    async def breathe(self) -> None:
        """Let others have their turn."""
        await asyncio.sleep(0)
        self._turn = time.monotonic()
