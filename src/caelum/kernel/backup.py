"""A dump of a PostgreSQL database before its schema changes.

Invariant: a file that bears the name of a dump is a whole one, and what is not whole does not stay: tried again and
again, it would fill the disk. The password is in nobody's argument list.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from sqlalchemy import URL, make_url, text

from caelum.kernel.database import Database, uninterrupted
from caelum.kernel.schema import UpgradeError

PROGRAMS = Path("/usr/lib/postgresql")
"""Where Debian has the programs of each version of PostgreSQL."""
_DUMP_SECONDS = 3600.0
_LOCK_WAIT = "10s"
_PART = ".part"
YOUNG_SECONDS = 600.0
"""How old a dump may be to be taken for another try, or for the end, of the same upgrade."""
_CLIENT = (
    "Install the client programs of PostgreSQL in the server's version (postgresql-client), or back the database up by"
    ' your own means and set upgrade_backup = "elsewhere"'
)


class BackupError(UpgradeError):
    """The database could not be dumped, so nothing was changed."""


def programs(name: str) -> Path | None:
    """The directory with a program of PostgreSQL, of the newest version on this machine; None when it is missing."""
    versions = sorted(
        (path for path in PROGRAMS.glob("*/bin") if (path / name).exists()),
        key=lambda path: int(re.sub(r"\D", "", path.parent.name) or 0),
    )
    if versions:
        return versions[-1]
    found = shutil.which(name)
    return Path(found).parent if found else None


class Room(msgspec.Struct, frozen=True):
    """The bytes that a copy of the database needs at most, and those that are free where it goes."""

    needed: int
    free: int
    place: Path


async def room(db: Database, dumps: Path | None) -> Room | None:
    """The room for the copy before an upgrade; None when there is none: `dumps` is where PostgreSQL's goes."""
    if db.sqlite:
        path = Path(db.url.partition("///")[2])
        needed, place = await asyncio.to_thread(lambda: path.stat().st_size), path.parent
    elif dumps is not None:
        async with db.engine.connect() as connection:
            needed = int(await connection.scalar(text("SELECT pg_database_size(current_database())")) or 0)
        place = next(one for one in (dumps, *dumps.parents) if one.exists())
    else:
        return None
    return Room(needed, (await asyncio.to_thread(shutil.disk_usage, place)).free, place)


async def check_room(db: Database, dumps: Path | None) -> None:
    """Raises BackupError when the copy may not fit."""
    found = await room(db, dumps)
    if found is not None and found.free < found.needed:
        why = f"it may need {mib(found.needed)}, and {found.place} has {mib(found.free)} free"
        raise _refusal(why, "Make room there")


def mib(number: int) -> str:
    """A number of bytes for people."""
    return f"{number / 2**20:.0f} MiB"


def recent(directory: Path, revisions: Sequence[str]) -> Path | None:
    """A dump of one of these revisions that an earlier part of the same upgrade has made a short while ago."""
    for kept in (_kept(directory, one) for one in revisions):
        with contextlib.suppress(FileNotFoundError):
            if 0 <= time.time() - kept.stat().st_mtime < YOUNG_SECONDS:
                return kept
    return None


async def dump(url: str, directory: Path, revision: str) -> Path:
    """Write the database to `caelum-<revision>.dump`, for `pg_restore`. Raises BackupError."""
    found = programs("pg_dump")
    if found is None:
        raise _refusal("pg_dump is not installed")
    kept = _kept(directory, revision)
    unfinished = kept.with_suffix(_PART)
    try:
        await _dump_by_way_of(unfinished, kept, found / "pg_dump", url)
    except OSError as error:
        raise _refusal(str(error)) from error
    return kept


async def _dump_by_way_of(unfinished: Path, kept: Path, command: Path, url: str) -> None:
    await uninterrupted(asyncio.to_thread(_make_private, unfinished))
    try:
        await _write(command, url, unfinished)
        await asyncio.to_thread(_keep, unfinished, kept)
    finally:
        # In a thread: removing a large file takes its time.
        await uninterrupted(asyncio.to_thread(unfinished.unlink, missing_ok=True))


async def _write(command: Path, url: str, unfinished: Path) -> None:
    program = await asyncio.create_subprocess_exec(
        command, "--format=custom", "--no-password", f"--lock-wait-timeout={_LOCK_WAIT}",
        f"--file={unfinished}", env={**os.environ, **connection_environment(make_url(url))},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_DUMP_SECONDS):
            _, said = await program.communicate()
    except TimeoutError:
        raise _refusal(f"pg_dump did not end within {_DUMP_SECONDS:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            program.kill()
        await uninterrupted(program.wait())
    if program.returncode != 0:
        raise _refusal(f"pg_dump ended with {program.returncode}: {said.decode(errors='replace').strip()}")


def _kept(directory: Path, revision: str) -> Path:
    return directory / f"caelum-{revision}.dump"


def connection_environment(url: URL) -> dict[str, str]:
    """How libpq's programs are told whom to connect to: arguments are seen by everybody on the machine."""
    query = {name: value for name, value in url.query.items() if isinstance(value, str)}
    values = {
        "PGHOST": url.host or query.get("host"),
        "PGPORT": str(url.port or query.get("port") or 5432),
        "PGUSER": url.username or query.get("user"),
        "PGDATABASE": url.database,
        "PGPASSWORD": None if url.password is None else str(url.password),
        "PGSSLMODE": query.get("ssl") or query.get("sslmode"),
        "PGCONNECT_TIMEOUT": "10",
    }
    return {name: value for name, value in values.items() if value}


def _make_private(unfinished: Path) -> None:
    """An empty file that nobody else may read, and none that a server has left that was killed."""
    unfinished.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in unfinished.parent.glob(f"caelum-*{_PART}"):
        left.unlink(missing_ok=True)
    unfinished.touch(mode=0o600)


def _keep(unfinished: Path, kept: Path) -> None:
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(kept)


def _refusal(why: str, advice: str = _CLIENT) -> BackupError:
    return BackupError(
        f"the database must be copied before it is upgraded, and was not: {why}. Nothing was changed. {advice}"
    )
