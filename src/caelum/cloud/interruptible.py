"""Long work that somebody else may call off: the undo of a workflow step whose message still runs.

A step that is cancelled leaves its message to its handler, which goes on. The undo that follows calls the work off by
its key, then waits for its turn in the same queue, and finds everything at rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from caelum.kernel.errors import CANCELED, CloudError

T = TypeVar("T")


class Interruptible:
    """The work of one service on one node, by key."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    async def run(self, key: str, work: Coroutine[Any, Any, T]) -> T:
        """Do the work; CANCELED when it was called off. One work per key at a time: run it in the key's queue."""
        task = asyncio.ensure_future(work)
        self._tasks[key] = task
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise CloudError(CANCELED, f"the work on {key} was called off") from None
        finally:
            del self._tasks[key]

    def call_off(self, key: str) -> None:
        """Cancel the work of this key, if there is any."""
        task = self._tasks.get(key)
        if task is not None:
            task.cancel()
