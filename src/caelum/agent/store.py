"""The agent's small database: one SQLite file, used from one thread, so that the event loop never waits for a disk.

Invariant: work is done in the order in which it was submitted, each piece in its own transaction. A kill of the agent
loses nothing that was awaited; a power failure may lose the last moments, and with them the guests are gone too.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

SCHEMA = """
CREATE TABLE IF NOT EXISTS task (
    uuid TEXT PRIMARY KEY, path TEXT NOT NULL, callback TEXT, accepted REAL NOT NULL,
    done REAL, answer BLOB, settled INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS task_done ON task (settled, done);
CREATE TABLE IF NOT EXISTS fence (workflow TEXT PRIMARY KEY, attempt INTEGER NOT NULL, seen REAL NOT NULL);
CREATE TABLE IF NOT EXISTS report (
    id INTEGER PRIMARY KEY AUTOINCREMENT, agent TEXT NOT NULL, number INTEGER NOT NULL,
    kind TEXT NOT NULL, body BLOB NOT NULL
);
"""


class Store:
    """The database and its thread."""

    def __init__(self, path: Path) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._db = self._thread.submit(_open, path).result()

    async def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in a transaction in the store's thread."""
        return await asyncio.wrap_future(self.submit(work))

    def submit(self, work: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Like `call`, without waiting."""
        return self._thread.submit(self._transaction, work)

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._db:
            return work(self._db)

    def close(self) -> None:
        """Finish what was submitted, and close."""
        self._thread.submit(self._db.close)
        self._thread.shutdown(wait=True)


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=10, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.executescript(SCHEMA)
    return db
