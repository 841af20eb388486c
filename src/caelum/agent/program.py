"""The agent's own program: a newer one is put beside it, tried, and kept or given up.

The installed program (a package's or a virtual environment's) starts first, always. It hands over to the program that a
server has sent, if there is one: `hand_over` replaces the process, whose UUID of process, supervisor, guests and
networks stay what they are. `program.json` in the state directory says which one runs.

Invariant: a program is run only when it is whole and has the checksum that a server named. One that does not listen in
time is ended by an alarm that outlives the replacement of the process, and after two tries the former program runs
again; so whoever supervises the agent must start it again when it ends. Once a server has connected it, it is kept; one
that listens, but fails three times when it is connected, is given up too, and so is one that was started five times
because it ended by itself or was killed. Waiting for a server costs no try, and neither does a stop in order. The
programs and their record are changed under the lock `HOST_LOCK` alone.
When the installed program has changed, it alone counts: whoever installed it wanted it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
import msgspec

import caelum
from caelum.agent.core import Agent
from caelum.agent.protocol import DOWNLOAD, INVALID, Empty, UpdateAgent
from caelum.agent.registry import AgentFailure, handler
from caelum.kernel import pki

log = logging.getLogger(__name__)

FOLDER = "program"
HANDED_OVER = "CAELUM_AGENT_PROGRAM"
"""In the environment of a program that was handed over to: its directory."""
LISTEN_SECONDS = 30
"""How long a program that is tried may take until it listens."""
TRIES = 2
CONNECTS = 3
"""How often a server may try to connect a program that is tried: what fails, or ends the process, counts."""
STARTS = 5
"""How often a program that is tried may be started because it ended unasked: a power failure is not its fault."""
HOST_LOCK = "host"
"""The lock of those who say whose this host is, and what runs on it."""
AGAIN_AFTER = 3600.0
"""Seconds after which a program that was given up may be tried again."""
QUIET_SECONDS = 30.0
"""How long commands that run, and answers on their way, are waited for; the next program delivers what is left."""
_LARGEST = 64 << 20
_FETCH_SECONDS = 120.0


class Record(msgspec.Struct):
    """What `program.json` says. Programs are named by their folder."""

    installed: str
    """The version of the installed program that this belongs to."""
    kept: str | None = None
    tried: str | None = None
    tries: int = 0
    """Starts of the program that is tried that have not come to listen."""
    starts: int = 0
    """Starts of it that no stop in order has followed."""
    connects: int = 0
    """Attempts to connect it that have not ended well."""
    given_up: dict[str, float] = {}
    """When a program was given up, in seconds since 1970."""


class Programs:
    """The programs of one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._home = state_dir / FOLDER
        self._file = self._home / "program.json"

    def read(self) -> Record:
        """The record; an empty one when there is none that can be read."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Record)
        except FileNotFoundError:
            return Record(caelum.__version__)
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s cannot be read, the installed program is run: %s", self._file, error)
            return Record(caelum.__version__)

    def write(self, record: Record) -> None:
        """Replace the record at once."""
        part = self._file.with_suffix(".part")
        with part.open("wb") as file:
            file.write(msgspec.json.encode(record))
            os.fsync(file.fileno())
        part.replace(self._file)

    def folder(self, name: str) -> Path:
        """Where a program is."""
        return self._home / name

    def install(self, archive: bytes, name: str) -> None:
        """Unpack a program beside the others. Raises AgentFailure for one that is none."""
        target = self.folder(name)
        if target.exists():
            return
        part = target.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True, mode=0o700)
        packed = part / "program.zip"
        packed.write_bytes(archive)
        try:
            with zipfile.ZipFile(packed) as opened:
                if sum(one.file_size for one in opened.infolist()) > _LARGEST:
                    raise AgentFailure(INVALID, f"the program is larger than {_LARGEST} bytes")
                opened.extractall(part)
        except zipfile.BadZipFile as error:
            raise AgentFailure(INVALID, f"the program is no archive: {error}") from error
        packed.unlink()
        if not (part / "caelum" / "agent" / "main.py").is_file():
            raise AgentFailure(INVALID, "the archive has no agent")
        os.sync()
        part.rename(target)

    def try_next(self, name: str) -> None:
        """Have the next start try a program that is installed."""
        record = self.read()
        record.tried, record.tries, record.starts, record.connects = name, 0, 0, 0
        if running() is None:
            record.installed = caelum.__version__
        self.write(record)

    def next(self) -> Path | None:
        """The program to hand over to, None: the installed one. Counts a try."""
        record = self.read()
        if record.installed != caelum.__version__:
            shutil.rmtree(self._home, ignore_errors=True)
            return None
        if record.tried is not None:
            if self._may_start(record):
                record.tries += 1
                record.starts += 1
                self.write(record)
                signal.alarm(LISTEN_SECONDS)
                return self.folder(record.tried)
            self._give_up(record)
        found = None if record.kept is None else self.folder(record.kept)
        return found if found is not None and found.is_dir() else None

    def _may_start(self, record: Record) -> bool:
        patient = record.tries < TRIES and record.starts < STARTS and record.connects < CONNECTS
        return patient and record.tried is not None and self.folder(record.tried).is_dir()

    def _give_up(self, record: Record) -> None:
        if record.tried is not None:
            log.error("the program %s did not prove itself and is given up", record.tried)
            record.given_up[record.tried] = time.time()
        record.tried = None
        self.write(record)

    def _trial(self) -> Record | None:
        """The record while this program is the one that is tried."""
        record = self.read()
        return record if record.tried is not None and self.folder(record.tried) == running() else None

    def listens(self) -> None:
        """The program that is tried has come up: its start was no failure."""
        if (record := self._trial()) is not None:
            record.tries = 0
            self.write(record)

    def stopped(self) -> None:
        """The program that is tried ends because it was told to: what became of its starts is no reproach."""
        if (record := self._trial()) is not None:
            record.starts = 0
            self.write(record)

    def connecting(self) -> None:
        """The program that is tried is being connected; that counts until `keep`, also when the process ends of it."""
        if (record := self._trial()) is not None:
            record.connects += 1
            self.write(record)

    def given_up(self) -> bool:
        """Give up the program that is tried, if it could not be connected too often. Whether it is to be replaced."""
        record = self._trial()
        if record is None or record.connects < CONNECTS:
            return False
        self._give_up(record)
        return True

    def keep(self) -> None:
        """The program that is tried has proved itself. The one before it stays: its children may still run."""
        record = self._trial()
        if record is None:
            return
        former, record.kept, record.tried = record.kept, record.tried, None
        record.tries = record.starts = record.connects = 0
        self.write(record)
        log.info("the program %s is kept", record.kept)
        for one in self._home.iterdir():
            if one.is_dir() and one.name not in (record.kept, former):
                shutil.rmtree(one, ignore_errors=True)


def running() -> Path | None:
    """The folder of this program; None when it is the installed one."""
    path = os.environ.get(HANDED_OVER)
    return None if path is None else Path(path)


def hand_over(state_dir: Path, arguments: Sequence[str]) -> None:
    """Replace this process by the program that is to run. Returns in that program."""
    if running() is None and (found := Programs(state_dir).next()) is not None:
        become(found, arguments)


def become(folder: Path | None, arguments: Sequence[str]) -> None:
    """Replace this process by a program, None: the installed one."""
    former = os.environ.get(HANDED_OVER)
    environment = {name: value for name, value in os.environ.items() if name not in (HANDED_OVER, "PYTHONPATH")}
    paths = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one not in ("", former)]
    if folder is not None:
        # Before the packages that are installed, whose libraries it uses.
        paths.insert(0, str(folder))
        environment[HANDED_OVER] = str(folder)
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    logging.shutdown()
    # Without the working directory in the path: whatever lies there is no program of ours.
    command = [sys.executable, "-P", "-m", "caelum.agent.main", *arguments]
    os.execve(sys.executable, command, environment)  # noqa: S606 - replaces this process, by design


def listens(state_dir: Path) -> None:
    """This program has come up: the alarm of a trial is off."""
    signal.alarm(0)
    Programs(state_dir).listens()


def stopped(state_dir: Path) -> None:
    """This program ends in order."""
    Programs(state_dir).stopped()


@contextlib.asynccontextmanager
async def proving(agent: Agent) -> AsyncIterator[None]:
    """A server connects this program in the block, under `HOST_LOCK`: a program that is tried is kept when that goes
    well, and the former one runs again when it goes wrong too often.
    """
    programs = Programs(agent.state_dir)
    await agent.run_blocking(programs.connecting)
    try:
        yield
    except Exception:
        if await agent.run_blocking(programs.given_up):
            agent.spawn(_replace_when_quiet(agent), "return to the former program")
        raise
    await agent.run_blocking(programs.keep)


@handler(UpdateAgent, lock="program")
async def update(agent: Agent, cmd: UpdateAgent) -> Empty:
    """Fetch a program, put it beside this one, and have the agent try it once this command is answered."""
    programs, name = Programs(agent.state_dir), f"{cmd.version}-{cmd.sha256[:16]}"
    if not name.replace(".", "").replace("-", "").replace("+", "").isalnum():
        raise AgentFailure(INVALID, f"version[{cmd.version}] or sha256[{cmd.sha256}] is not one")
    await _refuse_given_up(agent, programs, name)
    archive = await _fetch(agent, cmd)
    # Not while it is fetched, for a server may connect this host meanwhile.
    async with agent.lock(HOST_LOCK):
        await agent.run_blocking(programs.install, archive, name)
        await agent.run_blocking(programs.try_next, name)
    agent.spawn(_replace_when_quiet(agent), "replacement of the program")
    return Empty()


async def _refuse_given_up(agent: Agent, programs: Programs, name: str) -> None:
    record = await agent.run_blocking(programs.read)
    failed_for = time.time() - record.given_up.get(name, 0.0)
    if failed_for < AGAIN_AFTER:
        details = (
            f"program {name} did not come up {failed_for:.0f} s ago; it may be tried again after {AGAIN_AFTER:.0f} s"
        )
        raise AgentFailure(INVALID, details)


async def _fetch(agent: Agent, cmd: UpdateAgent) -> bytes:
    timeout = aiohttp.ClientTimeout(total=_FETCH_SECONDS)
    try:
        async with agent.http.get(cmd.url, timeout=timeout, server_hostname=pki.SERVER_NAME) as response:
            response.raise_for_status()
            archive = await response.content.readexactly(cmd.size) if cmd.size <= _LARGEST else b""
    except (aiohttp.ClientError, OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        details = f"the program at {cmd.url} cannot be fetched: {type(error).__name__} {error}"
        raise AgentFailure(DOWNLOAD, details, transient=True) from error
    digest = (await agent.run_blocking(hashlib.sha256, archive)).hexdigest()
    if digest != cmd.sha256:
        raise AgentFailure(DOWNLOAD, f"{cmd.url}: SHA-256 is {digest}, expected {cmd.sha256}")
    return archive


async def _replace_when_quiet(agent: Agent) -> None:
    """Let the answer leave and running commands end, within reason."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(QUIET_SECONDS):
            while agent.tasks_running() + agent.answers_waiting() > 0:  # noqa: ASYNC110 - nobody tells of their end
                await asyncio.sleep(0.1)
    agent.replaced.set()
