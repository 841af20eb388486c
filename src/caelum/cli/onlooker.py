"""Sees from another thread what holds the event loop up, which nothing on the loop can.

Invariant: it only looks. A look takes microseconds, and while the loop is in time there is none.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from caelum.kernel.loop_watch import LoopWatch

_PAUSE = 0.05
"""Seconds between looks."""
_LATE = 0.05
"""Seconds of lag from which on what runs is noted."""
_MOST = 3
"""Places that are told."""
_OURS = str(Path(__file__).parents[1])


class Onlooker:
    """Tells the watch of the loop that runs in this thread what was at work while the loop was late."""

    def __init__(self, watch: LoopWatch) -> None:
        self._watch = watch
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; call it on the event loop."""
        self._watch.explain = self._told
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(
            target=self._look_on, args=(loop, threading.get_ident()), name="onlooker", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End; without a start there is nothing to do."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _look_on(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        while not self._stopped.wait(_PAUSE):
            due = self._watch.due
            if due is not None and time.monotonic() - due > _LATE and (what := _at_work(loop, thread)):
                with self._lock:
                    self._seen[what] += 1

    def _told(self) -> str:
        with self._lock:
            seen, self._seen = self._seen, Counter()
        looks = sum(seen.values())
        return ", ".join(f"{what} ({count} of {looks} looks)" for what, count in seen.most_common(_MOST))


def _at_work(loop: asyncio.AbstractEventLoop, thread: int) -> str | None:
    """What the thread does now. A function of its own: a frame that stays in a variable keeps all that it works on."""
    frame = sys._current_frames().get(thread)
    return None if frame is None else place(frame, asyncio.current_task(loop))


def place(frame: FrameType, task: asyncio.Task[object] | None) -> str:
    """What runs: the innermost function, the innermost of ours that called it, and the task's coroutine."""
    ours: FrameType | None = frame
    while ours is not None and not ours.f_code.co_filename.startswith(_OURS):
        ours = ours.f_back
    parts = [_named(frame)]
    if ours is not None and ours is not frame:
        parts.append(f"for {_named(ours)}")
    if task is not None:
        parts.append(f"in task {getattr(task.get_coro(), '__qualname__', task.get_name())}")
    return " ".join(parts)


def _named(frame: FrameType) -> str:
    return f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
