"""Following hosts: pings, and connecting again what was lost.

Invariant: every host that the ring gives to this node, and no other, is followed here: a task works on it, or it waits
for its first connect, or a timer is set for its next look. One of thousands that only waits costs no more than that. A
host is lost after `ping.maxFailure` failed pings in a row; a lost one is tried again soon and then less and less often,
for ever. A ping that is answered by another agent than the last connect's means that the agent restarted: the host is
connected anew.

The driver may watch a host (`HypervisorDriver.watch`): when it gives a sign, or somebody says that a host does not
answer, it is pinged at once rather than at its next turn. So the death of an agent is noticed within a second.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from sqlalchemy import select

from caelum.cloud.host import records
from caelum.cloud.host.api import HostInventory
from caelum.cloud.host.connect import Connector
from caelum.cloud.host.extension import HostPing, HypervisorDriver
from caelum.cloud.host.model import HostModel
from caelum.cloud.host.settings import (
    AUTO_RECONNECT,
    LOAD_ALL,
    LOAD_PARALLELISM,
    MAX_RECONNECTS,
    PING_FAILURES,
    PING_INTERVAL,
    PING_PARALLELISM,
    PING_PAUSE,
    PING_TIMEOUT,
    RECONNECT_ON_BOOT,
    VM_SYNC_ON_PING,
)
from caelum.cloud.host.states import CONNECTED, MAINTENANCE, PRE_MAINTENANCE
from caelum.cloud.vm.messages import HostVmsSeen
from caelum.kernel.errors import RESOURCE_NOT_FOUND, CloudError, as_cloud_error
from caelum.kernel.node import Node
from caelum.kernel.queue import outside
from caelum.kernel.ring import RingChange

log = logging.getLogger(__name__)

_RESCAN_PAUSE = 1.0
_BACK_OFF = (1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0)
"""Seconds between attempts to connect a lost host; then the ping interval."""
_FIRST_LOOK, _FIRST_LOOK_EACH = 0.1, 0.01
"""Seconds between a connect and the first ping, and what each host adds that is connected at the same time."""
_STOP_PATIENCE = 0.5
_STEADY_WATCH = 60.0
"""A watch that held so long was a good one, and is renewed without a pause."""


class _Followed:
    """One host that is followed."""

    __slots__ = ("acts", "end_watch", "failures", "host_uuid", "next_look", "task", "tried", "watch_pause", "woken")

    def __init__(self, host_uuid: str) -> None:
        self.host_uuid = host_uuid
        self.tried: asyncio.Future[None] | None = asyncio.get_running_loop().create_future()
        """Until it was tried once."""
        self.task: asyncio.Task[None] | None = None
        self.next_look: asyncio.TimerHandle | None = None
        self.woken = False
        """Whether there was reason to look at it since the last look began."""
        self.failures = 0
        self.acts = False
        """Whether news of its status is of the tracker's own doing: it connects it, or has just found it lost."""
        self.end_watch: Callable[[], None] | None = None
        self.watch_pause = 1.0

    @property
    def watched(self) -> bool:
        """Whether its driver watches it."""
        return self.end_watch is not None

    def was_tried(self) -> None:
        """Nobody waits for it any longer."""
        if self.tried is not None:
            if not self.tried.done():
                self.tried.set_result(None)
            self.tried = None

    def unwatch(self) -> None:
        if self.end_watch is not None:
            self.end_watch()
            self.end_watch = None

    def rest(self) -> None:
        """Plan no further look, and watch it no longer."""
        if self.next_look is not None:
            self.next_look.cancel()
            self.next_look = None
        self.unwatch()

    def stop(self) -> None:
        self.rest()
        self.was_tried()
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()


class HostTracker:
    """Follows this node's hosts."""

    def __init__(self, node: Node, connector: Connector) -> None:
        self._node = node
        self._connector = connector
        self._followed: dict[str, _Followed] = {}
        self._stopping = False
        self._started = asyncio.Event()
        self._deaf: Callable[[], None] = lambda: None
        self._scan: asyncio.Task[None] | None = None
        self._unconnected: deque[_Followed] = deque()
        """Those whose first connect has not begun: at a start, nearly all."""
        self._loading = 0
        """How many first connects go on."""
        self._pinging = asyncio.Semaphore(1)

    async def start(self) -> None:
        """Follow every host of this node; those that it has from the start are connected first, in parallel."""
        self._pinging = asyncio.Semaphore(self._node.settings.get(PING_PARALLELISM))
        self._deaf = self._node.ring.on_change(self._on_ring)
        settings = self._node.settings
        await self._rescan_surely(connect=settings.get(LOAD_ALL) and settings.get(RECONNECT_ON_BOOT))
        self._started.set()

    @property
    def is_listed(self) -> bool:
        """Whether this node follows all hosts that the ring gives to it."""
        return self._started.is_set() and (self._scan is None or self._scan.done())

    async def listed(self) -> None:
        """Return when this node follows all hosts that the ring gives to it: after its start, or the ring's change."""
        await self._started.wait()
        if self._scan is not None:
            await asyncio.wait([self._scan])

    async def settled(self) -> None:
        """Return when every host that this node has by now was tried once."""
        await self.listed()
        await _all_of(one.tried for one in self._followed.values())

    @property
    def untried(self) -> set[str]:
        """The hosts that this node had at its start, or got since, and has not tried once yet."""
        return {uuid for uuid, one in self._followed.items() if one.tried is not None}

    async def tried(self, host_uuid: str) -> None:
        """Return when the host was tried once since the start; at once when it is not followed here."""
        await self.listed()
        followed = self._followed.get(host_uuid)
        if followed is not None:
            await _all_of([followed.tried])

    async def stop(self) -> None:
        """Follow no host any more."""
        self._stopping = True
        self._deaf()
        all_followed = list(self._followed.values())
        tasks = {one.task for one in all_followed if one.task is not None}
        tasks |= {self._scan} if self._scan is not None else set()
        for followed in all_followed:
            followed.rest()
        if tasks:
            # One that is at work may finish it, so that no database call is torn.
            await asyncio.wait(tasks, timeout=_STOP_PATIENCE)
        for followed in all_followed:
            followed.stop()
        await asyncio.gather(*tasks, return_exceptions=True)

    def follow(self, host_uuid: str, *, connect: bool = False) -> None:
        """Follow a host that the ring gives to this node."""
        if self._stopping or host_uuid in self._followed or not self._node.ring.owns(host_uuid):
            return
        followed = self._followed[host_uuid] = _Followed(host_uuid)
        if connect:
            self._unconnected.append(followed)
            self._connect_more()
        else:
            followed.was_tried()
            self._look_in(followed, self._interval())

    def forget(self, host_uuid: str) -> None:
        """Follow a host no longer."""
        followed = self._followed.pop(host_uuid, None)
        if followed is not None:
            followed.stop()

    def nudge(self, host_uuid: str) -> None:
        """There is reason to look at a host now."""
        followed = self._followed.get(host_uuid)
        if followed is not None:
            self._wake(followed)

    def connected(self, host_uuid: str) -> None:
        """Follow a host that is Connected, and look at it now when somebody else has connected it."""
        self.follow(host_uuid)
        followed = self._followed.get(host_uuid)
        if followed is not None and not followed.acts and not followed.watched:
            self._wake(followed)

    def lost(self, host_uuid: str) -> None:
        """Look at a host now that somebody else could not connect; what failed here is tried again in its time."""
        followed = self._followed.get(host_uuid)
        if followed is not None and followed.failures == 0 and not followed.acts:
            self._wake(followed)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work, context=outside(deadline=False))

    def _on_ring(self, _change: RingChange) -> None:
        self._scan = self._spawn(self._rescan_surely(connect=True))

    async def _rescan_surely(self, connect: bool) -> None:
        """A host that nobody follows would stay as it is for ever."""
        while not self._stopping:
            try:
                await self._rescan(connect)
                return
            except Exception:
                log.exception("the hosts could not be listed; it is tried again")
            await asyncio.sleep(_RESCAN_PAUSE)

    async def _rescan(self, connect: bool) -> None:
        async with self._node.db.read() as session:
            uuids = set(await session.scalars(select(HostModel.uuid)))
        ours = {uuid for uuid in uuids if self._node.ring.owns(uuid)}
        for uuid in self._followed.keys() - ours:
            self.forget(uuid)
        for uuid in ours:
            self.follow(uuid, connect=connect)

    # --- one host ---------------------------------------------------------------------------------------------------

    def _connect_more(self) -> None:
        """Begin first connects, as many as may go on at once."""
        most = self._node.settings.get(LOAD_PARALLELISM)
        while self._unconnected and self._loading < most and not self._stopping:
            followed = self._unconnected.popleft()
            if self._is_followed(followed):
                self._loading += 1
                followed.task = self._spawn(self._work(followed, self._connect_first))
                # Called also for one that is cancelled before its first step.
                followed.task.add_done_callback(self._loaded)

    def _loaded(self, _first: asyncio.Task[None]) -> None:
        self._loading -= 1
        self._connect_more()

    def _is_followed(self, followed: _Followed) -> bool:
        return self._followed.get(followed.host_uuid) is followed

    def _wake(self, followed: _Followed) -> None:
        """Look at a host now, or once more when something is done with it already."""
        followed.woken = True
        if followed.next_look is not None:
            self._look_in(followed, 0.0)

    def _look_in(self, followed: _Followed, seconds: float) -> None:
        if followed.next_look is not None:
            followed.next_look.cancel()
        loop = asyncio.get_running_loop()
        followed.next_look = loop.call_later(seconds, self._look_now, followed, context=outside(deadline=False))

    def _look_now(self, followed: _Followed) -> None:
        followed.next_look, followed.woken = None, False
        followed.task = self._spawn(self._work(followed, self._look))

    async def _work(self, followed: _Followed, work: Callable[[_Followed], Awaitable[float | None]]) -> None:
        """Do something with a host, and plan the next look at it."""
        pause: float | None = None
        try:
            pause = await work(followed)
        finally:
            followed.task = None
            followed.was_tried()
            if pause is None or self._stopping or not self._is_followed(followed):
                followed.rest()
                if self._is_followed(followed):
                    del self._followed[followed.host_uuid]
            else:
                self._look_in(followed, 0.0 if followed.woken else pause)

    async def _connect_first(self, followed: _Followed) -> float | None:
        try:
            return await self._reconnect(followed, among=len(self._followed))
        except Exception:
            log.exception("host %s could not be connected; it is tried again", followed.host_uuid)
            return _RESCAN_PAUSE

    def _interval(self) -> float:
        return self._node.settings.get(PING_INTERVAL) * random.uniform(0.9, 1.1)  # noqa: S311 - spreads load

    async def _look(self, followed: _Followed) -> float | None:
        """Bring what we know of a host up to date; seconds until the next look, None when it is gone."""
        try:
            return await self._look_closely(followed)
        except Exception:
            log.exception("host %s could not be looked at; it is tried again", followed.host_uuid)
            return self._interval()

    async def _look_closely(self, followed: _Followed) -> float | None:
        followed.acts = False
        if self._connector.connecting(followed.host_uuid):
            return 1.0
        try:
            host, agent_uuid = await records.known(self._node, followed.host_uuid)
        except CloudError as error:
            if error.kind is RESOURCE_NOT_FOUND:
                return None
            raise
        if host.state in (PRE_MAINTENANCE, MAINTENANCE):
            return self._interval()
        if host.status != CONNECTED:
            return await self._find_again(followed, host)
        followed.failures = 0
        try:
            answer = await self._ping(host, self._node.settings.get(PING_FAILURES))
        except CloudError as error:
            if self._connector.connecting(host.uuid):
                return 1.0  # a connect that began meanwhile finds out by itself
            followed.unwatch()
            followed.acts = True  # until the next look, for the news comes after the deed
            await self._connector.lost(host.uuid, error)
            return _BACK_OFF[0]
        if not answer.adopted or answer.agent_uuid != agent_uuid:
            log.info("the agent of host %s at %s has restarted", host.name, host.management_ip)
            return await self._reconnect(followed)
        self._watch(followed, host.hypervisor_type)
        if self._node.settings.get(VM_SYNC_ON_PING):
            self._connector.tell(HostVmsSeen(host_uuid=host.uuid, states=answer.vm_states))
        return self._interval()

    async def _ping(self, host: HostInventory, tries: int) -> HostPing:
        """Ping until it is answered, at most so often. Raises the last failure."""
        settings = self._node.settings
        driver = self._node.drivers.get(HypervisorDriver, host.hypervisor_type)
        while True:
            tries -= 1
            try:
                async with self._pinging:
                    return await driver.ping(host, settings.get(PING_TIMEOUT))
            except Exception as error:
                if tries <= 0:
                    raise as_cloud_error(error) from error
            await asyncio.sleep(settings.get(PING_PAUSE))

    async def _find_again(self, followed: _Followed, host: HostInventory) -> float:
        """Connect a lost host once it answers; until then it stays Disconnected without a word."""
        settings = self._node.settings
        limit = settings.get(MAX_RECONNECTS)
        if not settings.get(AUTO_RECONNECT) or (limit and followed.failures >= limit):
            return self._interval()
        try:
            await self._ping(host, 1)
        except CloudError as error:
            return self._try_later(followed, error)
        return await self._reconnect(followed)

    def _try_later(self, followed: _Followed, error: CloudError) -> float:
        pause = _BACK_OFF[followed.failures] if followed.failures < len(_BACK_OFF) else self._interval()
        followed.failures += 1
        log.info("host %s is tried again in %.0f s: %s", followed.host_uuid, pause, error.details)
        return min(pause, self._interval())

    async def _reconnect(self, followed: _Followed, *, among: int = 1) -> float:
        """Connect a host, one of so many at this time; seconds until the next look."""
        followed.acts = True
        try:
            host = await self._connector.connect(followed.host_uuid)
        except CloudError as error:
            return self._try_later(followed, error)
        finally:
            followed.acts = False
        followed.failures = 0
        self._watch(followed, host.hypervisor_type)
        if among > 1 and self._unconnected:
            return self._interval()  # hosts that nobody can work with yet come before those that have just answered
        # A first ping soon notices an agent that restarted during the connect.
        return random.uniform(_FIRST_LOOK, min(self._interval(), _FIRST_LOOK + among * _FIRST_LOOK_EACH))  # noqa: S311

    # --- watching ---------------------------------------------------------------------------------------------------

    def _watch(self, followed: _Followed, hypervisor_type: str) -> None:
        if not followed.watched:
            self._begin_watch(followed, hypervisor_type)

    def _begin_watch(self, followed: _Followed, hypervisor_type: str) -> None:
        begun, loop = time.monotonic(), asyncio.get_running_loop()

        def gone() -> None:
            if followed.end_watch is not end or not self._is_followed(followed):
                return  # its end came when the sign was on its way
            held = time.monotonic() - begun > _STEADY_WATCH
            followed.watch_pause = 1.0 if held else min(followed.watch_pause * 2, _STEADY_WATCH)
            again = loop.call_later(followed.watch_pause, self._begin_watch, followed, hypervisor_type)
            followed.end_watch = again.cancel
            self._wake(followed)

        driver = self._node.drivers.get(HypervisorDriver, hypervisor_type)
        end = followed.end_watch = driver.watch(followed.host_uuid, gone)


async def _all_of(futures: Iterable[asyncio.Future[None] | None]) -> None:
    """Return when all are done that there are."""
    if waiting := [one for one in futures if one is not None]:
        await asyncio.wait(waiting)
