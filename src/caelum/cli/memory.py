"""What the server asks of Python's and the C library's memory management: short pauses, and memory that goes back.

Invariant: no cycle of garbage is kept for longer than `_THAW` and one more collection. What was looked at and found in
use is not looked at again until then.
"""

from __future__ import annotations

import ctypes
import gc
import time
from typing import Any

_M_MMAP_THRESHOLD = -3
_LARGE = 128 << 10
"""Bytes from which on memory is taken from the system by itself and goes back to it. glibc begins so, but raises this
with what is freed, and then the 256 KB that the event loop reserves for each TLS connection and hardly touches lie
among the rest, in memory that others have used before."""
_GARBAGE = (5_000, 5, 160)
"""How many new objects, and collections of younger ones, come before a collection: Python's own numbers suit programs
of a few objects, and a collection of old ones holds everything up. One of the middle generation looks at 25,000 objects
that no processor's cache has lost yet, which takes a few milliseconds."""
_OLDEST = 2
_LONG = 0.02
"""Seconds of the processor that a collection may take before what it left is no longer looked at."""
_THAW = 3600.0
"""Seconds after which everything is looked at once."""


def map_large_blocks() -> None:
    """Where the C library is not glibc, there is no such thing to set."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


class Collections:
    """Keeps collections of old objects short: with thousands of hosts and operations there are millions of them, and
    each collection would stop the event loop for as long as it takes to look at all.

    What survives a long collection is frozen. It is freed as ever when nobody refers to it; only cycles wait for the
    collection after the next thaw.
    """

    def __init__(self) -> None:
        self._begun = 0.0
        self._thawed = time.monotonic()

    def start(self) -> None:
        """What has been loaded stays; from now on, collections are rare and short."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GARBAGE)
        gc.callbacks.append(self.observe)

    def stop(self) -> None:
        """Look no longer; without a start there is nothing to do."""
        if self.observe in gc.callbacks:
            gc.callbacks.remove(self.observe)

    def observe(self, phase: str, info: dict[str, Any]) -> None:
        """The collector tells of the begin and the end of each collection."""
        if info["generation"] != _OLDEST:
            return
        if phase == "start":
            if time.monotonic() - self._thawed >= _THAW:
                self._thawed = time.monotonic()
                gc.unfreeze()
            self._begun = time.thread_time()
        elif time.thread_time() - self._begun > _LONG:
            gc.freeze()
