"""Reports arrive in order, each until acknowledged, also those of an agent that died."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from caelum.agent import reports
from caelum.agent.reports import Reports
from caelum.agent.store import Store

from .fakes import FakeHttp, eventually

URL = "https://server/report"


class Bench:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.http = FakeHttp()

    async def open(self) -> Reports:
        self.store = Store(self.path)
        self.reports = Reports(self.store)
        await self.reports.open()
        self.delivery = asyncio.create_task(self.reports.deliver(self.http))  # type: ignore[arg-type]
        return self.reports

    async def close(self) -> None:
        self.delivery.cancel()
        await asyncio.gather(self.delivery, return_exceptions=True)
        self.store.close()

    def got(self) -> list[tuple[int, str]]:
        return [(body["number"], body["kind"]) for body in self.http.bodies()]


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(reports, "BACK_OFF", (0.01,))
    bench = Bench(tmp_path / "agent.db")
    await bench.open()
    yield bench
    await bench.close()


async def test_reports_are_numbered_and_wait_for_an_address(bench: Bench) -> None:
    bench.reports.add("vm-state", {"vmUuid": "a"})
    bench.reports.add("vm-state", {"vmUuid": "b"})
    await asyncio.sleep(0.03)
    assert bench.http.posts == []
    bench.reports.send_to(URL, "host")
    await eventually(lambda: len(bench.http.posts) == 2)
    url, _, body = bench.http.posts[0]
    agent = bench.reports.agent_uuid
    expected = {"agentUuid": agent, "hostUuid": "host", "number": 1, "kind": "vm-state", "body": {"vmUuid": "a"}}
    assert (url, body) == (URL, expected)
    assert bench.got() == [(1, "vm-state"), (2, "vm-state")]


async def test_a_report_is_repeated_until_acknowledged_and_holds_back_the_next(bench: Bench) -> None:
    bench.http.status = 503
    bench.reports.send_to(URL, "host")
    bench.reports.add("vm-state", {})
    bench.reports.add("agent-stopping", {})
    await eventually(lambda: len(bench.http.posts) > 2)
    assert {number for number, _ in bench.got()} == {1}
    bench.http.status = 200
    await eventually(lambda: bench.got()[-1] == (2, "agent-stopping"))


async def test_reports_survive_the_agent_but_acknowledged_ones_do_not(bench: Bench) -> None:
    first = bench.reports.agent_uuid
    bench.reports.send_to(URL, "host")
    bench.reports.add("vm-state", {"n": 1})
    await eventually(lambda: bench.http.posts)
    bench.http.unreachable = True
    bench.reports.add("vm-state", {"n": 2})
    bench.reports.add("progress", {"taskUuid": "t", "percent": 1})
    await bench.close()
    bench.http.unreachable = False
    bench.http.posts.clear()
    await bench.open()
    bench.reports.add("vm-state", {"n": 3})
    bench.reports.send_to(URL, "host")
    await eventually(lambda: len(bench.http.posts) == 2)
    seen: list[tuple[Any, ...]] = [(one["agentUuid"], one["number"], one["body"]) for one in bench.http.bodies()]
    assert seen == [(first, 2, {"n": 2}), (bench.reports.agent_uuid, 1, {"n": 3})]


async def test_newer_progress_replaces_what_has_not_left(bench: Bench) -> None:
    for percent in range(0, 100, 10):
        bench.reports.add("progress", {"taskUuid": "t", "percent": percent})
    bench.reports.add("progress", {"taskUuid": "u", "percent": 5})
    bench.reports.send_to(URL, "host")
    await eventually(lambda: len(bench.http.posts) == 2)
    assert [(one["number"], one["body"]["percent"]) for one in bench.http.bodies()] == [(1, 90), (2, 5)]


async def test_an_unwanted_report_does_not_hold_back_others(bench: Bench) -> None:
    bench.http.status = 404
    bench.reports.send_to(URL, "host")
    bench.reports.add("vm-state", {})
    bench.reports.add("vm-state", {})
    await eventually(lambda: bench.got() == [(1, "vm-state"), (2, "vm-state")])


async def test_the_queue_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MAX_PENDING", 2)
    for number in range(5):
        bench.reports.add("vm-state", {"n": number})
    bench.reports.send_to(URL, "host")
    await eventually(lambda: len(bench.http.posts) == 2)
    assert [number for number, _ in bench.got()] == [4, 5]
