"""How long work that may be repeated waits for a database, a broker or a node that is away.

Invariant: all that gives up does so after the same time, counted anew for each trouble: work may take hours, and meet
several. What must not give up does not ask.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

AWAY_SECONDS = 600.0
"""From the first failure on. The deadline of the work may end it earlier."""
_APART_SECONDS = 90.0
"""After so long without a failure the next one is another trouble. Longer than a statement waits for its answer."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0


class Patience:
    """The patience of one piece of work. `passes(error)` says which failures say nothing of the work itself."""

    def __init__(self, passes: Callable[[BaseException], bool]) -> None:
        self._passes = passes
        self._until = self._latest = float("-inf")
        """When it ends, and when the latest failure was."""
        self._pause = _FIRST_PAUSE

    def bears(self, error: BaseException) -> bool:
        """Whether to try again after this error."""
        if not self._passes(error):
            return False
        now = time.monotonic()
        if now - self._latest >= _APART_SECONDS:
            self._until, self._pause = now + AWAY_SECONDS, _FIRST_PAUSE
        self._latest = now
        return now < self._until

    async def pause(self) -> None:
        """Wait until the next try: a little longer each time."""
        await asyncio.sleep(self._pause)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
