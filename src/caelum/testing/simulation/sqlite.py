"""The database of the simulation: SQLite without threads, as far away and as unreliable as a database server.

Invariant: statements of one connection run in order, each in one piece after a seeded delay, also when nobody waits for
them any more. A writer that meets another's transaction waits by the virtual clock, never in SQLite itself. The
connections of a machine that died are rolled back and closed.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import types
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import aiosqlite
import aiosqlite.core

from caelum.kernel import sqlite
from caelum.testing.simulation.loop import Machine, VirtualLoop

SHORTEST_STATEMENT, LONGEST_STATEMENT = 0.0001, 0.0015
BUSY_PAUSE = 0.004
PATIENCE = 30.0
"""Seconds that a statement waits for another writer."""
IDLE_TRANSACTION = 3.0
"""A machine that is paused in a transaction loses it after so many seconds."""
_GONE = "connection closed: the database is not reachable"
_COMMIT = "commit"
_ENDS = frozenset({_COMMIT, "rollback", "close"})
"""The names of what ends a transaction."""


class ServerError(sqlite3.OperationalError):
    """An error with the code that PostgreSQL would give."""

    def __init__(self, text: str, sqlstate: str) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


def _gone(why: str = _GONE) -> ServerError:
    return ServerError(why, "08006")


class Outage:
    """What is wrong between one machine and the database."""

    def __init__(self) -> None:
        self.away = False
        """Statements hang until the connection breaks."""
        self.break_at_commit: str | None = None
        """The next commit loses its connection: "done", or "lost"."""
        self.conflicts = 0
        """So many statements in transactions end in a conflict with somebody else's."""


class DatabaseServer:
    """All connections of all machines."""

    def __init__(self, loop: VirtualLoop, chance: random.Random) -> None:
        sqlite.LOCK_TIMEOUT = 0.0
        self.loop, self.chance = loop, chance
        self.connections: dict[InlineConnection, None] = {}
        self.on_ambiguous: Callable[[Machine, str], None] = lambda _machine, _how: None
        self.fates: dict[int, str] = {}
        """What became of numbered transactions."""
        self._outages: dict[Machine, Outage] = {}

    def outage(self, machine: Machine) -> Outage:
        """The troubles of a machine with the database."""
        return self._outages.setdefault(machine, Outage())

    def delay(self) -> float:
        """Seconds that a statement takes."""
        return self.chance.uniform(SHORTEST_STATEMENT, LONGEST_STATEMENT)

    def vanish(self, machine: Machine) -> None:
        """A machine's process is gone: nothing that it had open is committed."""
        for one in [one for one in self.connections if one.machine is machine]:
            one.break_off()
        self._outages.pop(machine, None)

    def end_idle_transactions(self, machine: Machine) -> None:
        """What a database does with the transaction of a client that says nothing for long."""
        for one in [one for one in self.connections if one.machine is machine and one.in_transaction]:
            one.break_off()


class InlineConnection(aiosqlite.Connection):
    """aiosqlite's connection, whose work is done by callbacks of the loop."""

    server: DatabaseServer

    def __init__(self, connector: Callable[[], sqlite3.Connection], iter_chunk_size: int, loop: Any = None) -> None:
        self._running = True
        self._connection: sqlite3.Connection | None = None
        self._connector = connector
        self._iter_chunk_size = iter_chunk_size
        self._thread: Any = types.SimpleNamespace(daemon=True)
        # SQLAlchemy puts its settings of a connection straight into the queue of the thread.
        self._tx: Any = types.SimpleNamespace(put_nowait=lambda item: self._put(*item))
        self._work: deque[tuple[asyncio.Future[Any], Callable[[], Any], str | None]] = deque()
        self._waits_since: float | None = None
        self._number: int | None = None
        self.machine = self.server.loop.machine

    def __del__(self) -> None:
        """Nothing to warn of: connections of a machine that was killed are just left."""

    def __await__(self) -> Generator[Any, None, aiosqlite.Connection]:
        return self._connect().__await__()

    async def _connect(self) -> aiosqlite.Connection:
        await asyncio.sleep(self.server.delay())
        if self.server.outage(self.machine).away:
            await asyncio.sleep(5.0)
            raise _gone()
        self._connection = self._connector()
        self._connection.create_function("txid_current", 0, self._give_number)
        self._connection.create_function("txid_status", 1, self.server.fates.get)
        self.server.connections[self] = None
        return self

    def _give_number(self) -> int:
        """A transaction asks once for its number, just before it commits."""
        self._settle("aborted")
        self._number = len(self.server.fates) + 1
        self.server.fates[self._number] = "in progress"
        return self._number

    def _settle(self, fate: str) -> None:
        """The transaction is over, if there was one."""
        if self._number is not None:
            self.server.fates[self._number], self._number = fate, None

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._connection is not None and self._connection.in_transaction

    @property
    def _writes(self) -> bool:
        """Whether the connection may write."""
        return self._connection is not None and not self._connection.execute("PRAGMA query_only").fetchone()[0]

    def stop(self) -> asyncio.Future[Any] | None:
        """Close at once."""
        self.break_off()
        return None

    def break_off(self) -> None:
        """The connection is lost; what was not committed is rolled back."""
        self._running = False
        connection, self._connection = self._connection, None
        self.server.connections.pop(self, None)
        self._settle("aborted")
        if connection is not None:
            connection.close()

    async def _execute(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._running or self._connection is None:
            raise _gone()
        future: asyncio.Future[Any] = self.server.loop.create_future()
        end = next((name for one in (fn, *args) if (name := getattr(one, "__name__", "")) in _ENDS), None)
        self._put(future, lambda: fn(*args, **kwargs), end)
        return await future

    def _put(self, future: asyncio.Future[Any], work: Callable[[], Any], end: str | None = None) -> None:
        """Do some work in its turn; `end` is the way in which it ends a transaction."""
        self._work.append((future, work, end))
        if len(self._work) == 1:
            self._later(self.server.delay())

    def _later(self, seconds: float) -> None:
        self.server.loop.call_later(seconds, self._next)

    def _next(self) -> None:
        future, work, end = self._work[0]
        outage = self.server.outage(self.machine)
        if outage.away and self._connection is not None:
            self._fail_later()
            return
        try:
            result = self._do(work, outage, end)
        except sqlite3.OperationalError as error:
            if "locked" in str(error) and self._may_wait():
                self._later(self.server.chance.uniform(BUSY_PAUSE / 4, BUSY_PAUSE))
                return
            self._answer(future.set_exception, future, error)
        except Exception as error:
            self._answer(future.set_exception, future, error)
        else:
            self._answer(future.set_result, future, result)

    def _do(self, work: Callable[[], Any], outage: Outage, end: str | None) -> Any:
        if self._connection is None:
            raise _gone()
        if not self.in_transaction:
            self._connection.execute("PRAGMA busy_timeout=0")
        elif outage.conflicts and end is None and self._writes:
            outage.conflicts -= 1
            raise ServerError("deadlock detected", "40P01")
        if outage.break_at_commit is None or end != _COMMIT or not self.in_transaction:
            result = work()
            if end == _COMMIT:
                self._settle("committed")
            return result
        how, outage.break_at_commit = outage.break_at_commit, None
        self.server.on_ambiguous(self.machine, how)
        if how == "done":
            work()
            self._settle("committed")
        self.break_off()
        raise _gone("connection closed: while it was committing")

    def _may_wait(self) -> bool:
        now = self.server.loop.time()
        self._waits_since = now if self._waits_since is None else self._waits_since
        return now - self._waits_since < PATIENCE

    def _answer(self, tell: Callable[[Any], None], future: asyncio.Future[Any], value: Any) -> None:
        self._waits_since = None
        self._work.popleft()
        if not future.done():
            tell(value)
        if self._work:
            self._later(self.server.delay())

    def _fail_later(self) -> None:
        """The database does not answer: the connection breaks when the patience of TCP is over."""
        self.break_off()
        self._later(self.server.chance.uniform(0.5, 8.0))
