"""Which commands' answers are waited for in the response to their own request, instead of a callback of the agent.

Invariant: a request that waits holds a connection, so there are few to a host and a bounded number in all; commands
of a kind that mostly takes longer are not waited for at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

_TO_A_HOST = 8
_IN_ALL = 1000
_WEIGHT = 0.1
"""Of the latest command, in the share of prompt ones."""
_ENOUGH = 0.5
"""The share of prompt commands of a kind from which on they are waited for."""


class Promptness:
    """Waits at most `seconds`; learns by kind of command how often that is enough."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._prompt: dict[str, float] = {}
        self._to_host: Counter[str] = Counter()
        self._in_all = 0

    @contextmanager
    def waiting(self, host_uuid: str, kind: str) -> Iterator[float]:
        """Seconds to wait for a command's answer in the block; 0 for one that is better called back."""
        usual = self._prompt.get(kind, 1.0) >= _ENOUGH
        if not usual or self._in_all >= _IN_ALL or self._to_host[host_uuid] >= _TO_A_HOST:
            yield 0.0
            return
        self._count(host_uuid, 1)
        try:
            yield self._seconds
        finally:
            self._count(host_uuid, -1)

    def learn(self, kind: str, took: float) -> None:
        """A command of a kind took so many seconds, however its answer came."""
        former = self._prompt.get(kind, 1.0)
        self._prompt[kind] = former + _WEIGHT * ((took <= self._seconds) - former)

    def _count(self, host_uuid: str, change: int) -> None:
        self._in_all += change
        self._to_host[host_uuid] += change
        if not self._to_host[host_uuid]:
            del self._to_host[host_uuid]
