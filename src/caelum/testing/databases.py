"""Which database a test's cloud has: SQLite in its directory, or one of a private PostgreSQL.

Invariant: a directory has one database, so that a second cloud on it is a restart. `CAELUM_TEST_DATABASE=postgresql`
chooses PostgreSQL: one server for each process that tests, started at the first need, which ends with the process.
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from sqlalchemy import make_url

from caelum.cluster.postgres import binaries
from caelum.kernel.database import Database

_START_SECONDS = 60.0
_STOP_SECONDS = 600.0
"""Longer than it takes to remove the files of a database for each of hundreds of tests."""
_TEMPLATE = "all_tables"


def on_postgresql() -> bool:
    """Whether tests run on PostgreSQL."""
    return os.environ.get("CAELUM_TEST_DATABASE", "sqlite") == "postgresql"


def url_for(path: Path) -> str:
    """The URL of the database that belongs to a path; it is empty at the first call."""
    if not on_postgresql():
        return f"sqlite+aiosqlite:///{path.absolute()}"
    return of_cluster(path)


def of_cluster(path: Path) -> str:
    """The URL of the PostgreSQL database that belongs to a path."""
    return database(f"t{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:20]}")


@cache
def database(name: str) -> str:
    """The URL of a database of this name in this process's PostgreSQL, made when there is none. It has all tables."""
    _fill_template()
    return _create(name, _TEMPLATE)


def _create(name: str, template: str = "template1") -> str:
    url = make_url(_server())
    program = (binaries() or Path()) / "createdb"
    made = subprocess.run(
        [program, "-h", url.host or "", "-p", str(url.port), "-U", url.username or "", "-T", template, name],
        capture_output=True, text=True, timeout=_START_SECONDS, check=False,
    )  # fmt: skip
    if made.returncode != 0:
        raise RuntimeError(f"database {name} of the tests: {made.stderr}")
    return url.set(database=name).render_as_string(hide_password=False)


@cache
def _fill_template() -> None:
    """Make the tables once: copying a database takes a small part of the time."""

    async def migrate(url: str) -> None:
        db = Database(url)
        await db.migrate()
        await db.close()

    # In a thread, because a loop runs in this one.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(migrate(_create(_TEMPLATE)))).result(_START_SECONDS)


@cache
def _server() -> str:
    """Start the server, in a process that ends with this one, and give the URL of its first database."""
    server = subprocess.Popen(
        [sys.executable, "-m", "caelum.cluster.postgres"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(_stop, server)
    url = (server.stdout.readline() if server.stdout is not None else "").strip()
    if not url:
        raise RuntimeError(f"no PostgreSQL for the tests: its process ended with {server.wait(_START_SECONDS)}")
    return url


def _stop(server: subprocess.Popen[str]) -> None:
    if server.stdin is not None:
        server.stdin.close()
    server.wait(_STOP_SECONDS)
