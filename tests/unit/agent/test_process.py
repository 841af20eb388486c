"""A program that is run leaves nothing behind."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from caelum.agent import process
from caelum.agent.protocol import STORAGE, TIMED_OUT
from caelum.agent.registry import AgentFailure

from .fakes import eventually


async def test_output_and_input() -> None:
    done = await process.run(["cat"], input=b"hello")
    assert (done.text, done.code) == ("hello", 0)


async def test_a_failure_has_the_programs_words() -> None:
    with pytest.raises(AgentFailure, match="exit code 3: no such luck") as failed:
        await process.run(["sh", "-c", "echo no such luck >&2; exit 3"], error_code=STORAGE)
    assert failed.value.code == STORAGE
    assert failed.value.facts["exit_code"] == 3
    assert (await process.run(["false"], check=False)).code == 1


async def test_a_missing_program_is_an_error_of_ours() -> None:
    with pytest.raises(AgentFailure, match="cannot run /no/such/program"):
        await process.run(["/no/such/program"])


async def test_a_time_out_kills_children_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "KILL_GRACE", 0.1)
    script = f"sleep 60 & echo $! > {tmp_path}/child; trap '' TERM; while :; do sleep 0.05; done"
    begin = time.monotonic()
    with pytest.raises(AgentFailure) as failed:
        await process.run(["sh", "-c", script], timeout=0.3)
    assert failed.value.code == TIMED_OUT
    assert time.monotonic() - begin < 3
    await eventually(lambda: _gone(tmp_path / "child"))


async def test_a_cancellation_kills_too(tmp_path: Path) -> None:
    task = asyncio.create_task(process.run(["sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60"]))
    await eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert _gone(tmp_path / "pid")


def _gone(pid_file: Path) -> bool:
    stat = Path("/proc") / pid_file.read_text().strip() / "stat"
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
