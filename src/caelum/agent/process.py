"""Run a program on the host: argument list, time-out, and nothing left behind.

Invariant: when `run` returns or raises, the program and every child in its process group is gone.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence

import msgspec

from caelum.agent.protocol import INTERNAL, TIMED_OUT
from caelum.agent.registry import AgentFailure

KILL_GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL for a program that is to end."""
MAX_SHOWN = 2000
"""Characters of a failing program's error output that go into the error."""


class Completed(msgspec.Struct, frozen=True):
    """What a program did."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode(errors="replace")

    @property
    def error_text(self) -> str:
        """Standard error as text, cut to what a person reads."""
        return self.stderr.decode(errors="replace").strip()[:MAX_SHOWN]


async def run(
    argv: Sequence[str],
    *,
    timeout: float = 30.0,  # noqa: ASYNC109 - killing the group needs the time-out in here
    input: bytes | None = None,  # noqa: A002 - the standard library's name for it
    check: bool = True,
    error_code: str = INTERNAL,
) -> Completed:
    """Run `argv` and wait. With `check` an exit code other than 0 raises `AgentFailure(error_code)` with its stderr."""
    process = await _spawn(argv, piped=input is not None, error_code=error_code)
    try:
        stdout, stderr = await asyncio.wait_for(process.communicate(input), timeout)
    except TimeoutError:
        raise AgentFailure(
            TIMED_OUT, f"{argv[0]} did not end within {timeout:g} s", transient=True, argv=list(argv), timeout=timeout
        ) from None
    finally:
        await asyncio.shield(_end_group(process))
    done = Completed(tuple(argv), process.returncode or 0, stdout, stderr)
    if check and done.code != 0:
        raise AgentFailure(
            error_code,
            f"{' '.join(argv)}: exit code {done.code}: {done.error_text}",
            argv=list(argv),
            exit_code=done.code,
        )
    return done


async def _spawn(argv: Sequence[str], *, piped: bool, error_code: str) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE if piped else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (FileNotFoundError, PermissionError) as error:
        raise AgentFailure(error_code, f"cannot run {argv[0]}: {error}", argv=list(argv)) from error


async def _end_group(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    _signal(process.pid, signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), KILL_GRACE)
    except TimeoutError:
        pass
    _signal(process.pid, signal.SIGKILL)
    await process.wait()


def _signal(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass
