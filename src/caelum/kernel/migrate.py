"""Schema migrations, run by every node as it starts, and the tool that writes new ones.

Invariant: after `upgrade` the schema is the models', but for contract revisions that wait until no node of a former
version is left (`schema.py`). An empty database gets its tables from the models, which is many times faster, and is
marked as being at the newest revision; any other one is led there by the revisions in `caelum/migrations/versions`. A
test holds both ways equal. So a revision changes structure and the rows that are there; the first rows of a new cloud
are made by the services. Tables of separately installed plugins are created beside these.

`python -m caelum.kernel.migrate "what changed"` writes a revision with the difference between the newest revision and
the models of everything that ships with Caelum.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import enum
import logging
import re
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Connection, Table, delete, insert, inspect, text
from sqlalchemy.exc import DBAPIError

from caelum import builtin
from caelum.kernel import backup, changes, postgresql, schema
from caelum.kernel.database import Base, Database
from caelum.kernel.schema import CompatibilityModel, History, Member, Revision

if TYPE_CHECKING:
    from alembic.config import Config

log = logging.getLogger(__name__)

_VERSION_TABLE = "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"
_TURN = 0x0CAE1
"""The key under which nodes that start together take turns on PostgreSQL."""
_LOCK_SECONDS = 0.5
"""How long a change of a table waits for those who use it: less than PostgreSQL takes to look for deadlocks, so that
nobody else's transaction is ended for it."""
_LOCK_PAUSE = 0.5
_LOCK_PATIENCE = 120.0


class UpgradeWaitsError(schema.UpgradeError):
    """This version cannot start yet: the upgrade to the version before is not finished."""


class Finish(enum.Enum):
    """Which contract revisions run, of those that no member of a former version forbids."""

    ALL = "all"
    NEEDED = "needed"
    """Those that an addition comes after, which this program needs; the last ones wait for their time."""
    NONE = "none"


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How an upgrade is done."""

    finish: Finish = Finish.ALL
    dumps: Path | None = None
    """Where a PostgreSQL database is dumped to before revisions run; None: it is not."""
    silence: float = 8.0
    """Seconds without a heartbeat after which a member that stands in the way is dead."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What an upgrade does with a database at `version`: the revisions that run now, and those that wait."""

    version: str | None
    now: list[Revision]
    later: list[Revision] = []
    blockers: list[Member] = []
    """The members whose programs do not know the first of `later`; none: it waits for the order to finish."""

    @property
    def stuck(self) -> bool:
        """Whether something waits that this program needs."""
        return any(not one.contracts for one in self.later)

    def why(self) -> str:
        """What those that wait, wait for."""
        if self.blockers:
            return f"management nodes of a former version: {', '.join(map(str, self.blockers))}"
        return "the end of the upgrade (`caelum admin upgrade finish`)"


def make_plan(connection: Connection, history: History, *, finish: Finish) -> Plan:
    """What to do with a database. Raises NewerDatabaseError."""
    schema.check_compatible(connection, history)
    version = schema.version_of(connection)
    pending = history.pending(version)
    living = schema.members(connection) if any(one.contracts for one in pending) else []
    if not inspect(connection).get_table_names():
        finish = Finish.ALL
    needed = max((place for place, one in enumerate(pending) if not one.contracts), default=-1)
    for place, one in enumerate(pending):
        blockers = [member for member in living if one.contracts and not history.admits(member, one)]
        early = finish is Finish.NONE or (finish is Finish.NEEDED and place > needed)
        if blockers or (one.contracts and early):
            return Plan(version=version, now=pending[:place], later=pending[place:], blockers=blockers)
    return Plan(version=version, now=pending)


async def upgrade(db: Database, rules: Rules | None = None) -> Plan:
    """Run the revisions that may run, in one transaction; nodes that have something to change take turns. Returns what
    was done. A node that has nothing to change waits for nobody: another one's dump may take an hour.

    Before a change a SQLite database is copied beside itself, `caelum.db.<its revision>`, and one of PostgreSQL is
    dumped. Raises NewerDatabaseError, UpgradeWaitsError, BackupError; the database is then as it was.
    """
    rules, history = rules or Rules(), History()
    plan = await look(db, history, finish=rules.finish)
    if plan.now or plan.stuck or await _lacks(db, history):
        async with db.turn(_TURN):
            plan = await _change(db, history, rules)
    for one in plan.now if plan.version is not None else ():
        log.info("the schema's revision %s has been run", one)
    if plan.later:
        log.info("the schema's revisions %s wait for %s", ", ".join(map(str, plan.later)), plan.why())
    return plan


async def _change(db: Database, history: History, rules: Rules) -> Plan:
    plan = await _settled_plan(db, history, rules)
    if plan.now and plan.version is not None:
        await _keep_copy(db, history.equals(plan.version), rules)
    contracts = any(one.contracts for one in plan.now)
    return await _run(db, history, finish=rules.finish if contracts else Finish.NONE)


async def _lacks(db: Database, history: History) -> bool:
    """Whether something is missing that no revision makes: a plugin's table, the notes of a steady table's changes."""
    async with db.engine.connect() as connection:
        present = await connection.run_sync(lambda one: set(inspect(one).get_table_names()))
        unwatched = [] if db.sqlite else await connection.run_sync(changes.unwatched)
    return bool(unwatched) or any(table.name not in present for table in _tables_beside(history))


async def _settled_plan(db: Database, history: History, rules: Rules) -> Plan:
    """The plan, once members that died in the way of it are evicted. Raises UpgradeWaitsError."""
    plan = await look(db, history, finish=rules.finish)
    if plan.stuck and plan.blockers:
        # Nobody else may be left to do it, and this node is no member yet.
        await asyncio.sleep(rules.silence)
        async with db.engine.begin() as connection:
            await connection.run_sync(schema.evict, plan.blockers)
        plan = await look(db, history, finish=rules.finish)
    if plan.stuck:
        waiting = ", ".join(map(str, plan.later))
        raise UpgradeWaitsError(f"this version needs the schema's revisions {waiting}, which wait for {plan.why()}")
    return plan


async def look(db: Database, history: History, *, finish: Finish) -> Plan:
    """What an upgrade would do now. Raises NewerDatabaseError."""
    async with db.engine.connect() as connection:
        return await connection.run_sync(lambda one: make_plan(one, history, finish=finish))


async def _keep_copy(db: Database, equals: Sequence[str], rules: Rules) -> None:
    """Copy the database as it is before an upgrade, unless an earlier try has, or the first half of the same upgrade.
    `equals` are its revision and those whose copies are as good. Raises BackupError."""
    version = equals[0]
    if db.sqlite:
        kept = _copy_of(db.url, version)
        if await asyncio.to_thread(kept.exists):
            return
        await backup.check_room(db, None)
        await asyncio.to_thread(_copy_file, db.url, kept)
    elif rules.dumps is None:
        return
    elif (found := await asyncio.to_thread(backup.recent, rules.dumps, equals)) is not None:
        kept = found
    else:
        await backup.check_room(db, rules.dumps)
        kept = await backup.dump(db.url, rules.dumps, version)
    log.info("the database is upgraded from revision %s; a copy of it is in %s", version, kept)


async def _run(db: Database, history: History, *, finish: Finish) -> Plan:
    """Run what may run; a table that is in use is asked for again and again, and holds nobody up for long."""
    end = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            return await _run_once(db, history, finish=finish)
        except DBAPIError as error:
            conflict = postgresql.passing(error)
            if conflict is None or conflict.kind is not postgresql.CONFLICT or time.monotonic() > end:
                raise
            log.info("the schema cannot be changed yet, a table is in use: %s", conflict.details)
        await asyncio.sleep(_LOCK_PAUSE)


async def _run_once(db: Database, history: History, *, finish: Finish) -> Plan:
    async with db.engine.begin() as connection:
        if not db.sqlite:
            # A change of the schema may take its time, but not while others wait for the locks that it waits for.
            await connection.execute(text("SET LOCAL statement_timeout = 0"))
            await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            await connection.execute(text(f"SET LOCAL lock_timeout = {int(_LOCK_SECONDS * 1000)}"))
            # Nothing may wait for the commit: a table whose rows changed could not be altered any more.
            await connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        if finish is not Finish.NONE:
            await schema.exclude_joins(connection)
        return await connection.run_sync(lambda one: _upgrade(one, history, finish=finish))


async def differences(db: Database) -> list[Any]:
    """What separates the schema from the models of Caelum; empty when the revisions are complete."""
    async with db.engine.connect() as connection:
        return await connection.run_sync(_differences)


def _copy_of(url: str, version: str) -> Path:
    path = Path(url.partition("///")[2])
    return path.with_name(f"{path.name}.{version}")


def _copy_file(url: str, copy: Path) -> None:
    unfinished = copy.with_name(f"{copy.name}.part")
    unfinished.unlink(missing_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(Path(url.partition("///")[2]))) as database:
            database.execute("VACUUM INTO ?", [str(unfinished)])
        unfinished.rename(copy)
    finally:
        unfinished.unlink(missing_ok=True)


def write_revision(connection: Connection, message: str) -> None:
    """Bring an empty database to the newest revision and write the one that leads from there to the models."""
    from alembic import command
    from alembic.script import Script

    config = _config(connection)
    if History().newest is not None:
        command.upgrade(config, "head")
    written = command.revision(config, message, autogenerate=True)
    if isinstance(written, Script):
        path = Path(written.path)
        path.write_text(re.sub(r"^ *# ###.*\n", "", path.read_text(), flags=re.MULTILINE))


def run_revisions(connection: Connection, until: str = "head") -> None:
    """Run the missing revisions until this one, one after another."""
    from alembic import command

    command.upgrade(_config(connection), until)


def _upgrade(connection: Connection, history: History, *, finish: Finish) -> Plan:
    plan = make_plan(connection, history, finish=finish)
    if plan.now:
        # Looked up without Alembic: loading it takes longer than the rest of a start.
        if inspect(connection).get_table_names() or not _all_models_loaded():
            run_revisions(connection, plan.now[-1].name)
        else:
            _create(connection, plan.now[-1].name)
        _record(connection, history.needed(plan.now[-1].name))
    Base.metadata.create_all(connection, tables=_tables_beside(history))
    if connection.dialect.name == "postgresql":
        changes.watch(connection)
    return plan


def _create(connection: Connection, newest: str) -> None:
    Base.metadata.create_all(connection, checkfirst=False, tables=_our_tables())
    connection.execute(text(_VERSION_TABLE))
    connection.execute(text("INSERT INTO alembic_version (version_num) VALUES (:newest)"), {"newest": newest})


def _record(connection: Connection, needed: str | None) -> None:
    """Write down which programs may use the database from now on."""
    if inspect(connection).has_table(CompatibilityModel.__tablename__):
        connection.execute(delete(CompatibilityModel))
        connection.execute(insert(CompatibilityModel).values(revision=needed))


def _all_models_loaded() -> bool:
    """Load them, also those of services that are switched off: they may be switched on later."""
    try:
        builtin.import_declarations()
    except Exception:
        # A broken service is reported elsewhere and must not keep the rest from starting.
        return False
    return True


def _differences(connection: Connection) -> list[Any]:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"compare_type": True, "include_name": _is_ours})
    return list(compare_metadata(context, _our_metadata()))


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(schema.SCRIPTS))
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


def _tables_beside(history: History) -> list[Table]:
    """The tables that no revision makes."""
    return _plugin_tables() if history.newest else list(Base.metadata.sorted_tables)


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
