"""Small servers that outlive the agent: each is known by its pid file and by a word of its command line.

Invariant: a signal goes only to a process whose command line holds that word. A pid from an old file may by now belong
to anybody.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from caelum.agent.core import Agent

GRACE = 3.0
"""Seconds that a server has to end before it is killed."""


def running(pid_file: Path, word: str) -> int | None:
    """The pid of the server, or None when it does not run."""
    try:
        pid = int(pid_file.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return pid if word in command_line(pid) else None


def command_line(pid: int) -> list[str]:
    """A process's arguments; empty when it has ended (a zombie has none either)."""
    try:
        content = (Path("/proc") / str(pid) / "cmdline").read_bytes()
    except OSError:
        return []
    return content.decode(errors="replace").split("\0") if content else []


async def stop(agent: Agent, pids: list[int]) -> None:
    """End processes: ask, wait, kill."""
    _signal(pids, signal.SIGTERM)
    for _ in range(int(GRACE / 0.02)):
        if not await agent.run_blocking(_alive, pids):
            return
        await asyncio.sleep(0.02)
    _signal(pids, signal.SIGKILL)


def _alive(pids: list[int]) -> bool:
    return any(command_line(pid) for pid in pids)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
