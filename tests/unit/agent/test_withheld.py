"""What a command did to a guest is reported only if its answer does not say so to anybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import libvirt  # type: ignore[import-untyped]
import pytest

from caelum.agent.core import Agent
from caelum.agent.protocol import INVALID, Empty, TaskAnswer
from caelum.agent.registry import AgentFailure, Handler
from caelum.agent.server import AgentServer
from caelum.agent.vm.libvirtd import Libvirt
from caelum.agent.vm.watch import Watch

from .fakes import Bench, Work

RESUMED, STOPPED = libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_STOPPED
VM = "a" * 32


class Guests(Bench):
    """Commands that do to a guest what a test says."""

    async def open(self) -> None:
        await super().open()
        self.watch = Watch(self.agent, cast("Libvirt", SimpleNamespace(call=_nothing_found)))
        self.handler = Handler(Work, self._start, None)
        self.during: Callable[[], None] = lambda: None

    async def _start(self, _agent: Agent, _cmd: Work) -> Empty:
        with self.watch.commanded(VM, "Running"):
            self.watch.add(VM)
            self.during()
            await self.gate.wait()
        return Empty()

    def event(self, event: int, detail: int = 0) -> None:
        self.watch._lifecycle(VM, event, detail)

    def states(self) -> list[str]:
        return [body["state"] for kind, body in self.sink.reports if kind == "vm-state"]


async def _nothing_found(_function: Any, *_args: Any) -> list[Any]:
    return []


@pytest.fixture
async def guests(tmp_path: Path) -> AsyncIterator[Guests]:
    guests = Guests(tmp_path)
    await guests.open()
    guests.gate.set()
    yield guests
    await guests.tasks.close()
    guests.store.close()


async def test_what_the_answer_says_is_not_reported_beside_it(guests: Guests) -> None:
    guests.during = lambda: guests.event(RESUMED)
    assert await guests.submit("t1", wait=5) == TaskAnswer(result={})
    guests.tasks.delivered("t1")
    assert (guests.states(), len(guests.agent.withheld)) == ([], 0)


async def test_its_event_may_come_after_the_answer(guests: Guests) -> None:
    await guests.submit("t1", wait=5)
    guests.tasks.delivered("t1")
    guests.event(RESUMED)
    assert guests.states() == []
    guests.event(STOPPED)
    assert guests.states() == ["Stopped"]


async def test_what_nobody_waits_for_is_reported(guests: Guests) -> None:
    guests.during = lambda: guests.event(RESUMED)
    await guests.submit("t1")
    await asyncio.wait(guests.tasks._running.values())
    assert (guests.states(), len(guests.agent.withheld)) == (["Running"], 0)


async def test_who_asked_may_be_gone_before_the_answer_leaves(guests: Guests) -> None:
    guests.during = lambda: guests.event(RESUMED)
    answer = await guests.submit("t1", wait=5)
    assert answer is not None
    assert guests.states() == []
    server = AgentServer(guests.agent.config)
    server.tasks = guests.tasks
    await server._answered(cast("Any", SimpleNamespace(transport=None)), "t1", answer)
    assert (guests.states(), len(guests.agent.withheld)) == (["Running"], 0)


async def test_what_came_otherwise_is_reported(guests: Guests) -> None:
    def ends() -> None:
        guests.event(RESUMED)
        guests.event(STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED)

    guests.during = ends
    await guests.submit("t1", wait=5)
    guests.tasks.delivered("t1")
    assert guests.states() == ["Stopped"]
    ((_, told),) = guests.sink.reports
    assert told["reason"] == "the guest or its emulator crashed"


async def test_what_a_failed_command_did_is_reported(guests: Guests) -> None:
    def fails() -> None:
        guests.event(RESUMED)
        raise AgentFailure(INVALID, "no")

    guests.during = fails
    await guests.submit("t1", wait=5)
    assert guests.states() == ["Running"]


async def test_a_failure_after_the_change_has_it_reported(guests: Guests) -> None:
    """As of a series whose later command fails."""

    async def start_and_fail(agent: Agent, cmd: Work) -> Empty:
        await guests._start(agent, cmd)
        raise AgentFailure(INVALID, "the next one")

    guests.during = lambda: guests.event(RESUMED)
    guests.handler = Handler(Work, start_and_fail, None)
    await guests.submit("t1", wait=5)
    assert (guests.states(), len(guests.agent.withheld)) == (["Running"], 0)


async def test_a_guest_that_ends_by_itself_meanwhile_is_told_as_it_is(guests: Guests) -> None:
    guests.during = lambda: guests.event(RESUMED)
    await guests.submit("t1", wait=5)
    guests.event(STOPPED)
    await guests.tasks.call_back("t1")
    assert guests.states() == ["Stopped", "Stopped"]
