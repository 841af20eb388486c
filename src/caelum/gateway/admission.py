"""Which of the operations that were accepted begin now: so many that the event loop's turns stay short.

Invariant: who waits begins in the order in which it came, at least one with each turn of the loop, so nobody waits for
ever. What has begun is never held up here: it may hold what others wait for.

Thousands of clients may ask at the same moment. Were all of them worked on at once, each turn would serve each of them
a little, and take seconds in which no ping, heartbeat or poll is answered; none of them would be done any sooner.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

_SHORT = 0.01
"""Seconds that a turn of the loop may take before no more than one operation begins with the next."""
_TOGETHER = 8
"""So many operations may begin with one turn."""


class Admission:
    """The operations of one node that have not begun yet."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._turn: asyncio.Handle | None = None
        self._turned = 0.0
        self._begun = 0

    @property
    def waiting(self) -> int:
        """How many operations wait."""
        return len(self._waiting)

    async def turn(self) -> None:
        """Wait until this operation may begin, which is at once as long as few come."""
        if not self._waiting and self._begun < _TOGETHER:
            self._begun += 1
            self._look_again()
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        await place

    def _look_again(self) -> None:
        if self._turn is None:
            self._turned = time.monotonic()
            self._turn = asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        """The loop has served once whatever was ready; as long as somebody waits, it is asked at each turn."""
        self._turn = None
        took = time.monotonic() - self._turned
        self._begun = 0
        most = _TOGETHER if took < _SHORT else 1
        while self._waiting and self._begun < most:
            place = self._waiting.popleft()
            if not place.done():  # it was given up
                place.set_result(None)
                self._begun += 1
        if self._begun:
            self._look_again()
