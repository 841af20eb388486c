"""Schema migrations, run by every node as it starts, and the tool that writes new ones.

Invariant: after `upgrade` the schema is the models'. Tables of Caelum come from the revisions in
`caelum/migrations/versions`; tables of separately installed plugins are created beside them. While there is no
revision yet, every table is created from the models.

`python -m caelum.kernel.migrate "what changed"` writes a revision with the difference between the newest revision
and the models of everything that is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Table, text

from caelum.kernel.database import Base, Database

SCRIPTS = Path(__file__).parent.parent / "migrations"
MODEL_GROUPS = ("caelum.services", "caelum.drivers", "caelum.plugins")
_ADVISORY_LOCK = 0x0CAE1
"""The key under which nodes that start together take turns on PostgreSQL."""


async def upgrade(db: Database) -> None:
    """Run all missing revisions in one transaction; nodes that start at once take turns."""
    async with db.engine.begin() as connection:
        if not db.sqlite:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        await connection.run_sync(_upgrade)


async def differences(db: Database) -> list[Any]:
    """What separates the schema from the models of Caelum; empty when the revisions are complete."""
    async with db.engine.connect() as connection:
        return await connection.run_sync(_differences)


def load_models() -> None:
    """Import everything that is installed, so that every model is known."""
    for group in MODEL_GROUPS:
        for entry in entry_points(group=group):
            entry.load()


def _upgrade(connection: Connection) -> None:
    config = _config(connection)
    if ScriptDirectory.from_config(config).get_heads():
        command.upgrade(config, "head")
        Base.metadata.create_all(connection, tables=_plugin_tables())
    else:
        Base.metadata.create_all(connection)


def _differences(connection: Connection) -> list[Any]:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "include_name": _ours})
    return list(compare_metadata(context, Base.metadata))


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes.update(connection=connection, metadata=Base.metadata, include_name=_ours)
    return config


def _plugin_tables() -> list[Table]:
    """Tables whose models live outside of this package."""
    found = {}
    for mapper in Base.registry.mappers:
        table = mapper.local_table
        if isinstance(table, Table) and not mapper.class_.__module__.startswith("caelum."):
            found[table.name] = table
    return list(found.values())


def _ours(name: str | None, kind: str, _parents: Any) -> bool:
    return kind != "table" or name not in {table.name for table in _plugin_tables()}


async def _revision(message: str) -> None:
    load_models()
    with tempfile.TemporaryDirectory() as scratch:
        db = Database(f"sqlite+aiosqlite:///{scratch}/schema.db")
        async with db.engine.begin() as connection:
            await connection.run_sync(_write_revision, message)
        await db.close()


def _write_revision(connection: Connection, message: str) -> None:
    config = _config(connection)
    if ScriptDirectory.from_config(config).get_heads():
        command.upgrade(config, "head")
    command.revision(config, message, autogenerate=True)


def main() -> None:
    """Write a revision."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("message", help="what changes, in a few words")
    asyncio.run(_revision(parser.parse_args().message))


if __name__ == "__main__":
    main()
