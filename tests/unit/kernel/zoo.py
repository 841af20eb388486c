"""A small service with every kind of handler, for the kernel's tests."""

import asyncio

from caelum.kernel import context
from caelum.kernel.bus import BusBase
from caelum.kernel.errors import OPERATION_ERROR, CloudError
from caelum.kernel.events import CanonicalEvent, EventHub, canonical
from caelum.kernel.memory_bus import MemoryBus
from caelum.kernel.message import Message, message
from caelum.kernel.queue import WorkQueues
from caelum.kernel.ring import Ring
from caelum.kernel.service import handles


@message(service="zoo", route_by="uuid")
class Feed(Message[int], kw_only=True):
    """Wait, then answer with the portion."""

    uuid: str = "lion"
    portion: int = 1
    seconds: float = 0.0
    fail: str | None = None


@message(service="zoo", route_by="uuid")
class Wash(Message[int], kw_only=True):
    """Like Feed, but one at a time per animal."""

    uuid: str | None = "lion"
    number: int = 1
    seconds: float = 0.0
    again: bool = False


@message(service="zoo", timeout=0.05)
class Sleepy(Message[None], kw_only=True):
    """Its declared time-out is shorter than it takes."""


@message(service="zoo")
class Deadline(Message[float | None], kw_only=True):
    """Answers the time that its context leaves, and calls on."""

    depth: int = 0


@message(service="nobody")
class Unheard(Message[None], kw_only=True):
    """No service handles it."""


@message(service="zoo")
class Glance(Message[asyncio.Task[None] | None], kw_only=True):
    """Answers the task in which its handler runs."""

    seconds: float = 0.0
    fail: bool = False


@canonical("/zoo/{animalName}/fed")
class Fed(CanonicalEvent):
    animal_name: str
    portion: int


class ZooService:
    name = "zoo"

    def __init__(self, bus: BusBase) -> None:
        self.bus = bus
        self.fed: list[int] = []
        self.washed: list[int] = []
        self.working = 0
        self.peak = 0

    @handles(Feed)
    async def feed(self, msg: Feed) -> int:
        self.working += 1
        self.peak = max(self.peak, self.working)
        try:
            await asyncio.sleep(msg.seconds)
        finally:
            self.working -= 1
        if msg.fail == "cloud":
            raise CloudError(OPERATION_ERROR, f"{msg.portion} kg are too much", portion=msg.portion)
        if msg.fail == "bug":
            raise KeyError("secret detail of a bug")
        self.fed.append(msg.portion)
        return msg.portion

    @handles(Wash, queue="wash-{uuid}")
    async def wash(self, msg: Wash) -> int:
        if msg.again:
            return await self.bus.call(Wash(uuid=msg.uuid, number=msg.number + 1))
        self.working += 1
        self.peak = max(self.peak, self.working)
        await asyncio.sleep(msg.seconds)
        self.working -= 1
        self.washed.append(msg.number)
        return msg.number

    @handles(Sleepy)
    async def sleepy(self, msg: Sleepy) -> None:
        await asyncio.sleep(5)

    @handles(Glance, reads=True)
    async def glance(self, msg: Glance) -> asyncio.Task[None] | None:
        await asyncio.sleep(msg.seconds)
        if msg.fail:
            raise KeyError("secret detail of a bug")
        return asyncio.current_task()

    @handles(Deadline)
    async def deadline(self, msg: Deadline) -> float | None:
        if msg.depth:
            return await self.bus.call(Deadline(depth=msg.depth - 1))
        return context.current().remaining()


def make_bus(me: str = "node-a") -> tuple[MemoryBus, ZooService]:
    """A bus with the zoo on it, alone in its ring."""
    ring = Ring(me)
    ring.join(me)
    bus = MemoryBus(ring, WorkQueues(), EventHub())
    zoo = ZooService(bus)
    bus.register(zoo)
    return bus, zoo
