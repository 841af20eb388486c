"""Exchanges and queues of the bus, and the consumers on them.

Invariant: all of it is declared anew at each connection, so that a broker that lost everything gets it back.

What a node consumes is acknowledged when it has taken it, many at once: what it took and did not answer is asked for
again by the caller. Operations are acknowledged when they are answered or recorded, so that another node takes over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable
from typing import Any

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractQueue

from caelum.kernel.rabbitmq_link import BROKEN, Consumer, Incoming, Link

log = logging.getLogger(__name__)

P2P = "caelum.p2p"
BROADCAST = "caelum.broadcast"
NO_ROUTE = "caelum.no-route"
PREFIX = "caelum.message."
NODE_REPLIES = "caelum.message.cloudbus."
API_PORTAL = "caelum.message.api.portal"
EVENT_KEY = "canonicalEvent"
QUEUE_EXPIRES = 60.0
"""How long a queue outlives its node's connection, in seconds; what waits in it meanwhile is not lost."""
REMOVE_SECONDS = 3.0
PREFETCH = 1000
API_PREFETCH = 50
"""Operations that a node works on at a time, of those that come by AMQP; the original's portal has as many workers."""
_ACK_PAUSE = 0.005


def service_queue(service: str, node: str | None = None) -> str:
    """The queue of a service on a node, or of a service that another process serves."""
    return f"{PREFIX}{service}" if node is None else f"{PREFIX}{service}.{node}"


def event_key(path: str) -> str:
    """The routing key of an event: "/vm/state/change" -> "canonicalEvent.vm.state.change"."""
    return (EVENT_KEY + path.replace("/", ".")).encode()[:255].decode(errors="ignore")


class Topology:
    """What one node declares and consumes."""

    def __init__(self, node: str, requests: Consumer, replies: Consumer, events: Consumer, api: Consumer) -> None:
        self._node = node
        self._requests, self._replies, self._events, self._api = requests, replies, events, api
        self._services: set[str] = set()
        self._link: Link | None = None
        self._channel: AbstractChannel | None = None
        self._taker: _Taker | None = None
        self._queues: dict[str, tuple[AbstractQueue, str]] = {}
        self._api_open = False
        self._api_consumer: tuple[AbstractQueue, str] | None = None
        self._retired = False

    @property
    def reply_queue(self) -> str:
        """Where this node takes answers."""
        return NODE_REPLIES + self._node

    def serves(self, service: str) -> bool:
        """Whether this node handles messages of a service."""
        return service in self._services

    def serve(self, services: Iterable[str]) -> list[str]:
        """Note which services this node handles, and tell which are new."""
        new = sorted(set(services) - self._services)
        self._services.update(new)
        return new

    async def declare(self, link: Link) -> None:
        """Declare everything and begin to consume."""
        self._link, self._queues, self._api_consumer = link, {}, None
        channel = self._channel = await link.channel(prefetch=PREFETCH)
        await channel.declare_exchange(NO_ROUTE, ExchangeType.FANOUT, durable=True)
        alternate: dict[str, Any] = {"alternate-exchange": NO_ROUTE}
        await channel.declare_exchange(P2P, ExchangeType.TOPIC, durable=True, arguments=alternate)
        await channel.declare_exchange(BROADCAST, ExchangeType.TOPIC, durable=True)
        self._taker = _Taker(channel)
        await self._consume(self.reply_queue, P2P, self.reply_queue, self._replies)
        # Durable: after a restart of the broker, the nodes that are back first must not tell their news to nobody.
        await self._consume(self._event_queue, BROADCAST, f"{EVENT_KEY}.#", self._events, durable=True)
        if not self._retired:
            await self.declare_services(sorted(self._services))
        # Declared also by nodes that do not take from it yet: a client's operation waits there for one that does.
        await channel.declare_queue(API_PORTAL, durable=True)
        await self._bind_api(channel)
        if self._api_open:
            await self._consume_api(link)

    async def declare_services(self, services: Iterable[str]) -> None:
        """Declare the queues of services and begin to consume."""
        for one in services:
            name = service_queue(one, self._node)
            await self._consume(name, P2P, name, self._requests)

    async def retire(self) -> None:
        """Take no more requests. Callers are told at once, because the queues are gone."""
        self._retired = True
        await self._delete([name for name in self._queues if name not in (self.reply_queue, self._event_queue)])

    async def remove(self) -> None:
        """Leave nothing behind on the broker."""
        try:
            async with asyncio.timeout(REMOVE_SECONDS):
                await self._delete(list(self._queues))
        except TimeoutError:
            log.debug("the queues are left to expire")

    async def open_api(self) -> None:
        """Begin to take operations from the queue that all nodes share."""
        self._api_open = True
        if self._link is not None and self._link.up and self._api_consumer is None:
            await quietly(self._consume_api(self._link))

    async def close_api(self) -> None:
        """Take no more operations; what was taken and is not answered goes to other nodes."""
        self._api_open = False
        consumer, self._api_consumer = self._api_consumer, None
        if consumer is not None:
            await quietly(consumer[0].cancel(consumer[1]))

    # --- queues -------------------------------------------------------------------------------------------------------

    @property
    def _event_queue(self) -> str:
        return f"caelum.event.{self._node}"

    async def _consume(self, name: str, exchange: str, key: str, consumer: Consumer, *, durable: bool = False) -> None:
        if self._channel is None or self._taker is None or name in self._queues:
            return
        expires: dict[str, Any] = {"x-expires": int(QUEUE_EXPIRES * 1000)}
        queue = await self._channel.declare_queue(name, durable=durable, arguments=expires)
        await queue.bind(exchange, key)
        self._queues[name] = (queue, await queue.consume(self._taker.taking(consumer)))

    async def _bind_api(self, channel: AbstractChannel) -> None:
        queue = await channel.get_queue(API_PORTAL, ensure=False)
        await queue.bind(P2P, API_PORTAL)

    async def _consume_api(self, link: Link) -> None:
        # A channel of its own: its messages are held until they are answered, which may take minutes.
        channel = await link.channel(prefetch=API_PREFETCH)
        queue = await channel.get_queue(API_PORTAL, ensure=False)
        self._api_consumer = (queue, await queue.consume(self._api))

    async def _delete(self, names: list[str]) -> None:
        for name in names:
            known = self._queues.pop(name, None)
            if known is None:  # a reconnection has just dropped it
                continue
            queue, tag = known
            await quietly(queue.cancel(tag))
            await quietly(queue.delete(if_unused=False, if_empty=False))


class _Taker:
    """Acknowledges what was taken on a channel, all of a moment together."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self._last: Incoming | None = None
        self._acknowledging: asyncio.Task[None] | None = None

    def taking(self, consumer: Consumer) -> Consumer:
        """A consumer that takes messages by `consumer`, which must not wait for anything, and acknowledges them."""

        async def take(message: Incoming) -> None:
            # Noted first: what cannot be read must not come again and again.
            self._last = message
            if self._acknowledging is None:
                self._acknowledging = asyncio.get_running_loop().create_task(self._acknowledge())
            await consumer(message)

        return take

    async def _acknowledge(self) -> None:
        await asyncio.sleep(_ACK_PAUSE)
        self._acknowledging = None
        if self._last is not None:
            await quietly(self._last.ack(multiple=True))


async def quietly(work: Awaitable[object]) -> None:
    """Something that fails only when the connection is lost, after which nothing of it matters."""
    try:
        async with asyncio.timeout(5):
            await work
    except (*BROKEN, TimeoutError) as error:
        log.debug("not done, because the connection is lost: %r", error)
