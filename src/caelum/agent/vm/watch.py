"""What guests do by themselves: libvirt's events become reports, and whoever waits for a guest is woken.

Invariant: the server hears of every change of state, in order: by a report, or by the answer of the command that made
it. Events only make it fast: whatever was missed while libvirt or the agent was away is found by comparing all states
after each new connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import libvirt  # type: ignore[import-untyped]

from caelum.agent.core import Agent
from caelum.agent.news import VmStateReport
from caelum.agent.protocol import Nic
from caelum.agent.registry import AgentFailure
from caelum.agent.vm import domains
from caelum.agent.vm.libvirtd import Libvirt

log = logging.getLogger(__name__)

CHECK_SECONDS = 2.0
"""How often a lost connection is noticed and opened again."""

_STATES = {
    # Started is left out: guests start paused and are resumed when their network is guarded, which is an event too.
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: "Paused",
    libvirt.VIR_DOMAIN_EVENT_RESUMED: "Running",
    libvirt.VIR_DOMAIN_EVENT_STOPPED: "Stopped",
    libvirt.VIR_DOMAIN_EVENT_CRASHED: "Crashed",
    libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED: "Paused",
}
_STOP_REASONS = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: "the guest shut down",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "the plug was pulled",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: "the guest or its emulator crashed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: "the emulator failed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED: "migrated away",
}
_SUSPEND_REASONS = {
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR: "a disk failed",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED_WATCHDOG: "the watchdog fired",
}
STARTING = "Starting"
"""Ours alone: a guest that is paused until its network is guarded. No news for the server."""
_ACTIVE = ("Running", "Paused", "Crashed")


class Watch:
    """Events of all domains, and what is known of ours."""

    def __init__(self, agent: Agent, libvirt_: Libvirt) -> None:
        self._agent = agent
        self._libvirt = libvirt_
        self._states: dict[str, str] = {}
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._full: set[str] = set()
        self._commanded: dict[str, str | None] = {}
        """Guests that a command is working on, and why they changed last since it began; None: they did not."""
        self._first = True
        self._resync = asyncio.Event()

    def add(self, vm_uuid: str) -> None:
        """A domain of ours is about to be defined."""
        self._states[vm_uuid] = STARTING

    def started_paused(self, vm_uuid: str) -> None:
        """The start is done, and the guest is to stay paused."""
        self._states[vm_uuid] = "Paused"
        self._report(vm_uuid, "Paused", "")

    def forget(self, vm_uuid: str) -> None:
        """A domain of ours is gone. Its last event may come later, when nobody knows the name any more."""
        if self._states.pop(vm_uuid, None) in _ACTIVE:
            self._report(vm_uuid, "Stopped", "")

    @contextlib.contextmanager
    def commanded(self, vm_uuid: str, state: str) -> Iterator[None]:
        """A command brings this guest into this state in the block. That it did so says its answer: reported is only
        what came of it otherwise, or that it did if nobody hears the answer.
        """
        self._commanded[vm_uuid], done = None, False
        try:
            yield
            done = True
        finally:
            reason = self._commanded.pop(vm_uuid)
            if done and self._states.get(vm_uuid) == STARTING:
                # The event of its start is still on the way.
                self._states[vm_uuid], reason = state, ""
            if reason is not None and done and self._known(vm_uuid) == state:
                self._agent.unless_heard(partial(self._tell, vm_uuid, reason))
            elif reason is not None:
                self._tell(vm_uuid, reason)

    def _known(self, vm_uuid: str) -> str:
        return self._states.get(vm_uuid, "Stopped")

    def _tell(self, vm_uuid: str, reason: str) -> None:
        """Report a guest as it is now."""
        state = self._known(vm_uuid)
        if state != STARTING:
            self._report(vm_uuid, state, reason)

    async def all_states(self) -> tuple[dict[str, str], list[str]]:
        """States of all our domains as libvirt has them now, and the names of domains that are not ours."""
        return await self._libvirt.call(domains.all_states, set(self._states))

    async def changed(self, vm_uuid: str, at_most: float) -> None:
        """Wait for the next event of this guest, `at_most` so many seconds: whoever waits looks for himself then."""
        future = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(vm_uuid, [])
        waiting.append(future)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(future, at_most)
        finally:
            waiting.remove(future)
            if not waiting:
                self._waiting.pop(vm_uuid, None)

    async def start(self, agent: Agent) -> None:
        """Keep connected from now on. The agent starts without libvirt too."""
        loop = asyncio.get_running_loop()
        self._libvirt.opened.append(lambda connection: self._register(connection, loop))
        agent.spawn(self._keep_connected(), "libvirt connection")

    async def _keep_connected(self) -> None:
        complained = False
        while True:
            try:
                if not self._libvirt.is_connected():
                    await self._libvirt.call(lambda _connection: None)
                if self._resync.is_set():
                    self._resync.clear()
                    await self._compare()
                complained = False
            except AgentFailure as failure:
                if not complained:
                    log.warning("libvirt is not reachable: %s", failure)
                complained = True
            await asyncio.sleep(CHECK_SECONDS)

    def _register(self, connection: Any, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread, with each new connection: pass libvirt's events on to the agent's loop."""

        def to_loop(function: Callable[..., None], domain: Any, *args: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the agent is ending
                loop.call_soon_threadsafe(function, domain.name(), *args)

        def lifecycle(_conn: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:
            to_loop(self._lifecycle, domain, event, detail)

        def device(_conn: Any, domain: Any, _alias: str, _opaque: Any) -> None:
            to_loop(self._wake, domain)

        def io_error(_c: Any, domain: Any, path: str, _alias: str, _action: int, reason: str, _opaque: Any) -> None:
            if reason == "enospc":
                to_loop(self._no_space, domain, path)

        register = connection.domainEventRegisterAny
        register(None, libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, io_error, None)
        register(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle, None)
        register(None, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, device, None)
        register(None, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED, device, None)
        loop.call_soon_threadsafe(self._resync.set)

    def _wake(self, vm_uuid: str) -> None:
        for future in self._waiting.get(vm_uuid, []):
            if not future.done():
                future.set_result(None)

    def _lifecycle(self, vm_uuid: str, event: int, detail: int) -> None:
        self._wake(vm_uuid)
        if vm_uuid not in self._states:
            if event == libvirt.VIR_DOMAIN_EVENT_STARTED:
                self._agent.spawn(self._stranger(vm_uuid), f"domain {vm_uuid}")
            return
        state = _STATES.get(event)
        if state is not None:
            reasons = _STOP_REASONS if state == "Stopped" else _SUSPEND_REASONS
            self._saw(vm_uuid, state, reasons.get(detail, "") if state in ("Stopped", "Paused") else "")

    def _saw(self, vm_uuid: str, state: str, reason: str) -> None:
        known = self._states.get(vm_uuid)
        if known == state or (known == STARTING and state == "Paused"):
            return
        self._states[vm_uuid] = state
        if state != "Paused":
            self._full.discard(vm_uuid)
        self._report(vm_uuid, state, reason)
        if state not in _ACTIVE:
            self._agent.spawn(self._clean_up(vm_uuid), f"after the end of {vm_uuid}")

    def _report(self, vm_uuid: str, state: str, reason: str) -> None:
        if vm_uuid in self._commanded:
            self._commanded[vm_uuid] = reason
            return
        self._agent.report("vm-state", VmStateReport(vm_uuid=vm_uuid, state=state, reason=reason))

    async def _clean_up(self, vm_uuid: str) -> None:
        """Take a guest's NICs out of the guards, unless it was started again meanwhile."""
        async with self._agent.lock(f"vm-{vm_uuid}"):
            for nic in await self._libvirt.call(_nics_of_stopped, vm_uuid):
                for hook in self._agent.hooks.nic_unplugged:
                    await hook(self._agent, nic)

    def _no_space(self, vm_uuid: str, path: str) -> None:
        """A guest was paused because its disk cannot grow; each of its waiting writes says so, one report is enough."""
        if vm_uuid in self._states and vm_uuid not in self._full:
            self._full.add(vm_uuid)
            self._agent.report("storage-full", {"vmUuid": vm_uuid, "path": path})

    async def _stranger(self, name: str) -> None:
        if await self._libvirt.call(_is_ours, name):
            self.add(name)
        else:
            self._agent.report("unknown-domain", {"name": name})

    async def _compare(self) -> None:
        """Bring what is known in line with libvirt; tell the server what changed unseen."""
        states, _ = await self._libvirt.call(domains.all_states, set())
        first, self._first = self._first, False
        if first:
            # What runs is as the server knows it; what does not may have ended while there was no agent.
            self._states.update(dict.fromkeys(states, "Running"))
        for vm_uuid, state in states.items():
            self._saw(vm_uuid, state, "found, unseen when it happened")
        for vm_uuid in self._states.keys() - states.keys():
            self._saw(vm_uuid, "Stopped", "gone, unseen when it happened")


def _is_ours(connection: Any, name: str) -> bool:
    try:
        return domains.mark(connection.lookupByName(name)) is not None
    except libvirt.libvirtError:
        return False


def _nics_of_stopped(connection: Any, vm_uuid: str) -> list[Nic]:
    domain = domains.find(connection, vm_uuid)
    return [] if domain is None or domain.isActive() else domains.nics(domain)
