"""Which program of the agent runs next: what counts as a try, and who may change the record meanwhile."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from caelum.agent import program
from caelum.agent.core import Agent, AgentConfig
from caelum.agent.program import CONNECTS, HANDED_OVER, HOST_LOCK, TRIES, Programs
from caelum.agent.protocol import UpdateAgent

from .fakes import FakeHttp, Sink


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """`a` is the program that is to be tried."""
    monkeypatch.setattr(signal, "alarm", lambda _seconds: 0)
    monkeypatch.delenv(HANDED_OVER, raising=False)
    made = Programs(tmp_path)
    for name in ("a", "b"):
        made.folder(name).mkdir(parents=True)
    made.try_next("a")
    return made


def _runs(programs: Programs, monkeypatch: pytest.MonkeyPatch, name: str = "a") -> None:
    monkeypatch.setenv(HANDED_OVER, str(programs.folder(name)))


def test_starts_that_come_to_listen_are_no_tries(
    tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    _runs(programs, monkeypatch)
    for _ in range(TRIES + 2):
        assert programs.next() == programs.folder("a")
        program.listens(tmp_path)
        program.stopped(tmp_path)
    for _ in range(TRIES):
        assert programs.next() == programs.folder("a")
    assert programs.next() is None
    assert list(programs.read().given_up) == ["a"]


def test_a_program_that_ends_when_it_is_connected_is_given_up(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    _runs(programs, monkeypatch)
    for _ in range(CONNECTS):
        assert programs.next() == programs.folder("a")
        programs.listens()
        programs.connecting()
    assert programs.next() is None
    assert list(programs.read().given_up) == ["a"]


def test_what_another_program_does_says_nothing_of_the_one_that_is_tried(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    _runs(programs, monkeypatch, "b")
    before = programs.read()
    for _ in range(CONNECTS):
        programs.connecting()
        assert not programs.given_up()
    programs.keep()
    assert programs.read() == before


async def test_a_connect_while_a_program_is_fetched_loses_neither(
    tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    _runs(programs, monkeypatch)
    agent = Agent(AgentConfig(state_dir=tmp_path, tls_dir=tmp_path), FakeHttp(), Sink())  # type: ignore[arg-type]

    async def fetch(_agent: Agent, _cmd: UpdateAgent) -> bytes:
        async with agent.lock(HOST_LOCK), program.proving(agent):
            await asyncio.sleep(0)
        return b""

    monkeypatch.setattr(program, "_fetch", fetch)
    monkeypatch.setattr(Programs, "install", lambda self, _archive, name: self.folder(name).mkdir())
    await program.update(agent, UpdateAgent(version="2", url="u", sha256="0" * 64, size=1))
    record = programs.read()
    assert (record.kept, record.tried, record.tries) == ("a", "2-" + "0" * 16, 0)
    assert programs.folder("a").is_dir()
    assert programs.folder(str(record.tried)).is_dir()
    await agent.close()
