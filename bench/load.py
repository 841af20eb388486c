"""Load: closed (so many clients, each begins its next operation when the last has ended) and open (operations begin at
a given rate, whatever became of the ones before; their latency counts from when they were due).

What this program has loaded is not looked at for garbage during a load: that takes tens of milliseconds, which would
count as the server's.
"""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

Operation = Callable[[int], Awaitable[object]]


class Outcome(NamedTuple):
    """What a load showed: seconds in all, when each operation ended, how long each took, and what failed."""

    seconds: float
    ends: list[float]
    latencies: list[float]
    errors: list[BaseException]

    def percentile(self, share: float) -> float:
        """The latency in ms that this share of the operations did not exceed."""
        return percentile(self.latencies, share) * 1000

    def require(self) -> Outcome:
        """Raise the first error, if there was any."""
        if self.errors:
            raise RuntimeError(f"{len(self.errors)} of {len(self.latencies)} operations failed") from self.errors[0]
        return self


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


async def closed(operation: Operation, count: int, clients: int) -> Outcome:
    """`count` operations by so many clients."""
    waiting = iter(range(count))
    recorder = _Recorder(operation)

    async def client() -> None:
        for number in waiting:
            await recorder.one(number, time.perf_counter())

    await asyncio.gather(*(client() for _ in range(min(count, clients))))
    return recorder.outcome()


async def opened(operation: Operation, count: int, rate: float) -> Outcome:
    """`count` operations, `rate` of them begun each second."""
    recorder = _Recorder(operation)
    begun = time.perf_counter()
    tasks = []
    for number in range(count):
        due = begun + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(recorder.one(number, due)))
    await asyncio.gather(*tasks)
    return recorder.outcome()


class _Recorder:
    def __init__(self, operation: Operation) -> None:
        self._operation = operation
        gc.collect()
        gc.freeze()
        self._begun = time.perf_counter()
        self._ends: list[float] = []
        self._latencies: list[float] = []
        self._errors: list[BaseException] = []

    async def one(self, number: int, due: float) -> None:
        try:
            await self._operation(number)
        except Exception as error:
            self._errors.append(error)
        now = time.perf_counter()
        self._ends.append(now - self._begun)
        self._latencies.append(now - due)

    def outcome(self) -> Outcome:
        return Outcome(max(self._ends, default=0.0), self._ends, self._latencies, self._errors)
