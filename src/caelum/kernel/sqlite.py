"""SQLite without needless trips: what is known to be quick runs at once, the rest in the connection's thread, one trip
per statement; a transaction's first statement takes BEGIN along.

Invariant: nothing holds the event loop up. Only what took well under a millisecond lately runs on it; a lock that
another process holds is waited for in the thread; checkpoints, which wait for the disk, run elsewhere; and whoever runs
one quick statement after the other lets others have their turn. A cursor holds no resource of the driver between
statements: it opens, runs, fetches and closes in one go, so nothing is left to close when a task is cancelled. A
transaction without statements never begins.
"""

from __future__ import annotations

import asyncio
import collections
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.dialects.sqlite import aiosqlite
from sqlalchemy.util.concurrency import await_

_BEGIN = "caelum_begin"
"""The attribute of the driver's connection with the statement that begins its next transaction."""
_QUICK = 0.0005
"""Seconds that a statement may take on average to be run on the event loop."""
_SLICE = 0.005
"""Seconds after which one that runs quick statements lets others have their turn."""
_WEIGHT = 0.2
"""Of the latest duration in the average."""
_MOST = 5000
_COMMIT = "COMMIT"


class Pace:
    """How long each statement takes lately."""

    def __init__(self) -> None:
        self._average: dict[str, float] = {}
        self._turn = time.monotonic()

    def quick(self, statement: str) -> bool:
        """Whether it is known to take next to no time."""
        return self._average.get(statement, 1.0) < _QUICK

    def took(self, statement: str, seconds: float) -> None:
        """Note how long it took."""
        known = self._average.get(statement)
        if known is None and len(self._average) >= _MOST:
            self._average.clear()
        self._average[statement] = seconds if known is None else known + _WEIGHT * (seconds - known)

    def timed(self, statement: str, work: Callable[[], Any]) -> Any:
        """Do the work, and note how long it took."""
        begun = time.monotonic()
        try:
            return work()
        finally:
            self.took(statement, time.monotonic() - begun)

    async def breathe(self) -> None:
        """Let others have their turn from time to time."""
        if time.monotonic() - self._turn > _SLICE:
            await asyncio.sleep(0)
            self._turn = time.monotonic()


_pace = Pace()


class Outcome:
    """What a statement left: what the driver's cursor would tell."""

    __slots__ = ("arraysize", "description", "lastrowid", "rowcount", "rows")

    def __init__(self, cursor: Any) -> None:
        self.description = cursor.description
        self.rowcount = cursor.rowcount
        self.lastrowid = cursor.lastrowid
        self.arraysize = 1
        self.rows = cursor.fetchall() if cursor.description else []


class QuickCursor(aiosqlite.AsyncAdapt_aiosqlite_cursor):
    """A cursor for SQLAlchemy that asks the connection's thread at most once per statement."""

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
        await self._run(operation, lambda cursor: cursor.execute(operation, () if parameters is None else parameters))

    async def _executemany_async(self, operation: Any, seq_of_parameters: Sequence[Any]) -> Any:
        await self._run(f"{operation} *", lambda cursor: cursor.executemany(operation, seq_of_parameters))

    async def _run(self, statement: str, run: Callable[[Any], Any]) -> None:
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
            if _pace.quick(statement) and _begun(driver):
                outcome = _pace.timed(statement, work)
                await _pace.breathe()
            else:
                outcome = await driver._execute(_pace.timed, statement, work)
        self._cursor = outcome
        self._rows = collections.deque(outcome.rows)


def _begun(driver: Any) -> bool:
    """Begin the transaction that waits to begin, unless that would mean to wait for another process."""
    begin = driver.__dict__.get(_BEGIN)
    if begin is None or "IMMEDIATE" not in begin:
        return True
    connection: sqlite3.Connection = driver._conn
    ((patience,),) = connection.execute("PRAGMA busy_timeout").fetchall()
    connection.execute("PRAGMA busy_timeout=0")
    try:
        connection.execute(begin)
    except sqlite3.OperationalError:
        return False
    finally:
        connection.execute(f"PRAGMA busy_timeout={patience}")
    del driver.__dict__[_BEGIN]
    return True


def _commit(adapted: Any) -> None:
    """Commit at once when commits are quick lately."""
    _end(adapted, _COMMIT, lambda driver: driver._conn.commit())


def _rollback(adapted: Any) -> None:
    """Roll back; the end of a transaction that only read is one, and takes no time."""
    _end(adapted, "ROLLBACK", lambda driver: driver._conn.rollback())


def _end(adapted: Any, statement: str, end: Callable[[Any], None]) -> None:
    driver = adapted._connection
    if not driver._connection:
        return
    driver.__dict__.pop(_BEGIN, None)
    try:
        if not driver._conn.in_transaction:
            return
        if _pace.quick(statement):
            _pace.timed(statement, lambda: end(driver))
        else:
            await_(driver._execute(_pace.timed, statement, lambda: end(driver)))
    except Exception as error:
        adapted._handle_exception(error)


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


def checkpoint(path: str) -> None:
    """Bring what was committed from the log into the database file; waits for the disk, and hinders nobody."""
    connection = sqlite3.connect(path, timeout=0)
    try:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    finally:
        connection.close()


# The adapter makes its cursors of this class, and ends transactions by these; there is no public way to choose others.
aiosqlite.AsyncAdapt_aiosqlite_connection._cursor_cls = QuickCursor
aiosqlite.AsyncAdapt_aiosqlite_connection.commit = _commit  # type: ignore[assignment]
aiosqlite.AsyncAdapt_aiosqlite_connection.rollback = _rollback  # type: ignore[assignment]
