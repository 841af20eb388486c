"""The node: parts found, started and stopped in order, and one broken part harms nobody."""

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from tests.unit.kernel.zoo import Fed, Feed, Sleepy, Unheard, Wash

from caelum.kernel import node as node_module
from caelum.kernel.errors import INVALID_ARGUMENT, UNDELIVERABLE, CloudError, invalid
from caelum.kernel.extension import ExtensionPoint
from caelum.kernel.membership import NodeLifecycle
from caelum.kernel.message import Message
from caelum.kernel.node import Node
from caelum.kernel.service import Service, handles, intercepts
from caelum.testing import databases
from caelum.testing.cloud import EmbeddedCloud

ORDER: list[str] = []


class Greeting(ExtensionPoint):
    async def greet(self) -> str: ...


class Keeper(Service):
    """A service of the tests."""

    name = "zoo"

    async def start(self) -> None:
        ORDER.append("keeper starts")

    async def serve(self) -> None:
        ORDER.append("keeper serves")

    async def stop(self) -> None:
        ORDER.append("keeper stops")

    @handles(Feed, queue="animal-{uuid}")
    async def feed(self, msg: Feed) -> int:
        await asyncio.sleep(msg.seconds)
        self.node.bus.publish(Fed(animal_name=msg.uuid, portion=msg.portion))
        return msg.portion

    @intercepts(Feed)
    async def check(self, msg: Feed) -> None:
        if msg.portion > 100:
            raise invalid("portion", f"{msg.portion} kg are more than 100 kg")


class Plugin(Greeting):
    """A plugin that is an extension, a handler, and checks every message."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.checked: list[Message[Any]] = []

    async def start(self) -> None:
        ORDER.append("plugin starts")

    async def stop(self) -> None:
        ORDER.append("plugin stops")

    async def greet(self) -> str:
        return "hello"

    @handles(Sleepy)
    async def sleepy(self, msg: Sleepy) -> None:
        return None

    @intercepts(Message, order=-10)
    async def see(self, msg: Message[Any]) -> None:
        self.checked.append(msg)


class BadConstructor(Service):
    name = "bad-constructor"

    def __init__(self, node: Node) -> None:
        raise RuntimeError("cannot be made")


class BadStart(Service):
    name = "bad-start"

    async def start(self) -> None:
        raise RuntimeError("cannot start")

    @handles(Wash)
    async def wash(self, msg: Wash) -> int:
        return 1


class HangsAtStop(Service):
    name = "hangs"

    async def stop(self) -> None:
        await asyncio.sleep(60)


async def test_a_node_starts_serves_and_stops_in_order(tmp_path: Path) -> None:
    ORDER.clear()
    async with EmbeddedCloud(tmp_path, [Keeper, Plugin]) as cloud:
        assert cloud.node.ready
        assert cloud.node.ring.owns("anything")
        assert await cloud.api(Feed(portion=3)) == 3
        assert [event.portion for event in await cloud.seen(Fed)] == [3]
        assert await cloud.node.extensions.each(Greeting, "greet") == ["hello"]
        assert list(cloud.node.services) == ["zoo"]
        lifecycle = await cloud.seen(NodeLifecycle)
        assert [one.life_cycle for one in lifecycle] == ["NodeJoin"]
        assert (tmp_path / "caelum.db").exists() or databases.on_postgresql()
    assert not cloud.node.ready
    assert ORDER == ["keeper starts", "plugin starts", "keeper serves", "plugin stops", "keeper stops"]
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert "is ready after" in (tmp_path / "log" / "server.log").read_text()


async def test_a_second_start_on_the_same_directory_is_a_restart(tmp_path: Path) -> None:
    async with EmbeddedCloud(tmp_path, [Keeper]) as first:
        pass
    async with EmbeddedCloud(tmp_path, [Keeper]) as second:
        assert await second.api(Feed()) == 1
    assert first.node.uuid != second.node.uuid


async def test_checks_run_in_order_also_those_for_a_base_class(tmp_path: Path) -> None:
    async with EmbeddedCloud(tmp_path, [Keeper, Plugin]) as cloud:
        plugin = cloud.node.extensions.of(Greeting)[0]
        assert isinstance(plugin, Plugin)
        msg = Feed(portion=200)
        with pytest.raises(CloudError) as caught:
            await cloud.api(msg)
        assert caught.value.kind is INVALID_ARGUMENT
        assert plugin.checked == [msg], "order -10 comes before the service's own check"
        assert len(cloud.node.interceptors_of(Feed)) == 2
        assert len(cloud.node.interceptors_of(Sleepy)) == 1


async def test_broken_parts_are_reported_and_the_rest_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        async with EmbeddedCloud(
            tmp_path, ["caelum.cloud.not_there.service:Service", BadConstructor, BadStart, Keeper]
        ) as cloud:
            assert await cloud.api(Feed(portion=2)) == 2
            assert {part.name: part.error for part in cloud.node.broken} == {
                "caelum.cloud.not_there.service:Service": (
                    "ModuleNotFoundError: No module named 'caelum.cloud.not_there'"
                ),
                "BadConstructor": "RuntimeError: cannot be made",
                "bad-start": "RuntimeError: cannot start",
            }
            for msg in (Wash(), Unheard()):
                with pytest.raises(CloudError) as caught:
                    await cloud.api(msg)
                assert caught.value.kind is UNDELIVERABLE
    assert "cannot be made" in caplog.text


async def test_a_disabled_service_is_left_out(tmp_path: Path) -> None:
    async with EmbeddedCloud(tmp_path, [Keeper, Plugin], disabled_services=["zoo"]) as cloud:
        assert cloud.node.services == {}
        with pytest.raises(CloudError):
            await cloud.api(Feed())


async def test_stopping_ends_in_time_whatever_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "_STOP_ONE", 0.1)
    async with EmbeddedCloud(tmp_path, [Keeper, HangsAtStop], stop_seconds=0.1) as cloud:
        running = asyncio.create_task(cloud.api(Feed(seconds=30)))
        await asyncio.sleep(0.02)
        begun = time.monotonic()
    assert time.monotonic() - begun < 2
    with pytest.raises(CloudError, match="its node is stopping"):
        await running


async def test_a_failed_start_leaves_nothing_running(tmp_path: Path) -> None:
    cloud = EmbeddedCloud(tmp_path, [Keeper], database_url="sqlite+aiosqlite:////nowhere/at/all.db")
    with pytest.raises(Exception, match="unable to open database"):
        await cloud.node.start()
    assert not cloud.node.ready
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_slow_start_names_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(Service):
        name = "slow"

        async def start(self) -> None:
            seen.append(self.node.waiting_for)
            await asyncio.sleep(0.05)

    seen: list[str | None] = []
    monkeypatch.setattr(node_module, "_SLOW_START", 0.02)
    with caplog.at_level(logging.WARNING):
        async with EmbeddedCloud(tmp_path, [Slow]) as cloud:
            assert cloud.node.waiting_for is None
    assert seen == ["slow to start"]
    assert "the start waits since 0 s for slow to start" in caplog.text


async def test_metrics_tell_calls_queues_and_lag(tmp_path: Path) -> None:
    async with EmbeddedCloud(tmp_path, [Keeper]) as cloud:
        running = asyncio.create_task(cloud.api(Feed(seconds=0.1)))
        waiting = asyncio.create_task(cloud.api(Feed()))
        await asyncio.sleep(0.05)
        text = cloud.node.metrics.render().decode()
        assert "caelum_queue_running 1.0" in text
        assert "caelum_queue_pending 1.0" in text
        assert "caelum_loop_lag_seconds" in text
        await asyncio.gather(running, waiting)
        text = cloud.node.metrics.render().decode()
        assert 'caelum_call_seconds_count{message="Feed",service="zoo"} 2.0' in text
        assert 'caelum_call_errors_total{message="Feed",service="zoo"} 0.0' in text


async def test_an_unknown_bus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither memory: nor amqp"):
        EmbeddedCloud(tmp_path, [], bus_url="carrier-pigeon:")


async def test_until_waits_for_a_condition(tmp_path: Path) -> None:
    async with EmbeddedCloud(tmp_path, [Keeper]) as cloud:
        cloud.node.bus.send(Feed(seconds=0.03))
        assert await cloud.until(lambda: cloud.events[1:])
        with pytest.raises(TimeoutError):
            await cloud.until(lambda: False, seconds=0.05)
