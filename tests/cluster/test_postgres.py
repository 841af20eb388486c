"""The private PostgreSQL of tests: its life, its death, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import Context
from pathlib import Path
from typing import cast

import asyncpg
import pytest
from fault_proxy import Link
from sqlalchemy import Table, make_url, text
from sqlalchemy.exc import PendingRollbackError

from caelum.cluster.postgres import Postgres
from caelum.kernel import context, journal, lost_commits, postgresql, postgresql_sessions
from caelum.kernel.database import Database, after_commit
from caelum.kernel.errors import CANCELED, CloudError
from caelum.kernel.journal import RUNNING, UNDOING, JournalModel
from caelum.kernel.postgresql import DATABASE_UNAVAILABLE, Limits
from caelum.kernel.postgresql_sessions import KeptSession
from caelum.kernel.queue import outside

_IMPATIENT = Limits(statement=0.3, grace=0.2)
"""Half a second."""


async def _query(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_data_survive_a_kill_and_a_restart(tmp_path: Path) -> None:
    postgres = Postgres(tmp_path / "pg")
    async with postgres:
        url = await postgres.create_database("one")
        await postgres.execute("CREATE TABLE t (n int)", "one")
        await postgres.execute("INSERT INTO t VALUES (7)", "one")
        await postgres.execute("CHECKPOINT", "one")
        await postgres.kill()
        assert not postgres.running
        with pytest.raises(OSError, match="Connect call failed"):
            await _query(url, "SELECT 1")
        await postgres.start()
        assert await _query(url, "SELECT n FROM t") == 7
        await postgres.restart()
        assert await _query(url, "SELECT n FROM t") == 7
    assert not postgres.running
    assert not (tmp_path / "pg" / "data" / "postmaster.pid").exists()


async def test_a_database_goes_though_somebody_uses_it(tmp_path: Path) -> None:
    async with Postgres(tmp_path / "pg") as postgres:
        url = await postgres.create_database("one")
        user = await asyncpg.connect(url.replace("+asyncpg", ""))
        await postgres.drop_database("one")
        with pytest.raises(asyncpg.InterfaceError, match="closed"):
            await user.fetchval("SELECT 1")
        user.terminate()
        assert await _query(postgres.url, "SELECT count(*) FROM pg_database WHERE datname = 'one'") == 0


@contextlib.asynccontextmanager
async def _through_a_network(
    postgres: Postgres, name: str, limits: Limits = _IMPATIENT
) -> AsyncIterator[tuple[Link, Database]]:
    """A database behind a network that can stall, and a node's access to it, which waits so long for answers."""
    address = make_url(await postgres.create_database(name))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    link = Link(port, address.port or 5432)
    await link.heal()
    url = address.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    db = Database(url, limits=limits)
    try:
        yield link, db
    finally:
        await link.heal()
        await db.close()
        await link.cut()


async def _silence_within(link: Link, db: Database, *statements: str) -> None:
    async with db.transaction() as tx:
        await tx.execute(text("CREATE TABLE t (n int)"))
        await link.stall()
        for one in statements:
            await tx.execute(text(one))


async def test_an_answer_that_does_not_come_is_a_database_that_is_away(tmp_path: Path) -> None:
    async with Postgres(tmp_path / "pg") as postgres, _through_a_network(postgres, "silent") as (link, db):
        with pytest.raises(CloudError) as away:
            await _silence_within(link, db, "INSERT INTO t VALUES (1)")
        assert away.value.kind is DATABASE_UNAVAILABLE
        assert "ambiguous" not in away.value.facts
        await link.heal()
        async with db.transaction() as tx:
            await tx.execute(text("CREATE TABLE t (n int)"))


async def test_a_commit_whose_answer_does_not_come_is_ambiguous(tmp_path: Path) -> None:
    async with Postgres(tmp_path / "pg") as postgres, _through_a_network(postgres, "silent") as (link, db):
        with pytest.raises(CloudError) as away:
            await _silence_within(link, db)
        assert away.value.kind is DATABASE_UNAVAILABLE
        assert away.value.facts["ambiguous"] is True


@contextlib.asynccontextmanager
async def _healed_after(seconds: float, link: Link) -> AsyncIterator[None]:
    async def heal() -> None:
        await asyncio.sleep(seconds)
        await link.heal()

    healing = asyncio.create_task(heal(), context=Context())
    yield
    await healing


async def _insert(db: Database, news: list[str]) -> JournalModel:
    """Make a row, and tell the news once that is committed."""
    async with db.transaction() as tx:
        row = JournalModel(uuid="run", name="n", subject="s", owner="o", ctx="{}", actor={})
        row.attempt, row.state, row.position, row.skipped, row.answers = 1, RUNNING, 0, [], False
        tx.add(row)
        after_commit(tx, lambda: news.append(row.uuid))
    return row


async def _breaking(db: Database, monkeypatch: pytest.MonkeyPatch, how: Callable[[], Awaitable[None]]) -> None:
    """Break the network just before the next COMMIT."""
    async with db.transaction() as tx:
        await (await tx.connection()).run_sync(cast("Table", JournalModel.__table__).create)
    commit_all = KeptSession.commit_all

    async def broken(session: KeptSession, guard: str | None) -> None:
        monkeypatch.setattr(KeptSession, "commit_all", commit_all)
        await how()
        await commit_all(session, guard)

    monkeypatch.setattr(KeptSession, "commit_all", broken)


async def test_a_commit_that_happened_is_one_though_its_answer_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Postgres(tmp_path / "pg") as postgres, _through_a_network(postgres, "done") as (link, db):
        await _breaking(db, monkeypatch, link.deafen)
        news: list[str] = []
        async with _healed_after(1.0, link):
            row = await _insert(db, news)
        assert (news, row.uuid, row.state) == (["run"], "run", RUNNING)
        assert db.transactions == 2


async def test_a_commit_that_did_not_happen_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Postgres(tmp_path / "pg") as postgres, _through_a_network(postgres, "lost") as (link, db):
        await _breaking(db, monkeypatch, link.cut)
        news: list[str] = []
        async with _healed_after(1.0, link):
            with pytest.raises(CloudError, match="was not committed") as away:
                await _insert(db, news)
        assert away.value.kind is DATABASE_UNAVAILABLE
        assert (news, "ambiguous" in away.value.facts) == ([], False)


async def test_news_of_a_commit_go_out_when_the_database_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Postgres(tmp_path / "pg") as postgres, _through_a_network(postgres, "late") as (link, db):
        await _breaking(db, monkeypatch, link.deafen)
        news: list[str] = []
        monkeypatch.setattr(lost_commits, "ANSWER_SECONDS", 0.2)
        async with _healed_after(2.0, link):
            with pytest.raises(CloudError) as away:
                await _insert(db, news)
        assert away.value.facts["ambiguous"] is True
        async with asyncio.timeout(20):
            while not news:  # noqa: ASYNC110 - it is a plain list
                await asyncio.sleep(0.05)
        assert news == ["run"]


async def test_a_connection_that_died_while_nobody_used_it_is_replaced(tmp_path: Path) -> None:
    async with Postgres(tmp_path / "pg") as postgres, _through_a_network(postgres, "dead") as (_link, db):
        async with db.read() as session:
            backend = await session.scalar(text("SELECT pg_backend_pid()"))
        await postgres.execute(f"SELECT pg_terminate_backend({backend})", "dead")
        async with db.read() as session:
            assert await session.scalar(text("SELECT pg_backend_pid()")) != backend


async def test_a_question_on_connections_that_died_silently_waits_for_seconds_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_sessions, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(postgresql, "CONNECT_SECONDS", 1.0)
    async with Postgres(tmp_path / "pg") as postgres, _through_a_network(postgres, "still", Limits()) as (link, db):
        connections = db._kept[0]
        assert isinstance(connections, postgresql_sessions.Connections)
        taken = [await connections.take("BEGIN") for _ in range(3)]
        for one in taken:
            await one.adapter._transaction.rollback()
            one.adapter._transaction = None
            await connections.give_back(one)
        await link.stall()
        async with asyncio.timeout(4):  # one for the question, one for a new connection
            with pytest.raises(CloudError) as away:
                await connections.ask("SELECT 7")
        assert away.value.kind is DATABASE_UNAVAILABLE
        assert connections._free == [], "what happened to one happened to all"
        await link.heal()
        assert await connections.ask("SELECT 7") == 7


@pytest.mark.parametrize("again", [False, True])
async def test_who_is_cancelled_in_silence_leaves_at_once_and_commits_nothing(tmp_path: Path, again: bool) -> None:
    """Also who goes on after a rollback, on another connection."""
    async with (
        Postgres(tmp_path / "pg") as postgres,
        _through_a_network(postgres, "torn", Limits(statement=10, grace=0)) as (link, db),
    ):
        async with db.transaction() as tx:
            await tx.execute(text("CREATE TABLE t (n int)"))

        async def write() -> None:
            async with db.transaction() as tx:
                assert isinstance(tx, KeptSession)
                await tx.execute(text("INSERT INTO t VALUES (1)"))
                await link.stall()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await tx.run("INSERT INTO t VALUES (2)", ())
                if again:
                    await tx.rollback()
                    await link.heal()
                    await tx.run("INSERT INTO t VALUES (3)", ())

        begun = asyncio.get_running_loop().time()
        with contextlib.nullcontext() if again else pytest.raises(PendingRollbackError):
            await write()
        assert asyncio.get_running_loop().time() - begun < 5
        await link.heal()
        async with db.read() as session:
            assert list(await session.scalars(text("SELECT n FROM t"))) == ([3] if again else [])


async def test_a_run_turns_back_before_its_steps_wish_is_granted_or_after(tmp_path: Path) -> None:
    asking = context.in_step(context.TaskContext(), "run/step/run", "run:1")
    async with Postgres(tmp_path / "pg") as postgres:
        db = Database(await postgres.create_database("late"))
        try:
            async with db.transaction() as tx:
                await (await tx.connection()).run_sync(cast("Table", JournalModel.__table__).create)
                row = JournalModel(uuid="run", name="n", subject="s", owner="o", ctx="{}", actor={})
                row.attempt, row.state, row.position, row.skipped, row.answers = 1, RUNNING, 0, [], False
                await journal.insert(tx, row)
            with context.use(asking):
                async with db.transaction() as first, asyncio.TaskGroup() as group:
                    await journal.refuse_late(first)
                    turning = group.create_task(_turn_back(db), context=Context())
                    async with asyncio.timeout(5):
                        await group.create_task(_another_wish(db), context=outside())
                    assert not (await asyncio.wait([turning], timeout=0.5))[0]
                    await first.commit()
                with pytest.raises(CloudError) as refused:
                    async with db.transaction() as late:
                        await journal.refuse_late(late)
            assert refused.value.kind is CANCELED
        finally:
            await db.close()


async def _another_wish(db: Database) -> None:
    async with db.transaction() as tx:
        await journal.refuse_late(tx)


async def _turn_back(db: Database) -> None:
    async with db.transaction() as tx:
        await journal.advance(tx, "run", "o", 1, state=UNDOING)
