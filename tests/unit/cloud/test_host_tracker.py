"""Following hosts without a management node: how many are connected at once, and what wakes the tracker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from caelum.cloud.host.connect import Connector
from caelum.cloud.host.settings import LOAD_PARALLELISM, PING_INTERVAL
from caelum.cloud.host.tracker import HostTracker
from caelum.kernel.node import Node

_AT_ONCE = 2
_VALUES: dict[Any, Any] = {LOAD_PARALLELISM: _AT_ONCE, PING_INTERVAL: 60}


class _Hosts:
    """Connects hosts when it is told to, and is the driver that watches them."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.now = self.most = 0
        self.watched: dict[str, Callable[[], None]] = {}
        self.ended: list[str] = []

    async def connect(self, _host_uuid: str) -> SimpleNamespace:
        self.now += 1
        self.most = max(self.most, self.now)
        await self.go_on.wait()
        self.now -= 1
        return SimpleNamespace(hypervisor_type="KVM")

    def watch(self, host_uuid: str, gone: Callable[[], None]) -> Callable[[], None]:
        self.watched[host_uuid] = gone
        return lambda: self.ended.append(host_uuid)


def _tracker(hosts: _Hosts) -> HostTracker:
    node = SimpleNamespace(
        settings=SimpleNamespace(get=_VALUES.__getitem__),
        ring=SimpleNamespace(owns=lambda _uuid: True),
        drivers=SimpleNamespace(get=lambda *_: hosts),
    )
    return HostTracker(cast("Node", node), cast("Connector", hosts))


async def test_first_connects_wait_in_line_and_all_come_to_their_turn() -> None:
    hosts = _Hosts()
    tracker = _tracker(hosts)
    for number in range(10):
        tracker.follow(f"host{number}", connect=True)
    await asyncio.sleep(0.01)
    assert (hosts.now, len(tracker.untried)) == (_AT_ONCE, 10)
    hosts.go_on.set()
    async with asyncio.timeout(5):
        while tracker.untried:  # noqa: ASYNC110 - the tracker tells nobody
            await asyncio.sleep(0.01)
    assert hosts.most == _AT_ONCE
    assert hosts.watched.keys() == {f"host{number}" for number in range(10)}
    await tracker.stop()
    assert sorted(hosts.ended) == sorted(hosts.watched)


async def test_hosts_are_pinged_when_no_other_waits_for_its_first_connect_or_after_an_interval() -> None:
    hosts = _Hosts()
    hosts.go_on.set()
    tracker = _tracker(hosts)
    for number in range(10):
        tracker.follow(f"host{number}", connect=True)
    now, pauses = asyncio.get_running_loop().time(), list[float]()
    async with asyncio.timeout(5):
        while tracker.untried:  # noqa: ASYNC110 - the tracker tells nobody
            await asyncio.sleep(0.01)
    for followed in tracker._followed.values():
        assert followed.next_look is not None
        pauses.append(followed.next_look.when() - now)
    assert len([one for one in pauses if one < 5]) == _AT_ONCE, "the last ones"
    assert all(one < 5 or 50 < one < 70 for one in pauses)
    await tracker.stop()


async def test_one_that_is_forgotten_while_it_waits_is_not_connected() -> None:
    hosts = _Hosts()
    tracker = _tracker(hosts)
    for number in range(4):
        tracker.follow(f"host{number}", connect=True)
    await asyncio.sleep(0.01)
    tracker.forget("host3")
    hosts.go_on.set()
    async with asyncio.timeout(5):
        while tracker.untried:  # noqa: ASYNC110 - the tracker tells nobody
            await asyncio.sleep(0.01)
    assert hosts.watched.keys() == {"host0", "host1", "host2"}
    await tracker.stop()


async def test_those_that_are_forgotten_before_their_first_step_leave_room_for_others() -> None:
    hosts = _Hosts()
    hosts.go_on.set()
    tracker = _tracker(hosts)
    for number in range(_AT_ONCE):
        tracker.follow(f"host{number}", connect=True)
        tracker.forget(f"host{number}")
    tracker.follow("another", connect=True)
    async with asyncio.timeout(5):
        await tracker._followed["another"].tried
    assert hosts.watched.keys() == {"another"}
    await tracker.stop()


async def test_a_sign_that_was_on_its_way_when_the_host_was_forgotten_begins_no_watch() -> None:
    hosts = _Hosts()
    hosts.go_on.set()
    tracker = _tracker(hosts)
    tracker.follow("host", connect=True)
    followed = tracker._followed["host"]
    await followed.tried
    tracker.forget("host")
    hosts.watched["host"]()
    assert not followed.watched
    await tracker.stop()
