"""Upgrades of a PostgreSQL database that nodes share: who waits for whom, and the dump before."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect, make_url, text
from tests.cluster.bakeries import Bakeries

from caelum.kernel import backup, membership, migrate, schema
from caelum.kernel.config import Config
from caelum.kernel.database import Database
from caelum.kernel.ids import new_uuid
from caelum.kernel.migrate import Rules
from caelum.kernel.preflight import inspect_cloud
from caelum.kernel.table_versions import VERSIONS
from caelum.testing import databases

EXPANSION = "    op.add_column('zone', sa.Column('note', sa.Text(), nullable=True))\n"
CONTRACTION = "    op.drop_column('zone', 'note')\n"


class Newer:
    """What this process knows of the schema's history: `now_knows("expand", body)` adds a revision."""

    def __init__(self, scripts: Path) -> None:
        self._versions = scripts / "versions"

    def now_knows(self, phase: str, body: str) -> str:
        before = schema.History().newest
        name = f"new{len(schema.History().revisions)}"
        (self._versions / f"{name}.py").write_text(
            f"revision = {name!r}\ndown_revision = {before!r}\nphase = {phase!r}\n"
            f"import sqlalchemy as sa\nfrom alembic import op\ndef upgrade():\n{body}"
        )
        return name


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Newer:
    copy = tmp_path / "migrations"
    shutil.copytree(schema.SCRIPTS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(schema, "SCRIPTS", copy)
    return Newer(copy)


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(databases.of_cluster(tmp_path))
    yield database
    await database.close()


async def _join(db: Database, revision: str | None, version: str | None = "1.0") -> str:
    """Enter the row of a node that is somewhere else."""
    uuid = new_uuid()
    row = {"uuid": uuid, "version": version, "revision": revision}
    async with db.engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO management_node (uuid, host_name, join_date, heart_beat, state, version, revision)"
                " VALUES (:uuid, 'elsewhere', now(), now(), 'Running', :version, :revision)"
            ),
            row,
        )
    return uuid


async def _leave(db: Database, uuid: str) -> None:
    async with db.engine.begin() as connection:
        await connection.execute(text("DELETE FROM management_node WHERE uuid = :uuid"), {"uuid": uuid})


async def _has_note(db: Database) -> bool:
    async with db.engine.connect() as connection:
        columns = await connection.run_sync(lambda one: inspect(one).get_columns("zone"))
    return "note" in {one["name"] for one in columns}


async def test_a_revision_may_alter_a_steady_table_whose_rows_it_changed(db: Database, newer: Newer) -> None:
    async with db.transaction() as tx:
        await tx.execute(
            text(
                "INSERT INTO zone (uuid, name, state, type, is_default, create_date, last_op_date)"
                " VALUES ('z', 'a', 'Enabled', 'zone', false, now(), now())"
            )
        )
        before = await tx.scalar(text(VERSIONS))
    newer.now_knows("expand", "    op.execute(\"UPDATE zone SET name = 'b'\")\n" + EXPANSION)
    await migrate.upgrade(db)
    assert await _has_note(db)
    async with db.read() as session:
        assert await session.scalar(text(VERSIONS)) != before, "other nodes see that it changed"


async def test_what_members_of_a_former_version_need_stays_until_they_are_gone(db: Database, newer: Newer) -> None:
    former = await _join(db, schema.History().newest)
    of_before = await _join(db, None, None)
    newer.now_knows("expand", EXPANSION)
    contraction = newer.now_knows("contract", CONTRACTION)
    plan = await migrate.upgrade(db)
    assert [one.name for one in plan.later] == [contraction]
    assert {one.uuid for one in plan.blockers} == {former, of_before}
    assert "version unknown" in plan.why()
    assert await _has_note(db)
    await _leave(db, former)
    await _leave(db, of_before)
    of_this = await _join(db, contraction)
    of_a_newer = await _join(db, "not known here")
    plan = await migrate.upgrade(db)
    assert plan.later == []
    assert not await _has_note(db)
    await _leave(db, of_this)
    await _leave(db, of_a_newer)


async def test_dead_members_of_a_former_version_do_not_keep_a_later_one_from_starting(
    db: Database, newer: Newer
) -> None:
    dead = await _join(db, schema.History().newest)
    newer.now_knows("expand", EXPANSION)
    newer.now_knows("contract", CONTRACTION)
    newer.now_knows("expand", EXPANSION)

    async def alive() -> None:
        while True:
            async with db.engine.begin() as connection:
                await connection.execute(text("UPDATE management_node SET heart_beat = now()"))
            await asyncio.sleep(0.05)

    heart = asyncio.create_task(alive())
    with pytest.raises(migrate.UpgradeWaitsError, match=dead):
        await migrate.upgrade(db, Rules(silence=0.5))
    heart.cancel()
    await asyncio.gather(heart, return_exceptions=True)
    plan = await migrate.upgrade(db, Rules(silence=0.5))
    assert len(plan.now) == 3
    async with db.engine.connect() as connection:
        assert await connection.run_sync(schema.members) == []


async def test_a_node_that_joins_meanwhile_is_refused(db: Database, newer: Newer) -> None:
    former = schema.History()
    newer.now_knows("contract", EXPANSION)
    async with db.engine.begin() as changing:
        await schema.exclude_joins(changing)
        joining = asyncio.create_task(_admitted(db, former))
        await asyncio.sleep(0.3)
        assert not joining.done(), "it waits for what is being changed"
        await changing.run_sync(lambda one: migrate._upgrade(one, schema.History(), finish=migrate.Finish.ALL))
    with pytest.raises(schema.NewerDatabaseError):
        await joining
    await _admitted(db, schema.History())


async def _admitted(db: Database, history: schema.History) -> None:
    async with db.engine.begin() as connection:
        await schema.admit(connection, history)


async def test_a_table_in_use_is_waited_for_without_holding_others_up(db: Database, newer: Newer) -> None:
    newer.now_knows("expand", EXPANSION)
    async with db.engine.begin() as user:
        await user.execute(text("SELECT count(*) FROM zone"))
        changing = asyncio.create_task(migrate.upgrade(db))
        await asyncio.sleep(1.0)
        async with db.engine.begin() as other:
            await asyncio.wait_for(other.execute(text("SELECT count(*) FROM zone")), 2)
        assert not changing.done()
    await asyncio.wait_for(changing, 20)
    assert await _has_note(db)


async def test_the_last_node_of_a_former_version_that_leaves_lets_the_others_finish(
    tmp_path: Path, newer: Newer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Bakeries(tmp_path, 1, upgrade_finish_seconds=0.3) as cluster:
        old = cluster.clouds[0]
        newer.now_knows("expand", EXPANSION)
        contraction = newer.now_knows("contract", CONTRACTION)
        monkeypatch.setattr(membership, "__version__", "99.0")
        new = await cluster.add()
        db = new.node.db
        assert await _has_note(db)
        assert list((new.node.config.data_dir / "backup").glob("caelum-*.dump"))
        async with db.engine.connect() as connection:
            seen = {one.uuid: one.version for one in await connection.run_sync(schema.members)}
        assert seen[new.node.uuid] == "99.0"
        assert seen[old.node.uuid] != "99.0"
        await cluster.remove(old)

        async def finished() -> bool:
            async with db.engine.connect() as connection:
                return await connection.run_sync(schema.version_of) == contraction

        await cluster.until(finished)
        assert not await _has_note(db)
        assert len(list((new.node.config.data_dir / "backup").glob("*"))) == 1, "the end needs no other dump so soon"


async def test_a_dump_is_whole_and_of_this_database(tmp_path: Path, db: Database) -> None:
    kept = await backup.dump(db.url, tmp_path / "dumps", "abc")
    assert kept.name == "caelum-abc.dump"
    assert kept.stat().st_mode & 0o777 == 0o600
    restore = backup.programs("pg_restore")
    assert restore is not None
    listed = await asyncio.create_subprocess_exec(
        restore / "pg_restore", "--list", kept, stdout=asyncio.subprocess.PIPE
    )
    assert b"TABLE DATA public management_node" in (await listed.communicate())[0]


async def test_without_a_dump_nothing_is_changed(
    tmp_path: Path, db: Database, newer: Newer, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer.now_knows("expand", EXPANSION)
    rules = Rules(dumps=tmp_path / "dumps")

    def broken(said: str) -> Path:
        program = tmp_path / said / "15" / "bin" / "pg_dump"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\necho {said} >&2\nexit 3\n")
        program.chmod(0o755)
        return tmp_path / said

    missing: dict[str, Any] = {"path": tmp_path / "none"}
    for place, why in ((broken("mismatch"), "pg_dump ended with 3: mismatch"), (missing["path"], "not installed")):
        monkeypatch.setattr(backup, "PROGRAMS", place)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(backup.BackupError, match=why):
            await migrate.upgrade(db, rules)
        assert not await _has_note(db)
    assert not list((tmp_path / "dumps").glob("*.dump"))
    await migrate.upgrade(db)
    assert await _has_note(db)


async def test_a_node_with_nothing_to_change_does_not_wait_for_the_dump_of_another(
    tmp_path: Path, db: Database, newer: Newer, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = schema.SCRIPTS.parent / "former"
    shutil.copytree(schema.SCRIPTS, former)
    newer.now_knows("expand", EXPANSION)
    dumping, done = asyncio.Event(), asyncio.Event()

    async def dump(_url: str, directory: Path, _revision: str) -> Path:
        dumping.set()
        await done.wait()
        return directory

    monkeypatch.setattr(backup, "dump", dump)
    changing = asyncio.create_task(migrate.upgrade(db, Rules(dumps=tmp_path / "dumps")))
    await asyncio.wait_for(dumping.wait(), 10)
    with monkeypatch.context() as of_former:
        of_former.setattr(schema, "SCRIPTS", former)
        plan = await asyncio.wait_for(migrate.upgrade(db), 10)
    assert (plan.now, plan.later) == ([], [])
    second = asyncio.create_task(migrate.upgrade(db))
    await asyncio.sleep(0.5)
    assert not second.done(), "a node that has the same revisions to run waits"
    done.set()
    assert len((await changing).now) == 1
    assert (await second).now == []
    assert await _has_note(db)


async def test_the_look_before_an_upgrade(
    tmp_path: Path, db: Database, newer: Newer, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer.now_knows("expand", EXPANSION)
    newer.now_knows("contract", CONTRACTION)
    member = await _join(db, None, None)
    config = Config(data_dir=tmp_path, database_url=db.url)
    report = await inspect_cloud(config)
    assert not report.findings
    assert any(member in one and one.startswith("member: ") for one in report.facts)
    assert any(one.startswith("revision that waits for management nodes of a former") for one in report.facts)
    assert any("the server is PostgreSQL" in one for one in report.facts)
    program = tmp_path / "9" / "bin" / "pg_dump"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.1'\n")
    program.chmod(0o755)
    monkeypatch.setattr(backup, "PROGRAMS", tmp_path)
    assert [one.kind for one in (await inspect_cloud(config)).findings] == ["OldDump"]
    config.upgrade_backup = "elsewhere"
    assert not (await inspect_cloud(config)).findings


def test_the_password_goes_by_the_environment() -> None:
    url = make_url("postgresql+asyncpg://me:s3cret@db.example.org/cloud?ssl=require")
    environment = backup.connection_environment(url)
    assert environment == {
        "PGHOST": "db.example.org", "PGPORT": "5432", "PGUSER": "me", "PGDATABASE": "cloud", "PGPASSWORD": "s3cret",
        "PGSSLMODE": "require", "PGCONNECT_TIMEOUT": "10",
    }  # fmt: skip
