"""When operations begin: as many as the database keeps up with.

Invariant: while few wait for the database, every operation begins at once, and those that wait begin in the order in
which they came. Who waits here holds nothing, so nothing that has begun waits for it.

An operation has a dozen transactions, and turns to write are given in order. When thousands of operations begin in the
same moment, each of them waits for all others at each of its transactions: all are half done for minutes, calls run
into their time limits, and what they had done has to be undone. One after the other they take as long in all, and the
first are done soon.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

_PAUSE = 0.005
"""Seconds between looks at how many wait, while somebody does or has just begun."""


class Admission:
    """Lets somebody begin while fewer than `few` wait; `crowd` tells how many do."""

    def __init__(self, crowd: Callable[[], int], few: int) -> None:
        self._crowd, self._few = crowd, few
        self._line: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._begun = 0
        """Who began since the last look: they do not wait yet, but will."""
        self._next_look: asyncio.TimerHandle | None = None

    @property
    def line(self) -> int:
        """How many have not begun."""
        return len(self._line)

    async def enter(self, seconds: float) -> None:
        """Return when it is the caller's turn to begin. Raises TimeoutError when that is not within so many seconds."""
        if self._next_look is None:
            self._next_look = asyncio.get_running_loop().call_later(_PAUSE, self._look)
        if not self._line and self._free > 0:
            self._begun += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._line[turn] = None
        try:
            async with asyncio.timeout(seconds):
                await turn
        finally:
            self._line.pop(turn, None)

    @property
    def _free(self) -> int:
        return self._few - self._crowd() - self._begun

    def _look(self) -> None:
        idle, self._begun = not self._begun, 0
        while self._line and self._free > 0:
            turn, _ = self._line.popitem(last=False)
            if not turn.done():
                turn.set_result(None)
                self._begun += 1
        again = self._line or not idle
        self._next_look = asyncio.get_running_loop().call_later(_PAUSE, self._look) if again else None
