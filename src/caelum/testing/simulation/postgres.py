"""The simulated database in the place of PostgreSQL, for clouds of several nodes.

Invariant: one transaction writes at a time and readers see one state, so what PostgreSQL's locks would keep apart is
apart here; what else a server does to its clients (conflicts, lost connections, transactions that were idle for too
long) is done to them as faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, cast
from unittest import mock

from sqlalchemy import Connection, event, inspect, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from caelum.kernel import changes, membership, postgresql, postgresql_sessions, sqlite, table_versions
from caelum.kernel.database import Database
from caelum.testing.simulation.loop import Machine, VirtualLoop
from caelum.testing.simulation.sqlite import ServerError

log = logging.getLogger(__name__)

URL = "postgresql+asyncpg://simulation"
"""What begins the address of the simulated server; the path of the file follows."""
_PRAGMAS = ("journal_mode=WAL", "synchronous=OFF", "foreign_keys=ON")
_WAIT = 0.02
_VERSIONS = (
    "SELECT group_concat(name || ' ' || version, ' ') "
    "FROM (SELECT name, sum(version) AS version FROM table_change GROUP BY name) AS tables"
)


class Engine(AsyncEngine):
    """An engine on the simulated server."""

    reader: AsyncEngine
    """Another one, which only reads."""


def make_engine(url: str, limits: postgresql.Limits) -> AsyncEngine:
    """In the place of `postgresql.make_engine`."""
    writer = Engine(_engine(url, limits, "BEGIN IMMEDIATE", _PRAGMAS).sync_engine)
    writer.reader = _engine(url, limits, "BEGIN", (*_PRAGMAS, "query_only=ON"))
    return writer


def _engine(url: str, limits: postgresql.Limits, begin: str, pragmas: tuple[str, ...]) -> AsyncEngine:
    made = create_async_engine(
        f"sqlite+aiosqlite://{url.removeprefix(URL)}",
        pool_size=limits.pool, max_overflow=limits.extra, pool_pre_ping=True, pool_reset_on_return=None,
    )  # fmt: skip
    sqlite.prepare(made.sync_engine, pragmas, begin)

    @event.listens_for(made.sync_engine, "before_cursor_execute", retval=True)
    def translate(
        _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool
    ) -> tuple[str, Any]:
        foreign = statement.startswith("SET ") or "_advisory_" in statement
        return ("SELECT 1", ()) if foreign else (_of_sqlite(statement), parameters)

    return made


def _of_sqlite(statement: str) -> str:
    """A statement that the program wrote for PostgreSQL, in SQLite's words."""
    if statement == table_versions.VERSIONS:
        return _VERSIONS
    return statement.replace("SELECT FROM ", "SELECT 1 FROM ").replace(" FOR KEY SHARE", "")


class Connections:
    """In the place of `postgresql_sessions.Connections`: the engines' pools keep the connections."""

    def __init__(self, engine: AsyncEngine, _limits: postgresql.Limits, sent: Callable[[str], None]) -> None:
        self._writer, self._reader = engine, cast("Engine", engine).reader
        # Whoever made this listens to the writer.
        event.listen(self._reader.sync_engine, "before_cursor_execute", lambda *told: sent(told[2]))

    def reading(self) -> SimulatedSession:
        """A session that sees one state of the database."""
        return SimulatedSession(self._reader, Session)

    def asking(self) -> SimulatedSession:
        """The same: a trip costs nothing here."""
        return self.reading()

    def writing(self) -> SimulatedSession:
        """A session that is the only one to write, from its first statement on."""
        return SimulatedSession(self._writer, postgresql.LockingSession)

    async def ask(self, statement: str) -> Any:
        """The one value that a statement answers by itself."""
        async with self._reader.connect() as connection:
            return (await connection.exec_driver_sql(statement)).scalar()

    async def close(self) -> None:
        """Whoever has the engines closes what is open."""
        await self._reader.dispose()


class SimulatedSession(postgresql_sessions.KeptSession):
    """In the place of `KeptSession`: all that it does passes through SQLAlchemy."""

    def __init__(self, engine: AsyncEngine, kind: type[Session]) -> None:
        self._engine, self._info = engine, {}
        AsyncSession.__init__(self, engine, expire_on_commit=False, sync_session_class=kind)

    async def run(self, statement: str, values: Sequence[Any]) -> tuple[Sequence[Any], int]:
        """See `KeptSession`."""
        connection = await self.connection()
        done = await connection.exec_driver_sql(statement, tuple(values), {"preserve_rowcount": True})
        return (done.all() if done.returns_rows else []), done.rowcount

    @property
    def begun(self) -> bool:
        """See `KeptSession`."""
        return self.in_transaction()

    @property
    def changed(self) -> bool:
        """See `KeptSession`."""
        return bool(self.new or self.identity_map)

    async def commit_all(self, guard: str | None) -> None:
        """See `KeptSession`. A division by zero fails in PostgreSQL, and is NULL in SQLite."""
        if guard is not None and self.begun:
            [(answer,)], _ = await self.run(guard, ())
            if answer is None:
                raise OperationalError(guard, None, ServerError("division by zero", postgresql_sessions.BROKEN))
        await AsyncSession.commit(self)

    @property
    def ends_at_once(self) -> bool:
        """See `KeptSession`."""
        return not self.in_transaction()

    async def end(self) -> None:
        """See `KeptSession`."""
        try:
            await AsyncSession.close(self)
        except SQLAlchemyError as error:
            log.info("a connection broke when it was given back: %s", error)


class Turns:
    """Advisory locks: who holds one keeps it until its block or its machine ends."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._holders: dict[int, Machine] = {}

    @contextlib.asynccontextmanager
    async def turn(self, key: int) -> AsyncIterator[None]:
        """In the place of `Database.turn`."""
        while (holder := self._holders.get(key)) is not None and holder.alive:  # noqa: ASYNC110 - a death wakes nobody
            await asyncio.sleep(_WAIT)
        mine = self._holders[key] = self._loop.machine
        try:
            yield
        finally:
            if self._holders.get(key) is mine:
                del self._holders[key]


async def _no_limit(_connection: Any) -> None:
    """Nobody waits here for a lock of PostgreSQL."""


def _unwatched(connection: Connection) -> list[str]:
    """In the place of `changes.unwatched`."""
    tables = set(inspect(connection).get_table_names())
    known = {row[0] for row in connection.execute(text("SELECT tbl_name FROM sqlite_master WHERE type = 'trigger'"))}
    return sorted((changes._steady() & tables) - known) if changes.TableChangeModel.__tablename__ in tables else []


def _watch(connection: Connection) -> None:
    """In the place of `changes.watch`: SQLite's triggers note changes too."""
    for name in _unwatched(connection):
        for what in ("INSERT", "UPDATE", "DELETE"):
            count = f"UPDATE table_change SET version = version + 1 WHERE name = '{name}'"  # noqa: S608 - our own names
            connection.execute(text(f"CREATE TRIGGER note_{what}_{name} AFTER {what} ON {name} BEGIN {count}; END"))
        row = {"name": name}
        connection.execute(text("INSERT OR IGNORE INTO table_change (name, shard, version) VALUES (:name, 0, 0)"), row)


@contextlib.asynccontextmanager
async def _turn(turns: Turns, key: int) -> AsyncIterator[None]:
    async with turns.turn(key):
        yield


@contextlib.contextmanager
def served(loop: VirtualLoop, epoch: float) -> Any:
    """Let nodes that are configured for PostgreSQL have the simulated server."""
    turns = Turns(loop)

    def clock() -> datetime:
        # The server's own clock, which does not jump.
        return datetime.fromtimestamp(epoch + loop.time(), UTC).replace(tzinfo=None)

    with (
        mock.patch.object(postgresql, "make_engine", make_engine),
        mock.patch.object(postgresql_sessions, "Connections", Connections),
        mock.patch.object(membership, "_clock", clock),
        mock.patch.object(membership, "_limit_lock_wait", _no_limit),
        mock.patch.object(changes, "unwatched", _unwatched),
        mock.patch.object(changes, "watch", _watch),
        mock.patch.object(Database, "turn", lambda _self, key: _turn(turns, key)),
    ):
        yield
