"""The simulated database in the place of PostgreSQL, for clouds of several nodes.

Invariant: one transaction writes at a time and readers see one state, so what PostgreSQL's locks would keep apart is
apart here; what else a server does to its clients (conflicts, lost connections, transactions that were idle for too
long) is done to them as faults.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from unittest import mock

from sqlalchemy import Connection, event, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from caelum.kernel import changes, membership, postgresql, sqlite
from caelum.kernel.database import Database
from caelum.testing.simulation.loop import Machine, VirtualLoop

URL = "postgresql+asyncpg://simulation"
"""What begins the address of the simulated server; the path of the file follows."""
_PRAGMAS = ("journal_mode=WAL", "synchronous=OFF", "foreign_keys=ON")
_WAIT = 0.02


class Engine(AsyncEngine):
    """An engine on the simulated server. One with options is one that only reads."""

    reader: AsyncEngine

    def execution_options(self, **_options: Any) -> AsyncEngine:
        """The product asks for options of a reader only."""
        return self.reader


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
        return ("SELECT 1", ()) if foreign else (statement, parameters)

    return made


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
        mock.patch.object(membership, "_clock", clock),
        mock.patch.object(membership, "_limit_lock_wait", _no_limit),
        mock.patch.object(changes, "unwatched", _unwatched),
        mock.patch.object(changes, "watch", _watch),
        mock.patch.object(Database, "turn", lambda _self, key: _turn(turns, key)),
    ):
        yield
