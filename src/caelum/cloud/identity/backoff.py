"""Brute force made slow: after a few failures in a row each attempt on an account waits before it is looked at.

Invariant: nobody is locked out, so a guesser cannot keep an account's owner from logging in; the wait is bounded, and
what is remembered is bounded too.
"""

from __future__ import annotations

import time
from collections import OrderedDict

import msgspec

FREE_FAILURES = 4
FIRST_WAIT = 0.25
LONGEST_WAIT = 4.0
FORGET_AFTER = 600.0
_MOST = 10_000


class _Failures(msgspec.Struct):
    count: int
    last: float


class Backoff:
    """Failures in a row by name."""

    def __init__(self) -> None:
        self._by_name: OrderedDict[str, _Failures] = OrderedDict()

    def wait_for(self, name: str) -> float:
        """Seconds that the next attempt on this name waits."""
        known = self._by_name.get(name)
        if known is None or time.monotonic() - known.last > FORGET_AFTER or known.count < FREE_FAILURES:
            return 0.0
        return float(min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(known.count - FREE_FAILURES, 10)))

    def failed(self, name: str) -> None:
        """Note a failure."""
        known = self._by_name.pop(name, None)
        now = time.monotonic()
        fresh = known is None or now - known.last > FORGET_AFTER
        self._by_name[name] = _Failures(1 if known is None or fresh else known.count + 1, now)
        while len(self._by_name) > _MOST:
            self._by_name.popitem(last=False)

    def succeeded(self, name: str) -> None:
        """Forget the failures."""
        self._by_name.pop(name, None)
