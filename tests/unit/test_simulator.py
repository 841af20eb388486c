"""The agent client against simulated agents, over real HTTPS with real certificates; no management node."""

from __future__ import annotations

import asyncio
import gc
import ssl
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import msgspec
import pytest
from aiohttp import web

from caelum.agent import protocol as p
from caelum.agent.news import Report
from caelum.cloud.host.errors import HOST_DISCONNECTED
from caelum.drivers.kvm import client
from caelum.drivers.kvm.client import Address, AgentClient, Pace
from caelum.drivers.kvm.errors import STALE_ATTEMPT
from caelum.drivers.kvm.listener import AgentListener, KnownHosts
from caelum.drivers.kvm.promptness import Promptness
from caelum.kernel import context, pki
from caelum.kernel.errors import TIMEOUT, CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.membership import EVICTED, is_of_cluster
from caelum.simulator import Latency, SimulatedHosts
from caelum.simulator.faults import Cut
from caelum.simulator.world import known_paths

QUICK = Pace(connect=2, acknowledge=2, back_off=(0.05, 0.1), first_poll=0.15, slowest_poll=0.3, lost_after=1.5)


class WatchedClient(AgentClient):
    """Remembers what was said."""

    def __init__(self, tls: ssl.SSLContext, pace: Pace) -> None:
        super().__init__(tls, "", pace)
        self.tasks: list[str] = []
        """The task UUIDs of commands, as they were posted."""
        self.waits: list[str | None] = []
        """How long each of them would wait."""
        self.callbacks: list[bool | None] = []
        """What callbacks came to."""

    async def _request(
        self, method: str, address: Address, path: str, deadline: float, **more: Any
    ) -> tuple[int, bytes]:
        if headers := more.get("headers"):
            self.tasks.append(headers["taskuuid"])
            self.waits.append(headers.get("wait"))
        return await super()._request(method, address, path, deadline, **more)

    def take_answer(self, task_uuid: str, host_uuid: str, answer: p.TaskAnswer) -> bool | None:
        taken = super().take_answer(task_uuid, host_uuid, answer)
        self.callbacks.append(taken)
        return taken


class Rig:
    """A client, its listener, and hosts."""

    def __init__(self, directory: Path, prompt: float = 1) -> None:
        self.directory = directory
        self.pace = msgspec.structs.replace(QUICK, prompt=prompt)
        self.hosts = SimulatedHosts(2, directory=directory)
        self.reports: list[Report] = []

    async def start(self) -> None:
        await self.hosts.start()
        files = pki.ensure_server(self.directory, new_uuid(), ["127.0.0.1"])
        self.client = WatchedClient(pki.client_context(files), self.pace)
        known = KnownHosts(self._known)
        self.listener = AgentListener(self.client, known, self._report, self._renew, [])
        self.port = await self.listener.start("127.0.0.1", 0, pki.server_context(files))
        self.client.callback_url = f"https://127.0.0.1:{self.port}/agent/callback"

    async def stop(self) -> None:
        await self.client.close()
        await self.listener.stop()
        await self.hosts.stop()

    def address(self, index: int = 0) -> Address:
        return Address(self.hosts[index].uuid, self.hosts[index].ip, self.hosts.port)

    async def bridge(self, name: str = "br0", timeout: float = 5) -> None:
        await self.client.run(self.address(), p.CreateBridge(l2_uuid="l2", bridge=name, interface="eth0"), timeout)

    async def post(self, path: str, body: object, headers: dict[str, str], tls: ssl.SSLContext) -> int:
        url = f"https://127.0.0.1:{self.port}{path}"
        async with (
            aiohttp.ClientSession() as http,
            http.post(
                url, data=msgspec.json.encode(body), headers=headers, ssl=tls, server_hostname=pki.SERVER_NAME
            ) as response,
        ):
            return response.status

    async def until_called_back(self, times: int = 1) -> None:
        while len(self.client.callbacks) < times:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)

    async def until_busy(self) -> None:
        while not self.hosts[0].journal.running():  # noqa: ASYNC110 - the agent's journal has no event
            await asyncio.sleep(0.01)

    def tls_of(self, index: int) -> ssl.SSLContext:
        return self.hosts[index].outgoing_tls()

    async def _known(self, host_uuid: str) -> bool:
        return any(host.uuid == host_uuid for host in self.hosts.hosts)

    async def _report(self, report: Report) -> None:
        self.reports.append(report)

    async def _renew(self, host_uuid: str, request: bytes) -> bytes:
        raise AssertionError


@pytest.fixture(params=[0, 1], ids=["answered by callback", "answered in the response"])
async def rig(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """Whatever goes wrong must come out the same in both ways of answering."""
    rig = Rig(tmp_path, request.param)
    await rig.start()
    yield rig
    await rig.stop()


@pytest.fixture
async def prompt(tmp_path: Path) -> AsyncIterator[Rig]:
    """A rig whose server waits for answers in the response."""
    rig = Rig(tmp_path)
    await rig.start()
    yield rig
    await rig.stop()


async def test_a_command_is_answered_once(rig: Rig) -> None:
    await rig.bridge()
    info = await rig.client.run(rig.address(), p.GetHostCapacity())
    assert info.cpu_num == 16
    assert list(rig.hosts.dump()[rig.hosts[0].uuid]["bridges"]) == ["br0"]
    assert rig.hosts[1].world.bridges == {}
    assert not rig.client.pending


class Sleeper:
    """A node whose lease ends, each time for a while, after so many looks at it; with None for ever."""

    def __init__(self, *looks: int | None) -> None:
        self._looks = list(looks)
        self.waited = 0

    @property
    def acts(self) -> bool:
        if not self._looks or self._looks[0] is None:
            return not self._looks
        self._looks[0] -= 1
        if self._looks[0] > 0:
            return True
        self._looks.pop(0)
        return False

    async def admit(self) -> None:
        self.waited += 1
        if self._looks and self._looks[0] is None:
            raise CloudError(EVICTED, "evicted")


async def test_a_node_that_lost_its_lease_sends_no_command_until_it_has_it_again(rig: Rig) -> None:
    # It ends before the command, and once more just before it would be written.
    sleeper = rig.client._member = rig.client._lines._member = Sleeper(1, 2)
    await rig.bridge()
    assert sleeper.waited == 1
    assert rig.hosts[0].done[p.CreateBridge.path] == 1


async def test_a_node_that_was_evicted_sends_no_command(rig: Rig) -> None:
    rig.client._member = rig.client._lines._member = Sleeper(None)
    with pytest.raises(CloudError, match="evicted"):
        await rig.bridge()
    assert rig.hosts[0].world.bridges == {}


async def test_a_node_that_stops_says_so_of_every_command(rig: Rig) -> None:
    rig.hosts.latency(Latency(path=p.CreateBridge.path, low=5))
    waiting = asyncio.create_task(rig.bridge())
    await rig.until_busy()
    await rig.client.close()
    for late in (waiting, rig.bridge(), rig.client.run(rig.address(), p.GetHostCapacity())):
        with pytest.raises(CloudError) as stopped:
            await late
        assert is_of_cluster(stopped.value), "whoever asked repeats it elsewhere"


async def test_a_caller_that_goes_while_the_node_stops_leaves_no_error_behind(prompt: Rig) -> None:
    failed: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: failed.append(what))
    prompt.hosts.fault("hang")
    work = asyncio.create_task(prompt.bridge())
    await prompt.until_busy()
    closing = asyncio.create_task(prompt.client.close())
    work.cancel()
    await asyncio.wait([work, closing])
    assert prompt.client._closing
    prompt.client._errand(prompt.client._cancel(prompt.address(), prompt.client.tasks[0]))
    while prompt.client._errands:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    assert failed == []


async def test_a_lost_answer_is_found(rig: Rig) -> None:
    rig.hosts.fault("lose_reply", count=1)
    await rig.bridge()
    assert rig.hosts[0].done[p.CreateBridge.path] == 1


async def test_a_doubled_answer_is_harmless(rig: Rig) -> None:
    rig.hosts.fault("double_reply")
    await rig.bridge()
    await rig.bridge("br1")
    assert sorted(rig.hosts[0].world.bridges) == ["br0", "br1"]


async def test_a_lost_acknowledgement_leads_to_one_effect(rig: Rig) -> None:
    rig.hosts.fault("lose_ack", count=1)
    await rig.bridge()
    assert rig.hosts[0].done[p.CreateBridge.path] == 1


async def test_a_prompt_answer_comes_in_the_response(prompt: Rig) -> None:
    await prompt.bridge()
    assert prompt.client.callbacks == []
    assert prompt.hosts[0].journal.status(prompt.client.tasks[0]).state == "Done"
    assert prompt.hosts[0].journal.interrupt() == []  # it is known to be delivered


async def test_an_answer_that_is_lost_in_the_response_is_in_the_repeated_one(prompt: Rig) -> None:
    prompt.hosts.fault("lose_reply", count=1)
    await prompt.bridge()
    assert prompt.hosts[0].arrived[p.CreateBridge.path] == 2
    assert prompt.hosts[0].done[p.CreateBridge.path] == 1
    assert prompt.client.tasks == prompt.client.tasks[:1] * 2
    assert prompt.client.callbacks == []


async def test_an_answer_whose_listener_is_gone_is_called_back(prompt: Rig) -> None:
    prompt.hosts.fault("lose_ack", count=1)
    prompt.hosts.latency(Latency(path="/network/*", low=0.03))
    await prompt.bridge()
    await prompt.until_called_back()
    assert prompt.hosts[0].done[p.CreateBridge.path] == 1


async def test_an_answer_whose_listener_is_gone_is_delivered_only_when_its_callback_is(prompt: Rig) -> None:
    host = prompt.hosts[0]
    prompt.hosts.behaviour.cuts.append(Cut(server=new_uuid(), callback=prompt.client.callback_url))
    task, _ = host.journal.accept("task", p.CreateBridge.path, prompt.client.callback_url)
    task.end(p.TaskAnswer(result={}))
    gone = SimpleNamespace(transport=SimpleNamespace(is_closing=lambda: True))
    host._answered(cast("web.BaseRequest", gone), task)
    await asyncio.sleep(0.05)
    assert host.journal.interrupt() == [task], "an agent that starts anew delivers it"
    prompt.hosts.heal()
    await prompt.until_called_back()
    await asyncio.sleep(0.05)
    assert host.journal.interrupt() == []


async def test_an_answer_that_comes_both_ways_counts_once(prompt: Rig) -> None:
    prompt.hosts.fault("double_reply", count=1)
    await prompt.bridge()
    await prompt.until_called_back()
    assert prompt.client.callbacks == [False]


async def test_an_agent_that_dies_between_doing_and_answering_says_so_when_it_is_back(prompt: Rig) -> None:
    prompt.hosts.fault("die_after", count=1)
    work = asyncio.create_task(prompt.bridge(timeout=10))
    while not prompt.hosts[0].world.bridges:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)  # longer than the repetitions of a request that does not get through
    assert not work.done()
    await prompt.hosts[0].revive()
    await work
    assert prompt.hosts[0].done[p.CreateBridge.path] == 1


async def test_a_late_answer_is_called_back_and_a_slow_kind_of_command_not_waited_for_any_more(prompt: Rig) -> None:
    prompt.client._promptness = Promptness(0.05)
    prompt.hosts.latency(Latency(path="/network/*", low=0.1))
    waits = []
    for number in range(9):
        await prompt.bridge(f"br{number}")
        waits.append(prompt.client.waits[-1])
    await prompt.until_called_back(9)
    assert waits[:6] == ["0.05"] * 6
    assert waits[-1] is None
    await prompt.client.run(prompt.address(), p.GetHostCapacity())
    assert prompt.client.waits[-1] == "0.05"


async def test_waiting_requests_do_not_take_the_place_of_others(prompt: Rig) -> None:
    prompt.client._promptness = Promptness(20)
    prompt.hosts.fault("hang", p.CreateBridge.path)
    work = [asyncio.create_task(prompt.bridge(f"br{number}")) for number in range(30)]
    while prompt.hosts[0].journal.running() < 30:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    assert len([one for one in prompt.client.waits if one]) == 8
    assert (await prompt.client.run(prompt.address(), p.Ping())).agent_uuid == prompt.hosts[0].agent_uuid
    for one in work:
        one.cancel()
    await asyncio.gather(*work, return_exceptions=True)


async def test_nobody_waits_in_a_request_to_a_host_that_is_lost(prompt: Rig) -> None:
    prompt.client._promptness = Promptness(20)
    prompt.hosts.fault("hang")
    work = asyncio.create_task(prompt.bridge(timeout=60))
    await prompt.until_busy()
    prompt.client.host_lost(prompt.hosts[0].uuid, CloudError(HOST_DISCONNECTED, "no answer to pings"))
    with pytest.raises(CloudError, match="is lost"):
        await asyncio.wait_for(work, 5)


@pytest.mark.parametrize("protocol", [1, 2])
async def test_an_older_agent_answers_by_callback(prompt: Rig, protocol: int) -> None:
    prompt.hosts[0].protocol = protocol
    await prompt.bridge()
    assert prompt.client.callbacks == [True]


async def test_a_refused_command_is_repeated_then_given_up_as_transient(rig: Rig) -> None:
    rig.hosts.fault("refuse", count=1)
    await rig.bridge()
    assert rig.hosts[0].arrived[p.CreateBridge.path] == 2
    rig.hosts.fault("refuse")
    with pytest.raises(CloudError) as caught:
        await rig.bridge()
    assert caught.value.code == p.BUSY
    assert caught.value.kind.transient


async def test_a_command_with_hardly_any_time_left_is_told_a_deadline_that_agents_take(rig: Rig) -> None:
    now = time.monotonic()
    told = [rig.client._headers("task", now + left, 0)["deadline"] for left in (-1, 0.01, 0.04, 0.3, 12)]
    assert told == ["0.1", "0.1", "0.1", "0.3", "12.0"]


async def test_a_refusal_that_comes_when_the_time_is_over_is_a_timeout(rig: Rig) -> None:
    async def refused(*_: Any, **__: Any) -> tuple[int, bytes]:
        time.sleep(0.1)  # noqa: ASYNC251 - both are over at once
        return 400, msgspec.json.encode(p.TaskAnswer(error=p.AgentError(code=p.INVALID, details="has passed")))

    rig.client._request = refused  # type: ignore[method-assign]
    with pytest.raises(CloudError) as caught:
        await rig.bridge(timeout=0.05)
    assert caught.value.kind is TIMEOUT


async def test_an_agents_error_keeps_its_code_and_numbers(rig: Rig) -> None:
    rig.hosts[0].world.disk_bytes = 1000
    command = p.CreateVolume(storage_path="/s", volume_uuid="v", install_path="/s/v.qcow2", size=1 << 30)
    with pytest.raises(CloudError) as caught:
        await rig.client.run(rig.address(), command)
    assert caught.value.code == p.NO_SPACE
    assert caught.value.facts["free"] == 1000
    assert caught.value.facts["hostUuid"] == rig.hosts[0].uuid


async def test_a_hanging_command_ends_at_its_deadline_and_is_cancelled_on_the_host(rig: Rig) -> None:
    rig.hosts.fault("hang")
    with pytest.raises(CloudError) as caught:
        await rig.bridge(timeout=0.3)
    assert caught.value.kind is TIMEOUT
    await asyncio.sleep(0.2)
    assert rig.hosts[0].journal.running() == 0
    assert rig.hosts[0].world.bridges == {}


async def test_a_callers_cancellation_reaches_the_host(rig: Rig) -> None:
    rig.hosts.fault("hang")
    work = asyncio.create_task(rig.bridge())
    await rig.until_busy()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await asyncio.sleep(0.2)
    assert rig.hosts[0].journal.running() == 0


async def test_an_agent_that_dies_during_a_command_runs_it_after_its_restart(rig: Rig) -> None:
    rig.hosts.latency(Latency(path="/network/*", low=0.2))
    work = asyncio.create_task(rig.bridge(timeout=10))
    await rig.until_busy()
    await rig.hosts[0].die()
    assert rig.hosts[0].world.bridges == {}
    await asyncio.sleep(0.4)
    await rig.hosts[0].revive()
    await work
    assert list(rig.hosts[0].world.bridges) == ["br0"]


async def test_a_dead_host_is_given_up(rig: Rig) -> None:
    rig.hosts.fault("hang")
    work = asyncio.create_task(rig.bridge(timeout=30))
    await rig.until_busy()
    await rig.hosts[0].die()
    with pytest.raises(CloudError) as caught:
        await work
    assert caught.value.kind is HOST_DISCONNECTED
    with pytest.raises(CloudError) as caught:
        await rig.bridge()
    assert caught.value.kind is HOST_DISCONNECTED
    assert caught.value.facts["port"] == rig.hosts.port


async def test_a_lower_attempt_is_refused(rig: Rig) -> None:
    workflow = new_uuid()
    for attempt in (1, 2):
        with context.use(context.TaskContext(fence=f"{workflow}:{attempt}")):
            await rig.bridge(f"br{attempt}")
    with context.use(context.TaskContext(fence=f"{workflow}:1")), pytest.raises(CloudError) as caught:
        await rig.bridge("br3")
    assert caught.value.kind is STALE_ATTEMPT
    assert sorted(rig.hosts[0].world.bridges) == ["br1", "br2"]


async def test_the_address_of_a_host_does_not_make_it_another_host(rig: Rig) -> None:
    wrong = Address(rig.hosts[1].uuid, rig.hosts[0].ip, rig.hosts.port)
    with pytest.raises(CloudError) as caught:
        await rig.client.run(wrong, p.Echo())
    assert caught.value.kind is HOST_DISCONNECTED
    assert "certificate" in caught.value.details.lower()


async def test_another_host_cannot_answer_a_task(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.hosts.fault("hang")
    work = asyncio.create_task(rig.bridge())
    await rig.until_busy()
    task_uuid = next(iter(rig.client.pending))
    forged = p.TaskAnswer(result={})
    assert await rig.post("/agent/callback", forged, {"taskuuid": task_uuid}, rig.tls_of(1)) == 403
    assert not work.done()
    assert "another host" in caplog.text
    assert await rig.post("/agent/callback", forged, {"taskuuid": new_uuid()}, rig.tls_of(0)) == 404
    assert await rig.post("/agent/callback", forged, {"taskuuid": task_uuid}, rig.tls_of(0)) == 200
    await work


async def test_reports_come_in_order_once_and_only_from_their_host(rig: Rig) -> None:
    host, agent = rig.hosts[0], new_uuid()

    def report(number: int, of: str = host.uuid) -> Report:
        return Report(agent_uuid=agent, host_uuid=of, number=number, kind="progress", body={})

    tls = rig.tls_of(0)
    for number in (1, 2, 2, 1):
        assert await rig.post("/agent/report", report(number), {}, tls) == 200
    late = asyncio.create_task(rig.post("/agent/report", report(4), {}, tls))
    await asyncio.sleep(0.2)
    assert await rig.post("/agent/report", report(3), {}, tls) == 200
    assert await late == 200
    assert [one.number for one in rig.reports] == [1, 2, 3, 4]
    assert await rig.post("/agent/report", report(5, rig.hosts[1].uuid), {}, tls) == 403
    assert len(rig.reports) == 4


async def test_a_watch_ends_at_once_when_the_agent_dies(rig: Rig) -> None:
    await rig.client.run(rig.address(), p.Ping())
    gone = asyncio.Event()
    rig.client.watch(rig.hosts[0].uuid, gone.set)
    await asyncio.sleep(0.2)
    assert not gone.is_set()
    await rig.hosts[0].die()
    await asyncio.wait_for(gone.wait(), 1)


async def test_a_watch_that_was_ended_tells_nothing(rig: Rig) -> None:
    await rig.client.run(rig.address(), p.Ping())
    told: list[str] = []
    rig.client.watch(rig.hosts[0].uuid, lambda: told.append("ended"))()
    rig.client.watch(rig.hosts[0].uuid, lambda: told.append("kept"))
    await rig.hosts[0].die()
    await asyncio.sleep(0.3)
    assert told == ["kept"]


async def test_a_host_without_a_connection_cannot_be_watched(rig: Rig) -> None:
    gone = asyncio.Event()
    rig.client.watch(rig.hosts[0].uuid, gone.set)
    assert not gone.is_set()
    await asyncio.wait_for(gone.wait(), 1)


async def test_an_idle_connection_keeps_no_read_buffer_and_is_used_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = []
    drop = client._drop_read_buffer
    monkeypatch.setattr(client, "_drop_read_buffer", lambda transport: (let_go.append(transport), drop(transport)))
    for _ in range(3):
        await rig.client.run(rig.address(), p.Ping())
    assert let_go == [let_go[0]] * 3
    assert not let_go[0].is_closing()


async def test_connections_that_take_turns_keep_nothing_of_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[str] = []
    forget = client.Lines._forget
    monkeypatch.setattr(
        client.Lines, "_forget", lambda lines, host, closed: (forgotten.append(host), forget(lines, host, closed))
    )
    rig.hosts.latency(Latency(path=p.Ping.path, low=0.05))
    for _ in range(5):
        await asyncio.gather(*(rig.client.run(rig.address(), p.Ping()) for _ in range(3)))
    await rig.hosts[0].die()
    await asyncio.sleep(0.3)
    assert len(forgotten) <= 3, "one for each connection"
    assert rig.client._lines.latest == {}


async def test_a_connection_keeps_nothing_of_an_exchange_nor_of_whoever_opened_it(rig: Rig) -> None:
    class Mine:
        """What a task has about it."""

    async def ask() -> weakref.ref[Mine]:
        about.set(mine := Mine())
        await rig.client.run(rig.address(), p.Ping())
        rig.client.watch(rig.hosts[0].uuid, lambda: None)
        return weakref.ref(mine)

    await rig.client.run(rig.address(1), p.Ping())  # starts the timer that all connections share
    about: ContextVar[Mine] = ContextVar("about")
    mine = await asyncio.create_task(ask())
    await asyncio.sleep(0.1)
    gc.collect()
    assert mine() is None
    ((protocol, _),) = _idle(rig)
    assert protocol._parser is protocol._payload is None
    assert not protocol.transport.get_extra_info("peercert")
    await rig.client.run(rig.address(), p.Ping())
    ((again, _),) = _idle(rig)
    assert again is protocol


async def test_a_connection_that_opens_as_it_is_given_up_is_closed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    async def opened(*_: object) -> object:
        asyncio.get_running_loop().call_soon(task.cancel)  # comes before the answer
        return SimpleNamespace(transport=None, close=lambda: closed.append(True))

    monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", opened)
    task = asyncio.create_task(rig.client._lines._create_connection(None, None, aiohttp.ClientTimeout()))
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert closed == [True]


def _idle(rig: Rig) -> Sequence[tuple[Any, float]]:
    """The first host's connections that wait for the next exchange."""
    found = rig.client._lines._conns.items()
    return next(waiting for key, waiting in found if key.server_hostname == rig.hosts[0].uuid)


async def test_a_watch_does_not_end_because_this_node_does(rig: Rig) -> None:
    await rig.client.run(rig.address(), p.Ping())
    gone = asyncio.Event()
    rig.client.watch(rig.hosts[0].uuid, gone.set)
    await asyncio.sleep(0.1)
    await rig.client.close()
    await asyncio.sleep(0.3)
    assert not gone.is_set()


async def test_only_management_nodes_command_hosts(rig: Rig) -> None:
    url = f"https://{rig.hosts[0].ip}:{rig.hosts.port}/host/echo"
    async with (
        aiohttp.ClientSession() as http,
        http.post(url, data=b"{}", ssl=rig.tls_of(1), server_hostname=rig.hosts[0].uuid) as response,
    ):
        assert response.status == 403


def test_the_simulator_knows_every_command() -> None:
    # Other tests have commands of their own.
    assert known_paths() == {path for path, cls in p.commands().items() if cls.__module__ == p.__name__}


async def test_a_dead_agent_is_not_reached_and_the_others_are(rig: Rig) -> None:
    await rig.hosts[0].die()
    with pytest.raises(CloudError) as refused:
        await rig.client.run(rig.address(), p.Ping())
    assert refused.value.kind is HOST_DISCONNECTED
    assert (await rig.client.run(rig.address(1), p.Ping())).agent_uuid == rig.hosts[1].agent_uuid
    await rig.hosts[0].revive()
    assert (await rig.client.run(rig.address(), p.Ping())).host_uuid is None


async def test_an_address_that_is_no_hosts_is_turned_away(rig: Rig) -> None:
    stranger = Address(rig.hosts[0].uuid, "127.1.0.77", rig.hosts.port)
    with pytest.raises(CloudError) as refused:
        await rig.client.run(stranger, p.Ping())
    assert refused.value.kind is HOST_DISCONNECTED


async def test_each_host_shows_a_certificate_of_its_own(rig: Rig) -> None:
    tls = pki.client_context(pki.Files.in_directory(rig.directory, "server"), check_name=False)
    for host in rig.hosts.hosts:
        identity = await rig.client.first_contact(tls, host.ip, rig.hosts.port)
        assert identity is not None
        assert identity.uuid == host.uuid
