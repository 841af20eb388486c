"""A whole cloud inside a test: one node on a temporary directory, with SQLite and the bus in memory (see `databases`).

Invariant: nothing outlives the block but the directory, so that a second `EmbeddedCloud` on it is a restart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from caelum.kernel import context
from caelum.kernel.bus import BusBase
from caelum.kernel.config import Config
from caelum.kernel.events import CanonicalEvent
from caelum.kernel.message import Message
from caelum.kernel.node import Node, PartSpec
from caelum.testing import databases

R = TypeVar("R")
E = TypeVar("E", bound=CanonicalEvent)


class EmbeddedCloud:
    """`async with EmbeddedCloud(tmp_path) as cloud:` starts the node and stops it at the end.

    `services` and `drivers` choose the parts as in `Node`; None takes all. `config` overrides single values.
    """

    def __init__(
        self,
        directory: Path,
        services: Sequence[PartSpec] | None = None,
        drivers: Sequence[PartSpec] | None = None,
        *,
        bus: Callable[[Node], BusBase] | None = None,
        **config: Any,
    ) -> None:
        values: dict[str, Any] = {
            "data_dir": directory,
            "api_host": "127.0.0.1", "api_port": 0,
            "agent_listen_host": "127.0.0.1", "agent_listen_port": 0,
            "console_host": "127.0.0.1", "console_port": 0,
            "advertised_host": "127.0.0.1",
            "stop_seconds": 2.0,
        }  # fmt: skip
        drivers = [] if services is not None and drivers is None else drivers
        if databases.on_postgresql():
            # A busy machine may let a test's loop wait for long.
            values |= {"database_url": databases.url_for(directory / "caelum.db"), "database_idle_seconds": 30.0}
            if bus is None:  # else others wait for its eviction when it dies
                values |= {"node_lease_seconds": 30.0, "node_eviction_seconds": 60.0}
        self.node = Node(Config(**{**values, **config}), services=services, drivers=drivers, bus=bus)
        self.events: list[CanonicalEvent] = []

    async def __aenter__(self) -> EmbeddedCloud:
        async def record(event: CanonicalEvent) -> None:
            self.events.append(event)

        self.node.events.subscribe(CanonicalEvent, record)
        await self.node.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.node.stop()

    async def api(self, msg: Message[R], actor: context.Actor | None = None, timeout: float | None = 30.0) -> R:
        """Send an API message as the administrator (or `actor`): the services' checks run, then it is routed."""
        with context.use(context.TaskContext(actor=actor or context.SYSTEM, api=msg.__meta__.name)):
            for check in self.node.interceptors_of(type(msg)):
                await check(msg)
            return await self.node.bus.call(msg, timeout)

    async def seen(self, cls: type[E]) -> list[E]:
        """The events of a class so far, once all that were published are delivered."""
        await self.node.events.idle()
        return [event for event in self.events if isinstance(event, cls)]

    async def until(self, condition: Callable[[], Any], seconds: float = 10.0) -> Any:
        """Wait until `condition()` (or what it returns, awaited) is true, and return that. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            if time.monotonic() > end:
                raise TimeoutError(f"not true within {seconds} s")
            await asyncio.sleep(0.01)
