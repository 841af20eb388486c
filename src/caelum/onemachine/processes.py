"""Processes by their pid files."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def pid_in(file: Path) -> int | None:
    """The pid in a file, or None."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def alive(file: Path) -> bool:
    """Whether the process that a pid file names is running (and no zombie)."""
    pid = pid_in(file)
    if pid is None:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return False
    return state != "Z"


def terminate(file: Path, timeout: float) -> None:
    """End the process that a pid file names, kill it when it does not end within `timeout` seconds."""
    pid = pid_in(file)
    if pid is not None and alive(file):
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout
        while alive(file) and time.monotonic() < deadline:
            time.sleep(0.05)
        if alive(file):
            os.kill(pid, signal.SIGKILL)
    file.unlink(missing_ok=True)
