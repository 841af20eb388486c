"""RabbitMQ in memory: what the product's bus uses of aio_pika, on the simulated network.

Invariant: as with the real broker, a message whose publication was confirmed is in its queue until it was acknowledged,
the queue expired or the broker lost everything; messages that were not acknowledged come again when their consumer is
gone; an order of messages is kept from one channel to one consumer.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from aio_pika.exceptions import AMQPConnectionError, PublishError

from caelum.testing.simulation.loop import Machine
from caelum.testing.simulation.network import RETRANSMISSION, NetworkLoop

IP = "10.0.0.100"
PATIENCE = 30.0
"""After so many seconds of silence both ends take a connection for lost."""
DOUBLES = 0.002
"""How often a message is delivered twice for no reason that its receiver can see."""
_tags = itertools.count(1)

Consumer = Callable[[Any], Awaitable[None]]


class NoQueueError(PublishError):
    """A message was returned."""

    def __init__(self, key: str) -> None:
        Exception.__init__(self, key)

    def __repr__(self) -> str:
        return f"NoQueueError({self.args[0]!r})"

    __str__ = __repr__


class Delivery:
    """A message on its way to a consumer: as `aio_pika.IncomingMessage`."""

    def __init__(self, message: Any, channel: Channel, queue: Queue, tag: int) -> None:
        for name in ("body", "type", "headers", "message_id", "correlation_id", "reply_to", "app_id"):
            setattr(self, name, getattr(message, name))
        self.message, self.tag = message, tag
        self._channel, self._queue = channel, queue

    async def ack(self, multiple: bool = False) -> None:
        """The broker may forget it, and those before it."""
        self._channel.settle(self.tag, multiple)

    async def nack(self, multiple: bool = False, requeue: bool = True) -> None:
        """The broker shall give it to somebody again."""
        self._channel.settle(self.tag, multiple)
        if requeue:
            self._queue.put_back(self.message)


class Queue:
    """A queue, as the broker has it and as clients see it."""

    def __init__(self, broker: Broker, name: str, expires: float | None) -> None:
        self.broker, self.name, self.expires = broker, name, expires
        self.waiting: deque[Any] = deque()
        self.consumer: tuple[str, Channel, Consumer] | None = None
        self.idle_since = broker.loop.time()
        self._busy = False

    # --- a client's side ----------------------------------------------------------------------------------------------

    async def bind(self, exchange: str, key: str) -> None:
        """Take what is published there under a key."""
        await self.broker.trip()
        self.broker.bindings.setdefault((exchange, key), {})[self.name] = None

    async def consume(self, consumer: Consumer) -> str:
        """Be given the messages. The machine that calls is the consumer's."""
        await self.broker.trip()
        tag = f"consumer{next(_tags)}"
        self.consumer = (tag, self.broker.channel_of(self), consumer)
        self._next()
        return tag

    async def cancel(self, tag: str) -> None:
        """Be given nothing more."""
        await self.broker.trip()
        if self.consumer is not None and self.consumer[0] == tag:
            self.lose_consumer()

    async def delete(self, **_conditions: Any) -> None:
        """Be gone."""
        await self.broker.trip()
        self.broker.queues.pop(self.name, None)

    # --- the broker's side --------------------------------------------------------------------------------------------

    def put(self, message: Any) -> None:
        """A message has come."""
        self.waiting.append(message)
        self._next()

    def put_back(self, message: Any) -> None:
        """A message comes again."""
        self.waiting.appendleft(message)
        self._next()

    def lose_consumer(self) -> None:
        """Nobody takes from this queue."""
        self.consumer, self.idle_since = None, self.broker.loop.time()

    def _next(self) -> None:
        if self.consumer is not None and self.waiting and not self._busy:
            self._busy = True
            loop = self.broker.loop
            loop.call_at_for(loop.director, loop.time() + loop.network.weather.delay(), self._deliver)

    def _deliver(self) -> None:
        self._busy = False
        if self.consumer is None or not self.waiting or self.broker.queues.get(self.name) is not self:
            return
        _, channel, consumer = self.consumer
        loop, machine = self.broker.loop, channel.connection.machine
        if loop.network.weather.is_cut(machine.ip, IP):
            self._busy = True
            loop.call_at_for(loop.director, loop.time() + RETRANSMISSION, self._deliver)
            return
        message = self.waiting.popleft()
        for _ in range(2 if self.broker.chance.random() < DOUBLES else 1):
            delivery = channel.give(message, self)
            loop.call_at_for(machine, loop.time(), _take, loop, consumer, delivery)
        self._next()


def _take(loop: NetworkLoop, consumer: Consumer, delivery: Delivery) -> None:
    loop.create_task(consumer(delivery))  # type: ignore[arg-type]


class Exchange:
    """An exchange as a publisher sees it."""

    def __init__(self, broker: Broker, name: str, channel: Channel) -> None:
        self._broker, self._name, self._channel = broker, name, channel

    async def publish(self, message: Any, key: str, *, mandatory: bool = True) -> None:
        """Publish, and wait until the broker confirms."""
        connection = self._channel.connection
        await connection.pass_wire()
        queues = self._broker.routed(self._name, key)
        for queue in queues:
            queue.put(message)
        await connection.pass_wire()
        if mandatory and not queues:
            raise NoQueueError(key)


class Channel:
    """A channel."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.close_callbacks: set[Any] = set()
        self.on_consumer_cancel_callbacks: set[Any] = set()
        self._given: dict[int, tuple[Any, Queue]] = {}

    async def get_underlay_channel(self) -> Channel:
        """The same."""
        return self

    async def set_qos(self, prefetch_count: int) -> None:
        """Nobody is ever given too much here."""

    async def declare_exchange(self, name: str, *_arguments: Any, **_options: Any) -> Exchange:
        """All exchanges are there."""
        await self.connection.pass_wire()
        return Exchange(self.connection.broker, name, self)

    async def get_exchange(self, name: str, ensure: bool = True) -> Exchange:  # noqa: ARG002 - as aio_pika
        """All exchanges are there."""
        return Exchange(self.connection.broker, name, self)

    @property
    def default_exchange(self) -> Exchange:
        """The one that routes to queues by name."""
        return Exchange(self.connection.broker, "", self)

    async def declare_queue(self, name: str, arguments: Any = None, **_options: Any) -> Queue:
        """The queue of a name, a new one when there is none."""
        await self.connection.pass_wire()
        expires = (arguments or {}).get("x-expires")
        queue = self.connection.broker.queue(name, None if expires is None else expires / 1000)
        self.connection.broker.now_at[queue] = self
        return queue

    async def get_queue(self, name: str, ensure: bool = True) -> Queue:  # noqa: ARG002 - as aio_pika
        """The queue of a name."""
        queue = self.connection.broker.queue(name, None)
        self.connection.broker.now_at[queue] = self
        return queue

    def give(self, message: Any, queue: Queue) -> Delivery:
        """Remember what is given to the consumer until it is acknowledged."""
        tag = next(_tags)
        self._given[tag] = (message, queue)
        return Delivery(message, self, queue, tag)

    def settle(self, tag: int, multiple: bool) -> None:
        """Forget what was acknowledged, unless the acknowledgement cannot arrive any more."""
        if self.connection.open:
            for one in [one for one in self._given if one == tag or (multiple and one < tag)]:
                del self._given[one]

    def give_back(self) -> None:
        """Its consumer is gone: what it had not acknowledged comes again."""
        given, self._given = self._given, {}
        for message, queue in reversed(list(given.values())):
            queue.put_back(message)


class Connection:
    """A connection of a node."""

    def __init__(self, broker: Broker, machine: Machine) -> None:
        self.broker, self.machine = broker, machine
        self.open = True
        self.close_callbacks: set[Any] = set()
        self.channels: list[Channel] = []

    async def channel(self, **_options: Any) -> Channel:
        """A new channel."""
        await self.pass_wire()
        self.channels.append(Channel(self))
        return self.channels[-1]

    async def close(self) -> None:
        """An orderly end."""
        self.end()

    async def pass_wire(self) -> None:
        """Something goes from one end to the other. Raises AMQPConnectionError."""
        weather, begun = self.broker.loop.network.weather, self.broker.loop.time()
        await asyncio.sleep(weather.delay())
        while self.open and weather.is_cut(self.machine.ip, IP):
            await asyncio.sleep(RETRANSMISSION)
            if self.broker.loop.time() - begun > PATIENCE:
                self.lose()
        if not self.open:
            raise AMQPConnectionError("the connection is lost")

    def end(self) -> None:
        """The broker's side of an end."""
        if self.open:
            self.open = False
            self.broker.connections.pop(self, None)
            for queue in self.broker.queues.values():
                if queue.consumer is not None and queue.consumer[1].connection is self:
                    queue.lose_consumer()
            for channel in self.channels:
                channel.give_back()

    def lose(self) -> None:
        """The connection breaks; the client is told."""
        if self.open:
            self.end()
            loop = self.broker.loop
            callbacks = [one for channel in self.channels for one in channel.close_callbacks]
            for callback in [*self.close_callbacks, *callbacks]:
                loop.call_at_for(self.machine, loop.time(), callback, self, None)


class Broker:
    """The broker."""

    def __init__(self, loop: NetworkLoop, chance: random.Random) -> None:
        self.loop, self.chance = loop, chance
        self.down = False
        self.queues: dict[str, Queue] = {}
        self.bindings: dict[tuple[str, str], dict[str, None]] = {}
        self.connections: dict[Connection, None] = {}
        self.now_at: dict[Queue, Channel] = {}

    async def connect(self, *_arguments: Any, **_options: Any) -> Connection:
        """In the place of `aio_pika.connect`."""
        machine = self.loop.machine
        await self.trip()
        if self.down or self.loop.network.weather.is_cut(machine.ip, IP):
            await asyncio.sleep(1.0)
            raise AMQPConnectionError("the broker cannot be reached")
        connection = Connection(self, machine)
        self.connections[connection] = None
        return connection

    async def trip(self) -> None:
        """A short exchange."""
        await asyncio.sleep(self.loop.network.weather.delay())

    def queue(self, name: str, expires: float | None) -> Queue:
        """The queue of a name."""
        if name not in self.queues:
            self.queues[name] = Queue(self, name, expires)
        return self.queues[name]

    def channel_of(self, queue: Queue) -> Channel:
        """On which channel somebody asked for a queue last."""
        return self.now_at[queue]

    def routed(self, exchange: str, key: str) -> list[Queue]:
        """The queues that get a message."""
        self._forget_expired()
        if not exchange:
            names = [key]
        else:
            names = [
                name
                for (bound, pattern), found in self.bindings.items()
                if bound == exchange and _fits(pattern, key)
                for name in found
            ]
        return [self.queues[name] for name in dict.fromkeys(names) if name in self.queues]

    def vanish(self, machine: Machine) -> None:
        """A machine's process is gone."""
        for connection in [one for one in self.connections if one.machine is machine]:
            connection.end()

    def crash(self) -> None:
        """Everything is lost: queues, messages, connections."""
        self.down = True
        self.queues.clear()
        self.bindings.clear()
        for connection in list(self.connections):
            connection.lose()

    def _forget_expired(self) -> None:
        now = self.loop.time()
        for queue in list(self.queues.values()):
            if queue.consumer is None and queue.expires is not None and now - queue.idle_since > queue.expires:
                del self.queues[queue.name]


def _fits(pattern: str, key: str) -> bool:
    return key.startswith(pattern[:-1]) if pattern.endswith("#") else key == pattern
