"""What clients may cost: requests per second, requests at a time, failed logins.

Invariant: what is remembered of clients is bounded; a client that keeps within its limits never notices them. A place
among the requests that are worked on is given back exactly once, however its request ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator

from caelum.gateway.refusal import Refusal

_MOST_CLIENTS = 20_000
FREE_LOGIN_FAILURES = 10
LONGEST_LOGIN_WAIT = 60.0
_FORGET_AFTER = 900.0
_LONGEST_LINE = 10_000
"""Requests that may wait for a place, each in some KB of memory."""
_LINE_SECONDS = 20.0
"""How long each may."""
_MOST_IDLE = 20_000
"""Requests that may wait for what is worked on elsewhere."""


class RateLimit:
    """A token bucket per client. The numbers are asked at each use, since they are settings."""

    def __init__(self, rate: Callable[[], float], burst: Callable[[], float]) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> None:
        """Let one request pass, or refuse it with the seconds until the next may come."""
        now, rate = time.monotonic(), self._rate()
        tokens, since = self._buckets.pop(client, (self._burst(), now))
        tokens = min(self._burst(), tokens + (now - since) * rate)
        allowed = tokens >= 1
        self._buckets[client] = (tokens - 1 if allowed else tokens, now)
        _trim(self._buckets)
        if not allowed:
            raise too_many(f"more than {rate:g} requests per second", (1 - tokens) / rate)


class LoginLimit:
    """Failed logins per client: after some free ones, each further failure doubles the wait."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def check(self, client: str) -> None:
        """Refuse an attempt that comes too early."""
        count, last = self._failures.get(client, (0, 0.0))
        if count < FREE_LOGIN_FAILURES:
            return
        wait = min(LONGEST_LOGIN_WAIT, 2.0 ** min(count - FREE_LOGIN_FAILURES, 10))
        left = last + wait - time.monotonic()
        if left > 0:
            raise too_many(f"{count} failed logins", left)

    def failed(self, client: str) -> None:
        """Note a failed attempt."""
        count, last = self._failures.pop(client, (0, 0.0))
        now = time.monotonic()
        self._failures[client] = (1 if now - last > _FORGET_AFTER else count + 1, now)
        _trim(self._failures)


class Concurrency:
    """How many requests are worked on at a time. Those that come when these are enough wait in line for a while: most
    are done within milliseconds, and thousands of clients that are refused all come again, in the same moment."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._line: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self.running = 0
        self.idle = 0
        """Requests that wait for something that is worked on elsewhere."""

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """A place among the running requests for the time of the block. Raises a refusal when none becomes free."""
        if self._line or self.running >= self._limit():
            await self._stand_in_line()
        else:
            self.running += 1
        try:
            yield
        finally:
            self._leave()

    @property
    def may_idle(self) -> bool:
        """Whether one more request may wait."""
        return self.idle < _MOST_IDLE

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Somebody else may have the request's place while the block only waits."""
        self.idle += 1
        self._leave()
        try:
            yield
        finally:
            self.idle -= 1
            self.running += 1  # at once, for it has nothing to do but to answer

    @property
    def line(self) -> int:
        """How many wait for a place."""
        return len(self._line)

    async def _stand_in_line(self) -> None:
        """Wait for a place, which whoever leaves hands over."""
        if len(self._line) >= _LONGEST_LINE:
            raise too_many(f"{len(self._line)} wait already", _LINE_SECONDS)
        place = asyncio.get_running_loop().create_future()
        self._line[place] = None
        try:
            async with asyncio.timeout(_LINE_SECONDS):
                await place
        except BaseException as error:
            self._line.pop(place, None)
            if place.done() and not place.cancelled():
                self._leave()  # it was handed over in the same moment
            if isinstance(error, TimeoutError):
                raise too_many(f"{self.running} are being worked on", 1.0) from None
            raise

    def _leave(self) -> None:
        self.running -= 1
        while self._line and self.running < self._limit():
            place, _ = self._line.popitem(last=False)
            if not place.done():
                self.running += 1
                place.set_result(None)


def too_many(why: str, seconds: float) -> Refusal:
    """The refusal of a client that asks too much, with the time to come back."""
    return Refusal(429, f"too many requests: {why}", {"Retry-After": str(max(1, math.ceil(seconds)))})


def _trim(table: OrderedDict[str, tuple[float, float]] | OrderedDict[str, tuple[int, float]]) -> None:
    while len(table) > _MOST_CLIENTS:
        table.popitem(last=False)
