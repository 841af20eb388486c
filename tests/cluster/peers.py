"""Management nodes in their smallest form: ring, queues, events, a bus on RabbitMQ, and a zoo that answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType

from tests.unit.kernel.zoo import Fed, ZooService

from caelum.kernel import context
from caelum.kernel.bus import BusBase
from caelum.kernel.context import TaskContext
from caelum.kernel.errors import INTERNAL, OPERATION_ERROR, CloudError
from caelum.kernel.events import EventHub
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import Message, message
from caelum.kernel.queue import WorkQueues
from caelum.kernel.rabbitmq_bus import RabbitMqBus
from caelum.kernel.ring import Ring
from caelum.kernel.service import handles


@message(service="mirror", route_by="uuid")
class Look(Message[TaskContext], kw_only=True):
    """Answers what the handler knows of its task."""

    uuid: str


@message(service="mirror", route_by="uuid")
class Fail(Message[None], kw_only=True):
    """Fails with an error that has causes."""

    uuid: str


@message(service="mirror", route_by="uuid")
class Relay(Message[int], kw_only=True):
    """Holds its queue while it calls the next of the given resources; the last one answers how many there were."""

    uuid: str
    then: list[str] = []


class Mirror:
    name = "mirror"

    def __init__(self, bus: BusBase) -> None:
        self.bus = bus

    @handles(Look)
    async def look(self, msg: Look) -> TaskContext:
        return context.current()

    @handles(Relay, queue="relay-{uuid}")
    async def relay(self, msg: Relay) -> int:
        if not msg.then:
            return 1
        return 1 + await self.bus.call(Relay(uuid=msg.then[0], then=msg.then[1:]))

    @handles(Fail)
    async def fail(self, msg: Fail) -> None:
        deepest = CloudError(OPERATION_ERROR, "the disk is full", free=0)
        raise CloudError(OPERATION_ERROR, "cannot write", cause=CloudError(INTERNAL, "no space", cause=deepest))


class Peer:
    """One node. `fed` are the events that it saw, in order."""

    def __init__(self, url: str, uuid: str | None = None) -> None:
        self.uuid = uuid or new_uuid()
        self.ring = Ring(self.uuid)
        self.queues = WorkQueues()
        self.events = EventHub()
        self.bus = RabbitMqBus(url, self.ring, self.queues, self.events)
        self.zoo = ZooService(self.bus)
        self.bus.register(self.zoo)
        self.bus.register(Mirror(self.bus))
        self.fed: list[tuple[str, int]] = []

    async def __aenter__(self) -> Peer:
        async def note(event: Fed) -> None:
            self.fed.append((event.animal_name, event.portion))

        self.bus.subscribe(Fed, note)
        await self.bus.start()
        self.ring.join(self.uuid)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.bus.drain(0.1)
        await self.bus.stop()
        await self.events.close()

    def key_of(self, other: Peer) -> str:
        """The name of an animal that the ring gives to `other`."""
        return next(name for n in range(10_000) if self.ring.owner(name := f"animal-{n}") == other.uuid)

    def keys_of(self, other: Peer, count: int) -> list[str]:
        """So many of them."""
        names = (f"animal-{n}" for n in range(100_000))
        found = []
        while len(found) < count:
            name = next(names)
            if self.ring.owner(name) == other.uuid:
                found.append(name)
        return found


Peers = Callable[[int], Awaitable[list[Peer]]]


def joined(peers: list[Peer]) -> None:
    """Every node learns of every other."""
    for one in peers:
        for other in peers:
            one.ring.join(other.uuid)


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something that happens by itself."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.01)
