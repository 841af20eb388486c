"""Schema migrations, run by every node as it starts, and the tool that writes new ones.

Invariant: after `upgrade` the schema is the models'. An empty database gets its tables from the models, which is many
times faster, and is marked as being at the newest revision; any other one is led there by the revisions in
`caelum/migrations/versions`. A test holds both ways equal. So a revision changes structure and the rows that are there;
the first rows of a new cloud are made by the services. Tables of separately installed plugins are created beside these.

`python -m caelum.kernel.migrate "what changed"` writes a revision with the difference between the newest revision and
the models of everything that ships with Caelum.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import re
import sqlite3
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Table, inspect, text

from caelum import builtin
from caelum.kernel.database import Base, Database

if TYPE_CHECKING:
    from alembic.config import Config

log = logging.getLogger(__name__)

SCRIPTS = Path(__file__).parent.parent / "migrations"
_VERSION_TABLE = "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"
_TURN_PAUSE = 0.5
_ADVISORY_LOCK = 0x0CAE1
"""The key under which nodes that start together take turns on PostgreSQL."""


class NewerDatabaseError(RuntimeError):
    """The database belongs to a newer version of the program."""


async def upgrade(db: Database) -> None:
    """Run all missing revisions in one transaction; nodes that start at once take turns.

    A SQLite database is copied first, beside itself: `caelum.db.<its revision>`. Raises NewerDatabaseError.
    """
    async with db.engine.connect() as connection:
        version = await connection.run_sync(_version)
    if version is not None and version not in _revisions():
        raise NewerDatabaseError(
            f"the database is at revision {version}, which this version of Caelum does not know: it was used by a newer"
            " one. Install that again, or restore the copy of the database from before the upgrade"
        )
    if db.sqlite and version not in (None, newest_revision()):
        await asyncio.to_thread(_keep_copy, db.url, str(version))
    async with db.engine.begin() as connection:
        if not db.sqlite:
            # Whoever waits for its turn is idle for the server, and a change of the schema may take its time.
            await connection.execute(text("SET LOCAL statement_timeout = 0"))
            await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            mine = text("SELECT pg_try_advisory_xact_lock(:key)")
            # Asked again and again: one long statement would run into the driver's own limit.
            while not (await connection.execute(mine, {"key": _ADVISORY_LOCK})).scalar():  # noqa: ASYNC110 - as above
                await asyncio.sleep(_TURN_PAUSE)
        await connection.run_sync(_upgrade)


async def differences(db: Database) -> list[Any]:
    """What separates the schema from the models of Caelum; empty when the revisions are complete."""
    async with db.engine.connect() as connection:
        return await connection.run_sync(_differences)


def newest_revision() -> str | None:
    """The revision that no other one follows, or None while there is none."""
    revisions = _revisions()
    return next(iter(revisions.keys() - set(revisions.values())), None)


def _revisions() -> dict[str, str | None]:
    """Every revision, and the one before it."""
    found = {}
    for path in (SCRIPTS / "versions").glob("*.py"):
        written = path.read_text()
        one = re.search(r"^revision = [\"'](\w+)", written, re.MULTILINE)
        before = re.search(r"^down_revision = [\"'](\w+)", written, re.MULTILINE)
        if one is not None:
            found[one[1]] = None if before is None else before[1]
    return found


def _keep_copy(url: str, version: str) -> None:
    """Copy the database as it is before an upgrade, unless an earlier try has."""
    path = Path(url.partition("///")[2])
    copy = path.with_name(f"{path.name}.{version}")
    if copy.exists():
        return
    unfinished = copy.with_name(f"{copy.name}.part")
    unfinished.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("VACUUM INTO ?", [str(unfinished)])
    unfinished.rename(copy)
    log.info("the database is upgraded from revision %s; a copy of it is in %s", version, copy)


def write_revision(connection: Connection, message: str) -> None:
    """Bring an empty database to the newest revision and write the one that leads from there to the models."""
    from alembic import command
    from alembic.script import Script

    config = _config(connection)
    if newest_revision() is not None:
        command.upgrade(config, "head")
    written = command.revision(config, message, autogenerate=True)
    if isinstance(written, Script):
        path = Path(written.path)
        path.write_text(re.sub(r"^ *# ###.*\n", "", path.read_text(), flags=re.MULTILINE))


def run_revisions(connection: Connection) -> None:
    """Run all missing revisions, one after another."""
    from alembic import command

    command.upgrade(_config(connection), "head")


def _upgrade(connection: Connection) -> None:
    newest = newest_revision()
    # Looked up without Alembic: loading it takes longer than the rest of a start.
    if newest is not None and newest != _version(connection):
        if inspect(connection).get_table_names() or not _all_models_loaded():
            run_revisions(connection)
        else:
            _create(connection, newest)
    Base.metadata.create_all(connection, tables=_plugin_tables() if newest else None)


def _create(connection: Connection, newest: str) -> None:
    Base.metadata.create_all(connection, checkfirst=False, tables=_our_tables())
    connection.execute(text(_VERSION_TABLE))
    connection.execute(text("INSERT INTO alembic_version (version_num) VALUES (:newest)"), {"newest": newest})


def _all_models_loaded() -> bool:
    """Load them, also those of services that are switched off: they may be switched on later."""
    try:
        builtin.import_declarations()
    except Exception:
        # A broken service is reported elsewhere and must not keep the rest from starting.
        return False
    return True


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return version


def _differences(connection: Connection) -> list[Any]:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"compare_type": True, "include_name": _is_ours})
    return list(compare_metadata(context, _our_metadata()))


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes.update(connection=connection, metadata=_our_metadata(), include_name=_is_ours)
    return config


def _our_metadata() -> Any:
    """The tables of Caelum, without those of plugins."""
    mine = type(Base.metadata)(naming_convention=Base.metadata.naming_convention)
    for table in _our_tables():
        table.to_metadata(mine)
    return mine


def _our_tables() -> list[Table]:
    foreign = _plugin_tables()
    return [table for table in Base.metadata.sorted_tables if table not in foreign]


def _plugin_tables() -> list[Table]:
    """Tables whose models live outside of this package."""
    found = {}
    for mapper in Base.registry.mappers:
        table = mapper.local_table
        if isinstance(table, Table) and not mapper.class_.__module__.startswith("caelum."):
            found[table.name] = table
    ours = {mapper.local_table for mapper in Base.registry.mappers if mapper.class_.__module__.startswith("caelum.")}
    return [table for table in found.values() if table not in ours]


def _is_ours(name: str | None, kind: str, _parents: Any) -> bool:
    return kind != "table" or name not in {table.name for table in _plugin_tables()}


async def _revision(message: str) -> None:
    builtin.import_declarations()
    with tempfile.TemporaryDirectory() as scratch:
        db = Database(f"sqlite+aiosqlite:///{scratch}/schema.db")
        async with db.engine.begin() as connection:
            await connection.run_sync(write_revision, message)
        await db.close()


def main() -> None:
    """Write a revision."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("message", help="what changes, in a few words")
    asyncio.run(_revision(parser.parse_args().message))


if __name__ == "__main__":
    main()
