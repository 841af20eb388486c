"""Sessions on connections to PostgreSQL that are kept, with a way past SQLAlchemy for statements that run often.

Invariant: a kept connection is in one session's hands at a time, and comes back outside of any transaction or with a
new one in which nothing happened yet, or is thrown away. One that has not answered for a while has to, before it is
used: one that does not is replaced, with all that lay unused beside it. What goes past SQLAlchemy runs in the same
transaction as the rest, with the same errors. A transaction in which a statement failed, or was left alone, goes on
nowhere: neither by a new one in its place, nor by a commit that the server turns into a rollback.

A trip to the server costs more than most statements, so none is made for what can go with another: a commit begins
the next transaction of its connection (`COMMIT; BEGIN`), and a statement that is asked alone has none at all. Half of
the connections wait for writers so, and half for those who only ask.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Dialect, Engine
from sqlalchemy.exc import PendingRollbackError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import await_, greenlet_spawn, in_greenlet

from caelum.kernel.lazy_session import LazySession
from caelum.kernel.postgresql import CONNECT_SECONDS, Limits, LockingSession
from caelum.kernel.turns import take_turn

log = logging.getLogger(__name__)
T = TypeVar("T")

BROKEN = "22012"
"""How a guard fails: with a division by zero."""
WRITE = "BEGIN"
READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_TURN_SECONDS = 30.0
"""How long a session waits for a connection when all are in use."""
_WARM_SECONDS = 1.0
"""How long a connection that nobody uses stays in its next transaction."""
_TRUSTED_SECONDS = 0.1
"""How long after its last answer a connection is used without a question whether it still lives. When it does not, the
statement that it is used for waits for as long as a statement may."""
_COUNT = re.compile(r"(?:SELECT|UPDATE|DELETE|INSERT \d+) (\d+)")


class _Transaction:
    """A transaction that was begun on a connection, as SQLAlchemy's adapter keeps it."""

    __slots__ = ("_kept", "guard")

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self.guard: str | None = None
        """What must not fail before it commits: sent with the COMMIT, which the server leaves out if it does."""

    async def commit(self) -> None:
        """Commit, and begin the next one if writers want it. Raises the driver's error when a statement of this one had
        failed: the server refuses every further one, where a COMMIT alone would roll back in silence."""
        begin = self._kept.begins_next()
        await self._kept.driver.execute(f"{self.guard or 'SELECT'}; COMMIT{f'; {WRITE}' if begin else ''}")
        self._kept.begun = begin

    async def rollback(self) -> None:
        """Undo it."""
        await self._kept.driver.execute("ROLLBACK")


class Kept:
    """A connection that is kept."""

    __slots__ = ("adapter", "answered", "begins_next", "begun", "connection", "driver")

    def __init__(self, connection: AsyncConnection, begins_next: Callable[[], bool]) -> None:
        self.connection = connection
        self.begins_next = begins_next
        """Whether the next transaction shall begin with a commit."""
        self.adapter = cast("Any", connection.sync_connection).connection.dbapi_connection
        """SQLAlchemy's, of the driver's connection."""
        self.driver: Any = self.adapter._connection
        self.begun = False
        """Whether the server has begun a transaction for the next writer."""
        self.answered = 0.0
        """When it was given back last, in the loop's time."""

    async def start(self, begin: str | None) -> None:
        """Have the server begin a transaction, of which SQLAlchemy's adapter knows, or none: one trip in any case,
        which shows whether it answers."""
        await self._leave(begin)
        self.enter(begin)

    def enter(self, begin: str | None) -> None:
        """Have a transaction, or none, in which the server is already."""
        self.begun = False
        if begin is not None:
            self.adapter._transaction = _Transaction(self)

    async def ask(self, statement: str) -> Any:
        """The value that a statement answers. Not for as long as a statement may take: many wait for this one."""
        if self.begun:
            await self._leave(None)
        return await self.driver.fetchval(statement, timeout=CONNECT_SECONDS)

    async def _leave(self, begin: str | None) -> None:
        """Leave the transaction that was begun for a writer, and begin this one."""
        await self.driver.execute(f"{'ROLLBACK; ' if self.begun else ''}{begin or 'SELECT'}", timeout=CONNECT_SECONDS)
        self.begun = False

    async def run(self, statement: str, values: Sequence[Any], invalid_since: float) -> tuple[Sequence[Any], int]:
        """See `KeptSession.run`."""
        adapter = self.adapter
        async with adapter._execute_mutex:
            prepared, _ = await adapter._prepare(statement, invalid_since)
            rows = await prepared.fetch(*values)
            count = _COUNT.match(prepared.get_statusmsg() or "")
            return rows, -1 if count is None else int(count[1])

    @property
    def whole(self) -> bool:
        """Whether it lives, and is where it says to be."""
        connection, driver = self.connection, self.driver
        if connection.closed or connection.invalidated or self.adapter._transaction is not None or driver.is_closed():
            return False
        if cast("Connection", connection.sync_connection).get_transaction() is not None:
            return False
        return bool(driver.is_in_transaction() == self.begun)


class Connections:
    """Connections of an engine that are kept open, as `limits` say; whoever comes when all are in use waits.

    `sent` is told of each statement that does not pass through SQLAlchemy.
    """

    def __init__(self, engine: AsyncEngine, limits: Limits, sent: Callable[[str], None]) -> None:
        self.sent = sent
        self._engine = engine
        self._most = limits.pool
        self._warm = min(_WARM_SECONDS, limits.idle / 2)
        self._free: list[Kept] = []
        """Those outside of any transaction. The one that was used last has the most statements prepared."""
        self._begun: list[Kept] = []
        """Those in which a transaction for the next writer has begun."""
        self._turns = asyncio.Semaphore(limits.pool + limits.extra)
        self._closed = False
        self._tidying: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def reading(self) -> KeptSession:
        """A session that takes one of them with its first statement, and sees one state of the database."""
        return KeptSession(self._engine, self, READ, _OrmSession)

    def asking(self) -> KeptSession:
        """A session each of whose statements sees the database as it is then: no transaction is begun for them."""
        return KeptSession(self._engine, self, None, _OrmSession)

    def writing(self) -> KeptSession:
        """A session that takes one of them with its first statement, and locks the objects that it loads."""
        return KeptSession(self._engine, self, WRITE, _LockingOrmSession)

    async def take(self, begin: str | None) -> Kept:
        """A connection on which a transaction has begun, or none. Raises CloudError, and SQLAlchemy's errors."""
        await take_turn(self._turns, _TURN_SECONDS)
        if (kept := self._ready_for(begin)) is not None:
            kept.enter(begin)
            return kept
        try:
            kept, _ = await self._first(begin or "SELECT", lambda one: one.start(begin))
        except BaseException:
            self._turns.release()
            raise
        return kept

    def _ready_for(self, begin: str | None) -> Kept | None:
        """One that answered just now, and needs no trip to be used."""
        if begin == READ:
            return None
        free = self._begun if begin == WRITE else self._free
        alive = asyncio.get_running_loop().time() - min(self._warm, _TRUSTED_SECONDS)
        if free and free[-1].answered >= alive and not free[-1].driver.is_closed():
            return free.pop()
        return None

    async def ask(self, statement: str) -> Any:
        """The one value that a short statement answers by itself, outside of any transaction: one trip. Raises as
        `take`, also when the answer takes longer than a connection may."""
        await take_turn(self._turns, _TURN_SECONDS)
        try:
            kept, value = await self._first(statement, lambda one: one.ask(statement))
        except BaseException:
            self._turns.release()
            raise
        self.sent(statement)
        await self.give_back(kept)
        return value

    async def _first(self, statement: str, work: Callable[[Kept], Awaitable[T]]) -> tuple[Kept, T]:
        """Do what is first to be done on a connection: on another one, when it ended while nobody used it."""
        while self._free or self._begun:
            kept = (self._free or self._begun).pop()
            try:
                return kept, await work(kept)
            except Exception as error:  # whatever the driver makes of a connection that ended while nobody listened
                log.info("a connection to PostgreSQL is replaced: %s: %s", type(error).__name__, error)
                await self._drop_all(kept)
            except BaseException:
                await _throw_away(kept)
                raise
        kept = Kept(await self._engine.connect(), self._wants_begun)
        try:
            return kept, await guarded(kept, statement, work(kept))
        except BaseException:
            await _throw_away(kept)
            raise

    def _wants_begun(self) -> bool:
        """Whether those for writers are no more than those for who asks."""
        return len(self._begun) <= len(self._free)

    async def _drop_all(self, dead: Kept) -> None:
        """What happened to one while nobody used it happened to the others."""
        dropped, self._free, self._begun = [dead, *self._free, *self._begun], [], []
        for one in dropped:
            await _throw_away(one)

    def keeps(self, kept: Kept) -> bool:
        """Whether a connection would be kept, were it given back now."""
        return not self._closed and len(self._free) + len(self._begun) < self._most and kept.whole

    async def give_back(self, kept: Kept) -> None:
        """Let the next one have it; one that broke, or whose transaction did not end, is thrown away."""
        try:
            if not self.keeps(kept):
                await _throw_away(kept, politely=True)
                return
            loop = asyncio.get_running_loop()
            kept.answered = loop.time()
            (self._begun if kept.begun else self._free).append(kept)
            if kept.begun and self._tidying is None:
                self._tidying = loop.call_later(self._warm, self._tidy)
        finally:
            self._turns.release()

    def _tidy(self) -> None:
        """Leave no transaction open that nobody needs: the server ends connections that stay in one."""
        loop = asyncio.get_running_loop()
        cold = [one for one in self._begun if one.answered <= loop.time() - self._warm]
        self._begun = [one for one in self._begun if one not in cold]
        self._tidying = loop.call_later(self._warm, self._tidy) if self._begun else None
        for one in cold:
            task = loop.create_task(self._empty(one), name="postgresql")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _empty(self, kept: Kept) -> None:
        await self._turns.acquire()
        try:
            await kept.start(None)
        except Exception as error:  # as in `_first`
            log.info("a connection to PostgreSQL is closed: %s: %s", type(error).__name__, error)
            kept.driver.terminate()
        finally:
            await self.give_back(kept)

    async def close(self) -> None:
        """Close those that nobody uses, and from now on each that is given back."""
        self._closed = True
        if self._tidying is not None:
            self._tidying.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        while self._free or self._begun:
            await _throw_away((self._free or self._begun).pop(), politely=True)


async def guarded(kept: Kept, statement: str, work: Awaitable[T]) -> T:
    """Do it on a connection; its errors become those of SQLAlchemy."""
    try:
        return await work
    except Exception as error:
        return cast("T", await greenlet_spawn(_raise, kept, statement, error))


def _raise(kept: Kept, statement: str, error: Exception) -> None:
    try:
        kept.adapter._handle_exception(error)
    except Exception as translated:
        plain = cast("Connection", kept.connection.sync_connection)
        dialect = cast("Any", plain.dialect)
        if isinstance(translated, (dialect.dbapi.InvalidCachedStatementError, dialect.dbapi.InternalServerError)):
            dialect._invalidate_schema_cache()  # the schema changed: every connection prepares anew
        plain._handle_dbapi_exception(translated, statement, None, None, None)


async def _throw_away(kept: Kept, *, politely: bool = False) -> None:
    """Close a connection with whatever is open on it, and never let the engine's pool have it.

    `politely` says goodbye to the server, which takes seconds when nobody answers there.
    """
    connection = kept.connection
    try:
        if not connection.closed and not connection.invalidated:
            if not politely:
                kept.driver.terminate()
            await connection.invalidate()
        await connection.close()
    except SQLAlchemyError as error:
        log.info("a connection to PostgreSQL could not be closed: %s", error)


class KeptSession(LazySession):
    """A session on a kept connection, with a way for statements past SQLAlchemy, in the same transaction."""

    def __init__(
        self, engine: AsyncEngine, connections: Connections, begin: str | None, kind: type[_OrmSession]
    ) -> None:
        super().__init__(engine, kind)
        self._connections = connections
        self._begin = begin
        self._kept: Kept | None = None
        self._torn = False
        """Whether somebody left while the connection was at work, so that nobody knows what it is at."""
        self._failed = False
        """Whether the transaction went with a statement that failed, or that nobody waited for."""

    @property
    def dialect(self) -> Dialect:
        """That for which statements are compiled."""
        return self._engine.dialect

    async def run(self, statement: str, values: Sequence[Any]) -> tuple[Sequence[Any], int]:
        """The rows, and how many there were or are changed, of a statement as the driver takes it.

        Raises SQLAlchemy's errors. Objects are not flushed before it.
        """
        if not self.begun:
            await self.ready()
        self._connections.sent(statement)
        kept = cast("Kept", self._kept)
        invalid_since = cast("Any", self._engine.dialect)._invalidate_schema_cache_asof
        return await self._guarded(statement, kept.run(statement, values, invalid_since))

    async def ready(self) -> None:
        """Have a connection on which a transaction has begun, where this session has one."""
        self._refuse_failed()
        if self._kept is None:
            self._kept = await self._connections.take(self._begin)
        elif self._kept.begun:
            self._kept.enter(self._begin)
        elif self._begin is not None:
            await self._guarded(self._begin, self._kept.start(self._begin))

    async def _guarded(self, statement: str, work: Awaitable[T]) -> T:
        """Do it; one that is cancelled costs the connection."""
        try:
            return await guarded(cast("Kept", self._kept), statement, work)
        except Exception:
            self._failed = self._begin is not None and not self.begun
            raise
        except BaseException:
            self._torn = self._failed = True
            raise

    def _refuse_failed(self) -> None:
        if self._failed:
            raise PendingRollbackError("a statement failed, and with it the transaction")

    @property
    def begun(self) -> bool:
        """Whether a transaction is open on the connection."""
        return self._kept is not None and self._kept.adapter._transaction is not None

    @property
    def changed(self) -> bool:
        """Whether there may be objects to flush."""
        return self._made and bool(self.new or self.identity_map)

    async def commit_all(self, guard: str | None) -> None:
        """Commit what was done in either way, if the statement `guard` does not fail. Raises SQLAlchemy's errors."""
        self._refuse_failed()
        if self.begun:
            cast("Kept", self._kept).adapter._transaction.guard = guard
        if self.changed or (self._made and self.in_transaction()):
            await super().commit()
        else:
            await self.commit_past()

    async def commit(self) -> None:
        """Commit what was done in either way."""
        await self.commit_all(None)

    async def commit_past(self) -> None:
        """Commit what went past SQLAlchemy."""
        if self.begun:
            adapter = cast("Kept", self._kept).adapter
            await self._guarded("COMMIT", adapter._call_and_discard(adapter._transaction.commit))

    async def rollback(self) -> None:
        """Undo what was done in either way."""
        if self._made:
            await super().rollback()
            return
        await self.drop_torn()
        await self.rollback_past()

    async def rollback_past(self) -> None:
        """Undo what went past SQLAlchemy, and begin anew."""
        self._failed = False
        if self._torn:
            await self._let_go()
        elif self.begun:
            await self._undo()

    async def _undo(self) -> None:
        adapter = cast("Kept", self._kept).adapter
        await self._guarded("ROLLBACK", adapter._call_and_discard(adapter._transaction.rollback))

    @property
    def ends_at_once(self) -> bool:
        """Whether its end waits for nothing."""
        if self.begun or self._torn or (self._made and self.in_transaction()):
            return False
        return self._kept is None or self._connections.keeps(self._kept)

    async def end(self) -> None:
        """Roll back what is not committed, and give the connection back. That it breaks only now changes nothing: what
        was read is read, what was committed is, and what was not goes with the connection."""
        try:
            await self.drop_torn()
            if self.changed or (self._made and self.in_transaction()):
                await super().close()
            if self.begun and not self._torn:
                await self._undo()
        except SQLAlchemyError as error:
            log.info("a connection broke when it was given back: %s", error)
        finally:
            await self._let_go()

    async def drop_torn(self) -> None:
        """Close a connection that somebody left before it is told to roll back, which it may not answer for a minute.
        In the two seconds that the driver takes at most for that, it asks the server to end the statement, which may
        hold locks."""
        if self._torn and self._kept is not None and not self._kept.connection.invalidated:
            await self._kept.connection.invalidate()

    async def _let_go(self) -> None:
        """Give the connection back, if there is one."""
        if (kept := self._kept) is not None:
            self._kept, self._torn = None, False
            await self._connections.give_back(kept)


class _OrmSession(Session):
    """SQLAlchemy's part of a kept session."""

    def __init__(self, bind: Engine, *, kept: KeptSession, **options: Any) -> None:
        super().__init__(bind, **options)
        self._kept = kept

    def get_bind(self, *_asked: Any, **_options: Any) -> Engine | Connection:
        """The connection, taken now if a statement is on its way; the engine for who only asks."""
        kept = self._kept
        if in_greenlet():
            if not kept.begun:
                await_(kept.ready())
        elif kept._kept is None:
            return cast("Engine", self.bind)
        return cast("Connection", cast("Kept", kept._kept).connection.sync_connection)

    def commit(self) -> None:
        """Commit what was done in either way."""
        self._kept._refuse_failed()
        super().commit()
        await_(self._kept.commit_past())

    def rollback(self) -> None:
        """Undo what was done in either way."""
        await_(self._kept.drop_torn())
        super().rollback()
        await_(self._kept.rollback_past())


class _LockingOrmSession(_OrmSession, LockingSession):
    """The same for writers."""
