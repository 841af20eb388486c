"""A command runs once, is answered once, and its answer reaches the server."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from caelum.agent import journal, listeners, tasks
from caelum.agent.journal import Fence
from caelum.agent.protocol import BUSY, CANCELED, INTERRUPTED, INVALID, STALE_ATTEMPT, TIMED_OUT, TaskAnswer
from caelum.agent.registry import AgentFailure
from caelum.agent.server import AgentServer

from .fakes import Bench, eventually


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.open()
    yield bench
    bench.gate.set()
    await bench.tasks.close()
    bench.store.close()


async def _error(bench: Bench, task: str) -> str:
    status = await bench.tasks.status(task)
    assert status.answer is not None
    assert status.answer.error is not None
    return status.answer.error.code


async def _settled(bench: Bench) -> None:
    """Wait until the journal knows that every answer was delivered."""
    async with asyncio.timeout(5):
        while await bench.journal.undelivered():  # noqa: ASYNC110 - the journal has no event
            await asyncio.sleep(0.005)


async def test_a_repeated_command_is_run_once_and_answered_again(bench: Bench) -> None:
    await bench.submit("t1")
    await bench.submit("t1")
    assert (await bench.tasks.status("t1")).state == "Running"
    bench.gate.set()
    await eventually(lambda: bench.http.posts)
    await bench.submit("t1")
    await eventually(lambda: len(bench.http.posts) == 2)
    assert bench.ran == ["a"]
    assert bench.http.bodies() == [{"result": {}}, {"result": {}}]
    assert bench.http.posts[0][1]["taskuuid"] == "t1"
    assert bench.sink.reports == [("progress", {"taskUuid": "t1", "percent": 50, "text": ""})]


async def test_an_answer_is_delivered_until_it_is_taken(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "BACK_OFF", (0.01,))
    bench.http.unreachable = True
    bench.gate.set()
    await bench.submit("t1")
    await asyncio.sleep(0.05)
    bench.http.unreachable, bench.http.status = False, 503
    await eventually(lambda: len(bench.http.posts) > 2)
    bench.http.status = 404
    await asyncio.sleep(0.05)
    taken = len(bench.http.posts)
    await asyncio.sleep(0.05)
    assert len(bench.http.posts) == taken
    assert await bench.journal.undelivered() == []


async def test_a_command_that_the_agents_death_cut_short_is_answered_interrupted(bench: Bench) -> None:
    await bench.submit("t1")
    await eventually(lambda: bench.ran)
    await bench.die()
    await bench.open()
    await eventually(lambda: bench.http.posts)
    assert bench.http.bodies()[0]["error"]["code"] == INTERRUPTED
    assert bench.http.bodies()[0]["error"]["transient"] is True
    await bench.submit("t1")
    assert bench.ran == ["a"]


async def test_an_undelivered_answer_survives_the_agent(bench: Bench) -> None:
    bench.http.unreachable = True
    bench.gate.set()
    await bench.submit("t1")
    await eventually(lambda: not bench.agent.tasks_running())
    await bench.die()
    bench.http.unreachable = False
    await bench.open()
    await eventually(lambda: bench.http.bodies() == [{"result": {}}])


async def test_whoever_waits_long_enough_gets_the_answer_and_no_callback(bench: Bench) -> None:
    bench.gate.set()
    assert await bench.submit("t1", wait=5) == TaskAnswer(result={})
    assert [one.task_uuid for one in await bench.journal.undelivered()] == ["t1"]
    bench.tasks.delivered("t1")
    await _settled(bench)
    assert bench.http.posts == []


async def test_an_answer_that_comes_too_late_is_called_back(bench: Bench) -> None:
    assert await bench.submit("t1", wait=0.02) is None
    bench.gate.set()
    await eventually(lambda: bench.http.bodies() == [{"result": {}}])
    await _settled(bench)


async def test_a_repeated_command_gets_the_answer_of_the_first_run(bench: Bench) -> None:
    first = asyncio.create_task(bench.submit("t1", wait=5))
    await eventually(lambda: bench.ran)
    again = asyncio.create_task(bench.submit("t1", wait=5))
    await asyncio.sleep(0.02)
    bench.gate.set()
    assert await first == await again == await bench.submit("t1", wait=5) == TaskAnswer(result={})
    assert bench.ran == ["a"]
    assert bench.http.posts == []


async def test_an_answer_that_nobody_heard_is_called_back(bench: Bench) -> None:
    bench.gate.set()
    assert await bench.submit("t1", wait=5) is not None
    await bench.tasks.call_back("t1")
    await eventually(lambda: bench.http.bodies() == [{"result": {}}])
    await _settled(bench)


@pytest.mark.parametrize("there", [True, False])
async def test_an_answer_is_called_back_when_whoever_waited_is_gone(bench: Bench, there: bool) -> None:
    server = AgentServer(bench.agent.config)
    server.tasks = bench.tasks
    request = SimpleNamespace(transport=SimpleNamespace(is_closing=lambda: not there))
    bench.gate.set()
    answer = await bench.submit("t1", wait=5)
    response = await server._answered(cast("web.Request", request), "t1", cast("TaskAnswer", answer))
    assert (response.status, response.body) == (200, b'{"result":{}}')
    await _settled(bench)
    assert bench.http.bodies() == ([] if there else [{"result": {}}])


async def test_an_agent_that_dies_before_the_answer_has_left_calls_back_when_it_is_back(bench: Bench) -> None:
    bench.gate.set()
    assert await bench.submit("t1", wait=5) is not None
    await bench.die()
    await bench.open()
    await eventually(lambda: bench.http.bodies() == [{"result": {}}])
    assert await bench.submit("t1", wait=5) == TaskAnswer(result={})
    assert bench.ran == ["a"]


async def test_a_listener_that_is_cancelled_leaves_the_answer_to_the_callback(bench: Bench) -> None:
    listener = asyncio.create_task(bench.submit("t1", wait=5))
    await eventually(lambda: bench.ran)
    listener.cancel()
    await asyncio.wait([listener])
    bench.gate.set()
    await eventually(lambda: bench.http.bodies() == [{"result": {}}])


async def test_whoever_waits_hears_of_a_stale_attempt(bench: Bench) -> None:
    await bench.submit("t1", "a", fence=Fence("flow", 1))
    stale = asyncio.create_task(bench.submit("t2", "a", fence=Fence("flow", 1), wait=5))
    await asyncio.sleep(0.02)
    await bench.submit("t3", "c", fence=Fence("flow", 2))
    bench.gate.set()
    answer = await stale
    assert answer is not None
    assert answer.error is not None
    assert answer.error.code == STALE_ATTEMPT
    with pytest.raises(AgentFailure, match="overtaken by attempt 2"):
        await bench.submit("t4", "d", fence=Fence("flow", 1), wait=5)


async def test_only_so_many_are_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "MOST", 1)
    first = asyncio.create_task(bench.submit("t1", "a", wait=5))
    await eventually(lambda: bench.ran)
    assert bench.agent.answers_waiting() == 1
    assert await bench.submit("t2", "b", wait=5) is None
    bench.gate.set()
    assert await first == TaskAnswer(result={})
    await eventually(lambda: len(bench.http.posts) == 1)


async def test_commands_with_one_lock_wait_for_each_other(bench: Bench) -> None:
    await bench.submit("t1", "x")
    await bench.submit("t2", "x")
    await bench.submit("t3", "y")
    await eventually(lambda: len(bench.ran) == 2)
    assert bench.ran == ["x", "y"]
    bench.gate.set()
    await eventually(lambda: bench.ran == ["x", "y", "x"])


async def test_a_cancelled_command_says_so(bench: Bench) -> None:
    await bench.submit("t1")
    await eventually(lambda: bench.ran)
    status = await bench.tasks.cancel("t1")
    assert status.answer is not None
    assert status.answer.error is not None
    assert status.answer.error.code == CANCELED
    assert (await bench.tasks.cancel("nobody")).state == "Unknown"


async def test_a_command_ends_at_its_deadline(bench: Bench) -> None:
    await bench.submit("t1", deadline=0.05)
    await eventually(lambda: bench.http.posts)
    assert await _error(bench, "t1") == TIMED_OUT


async def test_a_lower_attempt_is_refused(bench: Bench) -> None:
    await bench.submit("t1", fence=Fence("flow", 2))
    with pytest.raises(AgentFailure, match="overtaken by attempt 2") as refused:
        await bench.submit("t2", "b", fence=Fence("flow", 1))
    assert refused.value.code == STALE_ATTEMPT
    assert (await bench.tasks.status("t2")).state == "Unknown"
    # One that waits for its lock when the higher attempt comes is refused too.
    await bench.submit("t3", "a", fence=Fence("flow", 2))
    await bench.submit("t4", "c", fence=Fence("flow", 3))
    bench.gate.set()
    await eventually(lambda: len(bench.http.posts) == 3)
    assert await _error(bench, "t3") == STALE_ATTEMPT
    assert bench.ran == ["a", "c"]


async def test_an_answer_that_cannot_be_recorded_is_told_from_memory_until_it_is(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "BACK_OFF", (0.1,))
    finish, tries = journal._finish, 0

    def full(*given: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise sqlite3.OperationalError("database or disk is full")
        return finish(*given)

    monkeypatch.setattr(journal, "_finish", full)
    bench.gate.set()
    assert await bench.submit("t1", wait=5) == TaskAnswer(result={}), "whoever listens is told"
    assert await bench.submit("t1", wait=5) == TaskAnswer(result={}), "so is whoever repeats it"
    assert (await bench.tasks.status("t1")).answer == TaskAnswer(result={})
    assert (await bench.tasks.cancel("t1")).answer == TaskAnswer(result={})
    assert (tries, bench.agent.answers_waiting(), bench.http.posts) == (1, 1, [])
    await eventually(lambda: bench.http.bodies() == [{"result": {}}])
    await _settled(bench)
    assert (tries, (await bench.journal.status("t1")).answer, bench.ran) == (3, TaskAnswer(result={}), ["a"])


async def test_an_agent_that_stops_does_not_wait_for_the_journal(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(journal, "_finish", full)
    bench.gate.set()
    await bench.submit("t1", wait=5)
    await bench.tasks.close()
    assert bench.agent.answers_waiting() == 0


async def test_an_answer_is_recorded_though_the_journal_cannot_be_pruned(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(journal, "_prune", full)
    monkeypatch.setattr(journal, "PRUNE_EVERY", 1)
    bench.gate.set()
    assert await bench.submit("t1", wait=5) == TaskAnswer(result={})
    assert (await bench.journal.status("t1")).state == "Done"


async def test_too_much_work_is_refused_before_it_is_journaled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "MAX_RUNNING", 1)
    await bench.submit("t1")
    with pytest.raises(AgentFailure) as refused:
        await bench.submit("t2")
    assert (refused.value.code, refused.value.transient) == (BUSY, True)
    assert (await bench.tasks.status("t2")).state == "Unknown"


async def test_a_stopping_agent_interrupts_what_does_not_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "STOP_GRACE", 0.01)
    await bench.submit("t1")
    await bench.tasks.close()
    assert await _error(bench, "t1") == INTERRUPTED


async def test_the_journal_stays_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_TASKS", 3)
    bench.gate.set()
    for number in range(6):
        await bench.submit(f"t{number}", fence=Fence("flow", number))
    await eventually(lambda: len(bench.http.posts) == 6)
    await asyncio.sleep(0.05)
    await bench.journal.prune()
    states = [(await bench.tasks.status(f"t{number}")).state for number in range(6)]
    assert states.count("Done") == 3
    assert states.count("Unknown") == 3


@pytest.mark.parametrize("header", ["flow", "flow:", ":1", "flow:x", "flow:-1"])
def test_a_malformed_attempt_is_refused(header: str) -> None:
    with pytest.raises(AgentFailure) as refused:
        Fence.parse(header)
    assert refused.value.code == INVALID


def test_an_attempt_is_a_workflow_and_a_number() -> None:
    assert Fence.parse("flow:12") == Fence("flow", 12)
    assert Fence.parse(None) is None
