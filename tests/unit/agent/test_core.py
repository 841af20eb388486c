"""What handlers lean on: threads, locks, facts, the registry."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from caelum.agent import facts
from caelum.agent.core import Agent, AgentConfig
from caelum.agent.protocol import Command, Empty, commands
from caelum.agent.registry import handler, handlers
from caelum.agent.server import load_modules
from caelum.agent.vm import console

from .fakes import FakeHttp, Sink


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(AgentConfig(state_dir=tmp_path, tls_dir=tmp_path), FakeHttp(), Sink())  # type: ignore[arg-type]


def test_every_command_of_the_protocol_has_a_handler() -> None:
    load_modules()
    ours = {path for path, command in commands().items() if command.__module__ == "caelum.agent.protocol"}
    assert ours - handlers().keys() == set()


def test_a_command_has_one_handler() -> None:
    class Twice(Command[Empty]):
        path = "/test/twice"

    @handler(Twice)
    async def first(_agent: Agent, _cmd: Twice) -> Empty:
        return Empty()

    with pytest.raises(ValueError, match="/test/twice has two handlers"):

        @handler(Twice)
        async def second(_agent: Agent, _cmd: Twice) -> Empty:
            return Empty()


async def test_locks_are_forgotten_when_nobody_needs_them(agent: Agent) -> None:
    order: list[int] = []

    async def use(number: int) -> None:
        async with agent.lock("a"):
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(use(number) for number in range(3)))
    assert order == [0, 1, 2]
    assert agent._locks == {}


async def test_a_cancelled_blocking_call_is_waited_for(agent: Agent) -> None:
    go, ended = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(5)
        ended.set()

    task = asyncio.create_task(agent.run_blocking(work))
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.sleep(0.02)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    await agent.close()


def test_facts_are_read_from_the_systems_texts(tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text('ID=debian\nVERSION_ID="12"\n\n')
    assert facts.os_release(tmp_path / "os-release") == {"ID": "debian", "VERSION_ID": "12"}
    assert facts.os_release(tmp_path / "none") == {}
    assert facts.cpu_model("processor : 0\nmodel name\t: AMD EPYC 7\n") == "AMD EPYC 7"
    assert facts.total_memory("MemTotal:       1024 kB\n") == 1 << 20
    assert facts.version(9_000_004) == "9.0.4"
    links = [("127.0.0.1", "host"), ("10.0.0.5", "global"), ("fe80::1", "link")]
    shown = json.dumps([{"addr_info": [{"local": local, "scope": scope}]} for local, scope in links])
    assert facts.ip_addresses(shown) == ["10.0.0.5"]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "vm" / "x"
    directory.mkdir(parents=True)
    return directory / "serial.log"  # type: ignore[return-value]


def test_a_viewer_first_sees_the_end_of_the_log_then_what_comes(log: Path) -> None:
    log.write_bytes(b"a" * 10_000 + b"end")
    reader = console.LogReader(log)
    first = reader.read()
    assert (len(first), first[-3:]) == (console.HISTORY, b"end")
    with log.open("ab") as file:
        file.write(b"more")
    assert reader.read() == b"more"
    assert reader.read() == b""
    log.rename(log.with_suffix(".0"))
    log.write_bytes(b"rotated")
    assert reader.read() == b"rotated"
    reader.close()
    assert console.LogReader(log.with_suffix(".none")).read() == b""


def test_a_long_serial_log_is_cut_to_its_end(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "MAX_LOG", 1000)
    monkeypatch.setattr(console, "KEPT_LOG", 10)
    log.write_bytes(b"x" * 1000 + b"0123456789")
    reader = console.LogReader(log)
    while reader.read():
        pass
    console.shorten_logs(log.parent.parent)
    assert log.read_bytes() == b"0123456789"
    assert reader.read() == b"0123456789"
    reader.close()
