"""What the server asks of Python's and the C library's memory management: short pauses, and memory that goes back.

Invariant: no cycle of garbage is kept for longer than `_THAW` and one more collection. What was looked at and found in
use is not looked at again until then.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import time
from typing import Any

_M_MMAP_THRESHOLD = -3
_LARGE = 128 << 10
"""Bytes from which on memory is taken from the system by itself and goes back to it. glibc begins so, but raises this
with what is freed, and then the 256 KB that the event loop reserves for each TLS connection and hardly touches lie
among the rest, in memory that others have used before."""
_GARBAGE = (5_000, 100_000, 100_000)
"""How many more objects than were freed, and collections of younger ones, come before a collection: Python's own
numbers suit programs of a few objects, and a collection of old ones holds everything up. Those between young and old
are never looked at: a burst of requests leaves a hundred thousand of them."""
_WORK, _LEAST_WORK = 0.2, 0.02
"""Seconds of the processor after which the young are looked at, also when no more were made than were freed: mostly,
and when that finds very many."""
_SHORT = 0.005
"""Seconds of the processor that such a look should take at most."""
_LOOK = 0.1
"""Seconds between looks at what was used of the processor, at most."""
_SETTLED = 1.2
"""Seconds of the processor after which what survived a look is no longer looked at. A second look takes longer than
the first, with which the objects are still in the processor's cache, and finds next to nothing."""
_OLDEST = 2
_LONG = 0.02
"""Seconds of the processor that a collection may take before what it left is no longer looked at."""
_THAW = 3600.0
"""Seconds after which everything is looked at once."""
_CALM_LOOK = 5.0
"""Seconds between looks at whether there was much work, and whether it is over."""
_MUCH = 30.0
"""Seconds of the processor after which it is worthwhile to give memory back."""
_CALM = 0.4
"""The share of one processor below which there is time for that: who needs memory meanwhile waits for some ms."""


def map_large_blocks() -> None:
    """Where the C library is not glibc, there is no such thing to set."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


class SpareMemory:
    """Gives memory back to the system that was freed between what is in use.

    The C library does so by itself only with what lies at the end. When thousands of hosts connect, what each handshake
    needs for a moment lies between what the connections keep: several KB for each of them.
    """

    def __init__(self) -> None:
        self._next_look: asyncio.TimerHandle | None = None
        self._used = 0.0
        """What the process had used of the processor at the last look."""
        self._work = 0.0
        """What it has used since memory was given back."""
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)

    def start(self) -> None:
        """Look from now on, where the C library is glibc. Call it on the event loop."""
        if self._trim is not None:
            self._used = time.process_time()
            self._plan()

    def stop(self) -> None:
        """Look no longer; without a start there is nothing to do."""
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None

    def _plan(self) -> None:
        self._next_look = asyncio.get_running_loop().call_later(_CALM_LOOK, self._look)

    def _look(self) -> None:
        self._plan()
        used = time.process_time()
        lately, self._used = used - self._used, used
        self._work += lately
        if self._work >= _MUCH and lately < _CALM * _CALM_LOOK:
            self._work = 0.0
            asyncio.get_running_loop().run_in_executor(None, self._give_back)

    def _give_back(self) -> None:
        if self._trim is not None:
            self._trim(0)


class Collections:
    """Keeps collections short: with thousands of hosts and operations there are millions of objects, and each
    collection stops the event loop for as long as it takes to look at all that it is about.

    Python counts how many more objects were made than freed. Where thousands of operations make new ones and free old
    ones, that number hardly changes, and the young become hundreds of thousands before anybody looks. So they are
    looked at after so much work, too; after less, where there are so many of them that a look takes long. What survives
    some of these, or a long collection of the oldest, is frozen. It is freed as ever when nobody refers to it; only
    cycles wait for the collection after the next thaw.
    """

    def __init__(self) -> None:
        self._begun = 0.0
        self._thawed = time.monotonic()
        self._used = 0.0
        """What the process had used of the processor when the young were looked at."""
        self._work = _WORK
        """What it uses until they are looked at again."""
        self._settled = 0.0
        """What it had used when survivors were frozen."""
        self._next_look: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """What has been loaded stays; from now on, collections are short. Call it on the event loop."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GARBAGE)
        gc.callbacks.append(self.observe)
        self._work = _WORK
        self._settled = time.process_time()
        self._look()

    def stop(self) -> None:
        """Look no longer; without a start there is nothing to do."""
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
            gc.callbacks.remove(self.observe)

    def observe(self, phase: str, info: dict[str, Any]) -> None:
        """The collector tells of the begin and the end of each collection."""
        if info["generation"] != _OLDEST:
            return
        if phase == "start":
            if self._thaws:
                self._thawed = time.monotonic()
                gc.unfreeze()
            self._begun = time.thread_time()
        elif time.thread_time() - self._begun > _LONG:
            gc.freeze()

    @property
    def _thaws(self) -> bool:
        return time.monotonic() - self._thawed >= _THAW

    def _look(self) -> None:
        """Collect after work: an idle server makes no garbage."""
        used = time.process_time()
        if used - self._used >= self._work:
            self._used = used
            self._collect()
            if used - self._settled >= _SETTLED:
                self._settled = used
                gc.freeze()
        self._next_look = asyncio.get_running_loop().call_later(min(_LOOK, self._work / 2), self._look)

    def _collect(self) -> None:
        if self._thaws:
            gc.collect(_OLDEST)
            return
        begun = time.thread_time()
        gc.collect(0)
        self._adapt(time.thread_time() - begun)

    def _adapt(self, took: float) -> None:
        """Have looks that take about as long as they should: twice as often, half as much has become of the young."""
        if took > _SHORT:
            self._work = max(_LEAST_WORK, self._work * max(0.25, _SHORT / took))
        elif took < _SHORT / 2:
            self._work = min(_WORK, self._work * 2)
