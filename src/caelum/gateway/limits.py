"""What one client may cost: requests per second, requests at a time, failed logins.

Invariant: what is remembered of clients is bounded; a client that keeps within its limits never notices them.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

from caelum.gateway.refusal import Refusal

_MOST_CLIENTS = 20_000
FREE_LOGIN_FAILURES = 10
LONGEST_LOGIN_WAIT = 60.0
_FORGET_AFTER = 900.0


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
    """How many requests are worked on at a time."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self.running = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """A place among the running requests for the time of the block."""
        if self.running >= self._limit():
            raise too_many(f"{self.running} requests are being worked on", 1.0)
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1


def too_many(why: str, seconds: float) -> Refusal:
    """The refusal of a client that asks too much, with the time to come back."""
    return Refusal(429, f"too many requests: {why}", {"Retry-After": str(max(1, math.ceil(seconds)))})


def _trim(table: OrderedDict[str, tuple[float, float]] | OrderedDict[str, tuple[int, float]]) -> None:
    while len(table) > _MOST_CLIENTS:
        table.popitem(last=False)
