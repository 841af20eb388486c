"""Quick statements run at once, slow ones and whoever waits for another process in the thread."""

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.kernel import sqlite, sqlite_pace
from caelum.kernel.checkpoints import checkpoint
from caelum.kernel.database import Database, after_commit
from caelum.kernel.errors import CloudError
from caelum.kernel.postgresql import DATABASE_UNAVAILABLE


@pytest.fixture
async def threads(db: Database) -> set[str]:
    """The names of the threads in which the database's functions ran."""
    found: set[str] = set()

    def note() -> int:
        found.add(threading.current_thread().name)
        return 1

    for engine in (db._writer, db._reader):

        @event.listens_for(engine.sync_engine, "connect")
        def on_connect(connection: object, _record: object) -> None:
            connection.create_function("note", 0, note)  # type: ignore[attr-defined]

    await db._writer.dispose()
    await db._reader.dispose()
    return found


async def ask(db: Database, statement: str) -> None:
    async with db.read() as session:
        await session.execute(text(statement))


def be_quick(statement: str) -> None:
    """Have a statement known as quick."""
    sqlite._pace.took(statement, 0.0)
    sqlite._pace._average[statement] = 0.0


async def test_a_statement_that_was_quick_needs_no_thread(db: Database, threads: set[str]) -> None:
    here = threading.current_thread().name
    await ask(db, "SELECT note()")
    assert here not in threads
    be_quick("SELECT note()")
    threads.clear()
    await ask(db, "SELECT note()")
    assert threads == {here}


async def test_a_statement_that_becomes_slow_goes_back_to_the_thread(db: Database, threads: set[str]) -> None:
    be_quick("SELECT note() + 1")
    for _ in range(10):
        sqlite._pace.took("SELECT note() + 1", 0.01)
    await ask(db, "SELECT note() + 1")
    assert threading.current_thread().name not in threads


def test_one_long_run_does_not_make_a_statement_slow_but_two_do() -> None:
    pace = sqlite.Pace()
    for _ in range(10):
        pace.took("x", 0.00001)
    pace.took("x", 1.0)
    assert pace.quick("x")
    pace.took("x", 1.0)
    assert not pace.quick("x")
    pace.took("x", 0.00001)
    assert pace.quick("x"), "a short run is certain"


def test_a_statement_whose_time_another_thread_forgot_is_not_quick_lately() -> None:
    pace = sqlite.Pace()
    pace.took("SELECT 1", 0.0)
    assert pace.quick_lately("SELECT 1", time.monotonic())
    pace._latest.clear()
    assert not pace.quick_lately("SELECT 1", time.monotonic())


def test_one_run_that_holds_the_loop_up_makes_a_statement_slow() -> None:
    pace = sqlite.Pace()
    for _ in range(10):
        pace.took("x", 0.00001, here=True)
    pace.took("x", 0.01, here=True)
    assert pace.quick("x")
    for _ in range(10):
        pace.took("x", 0.00001, here=True)
    pace.took("x", 0.05, here=True)
    assert not pace.quick("x")
    for _ in range(3):
        pace.took("x", 0.00001)
    assert not pace.quick("x"), "one short run says little after that"
    for _ in range(10):
        pace.took("x", 0.00001)
    assert pace.quick("x")


async def test_a_statement_that_comes_rarely_goes_to_the_thread(
    db: Database, threads: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    be_quick("SELECT note() + 2")
    monkeypatch.setattr(sqlite_pace, "_FRESH", 0.01)
    await asyncio.sleep(0.02)
    await ask(db, "SELECT note() + 2")
    assert threading.current_thread().name not in threads
    assert sqlite._pace.quick("SELECT note() + 2"), "a commit need not ask again between two moments"


async def test_many_rows_are_not_taken_for_few(db: Database, threads: set[str]) -> None:
    async with db.transaction() as tx:
        await tx.execute(text("CREATE TABLE many (x)"))
    statement, here = "INSERT INTO many VALUES (:x + note())", threading.current_thread().name

    async def add(rows: int) -> None:
        threads.clear()
        async with db.transaction() as tx:
            await tx.execute(text(statement), [{"x": number} for number in range(rows)])

    be_quick("INSERT INTO many VALUES (? + note()) *2")
    await add(3)
    assert threads == {here}
    await add(1000)
    assert here not in threads


async def test_the_loop_goes_on_while_another_process_holds_the_lock(db: Database, tmp_path: Path) -> None:
    statement = "CREATE TABLE IF NOT EXISTS locked (x)"
    other = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
    be_quick(statement)
    other.execute("BEGIN IMMEDIATE")

    async def write() -> None:
        async with db.transaction() as tx:
            await tx.execute(text(statement))

    writing = asyncio.create_task(write())
    await asyncio.sleep(0.2)
    assert not writing.done()
    other.execute("ROLLBACK")
    other.close()
    await writing


async def test_many_quick_statements_let_others_have_their_turn(db: Database) -> None:
    be_quick("SELECT 1")
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    async with db.read() as session:
        for _ in range(500):
            await session.execute(text("SELECT 1"))
    task.cancel()
    assert turns > 3


async def test_a_transaction_without_statements_never_begins(db: Database) -> None:
    async with db.transaction():
        pass
    async with db.read():
        pass
    async with db.transaction() as tx:
        await tx.execute(text("CREATE TABLE empty_before (x)"))
    await ask(db, "SELECT * FROM empty_before")


async def insert(tx: AsyncSession, statement: str, *, past: bool) -> None:
    """Run a statement through SQLAlchemy, or past it."""
    assert isinstance(tx, sqlite.KeptSession)
    if past:
        await tx.run(statement, ())
    else:
        await tx.execute(text(statement))


def driver_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("what SQLite said")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "passes"),
    [
        (sqlite3.SQLITE_BUSY, True),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, True),
        (sqlite3.SQLITE_IOERR_FSYNC, True),
        (sqlite3.SQLITE_FULL, True),
        (sqlite3.SQLITE_ERROR, False),  # no such table
        (sqlite3.SQLITE_READONLY, False),
    ],
)
def test_errors_that_pass(code: int, passes: bool) -> None:
    found = sqlite.passing(OperationalError("SELECT 1", None, driver_error(code)))
    assert (found is not None) == passes
    assert found is None or (found.kind, found.facts) == (DATABASE_UNAVAILABLE, {})


async def test_what_must_be_written_is_tried_until_the_disk_has_room(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.execute(text("CREATE TABLE big (x)"))
    tries = 0

    async def write(tx: AsyncSession) -> int:
        nonlocal tries
        tries += 1
        await tx.execute(text(f"PRAGMA max_page_count={1 if tries == 1 else 1_000_000}"))
        await tx.execute(text("INSERT INTO big VALUES (zeroblob(10000000))"))
        return tries

    assert await db.write_surely(write) == 2
    async with db.read() as session:
        assert await session.scalar(text("SELECT count(*) FROM big")) == 1


async def test_a_file_that_another_process_holds_for_too_long_is_unavailable(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.05)
    other = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(CloudError) as busy:
        async with db.transaction() as tx:
            await tx.execute(text("CREATE TABLE held (x)"))
    assert busy.value.kind is DATABASE_UNAVAILABLE
    other.execute("ROLLBACK")
    other.close()
    async with db.transaction() as tx:
        await tx.execute(text("CREATE TABLE held (x)"))


async def test_readers_that_are_all_busy_make_the_database_unavailable(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.05)
    taken = [await db._kept[1].take() for _ in range(4)]
    with pytest.raises(CloudError) as busy:
        await ask(db, "SELECT 1")
    assert busy.value.kind is DATABASE_UNAVAILABLE
    for one in taken:
        await db._kept[1].give_back(one)
    await ask(db, "SELECT 1")


@pytest.mark.parametrize("past", [False, True])
async def test_a_commit_that_fails_left_nothing_and_is_not_ambiguous(
    db: Database, monkeypatch: pytest.MonkeyPatch, past: bool
) -> None:
    async with db.transaction() as tx:
        await tx.execute(text("CREATE TABLE lost (x)"))
    ending, broken = sqlite._ending, True

    def breaks(driver: object, statement: str) -> Callable[[], None] | None:
        if broken and statement == "COMMIT":
            raise driver_error(sqlite3.SQLITE_FULL)
        return ending(driver, statement)

    monkeypatch.setattr(sqlite, "_ending", breaks)
    with pytest.raises(CloudError) as full:
        async with db.transaction() as tx:
            await insert(tx, "INSERT INTO lost VALUES (1)", past=past)
    assert (full.value.kind, full.value.facts) == (DATABASE_UNAVAILABLE, {})
    broken = False
    async with db.transaction() as tx:
        await insert(tx, "INSERT INTO lost VALUES (2)", past=past)
    async with db.read() as session:
        assert list(await session.scalars(text("SELECT x FROM lost"))) == [2]


async def test_errors_of_the_statement_stay_what_they_are(db: Database) -> None:
    with pytest.raises(DBAPIError):
        await ask(db, "SELECT * FROM nowhere")


@pytest.mark.parametrize("past", [False, True])
async def test_a_connection_whose_transaction_does_not_end_is_thrown_away(
    db: Database, monkeypatch: pytest.MonkeyPatch, past: bool
) -> None:
    async with db.transaction() as tx:
        await tx.execute(text("CREATE TABLE torn (x)"))

    def breaks(_driver: object, _statement: str) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    async def fail() -> None:
        async with db.transaction() as tx:
            await insert(tx, "INSERT INTO torn VALUES (1)", past=past)
            raise ValueError("no")

    with monkeypatch.context() as broken:
        broken.setattr(sqlite, "_ending", breaks)
        with pytest.raises(ValueError, match="no"):
            await fail()
    async with db.transaction() as tx:
        await tx.execute(text("INSERT INTO torn VALUES (2)"))
    async with db.read() as session:
        assert list(await session.scalars(text("SELECT x FROM torn"))) == [2]


async def test_connections_that_nobody_needs_any_more_are_closed(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = db._kept[1]
    assert isinstance(reading, sqlite.Connections)
    await _read_at_once(db, 3)
    assert len(reading._free) == 3
    await ask(db, "SELECT 1")
    assert len(reading._free) == 3
    monkeypatch.setattr(sqlite, "_SPARE", 0.0)
    await ask(db, "SELECT 1")  # all three were in use since it was counted first
    await ask(db, "SELECT 1")
    (kept,) = reading._free
    while reading._closing:  # noqa: ASYNC110 - they end by themselves
        await asyncio.sleep(0.01)
    assert db._reader.pool.status().count("Checked out connections: 1") == 1
    monkeypatch.undo()
    await _read_at_once(db, 4)
    assert len(reading._free) == 4
    assert kept in reading._free


async def _read_at_once(db: Database, sessions: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(sessions):
            session = await stack.enter_async_context(db.read())
            await session.execute(text("SELECT 1"))


async def test_a_checkpoint_empties_the_log(db: Database, tmp_path: Path) -> None:
    async with db.transaction() as tx:
        await tx.execute(text("CREATE TABLE logged (x)"))
    await asyncio.to_thread(checkpoint, str(tmp_path / "test.db"))
    alone = tmp_path / "alone.db"
    alone.write_bytes((tmp_path / "test.db").read_bytes())
    with sqlite3.connect(alone) as copy:
        assert copy.execute("SELECT count(*) FROM logged").fetchone() == (0,)


async def test_a_session_has_no_part_of_sqlalchemy_until_something_needs_it(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.execute(text("CREATE TABLE late (x)"))
        for _ in range(3):  # known to be quick from now on
            await insert(tx, "INSERT INTO late VALUES (1)", past=True)
    committed: list[str] = []
    async with db.transaction() as tx:
        await insert(tx, "INSERT INTO late VALUES (1)", past=True)
        after_commit(tx, lambda: committed.append("yes"))
        assert "sync_session" not in vars(tx)
        assert await tx.scalar(text("SELECT count(*) FROM late")) == 4
        assert "sync_session" in vars(tx)
        with pytest.raises(AttributeError, match="nothing_like_that"):
            _ = tx.nothing_like_that  # type: ignore[attr-defined]
    assert committed == ["yes"]


async def test_what_is_cancelled_in_the_thread_costs_the_connection(db: Database, tmp_path: Path) -> None:
    async with db.transaction() as tx:
        await tx.execute(text("CREATE TABLE cancelled (x)"))
    other = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    async def write() -> None:
        async with db.transaction() as tx:
            await insert(tx, "INSERT INTO cancelled VALUES (1)", past=True)

    writing = asyncio.create_task(write())
    await asyncio.sleep(0.2)
    writing.cancel()
    await asyncio.sleep(0.1)
    other.execute("ROLLBACK")
    other.close()
    with pytest.raises(asyncio.CancelledError):
        await writing
    async with db.transaction() as tx:
        await insert(tx, "INSERT INTO cancelled VALUES (2)", past=True)
    async with db.read() as session:
        assert list(await session.scalars(text("SELECT x FROM cancelled"))) == [2]


BOTH_WAYS = pytest.mark.parametrize(("first", "then"), [(True, True), (True, False), (False, True), (False, False)])
ROLLED_BACK = "INSERT OR ROLLBACK INTO kept VALUES (1)"


@pytest.fixture
async def news(db: Database) -> list[str]:
    """Makes the table `kept` of different numbers; for news of commits, of which there should be none."""
    async with db.transaction() as tx:
        await tx.execute(text("CREATE TABLE kept (x UNIQUE)"))
    return []


async def kept(db: Database) -> list[int]:
    async with db.read() as session:
        return list(await session.scalars(text("SELECT x FROM kept ORDER BY x")))


@BOTH_WAYS
async def test_a_transaction_that_sqlite_rolled_back_commits_nothing(
    db: Database, news: list[str], first: bool, then: bool
) -> None:
    async def write(*further: str) -> None:
        async with db.transaction() as tx:
            after_commit(tx, lambda: news.append("committed"))
            await insert(tx, "INSERT INTO kept VALUES (1)", past=first)
            with contextlib.suppress(DBAPIError):
                await insert(tx, ROLLED_BACK, past=first)
            for one in further:
                await insert(tx, one, past=then)

    with pytest.raises(PendingRollbackError):
        await write()
    with pytest.raises(PendingRollbackError):
        await write("INSERT INTO kept VALUES (2)")
    assert (await kept(db), news) == ([], [])
    async with db.transaction() as tx:
        await insert(tx, "INSERT INTO kept VALUES (3)", past=then)
    assert await kept(db) == [3]


@BOTH_WAYS
async def test_a_transaction_that_was_rolled_back_goes_on_as_another(
    db: Database, news: list[str], first: bool, then: bool
) -> None:
    async with db.transaction() as tx:
        await insert(tx, "INSERT INTO kept VALUES (1)", past=first)
        with contextlib.suppress(DBAPIError):
            await insert(tx, ROLLED_BACK, past=first)
        await tx.rollback()
        await insert(tx, "INSERT INTO kept VALUES (2)", past=then)
    assert (await kept(db), news) == ([2], [])


async def test_a_disk_that_was_full_within_a_transaction_passes(db: Database, news: list[str]) -> None:
    async def write() -> None:
        async with db.transaction() as tx:
            await insert(tx, "INSERT INTO kept VALUES (1)", past=True)
            await insert(tx, "PRAGMA max_page_count=1", past=True)
            with contextlib.suppress(DBAPIError):
                await insert(tx, "INSERT INTO kept VALUES (zeroblob(10000000))", past=True)
            assert isinstance(tx, sqlite.KeptSession)
            # It depends on the room that was left whether SQLite rolls back by itself.
            tx._adapted._connection._conn.rollback()
            tx._adapted._connection.__dict__[sqlite._LOST] = driver_error(sqlite3.SQLITE_FULL)

    with pytest.raises(CloudError) as full:
        await write()
    assert (full.value.kind, full.value.facts) == (DATABASE_UNAVAILABLE, {})
    assert (await kept(db), news) == ([], [])


SLOW = "INSERT INTO kept SELECT 7 WHERE (WITH RECURSIVE n(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM n " + (
    "WHERE x < 1000000) SELECT count(*) FROM n) > 0"
)


@BOTH_WAYS
async def test_a_transaction_that_lost_its_connection_with_a_cancelled_statement_commits_nothing(
    db: Database, news: list[str], first: bool, then: bool
) -> None:
    async def write(*further: str, again: bool = False) -> None:
        async with db.transaction() as tx:
            after_commit(tx, lambda: news.append("committed"))
            await insert(tx, "INSERT INTO kept VALUES (1)", past=first)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await insert(tx, SLOW, past=first)
            if again:
                await tx.rollback()
            for one in further:
                await insert(tx, one, past=then)

    with pytest.raises(PendingRollbackError):
        await write()
    with pytest.raises(PendingRollbackError):
        await write("INSERT INTO kept VALUES (2)")
    assert (await kept(db), news) == ([], [])
    await write("INSERT INTO kept VALUES (3)", again=True)
    assert await kept(db) == [3]
