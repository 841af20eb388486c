"""What starting the parts of a cloud on this machine needs, whether it has one management node or several.

Invariant: in each home at most one command that starts or stops is at work, and at most one supervisor.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from caelum.onemachine import processes
from caelum.onemachine.access import VARIABLE, NoAccessError
from caelum.onemachine.progress import Progress
from caelum.sdk import ApiError

READY_TIMEOUT = 120.0
DEATHS = 3
"""A part that died this often while we wait is not going to live."""
LOG_LINES = 12


class RefusedError(Exception):
    """The cloud cannot be started, and why."""


class Home(Protocol):
    """Where a cloud keeps its things."""

    @property
    def home(self) -> Path:
        """The directory of all of it."""

    @property
    def run(self) -> Path:
        """Pid files and the list of parts."""

    @property
    def logs(self) -> Path:
        """What the parts print."""


@contextmanager
def explained(what: str, command: str, end: str, logs: Path) -> Iterator[None]:
    """End the program with a sentence when bringing up the cloud breaks off: `what` it is ("cloud"), the `command` that
    goes on from there, and what the command `end` ("`make down` stops what runs") would do."""
    try:
        yield
    except RefusedError as reason:
        sys.exit(f"\n{reason}")
    except NoAccessError as reason:
        sys.exit(f"\nThe {what} runs, but {reason}:\n  {VARIABLE}=... {command}")
    except ApiError as error:
        sys.exit(f"\nThe {what} refused:\n{error}\nLogs are in {logs}.")
    except (OSError, TimeoutError) as error:
        sys.exit(f"\nThe {what} did not answer: {error}\nLogs are in {logs}.")
    except KeyboardInterrupt:
        sys.exit(f"\nInterrupted. `{command}` goes on from here, {end}.")


@contextmanager
def only_one(home: Home, progress: Progress) -> Iterator[None]:
    """Wait for another command that starts or stops the cloud of this home."""
    home.run.mkdir(parents=True, exist_ok=True)
    with (home.run / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"another command is starting or stopping {home.home}: waiting for its end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def start_parts(home: Home, parts: list[dict[str, Any]]) -> None:
    """Start the supervisor with these parts."""
    for marker in home.run.glob("*.stop"):
        marker.unlink()
    (home.run / "parts.json").write_text(json.dumps(parts))
    with (home.logs / "supervisor.out").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", processes.SUPERVISOR, str(home.home)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def wait_ready(home: Home, waits: Mapping[str, processes.Condition], log_files: Mapping[str, Path]) -> None:
    """Wait for every part, by name. Raises RefusedError, with the end of its log, when a part keeps dying."""
    log = home.logs / "supervisor.out"
    seen = log.stat().st_size if log.exists() else 0
    deadline = time.monotonic() + READY_TIMEOUT
    for name, is_ready in waits.items():
        while not is_ready():
            with log.open() as file:
                file.seek(seen)
                deaths = sum(line.startswith(f"{name} ended") for line in file)
            if deaths >= DEATHS or time.monotonic() > deadline:
                raise RefusedError(_why(home, name, deaths, log_files.get(name)))
            time.sleep(0.1)


def answers_ready(url: str) -> bool:
    """Whether a server answers there that it is ready."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def check_ports(ports: Mapping[str, int], command: str) -> None:
    """Refuse when somebody listens at a port already; `ports` are by the variables that choose them."""
    taken = {name: port for name, port in ports.items() if not processes.is_free(port)}
    if taken:
        lines = [f"  {port} is held by {processes.listener(port)}" for port in taken.values()]
        others = " ".join(f"{name}={port + (10000 if port < 55000 else -10000)}" for name, port in taken.items())
        raise RefusedError(
            "Ports that the cloud needs are taken:\n" + "\n".join(lines) + "\nStop what holds them, or choose others:\n"
            f"  {others} {command}"
        )


def _why(home: Home, name: str, deaths: int, log_file: Path | None) -> str:
    outputs = [home.logs / f"{name}.out", *([log_file] if log_file else [])]
    file = next((one for one in outputs if one.exists() and one.stat().st_size), outputs[0])
    lines = file.read_text(errors="replace").splitlines()[-LOG_LINES:] if file.exists() else []
    what = f"died {deaths} times" if deaths else f"was not ready within {READY_TIMEOUT:.0f} s"
    return f"The {name} {what}. The end of {file}:\n" + "\n".join(f"  {line}" for line in lines)
