"""What stands in the way of an upgrade, found out before it begins: by the new version, beside running servers.

Invariant: looking changes nothing. What is found says what to do; a finding that blocks says that the upgrade would
fail, or would leave work that nobody can end.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, Table, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from caelum import __version__, builtin
from caelum.kernel import backup, gc, journal, migrate, schema, upgrade, work_queue
from caelum.kernel.config import Config
from caelum.kernel.database import Base, Database
from caelum.kernel.engine import UNDO_RUNNER
from caelum.kernel.errors import CloudError
from caelum.kernel.extension import discover, enabled
from caelum.kernel.flow import flows
from caelum.kernel.migrate import Plan
from caelum.kernel.schema import History

_CONNECT_SECONDS = 15.0
_COMMAND_SECONDS = 10.0
_SHOWN = 5
"""Examples that a finding names."""


class Finding(msgspec.Struct, rename="camel", frozen=True):
    """Something that does not fit, and what to do about it."""

    kind: str
    details: str
    remedy: str
    blocks: bool = True


class Report(msgspec.Struct, rename="camel"):
    """What a look at a database found. `facts` tell what was looked at."""

    version: str
    facts: list[str] = []
    findings: list[Finding] = []

    @property
    def blocked(self) -> bool:
        """Whether the upgrade must not begin."""
        return any(one.blocks for one in self.findings)

    def to_wire(self) -> dict[str, Any]:
        """As plain values."""
        wire: dict[str, Any] = msgspec.to_builtins(self)
        return {**wire, "blocked": self.blocked}

    def find(self, kind: str, details: str, remedy: str, *, blocks: bool = True) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, details, remedy, blocks))


class Look(msgspec.Struct):
    """What a check sees: a connection to the database as it is, in the schema of whatever version."""

    connection: AsyncConnection
    columns: dict[str, set[str]]
    report: Report

    def has(self, model: type[Base], *columns: str) -> bool:
        """Whether the database has a model's table, and these columns of it, yet."""
        present = self.columns.get(model.__tablename__)
        return present is not None and present.issuperset(columns)

    async def rows(self, model: type[Base], *columns: str, where: Any) -> list[Any]:
        """Some columns of the rows that meet a condition; none while the table is not there yet."""
        if not self.has(model, *columns):
            return []
        table: Table = model.__table__  # type: ignore[assignment]
        query = select(*(table.c[name] for name in columns)).where(where)
        return list(await self.connection.execute(query))


Check = Callable[[Look], Awaitable[None]]
C = TypeVar("C", bound=Check)
_checks: list[Check] = []


def preflight_check(check: C) -> C:
    """Declare `async check(look)` as a part of the look before an upgrade: it adds facts and findings to the report."""
    _checks.append(check)
    return check


async def inspect_cloud(config: Config) -> Report:
    """Look at everything."""
    report = Report(version=__version__)
    _load_declarations(config, report)
    url = config.resolved_database_url()
    path = Path(url.partition("///")[2])
    if url.startswith("sqlite") and not await asyncio.to_thread(path.exists):
        report.find("NoDatabase", f"there is no database at {path}", "Give the --config of the server.")
        return report
    db = Database(url)
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            columns = await _columns_of(db)
        if not columns:
            report.facts.append("the database is empty: the first server makes its tables")
            return report
        await _look_at(db, config, columns, report)
    except (SQLAlchemyError, CloudError, OSError, TimeoutError) as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        remedy = "Check database_url, and that the database runs and can be reached from here."
        report.find("DatabaseUnreachable", f"the database cannot be read: {why}", remedy)
    finally:
        await db.close()
    return report


def _load_declarations(config: Config, report: Report) -> None:
    """Load services, drivers and plugins, so that what they can do is known; one that is broken is reported.

    It does not block: a server starts without it. Work of it that nobody else could end is found by itself.
    """
    parts = [
        *discover("caelum.services", builtin.SERVICES), *discover("caelum.drivers", builtin.DRIVERS),
        *discover("caelum.plugins", ()),
    ]  # fmt: skip
    for part in (one for one in enabled(parts, config.disabled_services) if one.factory is None):
        remedy = "Install a version of it that fits this version, or disable it."
        report.find("BrokenPart", f"{part.name} cannot be loaded: {part.error}", remedy, blocks=False)


async def _columns_of(db: Database) -> dict[str, set[str]]:
    def read(connection: Connection) -> dict[str, set[str]]:
        found = inspect(connection).get_multi_columns()
        return {table: {one["name"] for one in columns} for (_, table), columns in found.items()}

    async with db.engine.connect() as connection:
        return await connection.run_sync(read)


async def _look_at(db: Database, config: Config, columns: dict[str, set[str]], report: Report) -> None:
    plan = await _schema(db, config, report)
    if plan is not None and plan.now:
        await _space(db, config, report)
        await _dump_program(db, config, report)
    async with db.engine.connect() as connection:
        look = Look(connection, columns, report)
        for check in (_workflows, _garbage, _queues, *_checks):
            await check(look)


# --- the schema ------------------------------------------------------------------------------------------------------


async def _schema(db: Database, config: Config, report: Report) -> Plan | None:
    history = History()
    async with db.engine.connect() as connection:
        living = await connection.run_sync(schema.members)
    for member in living:
        report.facts.append(f"member: {member}")
        if not history.knows(member.revision):
            remedy = "Nothing, if you are going back to this version; else check the new version's program."
            report.find("NewerMember", f"{member} knows a newer schema than this version", remedy, blocks=False)
    try:
        plan = await migrate.look(db, history, finish=upgrade.rules(config).finish)
    except schema.NewerDatabaseError as error:
        report.find("NewerDatabase", str(error), "Install the newer version again, or restore a copy.")
        return None
    report.facts.append(f"schema: at revision {plan.version}; this version's newest is {history.newest}")
    report.facts += [f"revision that runs at the start of the first server: {one}" for one in plan.now]
    report.facts += [f"revision that waits for {plan.why()}: {one}" for one in plan.later]
    if plan.stuck:
        details = f"this version needs revisions that wait for {plan.why()}"
        remedy = "Bring all servers to the version before, and finish that upgrade (`caelum admin upgrade finish`)."
        report.find("UnfinishedUpgrade", details, remedy)
    return plan


async def _space(db: Database, config: Config, report: Report) -> None:
    """Whether the copy of the database fits on the disk."""
    found = await backup.room(db, upgrade.rules(config).dumps)
    if found is None:
        return
    needed, free, place = backup.mib(found.needed), backup.mib(found.free), found.place
    report.facts.append(f"the copy of the database needs at most {needed}; {place} has {free} free")
    if found.free < found.needed:
        details = f"the copy of the database may need {needed}, and {place} has {free} free"
        report.find("NoSpace", details, "Make room, or back the database up elsewhere (upgrade_backup).")


async def _dump_program(db: Database, config: Config, report: Report) -> None:
    """Whether `pg_dump` is here, and new enough for the server."""
    if db.sqlite or config.upgrade_backup != "dump":
        return
    remedy = 'Install postgresql-client in the server\'s version, or set upgrade_backup = "elsewhere".'
    directory = backup.programs("pg_dump")
    if directory is None:
        report.find("NoDump", "pg_dump, which dumps the database before an upgrade, is not installed", remedy)
        return
    async with db.engine.connect() as connection:
        server = int(await connection.scalar(text("SHOW server_version_num")) or 0) // 10_000
    program = await asyncio.create_subprocess_exec(
        directory / "pg_dump", "--version", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(_COMMAND_SECONDS):
        said = (await program.communicate())[0].decode(errors="replace").strip()
    found = re.search(r"\) (\d+)", said)
    report.facts.append(f"{directory / 'pg_dump'}: {said}; the server is PostgreSQL {server}")
    if found is not None and int(found[1]) < server:
        report.find("OldDump", f"{said} cannot dump a database of PostgreSQL {server}", remedy)


# --- work that is under way ------------------------------------------------------------------------------------------


async def _workflows(look: Look) -> None:
    """Whether this version can take up each workflow that goes on."""
    row, known = journal.JournalModel, flows()
    noted = ("steps",) if look.has(row, "steps") else ()
    found = await look.rows(row, "uuid", "name", "ctx", *noted, where=row.state.in_(journal.LIVE))
    look.report.facts.append(f"workflows under way: {len(found)}")
    strange = []
    for one in found:
        flow = known.get(one.name)
        if flow is None:
            strange.append(f"{one.name} {one.uuid} is not known")
        elif getattr(one, "steps", None) not in (None, flow.step_names()):
            strange.append(f"{one.name} {one.uuid} has other steps here, and would be undone")
        elif not _decodes(one.ctx, flow.context_type):
            strange.append(f"{one.name} {one.uuid} has a context that this version cannot read")
    if strange:
        remedy = "Let the running servers end them first (stop sending requests for a moment), then check again."
        look.report.find("StrangeWorkflow", _examples("workflows", strange), remedy)


def _decodes(context: str, kind: Any) -> bool:
    try:
        msgspec.json.decode(context, type=kind)
    except msgspec.MsgspecError:
        return False
    return True


async def _garbage(look: Look) -> None:
    """Whether this version can do each job of the garbage collector."""
    row, known = gc.GarbageCollectorModel, gc.runners()
    found = await look.rows(row, "name", "runner_class", "context", where=row.status != gc.DONE)
    look.report.facts.append(f"open jobs of the garbage collector: {len(found)}")
    strange = [one.name for one in found if one.runner_class not in known or not _undoable(one)]
    if strange:
        remedy = "Let the running servers end them, or install the plugin that they belong to, then check again."
        look.report.find("StrangeJob", _examples("jobs", strange), remedy)


def _undoable(job: Any) -> bool:
    """Whether the step that an undo is about is known; every other job is its runner's affair."""
    if job.runner_class != UNDO_RUNNER:
        return True
    undo = msgspec.json.decode(job.context)
    flow = flows().get(undo["name"])
    steps = () if flow is None else flow.steps
    return flow is not None and undo["step"] in {one.name for one in steps} and _decodes(undo["ctx"], flow.context_type)


async def _queues(look: Look) -> None:
    """Whether this version can run what waits in the database's work queues."""
    row, known = work_queue.WorkQueueEntryModel, work_queue.runners()
    found = await look.rows(row, "uuid", "runner", where=row.state.in_(work_queue.OPEN))
    strange = [f"{one.runner} {one.uuid}" for one in found if one.runner not in known]
    if strange:
        remedy = "Let the running servers end them first, then check again."
        look.report.find("StrangeQueueEntry", _examples("entries of work queues", strange), remedy)


def _examples(what: str, strange: Iterable[str]) -> str:
    found = list(strange)
    more = "" if len(found) <= _SHOWN else f" and {len(found) - _SHOWN} more"
    return f"{len(found)} {what} cannot be taken up by this version: {', '.join(found[:_SHOWN])}{more}"
