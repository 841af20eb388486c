"""Keep the parts of a one-machine cloud running where no init system does: start, watch, restart, stop in order.

One small process with the standard library only: `python -m caelum.onemachine.supervisor HOME`. A part that dies is
started again after a pause that grows from 0.5 s to 5 s and is reset once it has run for 10 s. The parts are in
HOME/run/parts.json, `[{"name": "server", "command": [...], "environment": {...}, "needs": ["127.0.0.1:5432"]}]`, in
start order; they stop in reverse order. A part waits until somebody listens at each address that it needs.

Invariant: each home has at most one supervisor (its pid file is locked), and each part at most one process; when the
supervisor ends, however it ends, none is left but guests: the kernel then ends the parts.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO

from caelum.onemachine.processes import answers, terminate

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 5.0
STABLE_AFTER = 10.0
STOP_TIMEOUT = 25.0
"""A server gives running work 20 s."""
PR_SET_PDEATHSIG = 1


class Part:
    """One supervised program."""

    def __init__(
        self, name: str, command: list[str], environment: dict[str, str], home: Path, needs: list[str]
    ) -> None:
        self.name = name
        self._needs = [(host, int(port)) for host, _, port in (one.rpartition(":") for one in needs)]
        self._command = command
        self._environment = environment
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause = FIRST_PAUSE
        self._next_start = 0.0

    def tend(self) -> None:
        """Start the part if it is due; `run/<name>.stop` keeps it down."""
        if (self._home / "run" / f"{self.name}.stop").exists():
            return
        if self._process is not None and self._process.poll() is None:
            return
        if self._process is not None:
            self._note_death(self._process.returncode)
        if time.monotonic() >= self._next_start and all(answers(one) for one in self._needs):
            self._start()

    def _note_death(self, code: int) -> None:
        lived = time.monotonic() - self._started
        self._pause = FIRST_PAUSE if lived > STABLE_AFTER else self._pause
        self._next_start = time.monotonic() + self._pause
        print(f"{self.name} ended with {code} after {lived:.1f} s; starts again in {self._pause:.1f} s", flush=True)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        self._process = None

    def _start(self) -> None:
        with (self._home / "log" / f"{self.name}.out").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment},
                start_new_session=True,
                preexec_fn=_ends_with(os.getpid()),
            )
        self._started = time.monotonic()
        (self._home / "run" / f"{self.name}.pid").write_text(str(self._process.pid))

    def stop(self) -> None:
        """Ask the part to end, and make it end when it does not."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            print(f"{self.name} did not stop within {STOP_TIMEOUT:.0f} s and is killed", flush=True)
            self._process.kill()
            self._process.wait(STOP_TIMEOUT)
        (self._home / "run" / f"{self.name}.pid").unlink(missing_ok=True)


def _ends_with(supervisor: int) -> Callable[[], None]:
    """What makes a new process get SIGTERM when the supervisor dies."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != supervisor:
            os._exit(1)

    return prepare


def _claim(file: IO[str]) -> bool:
    """Become the home's only supervisor; the lock goes with the process."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return True


def main() -> None:
    """Supervise the parts named in the file until SIGTERM."""
    home = Path(sys.argv[1])
    with (home / "run" / "supervisor.pid").open("a") as pid_file:
        if not _claim(pid_file):
            sys.exit(f"{home} has a supervisor already")
        _supervise(home)


def _supervise(home: Path) -> None:
    rows = json.loads((home / "run" / "parts.json").read_text())
    for row in rows:
        terminate(home / "run" / f"{row['name']}.pid", STOP_TIMEOUT)  # of a supervisor that was killed
    parts = [Part(row["name"], row["command"], row.get("environment", {}), home, row.get("needs", [])) for row in rows]
    ending: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        ending.append(number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    while not ending:
        for part in parts:
            part.tend()
        time.sleep(0.2)
    for part in reversed(parts):
        part.stop()


if __name__ == "__main__":
    main()
