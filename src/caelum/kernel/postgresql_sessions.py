"""Sessions on connections to PostgreSQL that are kept, with a way past SQLAlchemy for statements that run often.

Invariant: a kept connection is in one session's hands at a time, and comes back without a transaction, or is thrown
away. Its BEGIN, which is needed anyway, shows whether it still lives: one that does not is replaced, with all that lay
unused beside it. What goes past SQLAlchemy runs in the same transaction as the rest, with the same errors. A
transaction in which a statement failed, or was left alone, goes on nowhere: neither by a new one in its place, nor by a
commit that the server turns into a rollback.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Dialect, Engine
from sqlalchemy.exc import PendingRollbackError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import await_, greenlet_spawn, in_greenlet

from caelum.kernel.postgresql import CONNECT_SECONDS, Limits, LockingSession
from caelum.kernel.turns import take_turn

log = logging.getLogger(__name__)
T = TypeVar("T")

BROKEN = "22012"
"""How a guard fails: with a division by zero."""
_TURN_SECONDS = 30.0
"""How long a session waits for a connection when all are in use."""
_COUNT = re.compile(r"(?:SELECT|UPDATE|DELETE|INSERT \d+) (\d+)")


class _Transaction:
    """A transaction that was begun on the driver's connection, as SQLAlchemy's adapter keeps it."""

    __slots__ = ("_driver", "guard")

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self.guard: str | None = None
        """What must not fail before it commits: sent with the COMMIT, which the server leaves out if it does."""

    async def commit(self) -> None:
        """Commit. Raises the driver's error when the server rolled back instead, because a statement had failed."""
        if await self._driver.execute("COMMIT" if self.guard is None else f"{self.guard}; COMMIT") == "ROLLBACK":
            driver = importlib.import_module("asyncpg")
            raise driver.InFailedSQLTransactionError("a statement had failed: nothing is committed")

    async def rollback(self) -> None:
        """Undo it."""
        await self._driver.execute("ROLLBACK")


class Connections:
    """Connections of an engine that are kept open, as `limits` say; whoever comes when all are in use waits.

    `sent` is told of each statement that does not pass through SQLAlchemy.
    """

    def __init__(self, engine: AsyncEngine, limits: Limits, sent: Callable[[str], None]) -> None:
        self.sent = sent
        self._engine = engine
        self._kept = limits.pool
        self._free: list[AsyncConnection] = []
        self._turns = asyncio.Semaphore(limits.pool + limits.extra)
        self._closed = False

    def reading(self) -> KeptSession:
        """A session that takes one of them with its first statement, and sees one state of the database."""
        return self._session(_Session, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def writing(self) -> KeptSession:
        """A session that takes one of them with its first statement, and locks the objects that it loads."""
        return self._session(_WritingSession, "BEGIN")

    def _session(self, kind: type[_Session], begin: str) -> KeptSession:
        return KeptSession(self._engine, expire_on_commit=False, sync_session_class=kind, connections=self, begin=begin)

    async def take(self, begin: str) -> AsyncConnection:
        """A connection on which a transaction has begun. Raises CloudError, and SQLAlchemy's errors."""
        await take_turn(self._turns, _TURN_SECONDS)
        try:
            connection, _ = await self._first(begin, lambda adapter: _start(adapter, begin))
        except BaseException:
            self._turns.release()
            raise
        return connection

    async def ask(self, statement: str) -> Any:
        """The one value that a short statement answers by itself, outside of any transaction: one trip. Raises as
        `take`, also when the answer takes longer than a connection may."""
        await take_turn(self._turns, _TURN_SECONDS)
        try:
            connection, value = await self._first(statement, lambda adapter: _ask(adapter, statement))
        except BaseException:
            self._turns.release()
            raise
        self.sent(statement)
        await self.give_back(connection)
        return value

    async def _first(self, statement: str, work: Callable[[Any], Awaitable[T]]) -> tuple[AsyncConnection, T]:
        """Do what is first to be done on a connection: on another one, when it ended while nobody used it."""
        # The one that was used last has the most statements prepared.
        while self._free:
            connection = self._free.pop()
            try:
                return connection, await work(_adapter_of(connection))
            except Exception as error:  # whatever the driver makes of a connection that ended while nobody listened
                log.info("a connection to PostgreSQL is replaced: %s: %s", type(error).__name__, error)
                await self._drop_all(connection)
            except BaseException:
                await _throw_away(connection)
                raise
        connection = await self._engine.connect()
        try:
            return connection, await guarded(connection, statement, work(_adapter_of(connection)))
        except BaseException:
            await _throw_away(connection)
            raise

    async def _drop_all(self, dead: AsyncConnection) -> None:
        """What happened to one while nobody used it happened to the others."""
        dropped, self._free = [dead, *self._free], []
        for one in dropped:
            await _throw_away(one)

    async def give_back(self, connection: AsyncConnection) -> None:
        """Let the next one have it; one that broke, or whose transaction did not end, is thrown away."""
        try:
            if not self._closed and len(self._free) < self._kept and _is_outside(connection):
                self._free.append(connection)
            else:
                await _throw_away(connection, politely=True)
        finally:
            self._turns.release()

    async def close(self) -> None:
        """Close those that nobody uses, and from now on each that is given back."""
        self._closed = True
        while self._free:
            await self._free.pop().close()


def _adapter_of(connection: AsyncConnection) -> Any:
    """SQLAlchemy's adapter of the driver's connection."""
    return cast("Connection", connection.sync_connection).connection.dbapi_connection


async def _start(adapter: Any, begin: str) -> None:
    """Begin a transaction, of which SQLAlchemy's adapter knows."""
    driver = adapter._connection
    await driver.execute(begin, timeout=CONNECT_SECONDS)
    adapter._transaction = _Transaction(driver)


async def _ask(adapter: Any, statement: str) -> Any:
    """The value that a statement answers. Not for as long as a statement may take: many wait for this one."""
    return await adapter._connection.fetchval(statement, timeout=CONNECT_SECONDS)


async def guarded(connection: AsyncConnection, statement: str, work: Awaitable[T]) -> T:
    """Do it on a connection; its errors become those of SQLAlchemy."""
    try:
        return await work
    except Exception as error:
        return cast("T", await greenlet_spawn(_raise, connection, statement, error))


def _raise(connection: AsyncConnection, statement: str, error: Exception) -> None:
    try:
        _adapter_of(connection)._handle_exception(error)
    except Exception as translated:
        plain = cast("Connection", connection.sync_connection)
        dialect = cast("Any", plain.dialect)
        if isinstance(translated, (dialect.dbapi.InvalidCachedStatementError, dialect.dbapi.InternalServerError)):
            dialect._invalidate_schema_cache()  # the schema changed: every connection prepares anew
        plain._handle_dbapi_exception(translated, statement, None, None, None)


def _is_outside(connection: AsyncConnection) -> bool:
    if connection.closed or connection.invalidated:
        return False
    if cast("Connection", connection.sync_connection).get_transaction() is not None:
        return False
    adapter = _adapter_of(connection)
    driver = adapter._connection
    return adapter._transaction is None and not driver.is_closed() and not driver.is_in_transaction()


async def _throw_away(connection: AsyncConnection, *, politely: bool = False) -> None:
    """Close a connection with whatever is open on it, and never let the engine's pool have it.

    `politely` says goodbye to the server, which takes seconds when nobody answers there.
    """
    try:
        if not connection.closed and not connection.invalidated:
            if not politely:
                _adapter_of(connection)._connection.terminate()
            await connection.invalidate()
        await connection.close()
    except SQLAlchemyError as error:
        log.info("a connection to PostgreSQL could not be closed: %s", error)


class KeptSession(AsyncSession):
    """A session on a kept connection, with a way for statements past SQLAlchemy, in the same transaction."""

    sync_session: _Session

    @property
    def dialect(self) -> Dialect:
        """That for which statements are compiled."""
        return cast("Engine", self.sync_session.bind).dialect

    async def run(self, statement: str, values: Sequence[Any]) -> tuple[Sequence[Any], int]:
        """The rows, and how many there were or are changed, of a statement as the driver takes it.

        Raises SQLAlchemy's errors. Objects are not flushed before it.
        """
        return await self.sync_session.run(statement, values)

    @property
    def begun(self) -> bool:
        """Whether a transaction is open on the connection."""
        return self.sync_session.begun

    @property
    def changed(self) -> bool:
        """Whether there may be objects to flush."""
        return self.sync_session.changed

    async def commit_all(self, guard: str | None) -> None:
        """Commit what was done in either way, if the statement `guard` does not fail. Raises SQLAlchemy's errors."""
        await self.sync_session.commit_all(guard)

    @property
    def ends_at_once(self) -> bool:
        """Whether its end waits for nothing."""
        return self.sync_session.ends_at_once

    async def end(self) -> None:
        """Roll back what is not committed, and give the connection back. That it breaks only now changes nothing: what
        was read is read, what was committed is, and what was not goes with the connection."""
        await self.sync_session.end()


class _Session(Session):
    """SQLAlchemy's part of it, which has the connection."""

    def __init__(self, bind: Engine, *, connections: Connections, begin: str, **options: Any) -> None:
        super().__init__(bind, **options)
        self._connections = connections
        self._begin = begin
        self._taken: AsyncConnection | None = None
        self._adapter: Any = None
        self._torn = False
        """Whether somebody left while the connection was at work, so that nobody knows what it is at."""
        self._failed = False
        """Whether the transaction went with a statement that failed, or that nobody waited for."""

    def get_bind(self, *_asked: Any, **_options: Any) -> Engine | Connection:
        """The connection, taken now if a statement is on its way; the engine for who only asks."""
        if in_greenlet():
            if not self.begun:
                await_(self._ready())
        elif self._taken is None:
            return cast("Engine", self.bind)
        return cast("Connection", cast("AsyncConnection", self._taken).sync_connection)

    async def _ready(self) -> None:
        """Have a connection on which a transaction has begun."""
        self._refuse_failed()
        if self._taken is None:
            taken = await self._connections.take(self._begin)
            self._taken, self._adapter = taken, _adapter_of(taken)
        else:
            await self._guarded(self._begin, _start(self._adapter, self._begin))

    async def run(self, statement: str, values: Sequence[Any]) -> tuple[Sequence[Any], int]:
        """See `KeptSession`."""
        if not self.begun:
            await self._ready()
        self._connections.sent(statement)
        return await self._guarded(statement, self._run(statement, values))

    async def _run(self, statement: str, values: Sequence[Any]) -> tuple[Sequence[Any], int]:
        adapter = self._adapter
        async with adapter._execute_mutex:
            prepared, _ = await adapter._prepare(
                statement, cast("Any", self.bind).dialect._invalidate_schema_cache_asof
            )
            rows = await prepared.fetch(*values)
            count = _COUNT.match(prepared.get_statusmsg() or "")
            return rows, -1 if count is None else int(count[1])

    async def _guarded(self, statement: str, work: Awaitable[T]) -> T:
        """Do it; one that is cancelled costs the connection."""
        try:
            return await guarded(cast("AsyncConnection", self._taken), statement, work)
        except Exception:
            self._failed = not self.begun
            raise
        except BaseException:
            self._torn = self._failed = True
            raise

    def _refuse_failed(self) -> None:
        if self._failed:
            raise PendingRollbackError("a statement failed, and with it the transaction")

    @property
    def changed(self) -> bool:
        """See `KeptSession`."""
        return bool(self.new or self.identity_map)

    async def commit_all(self, guard: str | None) -> None:
        """See `KeptSession`."""
        self._refuse_failed()
        if self.begun:
            self._adapter._transaction.guard = guard
        if self.in_transaction() or self.changed:
            await greenlet_spawn(self.commit)
        else:
            await self._commit_past()

    def commit(self) -> None:
        """Commit what was done in either way."""
        self._refuse_failed()
        super().commit()
        if self.begun:
            await_(self._commit_past())

    async def _commit_past(self) -> None:
        if self.begun:
            await self._guarded("COMMIT", self._adapter._call_and_discard(self._adapter._transaction.commit))

    def rollback(self) -> None:
        """Undo what was done in either way."""
        if self._torn:
            await_(self._drop_torn())
        super().rollback()
        self._failed = False
        if self._torn:
            await_(self._let_go())
        elif self.begun:
            await_(self._rollback_past())

    async def _rollback_past(self) -> None:
        await self._guarded("ROLLBACK", self._adapter._call_and_discard(self._adapter._transaction.rollback))

    @property
    def begun(self) -> bool:
        """See `KeptSession`."""
        return self._adapter is not None and self._adapter._transaction is not None

    @property
    def ends_at_once(self) -> bool:
        """See `KeptSession`."""
        return self._taken is None and not self.in_transaction()

    async def end(self) -> None:
        """See `KeptSession`."""
        try:
            if self._torn:
                await self._drop_torn()
            if self.in_transaction() or self.changed:
                await greenlet_spawn(self.close)
            if self.begun and not self._torn:
                await self._rollback_past()
        except SQLAlchemyError as error:
            log.info("a connection broke when it was given back: %s", error)
        finally:
            await self._let_go()

    async def _drop_torn(self) -> None:
        """Close the connection before it is told to roll back, which it may not answer for a minute. In the two seconds
        that the driver takes at most for that, it asks the server to end the statement, which may hold locks."""
        if self._taken is not None and not self._taken.invalidated:
            await self._taken.invalidate()

    async def _let_go(self) -> None:
        """Give the connection back, if there is one."""
        if (taken := self._taken) is not None:
            self._taken, self._adapter, self._torn = None, None, False
            await self._connections.give_back(taken)


class _WritingSession(_Session, LockingSession):
    """The same for writers."""
