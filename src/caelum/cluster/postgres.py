"""A private PostgreSQL on this machine: its own directory, port and socket, beside whatever else runs here.

Invariant: the server dies with `stop()` or `kill()`, and at the latest with the process that started it; nothing is
left but its directory. PostgreSQL refuses to run as root, so when we are root it runs as the user `postgres`.
Durability is that of tests: a crash of the machine may lose data, a crash of the server does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import signal
import socket
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from caelum.kernel import backup

log = logging.getLogger(__name__)

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "300",
    "log_min_messages": "warning",
    "timezone": "UTC",
}


def binaries() -> Path | None:
    """The directory of PostgreSQL's newest programs on this machine, or None when it is not installed."""
    return backup.programs("initdb")


class Postgres:
    """`async with Postgres(directory) as postgres:` runs a server in an empty directory, or starts one there again."""

    def __init__(self, directory: Path, port: int = 0) -> None:
        self.directory = directory
        self.port = port
        self._bin = binaries()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """The URL of the default database, for `Config.database_url`."""
        return self.url_of("postgres")

    def url_of(self, name: str) -> str:
        """The URL of a database."""
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/{name}"

    @property
    def running(self) -> bool:
        """Whether the server's process lives."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """Its first process, the parent of the others. Raises RuntimeError when it does not run."""
        if self._process is None:
            raise RuntimeError("PostgreSQL does not run")
        return self._process.pid

    async def __aenter__(self) -> Postgres:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Make the data, where there are none, and start; returns when it answers. A failed start leaves no process."""
        if self._bin is None:
            raise FileNotFoundError("PostgreSQL is not installed: tools/install cluster")
        self.directory.mkdir(parents=True, exist_ok=True)
        data = self.directory / "data"
        if not (data / "PG_VERSION").exists():
            await self._initialise(data)
        if self.port == 0:
            self.port = _free_port()
        settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        with (self.directory / "log").open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *_as_postgres(), self._bin / "postgres", "-D", data, "-p", str(self.port), "-k", data, *settings,
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, cwd="/",
                start_new_session=True, env=_environment(),
            )  # fmt: skip
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._answers()
        except BaseException:
            await self.kill()
            raise

    async def stop(self) -> None:
        """End every connection and stop; a server that does not is killed."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
        except TimeoutError:
            log.warning("PostgreSQL in %s did not stop within %.0f s and is killed", self.directory, _STOP_SECONDS)
            await self.kill()
        self._process = None

    async def kill(self) -> None:
        """Kill the server and all its sessions at once, as a power failure does; `start()` recovers the data."""
        if self._process is None:
            return
        # Its children, which are in groups of their own, must be gone before another server may have the data.
        processes = [self._process.pid, *_children(self._process.pid)]
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._process.wait()
        self._process = None
        for _ in range(500):
            if not any(_alive(pid) for pid in processes):
                break
            await asyncio.sleep(0.01)

    async def restart(self) -> None:
        """Stop and start again on the same port."""
        await self.stop()
        await self.start()

    async def create_database(self, name: str) -> str:
        """Make an empty database and return its URL."""
        await self.execute(f'CREATE DATABASE "{name}"')
        return self.url_of(name)

    async def drop_database(self, name: str) -> None:
        """Remove a database, whoever is connected to it."""
        await self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    async def execute(self, statement: str, database: str = "postgres") -> None:
        """Run a statement as the superuser, outside a transaction."""
        engine = create_async_engine(
            self.url_of(database), isolation_level="AUTOCOMMIT", poolclass=NullPool,
            connect_args={"timeout": 5, "command_timeout": 60},
        )  # fmt: skip
        async with engine.connect() as connection:
            await connection.exec_driver_sql(statement)

    async def _initialise(self, data: Path) -> None:
        _give_to_postgres(data)
        process = await asyncio.create_subprocess_exec(
            *_as_postgres(), (self._bin or Path()) / "initdb", "-D", data, "-A", "trust", "-U", "postgres",
            "--no-sync", "-E", "UTF8", "--locale=C", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT, cwd="/", env=_environment(),
        )  # fmt: skip
        try:
            output, _ = await asyncio.wait_for(process.communicate(), _START_SECONDS)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise
        if process.returncode != 0:
            raise RuntimeError(f"initdb failed in {data}: {output.decode(errors='replace')[-2000:]}")

    async def _answers(self) -> None:
        while True:
            if not self.running:
                tail = (self.directory / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"PostgreSQL in {self.directory} ended at its start: {tail}")
            try:
                await self.execute("SELECT 1")
            except (OSError, TimeoutError, DBAPIError):
                await asyncio.sleep(0.03)
            else:
                return


def _as_postgres() -> list[str]:
    """The start of a command line that drops root and has the program ended when we die, however we do."""
    user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"]
    # Temporary directories are closed to other users; the server must pass through them.
    passage = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    root = [*user, *passage] if os.geteuid() == 0 else []
    # SIGQUIT: the server ends its sessions at once and leaves.
    return ["setpriv", *root, "--pdeathsig=QUIT"]


def _give_to_postgres(data: Path) -> None:
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        data.mkdir(exist_ok=True)
        os.chown(data, user.pw_uid, user.pw_gid)


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def _serve_until_end_of_input() -> None:
    with tempfile.TemporaryDirectory(prefix="caelum-postgres-") as directory:
        async with Postgres(Path(directory)) as postgres:
            print(postgres.url, flush=True)
            await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    # `python -m caelum.cluster.postgres`: a server as long as our input is open; its URL is the first line of output.
    asyncio.run(_serve_until_end_of_input())
