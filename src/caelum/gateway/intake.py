"""How many requests begin in one turn of the event loop.

Invariant: however many connections become readable at once, other work waits for a few requests only, and no request
waits while the loop has nothing else to do. Requests begin in the order in which they came.

A turn of the loop runs everything that is ready. When thousands of clients come at the same moment, each of them would
have its request read in one turn, its handler begun in the next, and its first statement run in the third: turns of
seconds, for which timers, agents' answers and running operations would wait.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

_LEAST, _MOST = 4, 16
"""Requests that begin in a turn: when turns are long already, and when they are not."""
_TURN = 0.005
"""Seconds that a turn should last at most."""
_COST = 0.0003
"""Seconds of a turn that a request takes until it waits for something, about."""


class Intake:
    """Lets requests begin; those that are too many for one turn, in the next ones."""

    def __init__(self) -> None:
        self._left = _MOST
        self._waiting: deque[Callable[[], bool]] = deque()
        self._begun: float | None = None
        """When the turn began, as long as turns are counted."""

    def admits(self) -> bool:
        """Whether a request may begin now; who may not, waits (`wait`)."""
        self._count()
        if self._waiting or not self._left:
            return False
        self._left -= 1
        return True

    def wait(self, begin: Callable[[], bool]) -> None:
        """Call `begin` when it is the request's turn; it tells whether there still is one."""
        self._waiting.append(begin)
        self._count()

    @property
    def waiting(self) -> int:
        """How many requests came that have not begun."""
        return len(self._waiting)

    def _count(self) -> None:
        if self._begun is None:
            self._begun = time.monotonic()
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        """Runs once in each turn, before what becomes ready in it."""
        now = time.monotonic()
        lasted = now - (self._begun or now)
        allowed = max(_LEAST, min(_MOST, int((_TURN - lasted) / _COST)))
        idle, self._left = self._left == _MOST, allowed
        if idle and not self._waiting:
            self._begun, self._left = None, _MOST
            return
        self._begun = now
        asyncio.get_running_loop().call_soon(self._next_turn)
        while self._waiting and self._left:
            self._left -= self._waiting.popleft()()
