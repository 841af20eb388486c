"""Checkpoints of SQLite: from time to time, one at a time, and not by whoever happens to commit."""

from __future__ import annotations

import asyncio
import sqlite3

_EVERY = 500
"""Transactions: a few MB of log."""


class Checkpoints:
    """Those of one file; without a `path` there are none."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._transactions = 0
        self._task: asyncio.Task[None] | None = None

    def committed(self) -> None:
        """A transaction was committed."""
        self._transactions += 1
        busy = self._task is not None and not self._task.done()
        if self._path is not None and self._transactions % _EVERY == 0 and not busy:
            self._task = asyncio.create_task(asyncio.to_thread(checkpoint, self._path), name="checkpoint")

    async def stop(self) -> None:
        """Return when none is under way."""
        if self._task is not None:
            await asyncio.wait([self._task])


def checkpoint(path: str) -> None:
    """Bring what was committed from the log into the database file; waits for the disk, and hinders nobody."""
    connection = sqlite3.connect(path, timeout=0)
    try:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    finally:
        connection.close()
