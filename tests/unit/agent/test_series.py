"""Several commands in one request: in order, each in its turn, until one fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from caelum.agent import registry
from caelum.agent.core import Agent
from caelum.agent.journal import Fence
from caelum.agent.protocol import (
    INVALID,
    NETWORK,
    STALE_ATTEMPT,
    Command,
    Empty,
    Order,
    Ping,
    Series,
    SeriesAnswer,
    TaskAnswer,
)
from caelum.agent.registry import AgentFailure, Handler
from caelum.agent.series import run_series

from .fakes import Bench, eventually

SERIES = Handler(Series, run_series, None)


class Note(Command[SeriesAnswer]):
    """Answers with what it is told, or fails."""

    path = "/test/note"
    text: str = ""


async def note(agent: Agent, cmd: Note) -> SeriesAnswer:  # noqa: ARG001
    if cmd.text == "bad":
        raise AgentFailure(NETWORK, "a bad note")
    return SeriesAnswer(results=[{"text": cmd.text}])


async def ping(agent: Agent, cmd: Ping) -> Empty:
    raise AssertionError(agent, cmd)


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    known = [bench.handler, Handler(Note, note, None), Handler(Ping, ping, None), SERIES]
    monkeypatch.setattr(registry, "_handlers", {one.command.path: one for one in known})
    await bench.open()
    yield bench
    bench.gate.set()
    await bench.tasks.close()
    bench.store.close()


def work(name: str) -> Order:
    return Order(path="/test/work", body={"name": name})


def noted(text: str) -> Order:
    return Order(path="/test/note", body={"text": text})


async def run(bench: Bench, *orders: Order, fence: Fence | None = None) -> TaskAnswer:
    series = Series(orders=list(orders))
    answer = await bench.tasks.submit("series", SERIES, series, callback=None, fence=fence, deadline=None, wait=5)
    assert answer is not None
    return answer


async def test_commands_are_run_in_order_and_each_answers(bench: Bench) -> None:
    bench.gate.set()
    answer = await run(bench, work("a"), noted("x"), work("b"))
    assert answer.result == {"results": [{}, {"results": [{"text": "x"}]}, {}]}
    assert bench.ran == ["a", "b"]


async def test_the_first_that_fails_ends_the_series(bench: Bench) -> None:
    bench.gate.set()
    answer = await run(bench, work("a"), noted("bad"), work("b"))
    assert answer.error is not None
    assert (answer.error.code, answer.error.details) == (NETWORK, "a bad note")
    assert answer.error.facts == {"order": "/test/note"}
    assert bench.ran == ["a"]


@pytest.mark.parametrize(
    "order",
    [
        Order(path="/test/nothing"),
        Order(path="/test/note", body={"text": 1}),
        Order(path=Series.path, body={"orders": []}),
        Order(path=Ping.path),
    ],
)
async def test_nothing_is_done_when_one_is_not_understood(bench: Bench, order: Order) -> None:
    answer = await run(bench, work("a"), order)
    assert answer.error is not None
    assert answer.error.code == INVALID
    assert answer.error.facts == {"order": order.path}
    assert bench.ran == []


async def test_each_command_waits_for_its_own_lock_and_looks_whether_it_is_wanted_still(bench: Bench) -> None:
    await bench.submit("before", "x")
    await eventually(lambda: bench.ran == ["x"])
    series: asyncio.Task[Any] = asyncio.create_task(run(bench, noted("a"), work("x"), fence=Fence("flow", 1)))
    await asyncio.sleep(0.05)
    assert bench.ran == ["x"]
    await bench.submit("after", "y", fence=Fence("flow", 2))
    bench.gate.set()
    answer = await series
    assert answer.error.code == STALE_ATTEMPT
    assert bench.ran == ["x", "y"]
