"""Migrations: the shipped revisions lead to the models, and the tool writes revisions that do."""

import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import inspect, text
from tests.unit.kernel.bakery import FlourModel

from caelum import builtin
from caelum.kernel import migrate, schema
from caelum.kernel.database import Base, Database
from caelum.kernel.settings import GlobalConfigModel


def _database(path: Path) -> Database:
    return Database(f"sqlite+aiosqlite:///{path}")


async def _tables(db: Database) -> set[str]:
    async with db.engine.connect() as connection:
        return set(await connection.run_sync(lambda one: inspect(one).get_table_names()))


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the migrations without any revision."""
    copy = tmp_path / "migrations"
    shutil.copytree(schema.SCRIPTS, copy, ignore=shutil.ignore_patterns("versions", "__pycache__"))
    (copy / "versions").mkdir()
    monkeypatch.setattr(schema, "SCRIPTS", copy)
    return copy


async def test_the_shipped_revisions_lead_to_the_models(tmp_path: Path) -> None:
    builtin.import_declarations()
    revised, made = _database(tmp_path / "revised.db"), _database(tmp_path / "made.db")
    async with revised.engine.begin() as connection:
        await connection.run_sync(migrate.run_revisions)
    for db in (revised, made):
        await db.migrate()
        assert await migrate.differences(db) == []
    assert await _tables(revised) == await _tables(made)
    for db in (revised, made):
        await db.close()


async def test_without_a_revision_the_tables_come_from_the_models(tmp_path: Path, scripts: Path) -> None:
    db = _database(tmp_path / "x.db")
    for _ in range(2):
        await db.migrate()
    assert set(Base.metadata.tables) <= await _tables(db)
    await db.close()


async def test_the_tool_writes_what_is_missing_and_upgrades_keep_the_rows(tmp_path: Path, scripts: Path) -> None:
    assert schema.History().newest is None
    assert GlobalConfigModel.__tablename__ in Base.metadata.tables
    db = _database(tmp_path / "tool.db")
    async with db.engine.begin() as connection:
        await connection.run_sync(migrate.write_revision, "first")
    first = schema.History().newest
    assert first is not None
    await db.close()

    db = _database(tmp_path / "x.db")
    await db.migrate()
    assert await migrate.differences(db) == []
    assert set(Base.metadata.tables) <= await _tables(db), "tables of plugins are created too"
    await db.close()
    with sqlite3.connect(tmp_path / "x.db") as raw:
        raw.execute("INSERT INTO global_config (category, name, default_value, value) VALUES ('c', 'n', 'd', 'v')")

    (scripts / "versions" / "second.py").write_text(
        f"revision = 'second'\ndown_revision = '{first}'\nphase = 'expand'\n"
        "import sqlalchemy as sa\nfrom alembic import op\n"
        "def upgrade():\n    op.add_column('global_config', sa.Column('note', sa.String(8), nullable=True))\n"
    )
    assert schema.History().newest == "second"
    db = _database(tmp_path / "x.db")
    for _ in range(2):
        await db.migrate()
    assert [(one[0], one[2], one[3].name) for one in await migrate.differences(db)] == [
        ("remove_column", "global_config", "note")
    ]
    await db.close()
    with sqlite3.connect(tmp_path / "x.db") as raw:
        assert raw.execute("SELECT name, note FROM global_config").fetchall() == [("n", None)]


async def test_a_revision_that_fails_changes_nothing(tmp_path: Path, scripts: Path) -> None:
    (scripts / "versions" / "bad.py").write_text(
        "revision = 'bad'\ndown_revision = None\nphase = 'expand'\n"
        "import sqlalchemy as sa\nfrom alembic import op\n"
        "def upgrade():\n    op.create_table('half', sa.Column('a', sa.Integer))\n    raise ValueError('broken')\n"
    )
    db = _database(tmp_path / "x.db")
    async with db.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE old (a INTEGER)"))
    with pytest.raises(ValueError, match="broken"):
        await db.migrate()
    assert await _tables(db) == {"old"}
    await db.close()


def _write(scripts: Path, name: str, before: str | None, phase: str, *, table: str | None = None) -> None:
    (scripts / "versions" / f"{name}.py").write_text(
        f"revision = {name!r}\ndown_revision = {before!r}\nphase = {phase!r}\n"
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"def upgrade():\n    op.create_table({table or name!r}, sa.Column('revision', sa.String(32)))\n"
    )


def _begun(file: Path, version: str) -> None:
    """A database that Alembic has brought to a revision."""
    with sqlite3.connect(file) as raw:
        raw.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        raw.execute("INSERT INTO alembic_version VALUES (?)", (version,))


async def test_before_an_upgrade_the_database_is_copied(tmp_path: Path, scripts: Path) -> None:
    _write(scripts, "first", None, "expand")
    _write(scripts, "second", "first", "expand")
    _begun(tmp_path / "x.db", "first")
    db = _database(tmp_path / "x.db")
    for _ in range(2):
        await db.migrate()
    with sqlite3.connect(tmp_path / "x.db.first") as copy:
        assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [("first",)]
    assert not (tmp_path / "x.db.second").exists()
    await db.close()


async def test_an_older_program_goes_on_after_additions_and_refuses_what_was_taken_away(
    tmp_path: Path, scripts: Path
) -> None:
    _write(scripts, "first", None, "expand", table="schema_compatibility")
    _write(scripts, "second", "first", "expand")
    _begun(tmp_path / "x.db", "nothing")
    db = _database(tmp_path / "x.db")
    with pytest.raises(schema.NewerDatabaseError, match="revision nothing"):
        await db.migrate()
    async with db.engine.begin() as connection:
        await connection.execute(text("DELETE FROM alembic_version"))
    assert [one.name for one in (await migrate.upgrade(db)).now] == ["first", "second"]

    (scripts / "versions" / "second.py").unlink()
    assert (await migrate.upgrade(db)).now == [], "the older program leaves the newer schema alone"
    async with db.engine.connect() as connection:
        assert await connection.run_sync(schema.version_of) == "second"

    _write(scripts, "second", "first", "expand")
    _write(scripts, "third", "second", "contract")
    held = await migrate.upgrade(db, migrate.Rules(finish=migrate.Finish.NONE))
    assert (held.now, [one.name for one in held.later], held.stuck) == ([], ["third"], False)
    _write(scripts, "fourth", "third", "expand")
    with pytest.raises(migrate.UpgradeWaitsError, match=r"third \(contract\), fourth \(expand\), which wait"):
        await migrate.upgrade(db, migrate.Rules(finish=migrate.Finish.NONE))
    async with db.engine.connect() as connection:
        needed = await connection.run_sync(migrate.make_plan, schema.History(), finish=migrate.Finish.NEEDED)
    assert [one.name for one in needed.now] == ["third", "fourth"]
    (scripts / "versions" / "fourth.py").unlink()
    held = await migrate.upgrade(db, migrate.Rules(finish=migrate.Finish.NEEDED))
    assert (held.now, [one.name for one in held.later]) == ([], ["third"])
    assert [one.name for one in (await migrate.upgrade(db)).now] == ["third"]

    (scripts / "versions" / "third.py").unlink()
    with pytest.raises(schema.NewerDatabaseError, match="removed by revision third: a newer version has finished"):
        await db.migrate()
    await db.close()


async def test_a_node_takes_its_turn_only_to_change_something(
    tmp_path: Path, scripts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []

    @contextlib.asynccontextmanager
    async def turn(key: int) -> AsyncIterator[None]:
        turns.append(key)
        yield

    _write(scripts, "first", None, "expand")
    _write(scripts, "second", "first", "contract")
    _begun(tmp_path / "x.db", "first")
    db = _database(tmp_path / "x.db")
    monkeypatch.setattr(db, "turn", turn)
    held = migrate.Rules(finish=migrate.Finish.NONE)
    await migrate.upgrade(db, held)
    assert len(turns) == 1, "the tables of plugins were missing"
    assert [one.name for one in (await migrate.upgrade(db, held)).later] == ["second"]
    assert len(turns) == 1
    async with db.engine.begin() as connection:
        await connection.execute(text(f"DROP TABLE {FlourModel.__tablename__}"))
    await migrate.upgrade(db, held)
    assert len(turns) == 2
    assert FlourModel.__tablename__ in await _tables(db)
    assert [one.name for one in (await migrate.upgrade(db)).now] == ["second"]
    assert len(turns) == 3
    await db.close()


def test_a_contract_revision_waits_for_every_member_that_does_not_know_it(scripts: Path) -> None:
    for name, before, phase in (("a", None, "expand"), ("b", "a", "contract"), ("c", "b", "expand")):
        _write(scripts, name, before, phase)
    history = schema.History()
    contraction = history.revisions[1]
    moment = datetime(2026, 1, 1)  # noqa: DTZ001 - as the database has it
    for revision, admitted in ((None, False), ("a", False), ("b", True), ("c", True), ("of a newer one", True)):
        member = schema.Member("u", "h", moment, "1.0", revision)
        assert history.admits(member, contraction) is admitted, revision
        assert history.reaches(revision, "b") is admitted, revision
    assert [history.needed(one) for one in (None, "a", "b", "c")] == [None, "a", "b", "b"]
    assert [history.equals(one) for one in "abc"] == [["a"], ["b"], ["c", "b"]]
    (scripts / "versions" / "d.py").write_text("revision = 'd'\ndown_revision = 'c'\n")
    with pytest.raises(ValueError, match=r"d\.py must declare its phase"):
        schema.History()
