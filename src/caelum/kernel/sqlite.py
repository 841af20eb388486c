"""SQLite without needless trips: what is known to be quick runs at once, the rest in the connection's thread, one trip
per statement; a transaction's first statement takes BEGIN along.

Invariant: nothing holds the event loop up. Only what took well under a millisecond within the last seconds runs on it:
what comes now and then, as a purge that finds nothing for days, goes to the thread each time. A lock that another
process holds is waited for in the thread; checkpoints, which wait for the disk, run elsewhere; and whoever runs one
quick statement after the other lets others have their turn. A cursor holds no resource of the driver between
statements: it opens, runs, fetches and closes in one go, so nothing is left to close when a task is cancelled. A
transaction without statements never begins. What is quick goes to its end without a moment at which a cancellation
could tear it; what runs in the thread when its task is cancelled costs the connection. A transaction that is gone, with
its connection or because SQLite itself rolled it back, takes neither statement nor commit until it is rolled back: half
of it is never committed. A kept connection is in one session's hands at a time, and comes back without a transaction,
or is thrown away.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from sqlalchemy import Connection, Dialect, Engine, event
from sqlalchemy.dialects.sqlite import aiosqlite
from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import await_, in_greenlet

from caelum.kernel.errors import CloudError
from caelum.kernel.lazy_session import LazySession
from caelum.kernel.postgresql import DATABASE_UNAVAILABLE
from caelum.kernel.sqlite_pace import Pace
from caelum.kernel.turns import take_turn

log = logging.getLogger(__name__)

_BEGIN = "caelum_begin"
"""The attribute of the driver's connection with the statement that begins its next transaction."""
_KEPT = "caelum_kept"
"""Marks the driver's connections that sessions use. Others always go by the thread, as SQLAlchemy expects of them."""
_LOST = "caelum_lost"
"""The attribute of the driver's connection with the error with which SQLite rolled the transaction back by itself."""
_COMMIT, _ROLLBACK = "COMMIT", "ROLLBACK"
_SPARE = 60.0
"""Seconds after which connections are closed that nobody needed in all that time: each keeps megabytes of the file."""
BUSY_TIMEOUT = 30.0
"""Seconds that a statement waits for another process that writes to the same file."""
LOCK_TIMEOUT = BUSY_TIMEOUT
"""The same for the beginning of a transaction that writes."""
_PASSING = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL})
_PRIMARY_CODE = 0xFF
"""The bits of an error's code that say what it is; the others tell more of it."""


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

    def execute(self, operation: Any, parameters: Any = None) -> None:
        """Run a statement: here, or in the connection's thread."""
        given = () if parameters is None else parameters
        self._run(operation, lambda cursor: cursor.execute(operation, given))

    def executemany(self, operation: Any, seq_of_parameters: Sequence[Any]) -> None:
        """The same with many sets of parameters. How many decides how long it takes."""
        self._run(
            f"{operation} *{len(seq_of_parameters).bit_length()}",
            lambda cursor: cursor.executemany(operation, seq_of_parameters),
        )

    def _run(self, statement: str, run: Callable[[Any], Any]) -> None:
        adapted: Any = self._adapt_connection
        _refuse_lost(adapted._connection)
        try:
            outcome = _run_here(adapted, statement, run) or await_(_run_in_thread(adapted, statement, run))
        except Exception as error:
            adapted._handle_exception(error)
        self._cursor = outcome  # type: ignore[assignment]  # it has what is asked of the driver's
        self._rows = collections.deque(outcome.rows)
        if _pace.long:
            await_(_pace.breathe())


def _run_here(adapted: Any, statement: str, run: Callable[[Any], Any]) -> Outcome | None:
    """Run a quick statement at once; None when it is none, or the connection is busy in its thread."""
    driver, begun = adapted._connection, time.monotonic()
    if adapted._execute_mutex.locked() or not _pace.quick_lately(statement, begun) or _KEPT not in driver.__dict__:
        return None
    if not _begun(driver):
        return None
    try:
        return _outcome(driver, run)
    finally:
        _pace.took(statement, time.monotonic() - begun, here=True)


async def _run_in_thread(adapted: Any, statement: str, run: Callable[[Any], Any]) -> Outcome:
    driver = adapted._connection
    async with adapted._execute_mutex:
        return cast("Outcome", await driver._execute(_pace.timed, statement, lambda: _outcome(driver, run)))


def _outcome(driver: Any, run: Callable[[Any], Any]) -> Outcome:
    inner = driver._conn
    cursor, begun = inner.cursor(), False
    try:
        if (begin := driver.__dict__.get(_BEGIN)) is not None:
            _begin_patiently(cursor, begin)
            del driver.__dict__[_BEGIN]
        begun = inner.in_transaction
        run(cursor)
        return Outcome(cursor)
    except sqlite3.Error as error:
        if begun and not inner.in_transaction:  # as when the disk is full or fails, or memory is
            driver.__dict__[_LOST] = error
        raise
    finally:
        cursor.close()


def _refuse_lost(driver: Any) -> None:
    """Let nothing go on in a transaction that SQLite rolled back by itself, until it is rolled back."""
    if (error := driver.__dict__.get(_LOST)) is not None:
        raise PendingRollbackError("a statement failed, and with it the transaction") from error


def _begin_patiently(cursor: sqlite3.Cursor, begin: str) -> None:
    """Begin, and wait for another process where that is needed. Once begun, nothing waits any more."""
    if "IMMEDIATE" not in begin:
        cursor.execute(begin)
        return
    cursor.execute(f"PRAGMA busy_timeout={int(LOCK_TIMEOUT * 1000)}")
    try:
        cursor.execute(begin)
    finally:
        cursor.execute("PRAGMA busy_timeout=0")


def _begun(driver: Any) -> bool:
    """Begin the transaction that waits to begin, unless that would mean to wait for another process."""
    begin = driver.__dict__.get(_BEGIN)
    if begin is None or "IMMEDIATE" not in begin:
        return True
    try:
        driver._conn.execute(begin)
    except sqlite3.OperationalError:
        return False
    del driver.__dict__[_BEGIN]
    return True


def _commit(adapted: Any) -> None:
    """Commit at once when commits are quick lately."""
    _end(adapted, _COMMIT)


def _rollback(adapted: Any) -> None:
    """Roll back; the end of a transaction that only read is one, and takes no time."""
    _end(adapted, _ROLLBACK)


def _end(adapted: Any, statement: str) -> None:
    """End the transaction as SQLAlchemy asks for it."""
    driver = adapted._connection
    try:
        end = _ending(driver, statement)
        if end is None:
            return
        if _KEPT in driver.__dict__ and _pace.quick(statement):
            _pace.timed(statement, end, here=True)
        else:
            await_(driver._execute(_pace.timed, statement, end))
    except Exception as error:
        adapted._handle_exception(error)


def _ending(driver: Any, statement: str) -> Callable[[], None] | None:
    """What ends the driver's transaction, if it has one."""
    driver.__dict__.pop(_BEGIN, None)
    if statement == _COMMIT:
        _refuse_lost(driver)
    else:
        driver.__dict__.pop(_LOST, None)
    inner: sqlite3.Connection | None = driver._connection
    if inner is None or not inner.in_transaction:
        return None
    return inner.commit if statement == _COMMIT else inner.rollback


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
        driver = connection.connection.driver_connection
        if not driver._conn.in_transaction:  # as it is when a statement went past SQLAlchemy
            setattr(driver, _BEGIN, begin)


class Kept(NamedTuple):
    """A connection that is kept open, with what lies below it."""

    connection: AsyncConnection
    plain: Connection
    adapted: Any

    @property
    def lost(self) -> bool:
        """Whether it broke, or was given up in the middle of a statement."""
        return self.plain.closed or self.plain.invalidated

    @property
    def outside(self) -> bool:
        """Whether it is outside of any transaction, also by what the driver says: an end may have failed."""
        # A transaction that failed to commit is one, though none in in_transaction().
        whole = not self.lost and self.plain.get_transaction() is None
        return whole and self.adapted._connection._connection is not None and not _is_open(self.adapted)


class Connections:
    """Connections of an engine that are kept open, `most` of them; whoever comes when all are in use waits.

    SQLAlchemy's pool costs more than most statements. `begin` begins their transactions; `sent` is told of each
    statement that does not pass through SQLAlchemy.
    """

    def __init__(self, engine: AsyncEngine, most: int, begin: str, sent: Callable[[str], None]) -> None:
        self.begin, self.sent = begin, sent
        self.dialect: Dialect = engine.dialect
        self._engine = engine
        self._free: list[Kept] = []
        self._turns = asyncio.Semaphore(most)
        self._closed = False
        self._spare, self._counted = most, time.monotonic()
        """How many were never in use, and since when."""
        self._closing: set[asyncio.Task[None]] = set()

    def session(self) -> KeptSession:
        """A session that takes one of them with its first statement."""
        return KeptSession(self._engine, self)

    def glance(self, statement: str, values: Sequence[Any]) -> tuple[Sequence[Any], int] | None:
        """What `KeptSession.run` would answer to a quick statement that reads, asked at once of a free connection,
        outside of any transaction; None when that is not possible, or the statement fails.
        """
        if not self._free or not statement.startswith("SELECT"):
            return None
        try:
            outcome = _run_here(self._free[-1].adapted, statement, lambda cursor: cursor.execute(statement, values))
        except sqlite3.Error:
            return None
        if outcome is None:
            return None
        self.sent(statement)
        return outcome.rows, outcome.rowcount

    async def take(self) -> Kept:
        """A connection outside of any transaction. Raises DATABASE_UNAVAILABLE when none becomes free in time."""
        await take_turn(self._turns, BUSY_TIMEOUT)
        try:
            kept = self._free.pop() if self._free else await self._connect()
            self._spare = min(self._spare, len(self._free))
            return kept
        except BaseException:
            self._turns.release()
            raise

    async def _connect(self) -> Kept:
        connection = await self._engine.connect()
        raw = await connection.get_raw_connection()
        setattr(raw.driver_connection, _KEPT, True)
        return Kept(connection, cast("Connection", connection.sync_connection), raw.dbapi_connection)

    async def give_back(self, kept: Kept) -> None:
        """Let the next one have it; one that broke, or whose transaction did not end, is thrown away."""
        try:
            if (whole := kept.outside) and not self._closed:
                self._free.append(kept)
                self._close_spare()
                return
            if not whole and not kept.plain.closed:
                # Closed alone it would go to the engine's pool, with the transaction that is open.
                await kept.connection.invalidate()
            await kept.connection.close()
        finally:
            self._turns.release()

    def _close_spare(self) -> None:
        """Close, in the background, those that nobody needed lately: the first, for the last one is taken."""
        if (now := time.monotonic()) - self._counted < _SPARE:
            return
        spare, self._free = self._free[: self._spare], self._free[self._spare :]
        self._spare, self._counted = len(self._free), now
        for kept in spare:
            task = asyncio.create_task(_close(kept), name="close a spare connection")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close those that nobody uses, and from now on each that is given back."""
        self._closed = True
        while self._free:
            await self._free.pop().connection.close()
        if self._closing:
            await asyncio.wait(self._closing)


async def _close(kept: Kept) -> None:
    """Close a connection; only given back it would stay open in the engine's pool."""
    try:
        await kept.connection.invalidate()
        await kept.connection.close()
    except SQLAlchemyError as error:
        log.warning("a connection to the database could not be closed: %s", error)


def _is_open(adapted: Any) -> bool:
    """Whether the driver has a transaction open."""
    inner = adapted._connection._connection
    return inner is not None and inner.in_transaction


class KeptSession(LazySession):
    """A session on a kept connection, with a way for statements past SQLAlchemy, in the same transaction."""

    def __init__(self, engine: AsyncEngine, connections: Connections) -> None:
        super().__init__(engine, _OrmSession)
        self._connections = connections
        self._taken: Kept | None = None
        self._adapted: Any = None
        self.dialect = connections.dialect
        """That for which statements are compiled."""

    async def take(self) -> Kept:
        """The connection, which the first statement takes."""
        if self._taken is None:
            self._taken = await self._connections.take()
            self._adapted = self._taken.adapted
        return self._taken

    async def run(self, statement: str, values: Sequence[Any]) -> tuple[Sequence[Any], int]:
        """The rows, and how many there were or are changed, of a statement as the driver takes it.

        Raises SQLAlchemy's errors. Objects are not flushed before it.
        """
        if self._taken is None:
            await self.take()
        self._connections.sent(statement)
        if not _is_open(self._adapted):
            self._refuse_lost()
            setattr(self._adapted._connection, _BEGIN, self._connections.begin)
        try:
            outcome = _run_here(self._adapted, statement, lambda cursor: cursor.execute(statement, values))
            if outcome is None:
                outcome = await self._run_elsewhere(statement, values)
        except sqlite3.Error as error:
            raise _wrapped(statement, error) from error
        await breathe()
        return outcome.rows, outcome.rowcount

    async def _run_elsewhere(self, statement: str, values: Sequence[Any]) -> Outcome:
        """Run a statement in the connection's thread."""
        try:
            return await _run_in_thread(self._adapted, statement, lambda cursor: cursor.execute(statement, values))
        except asyncio.CancelledError:
            # It runs on there, and nobody knows when it ends.
            await cast("Kept", self._taken).connection.invalidate()
            raise

    def _refuse_lost(self) -> None:
        """Raise PendingRollbackError when the transaction is gone."""
        if (taken := self._taken) is None:
            return
        if taken.lost:
            raise PendingRollbackError("the connection was lost, and with it the transaction")
        _refuse_lost(taken.adapted._connection)

    async def commit(self) -> None:
        """Commit what was done in either way. Waits for nothing when `commits_at_once()`. Raises PendingRollbackError
        when the transaction is gone."""
        self._refuse_lost()
        if self._made and self.in_transaction():
            await super().commit()
        await self._end(_COMMIT)

    async def rollback(self) -> None:
        """Undo what was done in either way."""
        if self._made:
            await super().rollback()
        if self._taken is not None and self._taken.lost:
            await self._let_go()
        await self._end(_ROLLBACK)

    async def _let_go(self) -> None:
        """Give the connection back, if there is one."""
        if (taken := self._taken) is not None:
            self._taken = self._adapted = None
            await self._connections.give_back(taken)

    async def _end(self, statement: str) -> None:
        """End the transaction of what went past SQLAlchemy."""
        if self._adapted is None:
            return
        driver = self._adapted._connection
        try:
            end = _ending(driver, statement)
            if end is None:
                return
            if _pace.quick(statement):
                _pace.timed(statement, end, here=True)
            else:
                await driver._execute(_pace.timed, statement, end)
        except sqlite3.Error as error:
            raise _wrapped(statement, error) from error

    @property
    def changed(self) -> bool:
        """Whether there may be objects to flush."""
        return self._made and bool(self.new or self.identity_map)

    @property
    def ends_at_once(self) -> bool:
        """Whether its end waits for nothing."""
        return self._adapted is None or _pace.quick(_ROLLBACK)

    async def end(self) -> None:
        """Roll back what is not committed, and give the connection back. That it breaks only now changes nothing: what
        was read is read, what was committed is, and what was not goes with the connection."""
        try:
            if self._made and (self.in_transaction() or self.changed):
                await super().close()
            if self._taken is not None and not self._taken.lost:
                await self._end(_ROLLBACK)
        except SQLAlchemyError as error:
            log.warning("a transaction could not be rolled back: %s", error)
        finally:
            await self._let_go()


class _OrmSession(Session):
    """SQLAlchemy's part of a kept session."""

    def __init__(self, bind: Engine, *, kept: KeptSession, **options: Any) -> None:
        super().__init__(bind, **options)
        self._kept = kept

    def get_bind(self, *_asked: Any, **_options: Any) -> Engine | Connection:
        """The connection, taken now if a statement is on its way; the engine for who only asks."""
        taken = self._kept._taken
        if taken is None:
            if not in_greenlet():
                return cast("Engine", self.bind)
            taken = await_(self._kept.take())
        self._kept._refuse_lost()  # SQLAlchemy would go on with a new connection
        return taken.plain


def _wrapped(statement: str, error: sqlite3.Error) -> BaseException:
    """The driver's error as SQLAlchemy would raise it."""
    return DBAPIError.instance(statement, None, error, sqlite3.Error, hide_parameters=True)


def passing(error: BaseException) -> CloudError | None:
    """The error to raise instead when `error` says that the file can be neither read nor written now: another process
    holds it, the disk is full or fails. Else None. It left nothing behind, also when it was a commit that failed: that
    leaves the transaction open, and whoever gives the session back rolls it back."""
    if isinstance(error, PendingRollbackError):
        cause = error.__cause__  # what ended the transaction
    else:
        cause = error.orig if isinstance(error, OperationalError) else None
    if getattr(cause, "sqlite_errorcode", 0) & _PRIMARY_CODE not in _PASSING:
        return None
    return CloudError(DATABASE_UNAVAILABLE, f"SQLite: {cause}")


async def breathe() -> None:
    """Let others have their turn, if quick statements have run one after the other for long."""
    if _pace.long:
        await _pace.breathe()


def commits_at_once() -> bool:
    """Whether a commit now takes next to no time, and so needs no thread."""
    return _pace.quick(_COMMIT)


# The adapter makes its cursors of this class, and ends transactions by these; there is no public way to choose others.
aiosqlite.AsyncAdapt_aiosqlite_connection._cursor_cls = QuickCursor
aiosqlite.AsyncAdapt_aiosqlite_connection.commit = _commit  # type: ignore[assignment]
aiosqlite.AsyncAdapt_aiosqlite_connection.rollback = _rollback  # type: ignore[assignment]
