"""A dump of a PostgreSQL database before its schema changes.

Invariant: a file that bears the name of a dump is a whole one. The password is in nobody's argument list.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from pathlib import Path

from sqlalchemy import URL, make_url

from caelum.kernel.schema import UpgradeError

PROGRAMS = Path("/usr/lib/postgresql")
"""Where Debian has the programs of each version of PostgreSQL."""
_DUMP_SECONDS = 3600.0
_LOCK_WAIT = "10s"


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


async def dump(url: str, directory: Path, revision: str) -> Path:
    """Write the database to `caelum-<revision>.dump`, for `pg_restore`. Raises BackupError."""
    found = programs("pg_dump")
    if found is None:
        raise _refusal("pg_dump is not installed")
    kept = directory / f"caelum-{revision}.dump"
    unfinished = kept.with_suffix(".part")
    await asyncio.to_thread(_make_private, unfinished)
    program = await asyncio.create_subprocess_exec(
        found / "pg_dump", "--format=custom", "--no-password", f"--lock-wait-timeout={_LOCK_WAIT}",
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
    if program.returncode != 0:
        raise _refusal(f"pg_dump ended with {program.returncode}: {said.decode(errors='replace').strip()}")
    await asyncio.to_thread(_keep, unfinished, kept)
    return kept


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
    """An empty file that nobody else may read."""
    unfinished.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    unfinished.unlink(missing_ok=True)
    unfinished.touch(mode=0o600)


def _keep(unfinished: Path, kept: Path) -> None:
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(kept)


def _refusal(why: str) -> BackupError:
    return BackupError(
        f"the database must be dumped before it is upgraded, and was not: {why}. Nothing was changed. Install the"
        " client programs of PostgreSQL in the server's version (postgresql-client), or back the database up by your"
        ' own means and set upgrade_backup = "elsewhere"'
    )
