"""PostgreSQL under several writers: connections, locks, and which of its errors pass.

Invariant: in a transaction, a row that was loaded as an object stays as it was read until the transaction ends: its
load locks it, as SQLite's single writer does for everything. A statement that ends with `CONFLICT` or with
`DATABASE_UNAVAILABLE` left nothing behind; a commit that ends with the latter may have happened, and its facts say so.
The server remembers the fate of each transaction by its number, also across its own restart (`happened`).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import Select, event, inspect, text
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InvalidatePoolError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import ORMExecuteState, Session
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from caelum.kernel.errors import CloudError, error_type

DATABASE_UNAVAILABLE = error_type(
    "CAELUM.DB.1000", "The database cannot be reached", "Wait until it is back, and repeat the request.", transient=True
)
CONFLICT = error_type("CAELUM.DB.1001", "Two changes of the same records met", "Repeat the request.", transient=True)
"""Also of a statement and a change of its table's structure, for which it was prepared; it is prepared anew."""
PASSING = (DATABASE_UNAVAILABLE, CONFLICT)
"""Errors that say nothing of what was asked: the same may be tried again."""

CONNECT_SECONDS = 5.0
_PREPARED = 1024
"""Statements that each connection keeps prepared."""
_STATUS_PAUSE = 0.2
_NEW = "new"
_CONFLICTS = frozenset({"40001", "40P01", "55P03"})
_AWAY = frozenset({"25P03", "53100", "53200", "53300", "57014", "57P01", "57P02", "57P03", "57P05"})
"""Besides class 08, lost connections: ended by a time limit, by an administrator or a restart, or never begun; and a
server that has no disk, memory or connection left."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one node may take of the database. Times are in seconds."""

    pool: int = 20
    extra: int = 20
    statement: float = 60.0
    """A statement that takes longer is ended."""
    grace: float = 5.0
    """How much longer than the server works on it this node waits for an answer: then the connection counts as lost."""
    idle: float = 5.0
    """A transaction whose client does nothing for so long is ended, so that a paused node holds no locks."""


def make_engine(url: str, limits: Limits) -> AsyncEngine:
    """An engine whose connections are tried before they are used, so that a dead one is replaced."""
    settings = {
        "application_name": "caelum",
        "timezone": "UTC",
        "jit": "off",
        "statement_timeout": str(int(limits.statement * 1000)),
        "idle_in_transaction_session_timeout": str(int(limits.idle * 1000)),
        # What a dead node locked is free once its connection is known to be dead.
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "2",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "10000",
    }
    engine = create_async_engine(
        url,
        pool_size=limits.pool,
        max_overflow=limits.extra,
        hide_parameters=True,  # values may be secrets, and errors are logged
        connect_args={
            "async_creator_fn": _connect,
            "prepared_statement_cache_size": _PREPARED,
            "timeout": CONNECT_SECONDS,
            "command_timeout": limits.statement + limits.grace,
            "server_settings": settings,
        },
    )
    event.listen(engine.sync_engine, "connect", _note_new)
    event.listen(engine.sync_engine, "checkout", _try_out)
    event.listen(engine.sync_engine, "handle_error", _tell_silence)
    return engine


async def _connect(*arguments: Any, **options: Any) -> Any:
    """Open a connection. Raises DATABASE_UNAVAILABLE."""
    driver = importlib.import_module("asyncpg")  # an optional dependency
    try:
        return await driver.connect(*arguments, **options)
    except (OSError, TimeoutError, driver.PostgresError, driver.InterfaceError) as error:
        state = getattr(error, "sqlstate", None)
        if state is not None and state not in _AWAY and not state.startswith("08"):
            raise
        details = f"no connection to PostgreSQL: {type(error).__name__}: {error}"
        raise CloudError(DATABASE_UNAVAILABLE, details) from error


def _note_new(_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info[_NEW] = True


def _try_out(connection: Any, record: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
    """Before a connection is used again. Not by the engine's own ping, which takes three trips and has no limit."""
    if record.info.pop(_NEW, False):
        return
    try:
        connection.run_async(lambda inner: inner.execute("SELECT 1", timeout=CONNECT_SECONDS))
    except Exception as error:  # whatever the driver makes of a connection that ended while nobody listened
        raise InvalidatePoolError(f"{type(error).__name__}: {error}") from error


def _tell_silence(context: ExceptionContext) -> DBAPIError | None:
    """An answer that did not come in time is a lost connection, and so is what the driver has no word for."""
    error = context.original_exception
    if not isinstance(error, (OSError, importlib.import_module("asyncpg").InternalClientError)):
        return None  # the driver's TimeoutError is an OSError
    context.is_disconnect, context.invalidate_pool_on_disconnect = True, False
    return DBAPIError(context.statement, None, error, hide_parameters=True, connection_invalidated=True)


async def happened(engine: AsyncEngine, number: int, patience: float) -> bool | None:
    """Whether the transaction of this number was committed; None when that is not known within so many seconds.

    One whose client is gone ends by itself, when the server notices or at the limit for idle transactions.
    """
    fates = {"committed": True, "aborted": False}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience):
            while (fate := await _status(engine, number)) not in fates:  # noqa: ASYNC110 - the server wakes nobody
                await asyncio.sleep(_STATUS_PAUSE)
            return fates[fate]
    return None


async def _status(engine: AsyncEngine, number: int) -> str | None:
    """What the server says of a transaction, if it says anything."""
    try:
        async with engine.connect() as connection:
            status = await connection.scalar(text("SELECT txid_status(:number)"), {"number": number})
    except (SQLAlchemyError, CloudError, OSError):
        return None
    return None if status is None else str(status)


class LockingSession(Session):
    """A session in which objects that are loaded are locked."""


@event.listens_for(LockingSession, "do_orm_execute")
def _lock_what_is_loaded(state: ORMExecuteState) -> None:
    statement = state.statement
    if not isinstance(statement, Select) or state.is_column_load or state.is_relationship_load:
        return
    if statement._for_update_arg is None and not statement._distinct and not statement._group_by_clauses:
        optional = _optional(statement)
        entities = [one["entity"] for one in statement.column_descriptions if _is_object(one)]
        entities = [one for one in entities if inspect(one).selectable not in optional]
        if entities:
            # Not its key: rows that refer to it may be written meanwhile.
            state.statement = statement.with_for_update(of=entities, key_share=True)


def _optional(statement: Select[Any]) -> set[Any]:
    """The tables of outer joins: what may be missing cannot be locked."""
    joins = [(target, flags) for target, _, _, flags in statement._setup_joins]
    return {target for target, flags in joins if flags["isouter"] or flags["full"]}


def _is_object(description: Mapping[str, Any]) -> bool:
    entity = description.get("entity")
    return entity is not None and description["expr"] is entity


def is_passing(error: BaseException) -> bool:
    """Whether an error is one of `PASSING`."""
    return isinstance(error, CloudError) and error.kind in PASSING


def passing(error: BaseException, *, committing: bool = False) -> CloudError | None:
    """The error to raise instead when `error` says that the database is away, or that two writers met; else None."""
    if isinstance(error, PoolTimeoutError):
        return CloudError(DATABASE_UNAVAILABLE, f"all connections to the database are in use: {error}", busy=True)
    if not isinstance(error, DBAPIError):
        return None
    state = getattr(error.orig, "sqlstate", None) or ""
    details = f"{type(error.orig).__name__}: {str(error.orig).partition(chr(10))[0]}"
    if state in _CONFLICTS or isinstance(error.orig, AsyncAdapt_asyncpg_dbapi.InvalidCachedStatementError):
        return CloudError(CONFLICT, details)
    if error.connection_invalidated or state in _AWAY or state.startswith("08"):
        facts: dict[str, Any] = {"ambiguous": True} if committing else {}
        return CloudError(DATABASE_UNAVAILABLE, details, **facts)
    return None
