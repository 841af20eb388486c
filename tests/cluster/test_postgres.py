"""The private PostgreSQL of tests: its life, its death, and that nothing is left."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from fault_proxy import Link
from sqlalchemy import make_url, text

from caelum.cluster.postgres import Postgres
from caelum.kernel.database import Database
from caelum.kernel.errors import CloudError
from caelum.kernel.postgresql import DATABASE_UNAVAILABLE, Limits


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
async def _through_a_network(postgres: Postgres, name: str) -> AsyncIterator[tuple[Link, Database]]:
    """A database behind a network that can stall, and a node's access to it that waits half a second for answers."""
    address = make_url(await postgres.create_database(name))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    link = Link(port, address.port or 5432)
    await link.heal()
    url = address.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    db = Database(url, limits=Limits(statement=0.3, grace=0.2))
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


async def test_a_connection_that_died_while_nobody_used_it_is_replaced(tmp_path: Path) -> None:
    async with Postgres(tmp_path / "pg") as postgres, _through_a_network(postgres, "dead") as (_link, db):
        async with db.read() as session:
            backend = await session.scalar(text("SELECT pg_backend_pid()"))
        await postgres.execute(f"SELECT pg_terminate_backend({backend})", "dead")
        async with db.read() as session:
            assert await session.scalar(text("SELECT pg_backend_pid()")) != backend
