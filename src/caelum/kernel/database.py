"""The database: one writer at a time on SQLite, the same code on PostgreSQL, where several write at once.

Invariant: what `transaction()` left without an error is committed; anything else (an exception, a cancellation,
the death of the process) left no trace, but for a commit whose connection was lost: its error says `ambiguous`. One
that has news to tell (`after_commit`) is looked up by its number, and the news go out if it happened. A
cancellation waits until the commit or the rollback under way has ended, so neither the writer's turn nor a connection
leaks. A row that a transaction loads as an object is locked until its end, so what was read is true when it is written
(on SQLite by the single writer, see `postgresql.py`). A node of a cluster commits only while it is a member of it
(`Fence`). Times are naive UTC.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from functools import lru_cache, partial
from typing import Any, ClassVar, TypeVar, cast

import msgspec
from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    CursorResult,
    DateTime,
    Integer,
    MetaData,
    String,
    Table,
    event,
    inspect,
    text,
)
from sqlalchemy import update as sql_update
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Mapper, mapped_column, relationship

from caelum.kernel import postgresql, postgresql_sessions, resources, sqlite, table_versions
from caelum.kernel.blocks import (
    BegunReading,
    BegunWriting,
    Block,
    Fence,
    call_back,
    enter_transaction,
    has_news,
    leave_transaction,
)
from caelum.kernel.blocks import after_commit as after_commit
from caelum.kernel.blocks import in_transaction as in_transaction
from caelum.kernel.blocks import refuse_in_transaction as refuse_in_transaction
from caelum.kernel.blocks import uninterrupted as uninterrupted
from caelum.kernel.checkpoints import Checkpoints
from caelum.kernel.errors import CloudError, ErrorType
from caelum.kernel.lost_commits import LostCommits
from caelum.kernel.prepared import Prepared, Reading
from caelum.kernel.remembered import Changes, Remembered
from caelum.kernel.single import Single

log = logging.getLogger(__name__)

T = TypeVar("T")
_KeptSession = sqlite.KeptSession | postgresql_sessions.KeptSession

_CACHE = 32_768
"""KiB of the database that a connection to SQLite keeps at most."""
_TURN_PAUSE = 0.5
_AGAIN_PAUSE = 0.5
_PARSED = 1024
"""Statements that each connection to SQLite keeps parsed."""
_COMMITTING = "committing"
_NUMBER = "number"
"""The number by which PostgreSQL knows a transaction."""
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - as the database has it


def utcnow() -> datetime:
    """The time as the database stores it: UTC without a zone."""
    return _EPOCH + timedelta(0, 0, int(time.time() * 1e6))  # a whole number takes half the time


class Base(DeclarativeBase):
    """The declarative base of all tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    __steady__: ClassVar[bool] = False
    """Whether the table changes seldom, so that what is read from it is worth keeping in a cluster (`changes.py`)."""
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        # SQLite gives out numbers by itself only for a column of type INTEGER; everywhere else sizes need 64 bits.
        int: BigInteger().with_variant(Integer(), "sqlite"),
        datetime: DateTime(),
        dict[str, Any]: JSON(),
        list[Any]: JSON(),
        list[str]: JSON(),
    }


class _LenientMap(dict[Any, Any]):
    """Loads rows of a type whose driver is not installed as their parent type, so that the rest still works."""

    def __init__(self, known: dict[Any, Any], parent: Mapper[Any]) -> None:
        super().__init__(known)
        self.parent = parent

    def __missing__(self, key: Any) -> Mapper[Any]:
        return self.parent


_relations: list[tuple[type[Base], str, str, dict[str, Any]]] = []


def relate(model: type[Base], name: str, target: str, **options: Any) -> None:
    """Give a model a view of another service's rows: a read-only relationship to the model of that class name.

    When that service is not loaded, the model has no such attribute, and everything else works.
    """
    _relations.append((model, name, target, options))


@event.listens_for(Mapper, "before_configured")
def _add_relations() -> None:
    known = Base.registry._class_registry
    for row in [one for one in _relations if one[2] in known]:
        model, name, target, options = row
        _relations.remove(row)
        setattr(model, name, relationship(target, viewonly=True, **options))


@event.listens_for(Base, "mapper_configured", propagate=True)
def _accept_unknown_types(mapper: Mapper[Any], _cls: type) -> None:
    root = mapper.base_mapper
    if root.polymorphic_on is not None and not isinstance(mapper.polymorphic_map, _LenientMap):
        lenient = _LenientMap(dict(root.polymorphic_map), root)
        for one in root.self_and_descendants:
            one.polymorphic_map = lenient


class Row(Base):
    """A row that clients can query. A subclass names its resource type as `__vo__` and its view as `__inventory__`.

    Where the inventory is declared elsewhere (the kernel's own tables), it is found by its `vo`. A child type of a
    parent's table derives from the parent's model, gives its own `__vo__` and
    `__mapper_args__ = {"polymorphic_identity": "<type>"}`; the parent gives `{"polymorphic_on": "type"}`.
    """

    __abstract__ = True
    __vo__: ClassVar[str]
    __inventory__: ClassVar[type[Any]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__vo__" in vars(cls):
            resources.register(cls)


class Resource(Row):
    """A row with a UUID and the times of its making and last change."""

    __abstract__ = True

    uuid: Mapped[str] = mapped_column(String(32), primary_key=True)
    create_date: Mapped[datetime] = mapped_column(default=utcnow, sort_order=900)
    last_op_date: Mapped[datetime] = mapped_column(default=utcnow, onupdate=utcnow, sort_order=901)


class Database:
    """Access to the database at `url` ("sqlite+aiosqlite:////var/lib/caelum/caelum.db", "postgresql+asyncpg://...").

    `limits` are for PostgreSQL, `readers` and `synchronous` for SQLite. `fence` is set while this node is in a cluster.
    """

    def __init__(
        self, url: str, *, readers: int = 4, synchronous: str = "NORMAL", limits: postgresql.Limits | None = None
    ) -> None:
        self.url = url
        self.sqlite = url.startswith("sqlite")
        self.transactions = self.statements = 0
        self._remembered = Remembered(Base.metadata)
        self._synchronous = synchronous
        self._writer_turn = asyncio.Lock()
        self._severed: BaseException | None = None
        self.fence: Fence | None = None
        self._kept: tuple[sqlite.Connections | postgresql_sessions.Connections, ...]
        self._versions: table_versions.Versions | None = None
        self._write_session: Callable[[], AsyncSession]
        self._read_session: Callable[[], AsyncSession]
        self._ask_session: Callable[[], AsyncSession]
        if self.sqlite:
            write, read = "BEGIN IMMEDIATE", "BEGIN"
            self._writer = self._sqlite_engine(write, pool_size=2)
            self._reader = self._sqlite_engine(read, pool_size=readers, read_only=True)
            writing = sqlite.Connections(self._writer, 1, write, self._sent)
            reading = sqlite.Connections(self._reader, readers, read, self._sent)
            self._kept = writing, reading
            self._write_session, self._read_session = writing.session, reading.session
            self._ask_session = reading.session
        else:
            limits = limits or postgresql.Limits()
            self._writer = self._reader = postgresql.make_engine(url, limits)
            connections = postgresql_sessions.Connections(self._writer, limits, self._sent)
            self._versions = table_versions.Versions(partial(self._ask, connections, table_versions.VERSIONS))
            self._kept = (connections,)
            self._write_session, self._read_session = connections.writing, connections.reading
            self._ask_session = connections.asking
        self.once = Single(self._reader.dialect, self._kept[0], self._is_quiet, partial(self.read, single=True))
        """Runs single statements that read: for who asks one question, and needs no session for several."""
        self._lost = LostCommits(self._writer)
        self._checkpoints = Checkpoints(self._writer.url.database if self.sqlite else None)
        for engine in (self._writer, self._reader) if self.sqlite else (self._writer,):
            event.listen(engine.sync_engine, "before_cursor_execute", self._before_execute)

    def _before_execute(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self._sent(statement)

    def _sent(self, statement: str) -> None:
        self.statements += 1
        self._remembered.sent(statement)

    @property
    def engine(self) -> AsyncEngine:
        """The engine that writes, for migrations."""
        return self._writer

    def _sqlite_engine(self, begin: str, *, pool_size: int, read_only: bool = False) -> AsyncEngine:
        # Sessions end every transaction themselves; a second rollback by the pool would be one more trip.
        engine = create_async_engine(
            self.url, pool_size=pool_size, max_overflow=0, pool_timeout=sqlite.BUSY_TIMEOUT, pool_reset_on_return=None,
            connect_args={"cached_statements": _PARSED},
            json_serializer=lambda value: msgspec.json.encode(value).decode(), json_deserializer=msgspec.json.decode,
            hide_parameters=True,  # values may be secrets, and errors are logged
        )  # fmt: skip
        pragmas = [
            f"busy_timeout={int(sqlite.BUSY_TIMEOUT * 1000)}",
            "journal_mode=WAL",
            f"synchronous={self._synchronous}",
            "foreign_keys=ON",
            f"cache_size=-{_CACHE}",
            # A writer says for how long it waits when it begins; from then on it has what it needs.
            *(["query_only=ON"] if read_only else ["wal_autocheckpoint=0", "busy_timeout=0"]),
        ]
        sqlite.prepare(engine.sync_engine, pragmas, begin)
        return engine

    def transaction(self) -> AbstractAsyncContextManager[AsyncSession]:
        """A session that commits at the end of the block, or rolls back when the block raises.

        Raises CONFLICT and DATABASE_UNAVAILABLE (`postgresql.py`, `sqlite.passing`), which may pass when all of it is
        tried again.
        """
        return Block(self._begin_writing, self._end_writing)

    async def _begin_writing(self) -> BegunWriting:
        refuse_in_transaction("open another transaction")
        if self.fence is not None:
            await self.fence.admit()
        if self.sqlite:
            await self._writer_turn.acquire()
        try:
            self._refuse_severed()
            return BegunWriting(self._write_session(), self._remembered.changing(), enter_transaction())
        except BaseException:
            self._give_turn()
            raise

    def _give_turn(self) -> None:
        if self.sqlite:
            self._writer_turn.release()

    async def _end_writing(self, begun: BegunWriting, error: BaseException | None) -> None:
        session, changes, holding = begun
        try:
            if error is None:
                await self._commit_block(session, changes)
            elif isinstance(error, SQLAlchemyError):
                self._raise_passing(error, committing=_COMMITTING in session.info)
        finally:
            try:
                leave_transaction(holding)
                self._remembered.ended(changes)
                changes.close()
            finally:
                await self._let_go(session)

    async def _let_go(self, session: AsyncSession) -> None:
        try:
            await _give_back(session)
        finally:
            self._give_turn()

    async def _commit_block(self, session: AsyncSession, changes: Changes) -> None:
        try:
            self._refuse_severed()
            cancelled = await self._commit_whole(session)
        except SQLAlchemyError as error:
            self._raise_passing(error, committing=_COMMITTING in session.info)
            raise
        self._remembered.ended(changes)
        self.transactions += 1
        self._checkpoints.committed()
        call_back(session)
        if cancelled is not None:
            raise cancelled

    async def _commit_whole(self, session: AsyncSession) -> asyncio.CancelledError | None:
        """Commit, and let nobody tear that; the cancellation that came meanwhile."""
        if isinstance(session, sqlite.KeptSession):
            if session.changed:
                await session.flush()
            if sqlite.commits_at_once():
                await self._commit(session)  # it waits for nothing, so that there is no moment to tear it
                return None
        try:
            await uninterrupted(self._commit(session) if self.sqlite else self._commit_surely(session))
        except asyncio.CancelledError as error:
            return error  # it is committed all the same
        return None

    async def _commit(self, session: AsyncSession) -> None:
        if not isinstance(session, postgresql_sessions.KeptSession):
            await session.commit()
            return
        if session.changed:
            await session.flush()
        guard = None if self.fence is None else self.fence.guard()
        if session.begun and has_news(session):
            # Who waits for news of the commit gets them also if its answer is lost.
            [(session.info[_NUMBER],)], _ = await session.run("SELECT txid_current()", ())
        session.info[_COMMITTING] = True
        try:
            await session.commit_all(guard)
        except DBAPIError as error:
            if self.fence is not None and getattr(error.orig, "sqlstate", None) == postgresql_sessions.BROKEN:
                raise self.fence.broken() from error
            raise

    async def _commit_surely(self, session: AsyncSession) -> None:
        """Commit. When the connection is lost meanwhile, and news of it are waited for, learn whether it happened."""
        try:
            await self._commit(session)
        except SQLAlchemyError as error:
            lost = postgresql.passing(error, committing=_COMMITTING in session.info)
            if lost is None or "ambiguous" not in lost.facts or _NUMBER not in session.info:
                raise
            # What was loaded and made stays as it was committed, if it was.
            session.sync_session.expunge_all()
            lost.__cause__ = error
            await self._lost.settle(session.info[_NUMBER], lost, partial(call_back, session))

    async def _ask(self, connections: postgresql_sessions.Connections, statement: str) -> Any:
        try:
            return await connections.ask(statement)
        except SQLAlchemyError as error:
            self._raise_passing(error)
            raise

    def _raise_passing(self, error: SQLAlchemyError, *, committing: bool = False) -> None:
        """Say of an error that may pass that it may."""
        passing = sqlite.passing(error) if self.sqlite else postgresql.passing(error, committing=committing)
        if passing is not None:
            raise passing from error

    def read(self, *, single: bool = False) -> AbstractAsyncContextManager[AsyncSession]:
        """A session that only reads, and sees one state of the database for as long as it lasts.

        With `single`, each statement sees the state of its own moment: where one is all, that saves two trips.
        """
        make = self._ask_session if single else self._read_session
        return Block(partial(self._begin_reading, make), self._end_reading)

    async def _begin_reading(self, make: Callable[[], AsyncSession]) -> BegunReading:
        if self.fence is not None:
            await self.fence.admit()
        self._refuse_severed()
        return BegunReading(make())

    async def _end_reading(self, begun: BegunReading, error: BaseException | None) -> None:
        try:
            if isinstance(error, SQLAlchemyError):
                self._raise_passing(error)
        finally:
            await _give_back(begun.session)

    def _is_quiet(self) -> bool:
        self._refuse_severed()
        return not self._writer_turn.locked()

    async def read_surely(self, load: Callable[[AsyncSession], Awaitable[T]]) -> T:
        """What `load(session)` reads, asked until the database answers: for what nobody can go on without."""

        async def ask() -> T:
            async with self.read() as session:
                return await load(session)

        return await _until_answered(ask)

    async def write_surely(self, write: Callable[[AsyncSession], Awaitable[T]]) -> T:
        """What `write(tx)` returns, in a transaction that is tried until the database takes it.

        It may have been committed before: a connection may be lost during the commit.
        """

        async def ask() -> T:
            async with self.transaction() as tx:
                return await write(tx)

        return await _until_answered(ask)

    @contextlib.asynccontextmanager
    async def turn(self, key: int) -> AsyncIterator[None]:
        """Be the only node in such a block of this key. SQLite has one node, which never waits."""
        if self.sqlite:
            yield
            return
        async with self._writer.connect() as connection:
            connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
            # The wait is no transaction, and the lock goes with the connection.
            # Asked again and again: one long statement would run into the driver's own limit.
            mine = text("SELECT pg_try_advisory_lock(:key)")
            while not (await connection.execute(mine, {"key": key})).scalar():  # noqa: ASYNC110 - other processes wake nobody
                await asyncio.sleep(_TURN_PAUSE)
            try:
                yield
            finally:
                await uninterrupted(connection.invalidate())

    async def remember(
        self, key: Hashable, load: Callable[[AsyncSession], Awaitable[T]], tx: AsyncSession | None = None
    ) -> T:
        """What `load(session)` reads, kept under `key` until a table changes that it read from.

        Of a piece of work that has noted what it heard, it may be as old as that (`freshness.py`).
        For what is read far more often than it changes. The answer is shared: nobody may change it. `load` may
        depend on nothing but the key and the database. A transaction that needs it true until its end gives itself as
        `tx`: it is read there, on PostgreSQL also locked, and on SQLite nobody else writes meanwhile.
        """
        self._refuse_severed()
        if tx is not None and (self._versions is not None or self._remembered.written):
            return await load(tx)  # what a transaction has written, it alone may see

        async def ask() -> T:
            async with self.read() if tx is None else contextlib.nullcontext(tx) as session:
                return await load(session)

        return await self._recall(key, ask)

    async def remember_one(self, key: Hashable, load: Callable[[Reading], Awaitable[T]]) -> T:
        """The same for what a single statement reads, which needs no session."""
        self._refuse_severed()
        return await self._recall(key, lambda: load(self.once))

    async def _recall(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        if self._versions is not None:
            if self.fence is not None:
                await self.fence.admit()
            self._remembered.changed_to(await self._versions.current())
        if (kept := self._remembered.get(key)) is not None:
            return cast("T", kept[0])
        with self._remembered.reader() as reader:
            answer = await ask()
        self._remembered.put(key, answer, reader)
        return answer

    async def migrate(self) -> None:
        """Bring the schema to this version's."""
        from caelum.kernel.migrate import upgrade

        await upgrade(self)

    def sever(self, error: BaseException) -> None:
        """Raise `error` at every further use, and let nothing commit any more: what the death of the process does."""
        self._severed = error

    def _refuse_severed(self) -> None:
        if self._severed is not None:
            raise self._severed

    async def close(self) -> None:
        """Close every connection."""
        await self._checkpoints.stop()
        await self._lost.stop()
        if self._versions is not None:
            await self._versions.stop()
        for connections in self._kept:
            await connections.close()
        await self._writer.dispose()
        await self._reader.dispose()


async def _until_answered(ask: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await ask()
        except CloudError as error:
            if not postgresql.is_passing(error):
                raise
        await asyncio.sleep(_AGAIN_PAUSE)


async def _give_back(session: AsyncSession) -> None:
    """Close a session, and let nobody tear that."""
    kept = cast("_KeptSession", session)
    if kept.ends_at_once:
        await kept.end()
    else:
        await uninterrupted(kept.end())


def on_sqlite(session: AsyncSession) -> bool:
    """Whether a session is one of SQLite, whose single writer needs no locks."""
    return isinstance(session, sqlite.KeptSession)


async def update_where(
    tx: AsyncSession, model: type[Base], values: dict[str, Any], *conditions: ColumnElement[bool]
) -> int:
    """Update the rows that meet all conditions, in one statement, and tell how many there were.

    Values may be expressions over the row (`{"used": Model.used + n}`). Objects of the model that the session
    already holds are loaded anew.
    """
    mapper, session = inspect(model), tx.sync_session
    if mapper.single:
        statement = sql_update(model).where(*conditions).values(**values).execution_options(synchronize_session=False)
    else:
        # The same on the table itself is much cheaper, but what waits in the session must be flushed by hand.
        if session.new or session.dirty or session.deleted:
            await tx.flush()
        columns = {mapper.columns[name]: value for name, value in values.items()}
        statement = sql_update(cast("Table", model.__table__)).where(*conditions).values(columns)
    changed = cast("CursorResult[Any]", await tx.execute(statement)).rowcount
    if changed:
        for row in [one for one in session.identity_map.values() if isinstance(one, model)]:
            await tx.refresh(row)
    return changed


def conflict_insert(model: type[Base]) -> Insert:
    """An insert that can say what to do when there is a row with the same unique key (`on_conflict_do_nothing`,
    `on_conflict_do_update`). It is PostgreSQL's; SQLite has the same, and SQLAlchemy writes this one for both.
    """
    return Insert(cast("Table", model.__table__))


async def insert_new(tx: AsyncSession, model: type[Base], **values: Any) -> bool:
    """Insert a row unless there is one with the same unique key; whether it did. Looking first would be one more."""
    return await _insert_new(model, tuple(values)).run(tx, **values) > 0


@lru_cache
def _insert_new(model: type[Base], names: tuple[str, ...]) -> Prepared:
    statement = conflict_insert(model).on_conflict_do_nothing().inline()
    return Prepared(statement.execution_options(preserve_rowcount=True), *names)


def is_unique_violation(error: BaseException) -> bool:
    """Whether a statement failed because a row with the same unique key exists."""
    if not isinstance(error, IntegrityError):
        return False
    name = getattr(error.orig, "sqlite_errorname", "")
    state = getattr(error.orig, "sqlstate", "") or getattr(error.orig, "pgcode", "")
    return name in ("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY") or state == "23505"


@contextlib.asynccontextmanager
async def unique(tx: AsyncSession, kind: ErrorType, details: str, **facts: Any) -> AsyncIterator[None]:
    """Turn a unique-key violation inside the block into `CloudError(kind, details)`; the transaction stays usable."""
    try:
        async with tx.begin_nested():
            yield
    except IntegrityError as error:
        if is_unique_violation(error):
            raise CloudError(kind, details, **facts) from error
        raise
