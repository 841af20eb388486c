"""The agent as its handlers see it: processes, threads, locks, reports, hooks.

Invariant: the agent holds no truth about guests. libvirt, the kernel and the files do; what is kept here can be lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aiohttp
import msgspec
from aiohttp import web

from caelum.agent import process
from caelum.agent.protocol import INTERNAL, Nic
from caelum.agent.withheld import Withheld

log = logging.getLogger(__name__)
T = TypeVar("T")

MODULES = (
    "caelum.agent.host", "caelum.agent.program", "caelum.agent.series", "caelum.agent.vm", "caelum.agent.network",
    "caelum.agent.storage",
)  # fmt: skip
"""Packages that bring handlers; each may have `setup(agent)`."""
THREADS = 32
"""Threads for blocking work: libvirt calls, hashing, nftables."""

current_task: ContextVar[str | None] = ContextVar("current_task", default=None)
"""UUID of the command that runs in this context."""

NicHook = Callable[["Agent", Nic], Awaitable[None]]
AgentHook = Callable[["Agent"], Awaitable[None]]
DumpProvider = Callable[["Agent", list[str]], Awaitable[dict[str, Any]]]


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent is started with."""

    state_dir: Path
    listen: str = "0.0.0.0:7070"
    tls_dir: Path
    libvirt_uri: str = "qemu:///system"
    hypervisor: str = "auto"
    """auto: KVM when it truly works, else TCG; kvm or tcg force one."""
    socket_timeout: float = 30.0


class Hooks:
    """Where parts of the agent meet. All lists are called in order.

    nic_plugged(agent, nic): the guest runs and its tap exists (start, hot plug); a failure fails the command.
    nic_unplugged(agent, nic): the tap is gone or about to go; only `name`, `nic_uuid` and `mac` are sure to be set.
    started(agent), stopping(agent): after the agent's own start, before its end. Guests and networks must survive both.
    dump(agent, storage_paths): a dict with fields of `HostDump` (bridges, dhcp, metadata, nat, taps, files); merged.
    """

    def __init__(self) -> None:
        self.nic_plugged: list[NicHook] = []
        self.nic_unplugged: list[NicHook] = []
        self.started: list[AgentHook] = []
        self.stopping: list[AgentHook] = []
        self.dump: list[DumpProvider] = []


class ReportSink(Protocol):
    """Who takes reports: numbers, keeps and delivers them."""

    agent_uuid: str

    def add(self, kind: str, body: dict[str, Any]) -> None: ...

    def send_to(self, url: str, host_uuid: str) -> None: ...


async def _no_check() -> None:
    """Without workflows, nothing is ever taken over."""


class Agent:
    """What a handler may use. Made once by `caelum.agent.server`."""

    def __init__(self, config: AgentConfig, http: aiohttp.ClientSession, reports: ReportSink) -> None:
        self.config = config
        self.uuid = reports.agent_uuid
        self.state_dir = config.state_dir
        self.http = http
        self.hooks = Hooks()
        self.host_uuid: str | None = None
        self.report_url: str | None = None
        self.settings: dict[str, str] = {}
        self.routes: list[web.RouteDef] = []
        """Web routes of parts that are more than commands (consoles); filled by `setup`."""
        self.check_attempt: Callable[[], Awaitable[None]] = _no_check
        """Raises STALE_ATTEMPT when the workflow of the current command goes on in a higher attempt."""
        self.tasks_running: Callable[[], int] = lambda: 0
        self.answers_waiting: Callable[[], int] = lambda: 0
        """How many answers the server has not acknowledged yet."""
        self.replaced = asyncio.Event()
        """Set when the agent is to start anew in another program."""
        self.withheld = Withheld()
        self._parts: dict[type, Any] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._reports = reports
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="agent")
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,  # noqa: ASYNC109
        input: bytes | None = None,  # noqa: A002
        check: bool = True,
        error_code: str = INTERNAL,
    ) -> process.Completed:
        """Run a program; see `caelum.agent.process.run`."""
        return await process.run(argv, timeout=timeout, input=input, check=check, error_code=error_code)

    async def run_blocking(self, function: Callable[..., T], *args: Any) -> T:
        """Run a blocking function in a thread. A cancellation waits for it: its lock stays taken while it works."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # seen: the cancellation is what counts
            raise

    def add_part(self, part: object) -> None:
        """Keep a long-lived object of a module, found again by its class."""
        self._parts[type(part)] = part

    def part(self, kind: type[T]) -> T:
        """The object that a module's `setup` kept. Raises KeyError."""
        found: T = self._parts[kind]
        return found

    def report_to(self, url: str, host_uuid: str) -> None:
        """Who this host is for the server, and where its reports go."""
        self.host_uuid = host_uuid
        self.report_url = url
        self._reports.send_to(url, host_uuid)

    def report(self, kind: str, body: msgspec.Struct | dict[str, Any]) -> None:
        """Tell the server something unasked; kept until it acknowledges. Loop thread only."""
        self._reports.add(kind, body if isinstance(body, dict) else msgspec.to_builtins(body))

    def unless_heard(self, tell: Callable[[], None]) -> None:
        """Call `tell` unless the current command's answer says the same to who waits for it; at once outside of one."""
        task = current_task.get()
        if task is None:
            tell()
        else:
            self.withheld.keep(task, tell)

    def progress(self, percent: int, text: str = "") -> None:
        """Tell how far the current command is."""
        task = current_task.get()
        if task is not None:
            self.report("progress", {"taskUuid": task, "percent": percent, "text": text})

    @contextlib.asynccontextmanager
    async def lock(self, name: str) -> AsyncIterator[None]:
        """A named lock, first come first served. Forgotten when nobody holds or awaits it."""
        lock, users = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[name]
            if users == 1:
                del self._locks[name]
            else:
                self._locks[name] = (lock, users - 1)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run something beside the commands until it ends or the agent stops; its failure is logged."""
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background_done)
        return task

    def _background_done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background work %s failed", task.get_name(), exc_info=task.exception())

    async def close(self) -> None:
        """End background work and let the threads end."""
        left = list(self._background)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
