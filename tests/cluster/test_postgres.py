"""The private PostgreSQL of tests: its life, its death, and that nothing is left."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

from caelum.cluster.postgres import Postgres


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
