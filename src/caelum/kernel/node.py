"""The composition root: one management node, put together, started and stopped in order.

Invariant: requests are served only between the end of `start` and the beginning of `stop` (`ready`); a part that is
broken or missing keeps nobody else from starting; `stop` ends within its time whatever hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, cast

import msgspec

from caelum import builtin
from caelum.kernel import authority
from caelum.kernel.bus import BusBase
from caelum.kernel.cascade import Cascade
from caelum.kernel.config import Config
from caelum.kernel.database import Database
from caelum.kernel.errors import CloudError
from caelum.kernel.events import EventHub
from caelum.kernel.extension import Drivers, ExtensionPoint, Extensions, Part, discover, enabled
from caelum.kernel.gc import GarbageCollector
from caelum.kernel.ids import new_uuid
from caelum.kernel.jobs import Jobs
from caelum.kernel.log import Logging
from caelum.kernel.membership import EVICTED, Membership, is_of_cluster
from caelum.kernel.memory_bus import MemoryBus
from caelum.kernel.message import Message
from caelum.kernel.metrics import Metrics, bus_use, calls_of, database_use, queue_depth
from caelum.kernel.postgresql import Limits
from caelum.kernel.queue import WorkQueues
from caelum.kernel.resources import Resources
from caelum.kernel.ring import Ring
from caelum.kernel.service import Check, Service, handlings, interceptings
from caelum.kernel.settings import Settings
from caelum.kernel.timers import Timers
from caelum.kernel.upgrade import Upgrade
from caelum.kernel.vault import Vault
from caelum.kernel.work_queue import WorkQueue
from caelum.kernel.workflow import Workflows

log = logging.getLogger(__name__)

_SLOW_START = 5.0
_STOP_ONE = 5.0
_START_TURN = 0x0CAE2
"""The key under which nodes that start together take turns."""

PartSpec = str | type[Any]


class Node:
    """One management node.

    `services` and `drivers` choose the parts ("module:Class" strings or classes); None takes the built-in lists and
    all entry points. `bus` makes another bus than the configuration names. `on_lost` is called when this node is no
    longer part of its cloud: its process must end then.
    """

    def __init__(
        self,
        config: Config,
        *,
        services: Sequence[PartSpec] | None = None,
        drivers: Sequence[PartSpec] | None = None,
        bus: Callable[[Node], BusBase] | None = None,
    ) -> None:
        self.uuid = new_uuid()
        self.config = config
        self.ready = False
        self.stopping = False
        self.started_at = time.time()
        self.waiting_for: str | None = None
        self.ring = Ring(self.uuid)
        self.queues = WorkQueues(config.queue_cap)
        self.events = EventHub()
        self.metrics = Metrics()
        self.extensions = Extensions(config.disabled_extensions)
        self.drivers = Drivers()
        self.cascade = Cascade(self.extensions)
        self.bus: BusBase = (bus or make_bus)(self)
        self.db = Database(config.resolved_database_url(), limits=_limits(config))
        self.upgrade = Upgrade(self.db, config)
        self.settings = Settings(self.db, self.bus, self.uuid)
        self.ring.on_gone(self._gone)
        self.timers = Timers(self.setting)
        self.resources = Resources(self.db)
        self.vault = Vault(config.data_dir / "pki")
        self.jobs = Jobs(self)
        self.gc = GarbageCollector(self)
        self.workflows = Workflows(self)
        self.workqueue = WorkQueue(self)
        self.membership = Membership(self)
        self.on_lost: Callable[[str], None] = lambda _reason: None
        self.services: dict[str, Service] = {}
        self.broken: list[Part] = []
        self.logging = Logging(config, self.uuid)
        self._chosen = (services, drivers)
        self._parts: list[Any] = []
        self._begun: list[Any] = []
        self._failed: list[Any] = []
        self._checks: list[tuple[int, type[Message[Any]], Check]] = []
        self._checks_of: dict[type, tuple[Check, ...]] = {}

    def _gone(self, node: str) -> None:
        if node != self.uuid:
            self.settings.look_again()
            self.jobs.look_again(node)

    def setting(self, setting: Any) -> Any:
        """The value of a setting now."""
        return self.settings.get(setting)

    @property
    def serves(self) -> bool:
        """Whether requests are served now: the node is ready, and a member that has its lease."""
        return self.ready and self.membership.serving

    def lose(self, reason: str) -> None:
        """End all work where it stands: this node is no longer part of the cloud, and others have its work."""
        log.error("node %s is no longer part of the cloud and ends: %s", self.uuid, reason)
        self.ready = False
        self.db.sever(CloudError(EVICTED, f"node[{self.uuid}] is no longer part of the cloud: {reason}"))
        self._abandoning = asyncio.ensure_future(self.workflows.stop())
        self.on_lost(reason)

    # --- parts --------------------------------------------------------------------------------------------------------

    def add(self, part: Any) -> None:
        """Enter a service, driver or plugin: its handlers, checks and extensions."""
        if any(True for _ in handlings(part)):
            self.bus.register(part)
        if isinstance(part, Service):
            self.services[part.name] = part
        if isinstance(part, ExtensionPoint):
            self.extensions.add(part)
        for mark, check in interceptings(part):
            self._checks.append((mark.order, mark.cls, check))
        self._checks_of.clear()
        self._parts.append(part)

    def interceptors_of(self, cls: type[Message[Any]]) -> tuple[Check, ...]:
        """The checks of a message class and of its bases, in order; the portal runs them before it routes."""
        checks = self._checks_of.get(cls)
        if checks is None:
            fitting = [one for one in self._checks if issubclass(cls, one[1])]
            checks = tuple(check for _, _, check in sorted(fitting, key=lambda one: one[0]))
            self._checks_of[cls] = checks
        return checks

    def _find_parts(self) -> list[Part]:
        services, drivers = self._chosen
        found = _parts(services, ("caelum.services",), builtin.SERVICES)
        found += _parts(drivers, ("caelum.drivers", "caelum.plugins"), builtin.DRIVERS)
        return enabled(found, self.config.disabled_services)

    def _make_parts(self, found: Iterable[Part]) -> None:
        for part in found:
            if part.factory is None:
                self.broken.append(part)
                continue
            try:
                self.add(part.factory(self))
            except Exception as error:
                log.exception("cannot set up %s; the rest starts without it", part.name)
                self.broken.append(msgspec.structs.replace(part, error=f"{type(error).__name__}: {error}"))

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything; when this returns, the node is ready. A failed start leaves nothing running."""
        begun = time.monotonic()
        self.config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.logging.start()
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        self.ready = True
        log.info("node %s is ready after %.2f s with %d parts", self.uuid, time.monotonic() - begun, len(self._parts))

    async def _start(self) -> None:
        async with self._phase("the modules of the services"):
            found = self._find_parts()
        async with self._phase(f"the database {self.db.url.rpartition('@')[2]}"):
            await self.upgrade.begin()
        # What nodes make that find an empty database is made once.
        async with contextlib.AsyncExitStack() as turn:
            async with self._phase("its turn, because another node starts"):
                await turn.enter_async_context(self.db.turn(_START_TURN))
            await self._start_parts(found)
        async with self._phase("unfinished workflows to be taken up"):
            await self.workflows.recover([] if self.membership.clustered else None)
        await self.gc.start()
        await self.jobs.start()
        await self.workqueue.start()
        for part in [one for one in self._parts if one not in self._failed]:
            await self._begin(part, "serve")
        await self.membership.serve()
        self.upgrade.start()
        self.timers.start()

    async def _start_parts(self, found: list[Part]) -> None:
        async with self._phase("the certificate authority"):
            await authority.share(self.db, self.config.data_dir / "pki", self.config.authority_secret)
            await asyncio.to_thread(self.vault.load)
        async with self._phase("the settings"):
            await self.settings.start()
        self._make_parts(found)
        self._observe()
        async with self._phase(f"the bus {self.config.bus_url.rpartition('@')[2]}"):
            await self.bus.start()
        await self.membership.join()
        for part in list(self._parts):
            await self._begin(part, "start")

    async def _begin(self, part: Any, method: str) -> None:
        if part not in self._begun:
            self._begun.append(part)
        begin = getattr(part, method, None)
        if begin is None:
            return
        try:
            async with self._phase(f"{_name(part)} to {method}"):
                await begin()
        except Exception as error:
            if is_of_cluster(error):
                # It says nothing of the part, which would be missing for as long as this node lives: start anew.
                raise
            log.exception("%s did not %s; the rest goes on without it", _name(part), method)
            # It may hold something already, so it is stopped with the others; but nobody calls it any more.
            self._failed.append(part)
            self.bus.unregister(part)
            if isinstance(part, ExtensionPoint):
                self.extensions.remove(part)
            self.broken.append(Part(_name(part), type(part), f"{type(error).__name__}: {error}"))

    async def stop(self) -> None:
        """Stop in reverse order, each part within its time."""
        self.ready, self.stopping = False, True
        await self._ending("the membership", self.membership.withdraw())
        await self._ending("the timers", self.timers.stop())
        await self._ending("the upgrade", self.upgrade.stop())
        # Before the parts that its steps call: a step that fails since its driver has stopped would be undone.
        await self._ending("the workflows", self.workflows.stop(), self.config.stop_seconds)
        for part in reversed(self._begun):
            if (stop := getattr(part, "stop", None)) is not None:
                await self._ending(_name(part), stop())
        self._begun.clear()
        await self._ending("the garbage collector", self.gc.stop())
        await self._ending("the work queues", self.workqueue.stop())
        await self._ending("running handlers", self.bus.drain(self.config.stop_seconds), self.config.stop_seconds + 1)
        await self._ending("this node's row", self.membership.leave())
        await self._ending("the bus", self.bus.stop())
        await self._ending("the subscribers", self.events.close())
        self.ring.leave(self.uuid)
        await self._ending("the loop's watch", self.metrics.loop.stop())
        await self._ending("the database", self.db.close())
        self.logging.stop()

    def _observe(self) -> None:
        self.metrics.collect_from(calls_of(lambda: [(e.service, e.name, e.stats) for e in self.bus.endpoints()]))
        self.metrics.collect_from(queue_depth(self.queues.depth))
        self.metrics.collect_from(database_use(lambda: (self.db.transactions, self.db.statements)))
        self.metrics.collect_from(bus_use(lambda: self.bus.sent))
        self.metrics.loop.start()

    @contextlib.asynccontextmanager
    async def _phase(self, what: str) -> AsyncIterator[None]:
        """Name what a slow start waits for, again and again until it is over."""
        loop = asyncio.get_running_loop()
        begun = loop.time()

        timer: asyncio.TimerHandle | None = None

        def watch() -> None:
            nonlocal timer
            if timer is not None:
                log.warning("the start waits since %.0f s for %s", loop.time() - begun, what)
            timer = loop.call_later(_SLOW_START, watch)

        watch()
        self.waiting_for = what
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
            self.waiting_for = None
        log.debug("%s took %.3f s", what, loop.time() - begun)

    async def _ending(self, what: str, work: Awaitable[Any], seconds: float | None = None) -> None:
        seconds = _STOP_ONE if seconds is None else seconds
        try:
            async with asyncio.timeout(seconds):
                await work
        except TimeoutError:
            log.warning("%s did not end within %.0f s; the node stops without it", what, seconds)
        except Exception:
            log.exception("%s failed to end", what)


def _name(part: Any) -> str:
    return str(getattr(part, "name", type(part).__name__))


def _parts(chosen: Sequence[PartSpec] | None, groups: Iterable[str], built_in: Sequence[str]) -> list[Part]:
    if chosen is not None:
        named = discover("", [one for one in chosen if isinstance(one, str)])
        return named + [Part(one.__name__, one) for one in chosen if not isinstance(one, str)]
    first, *others = groups
    found = discover(first, built_in)
    for group in others:
        found += discover(group, ())
    return found


def _limits(config: Config) -> Limits:
    return Limits(
        pool=config.database_pool, extra=config.database_pool_extra,
        statement=config.database_statement_seconds, idle=config.database_idle_seconds,
    )  # fmt: skip


def make_bus(node: Node) -> BusBase:
    """The bus that the configuration names."""
    url = node.config.bus_url
    if url.startswith("memory:"):
        return MemoryBus(node.ring, node.queues, node.events, node.setting)
    if url.startswith(("amqp:", "amqps:")):
        # Loaded only here: it needs an optional dependency.
        module = importlib.import_module("caelum.kernel.rabbitmq_bus")
        return cast(BusBase, module.RabbitMqBus(url, node.ring, node.queues, node.events, node.setting))
    raise ValueError(f"bus_url {url!r} is neither memory: nor amqp://")
