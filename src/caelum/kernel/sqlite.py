"""SQLite in few trips: each statement goes to the connection's thread once, not four times, and a transaction's first
one takes BEGIN along.

Invariant: a cursor holds no resource of the driver between statements: it opens, runs, fetches and closes in one trip,
so nothing is left to close when a task is cancelled. A transaction without statements never begins.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.dialects.sqlite import aiosqlite

_BEGIN = "caelum_begin"
"""The attribute of the driver's connection with the statement that begins its next transaction."""


class Outcome:
    """What a statement left: what the driver's cursor would tell."""

    __slots__ = ("arraysize", "description", "lastrowid", "rowcount", "rows")

    def __init__(self, cursor: Any) -> None:
        self.description = cursor.description
        self.rowcount = cursor.rowcount
        self.lastrowid = cursor.lastrowid
        self.arraysize = 1
        self.rows = cursor.fetchall() if cursor.description else []


class OneTripCursor(aiosqlite.AsyncAdapt_aiosqlite_cursor):
    """A cursor for SQLAlchemy that asks the connection's thread once per statement."""

    __slots__ = ()

    def _make_new_cursor(self, connection: Any) -> Any:  # noqa: ARG002 - nothing to open yet
        return None

    def _aenter_cursor(self, cursor: Any) -> Any:
        return cursor

    @property
    def description(self) -> Any:
        """The columns of the result, or None."""
        return None if self._cursor is None else self._cursor.description

    def close(self) -> None:
        """Drop the rows."""
        self._rows.clear()

    async def _async_soft_close(self) -> None:
        """Nothing of the driver is open."""

    async def _execute_async(self, operation: Any, parameters: Any) -> Any:
        await self._trip(lambda cursor: cursor.execute(operation, () if parameters is None else parameters))

    async def _executemany_async(self, operation: Any, seq_of_parameters: Sequence[Any]) -> Any:
        await self._trip(lambda cursor: cursor.executemany(operation, seq_of_parameters))

    async def _trip(self, run: Callable[[Any], Any]) -> None:
        driver: Any = self._connection

        def work() -> Outcome:
            cursor = driver._conn.cursor()
            try:
                if (begin := driver.__dict__.pop(_BEGIN, None)) is not None:
                    cursor.execute(begin)
                run(cursor)
                return Outcome(cursor)
            finally:
                cursor.close()

        async with self._adapt_connection._execute_mutex:
            outcome = await driver._execute(work)
        self._cursor = outcome
        self._rows = collections.deque(outcome.rows)


def prepare(engine: Engine, pragmas: Sequence[str], begin: str) -> None:
    """Set connections of this engine up, and begin its transactions with the statement `begin`."""

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        # The driver must not open transactions by itself: they would start as readers and fail when they come to write.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Any) -> None:
        # With the first statement rather than now: when that is cancelled, SQLAlchemy knows to give the connection up.
        setattr(connection.connection.driver_connection, _BEGIN, begin)


# The adapter makes its cursors of this class; there is no public way to choose another.
aiosqlite.AsyncAdapt_aiosqlite_connection._cursor_cls = OneTripCursor
