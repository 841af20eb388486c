"""Migrations: the shipped revisions lead to the models, and the tool writes revisions that do."""

import shutil
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from caelum import builtin
from caelum.kernel import migrate
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
    shutil.copytree(migrate.SCRIPTS, copy, ignore=shutil.ignore_patterns("versions", "__pycache__"))
    (copy / "versions").mkdir()
    monkeypatch.setattr(migrate, "SCRIPTS", copy)
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
    assert migrate.newest_revision() is None
    assert GlobalConfigModel.__tablename__ in Base.metadata.tables
    db = _database(tmp_path / "tool.db")
    async with db.engine.begin() as connection:
        await connection.run_sync(migrate.write_revision, "first")
    first = migrate.newest_revision()
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
        f"revision = 'second'\ndown_revision = '{first}'\n"
        "import sqlalchemy as sa\nfrom alembic import op\n"
        "def upgrade():\n    op.add_column('global_config', sa.Column('note', sa.String(8), nullable=True))\n"
    )
    assert migrate.newest_revision() == "second"
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
        "revision = 'bad'\ndown_revision = None\n"
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


async def test_before_an_upgrade_the_database_is_copied_and_an_older_program_refuses_it(
    tmp_path: Path, scripts: Path
) -> None:
    versions, file = scripts / "versions", tmp_path / "x.db"
    write = (
        "import sqlalchemy as sa\nfrom alembic import op\n"
        "def upgrade():\n    op.create_table('{0}', sa.Column('n', sa.Integer))\n"
    )
    for name, before in (("first", None), ("second", "first")):
        (versions / f"{name}.py").write_text(f"revision = {name!r}\ndown_revision = {before!r}\n" + write.format(name))
        if name == "first":
            with sqlite3.connect(file) as raw:
                raw.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
                raw.execute("INSERT INTO alembic_version VALUES ('first')")
    db = _database(file)
    for _ in range(2):
        await db.migrate()
    with sqlite3.connect(tmp_path / "x.db.first") as copy:
        assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [("first",)]
    assert not (tmp_path / "x.db.second").exists()
    (versions / "second.py").unlink()
    with pytest.raises(migrate.NewerDatabaseError, match="revision second"):
        await db.migrate()
    await db.close()
