"""The requests that wait for a command's answer in their own response.

Invariant: an answer that `tell` gave to somebody is in that request's hands; one that it gave to nobody goes to the
callback. No listener is told twice, and none waits longer than it said.
"""

from __future__ import annotations

import asyncio

from caelum.agent.protocol import TaskAnswer

LONGEST = 10.0
"""Seconds that a request may wait, whatever it asks for: each holds a connection."""
MOST = 256
"""Tasks that are waited for at once; the answers of others go to the callback."""


class Listeners:
    """Who waits, by task."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[asyncio.Future[TaskAnswer]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    async def hear(self, task_uuid: str, seconds: float) -> TaskAnswer | None:
        """The answer of a task, if it is told within so many seconds; begins to listen before it first yields."""
        if not seconds > 0 or len(self._waiting) >= MOST:
            return None
        heard: asyncio.Future[TaskAnswer] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(task_uuid, []).append(heard)
        try:
            await asyncio.wait([heard], timeout=min(seconds, LONGEST))
        finally:
            self._leave(task_uuid, heard)
        return heard.result() if heard.done() else None

    def tell(self, task_uuid: str, answer: TaskAnswer) -> bool:
        """Give an answer to whoever waits for it. False when nobody does."""
        listeners = self._waiting.get(task_uuid, ())
        for heard in listeners:
            heard.set_result(answer)
        return bool(listeners)

    def _leave(self, task_uuid: str, heard: asyncio.Future[TaskAnswer]) -> None:
        others = self._waiting[task_uuid]
        others.remove(heard)
        if not others:
            del self._waiting[task_uuid]
