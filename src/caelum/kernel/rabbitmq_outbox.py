"""What goes out to one queue, in order: sent one by one where there is little, in bundles where there is much.

Invariant: an item leaves its outbox only when the broker confirmed it, returned it, or nobody wants it any more. What
was under way when the connection was lost is sent again; receivers recognise what they had already.

A bundle makes no item later: it is what came together while the one before was under way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context

import aio_pika
import msgspec

from caelum.kernel.ids import new_uuid
from caelum.kernel.rabbitmq_link import Incoming, Link, LinkDownError, ReturnedError
from caelum.kernel.rabbitmq_wire import Envelope, decode_bundle, encode_bundle

log = logging.getLogger(__name__)

MESSAGE_TTL = 300.0
"""The longest time that a message waits in a queue, in seconds, as in the original."""
_MOST_IN_BUNDLE = 200
_BUNDLE_BYTES = 256 * 1024
_AT_A_TIME = 64
_JSON = "application/json"


class Item:
    """A message to send. `returned()` is called when there is no such queue; `wanted` turns false to drop it.

    `key` is a routing key of its own, where the outbox is not one of a single queue. `doubtful` turns true when the
    connection was lost while it was under way: then it may have arrived. `outcome` tells whether it left (true) or was
    given up.
    """

    __slots__ = ("deadline", "doubtful", "envelope", "key", "outcome", "returned", "waiting", "wanted")

    def __init__(
        self,
        envelope: Envelope,
        deadline: float | None = None,
        returned: Callable[[], None] | None = None,
        key: str | None = None,
        outcome: asyncio.Future[bool] | None = None,
    ) -> None:
        self.envelope = envelope
        self.deadline = deadline
        self.returned = returned
        self.key = key
        self.outcome = outcome
        self.wanted = True
        self.waiting = False
        self.doubtful = False

    def end(self, left: bool) -> None:
        """It left, or was given up: whoever waits for that is told."""
        self.waiting = False
        if self.outcome is not None and not self.outcome.done():
            self.outcome.set_result(left)

    def stamp(self, now: float) -> bool:
        """Note the time that is left; false when there is none."""
        if self.deadline is not None:
            self.envelope.timeout = round(self.deadline - now, 3)
            return self.envelope.timeout > 0
        return True


class Outbox:
    """The way to one queue. `bundles`: the receiver takes several messages as one. `most`: how many may wait. `sender`
    is written on each message that is not in a bundle.
    """

    def __init__(
        self,
        link: Link,
        exchange: str,
        key: str,
        *,
        bundles: bool,
        mandatory: bool = True,
        most: int | None = None,
        sender: str | None = None,
    ) -> None:
        self._link = link
        self._exchange, self._key = exchange, key
        self._bundles, self._mandatory = bundles, mandatory
        self._sender_name = sender
        self._items: deque[Item] = deque(maxlen=most)
        self._sender: asyncio.Task[None] | None = None
        self._dropped = 0

    @property
    def idle(self) -> bool:
        """Whether everything is sent."""
        return self._sender is None

    def put(self, item: Item) -> None:
        """Send it after what waits already. Where `most` wait, the oldest is dropped."""
        if len(self._items) == self._items.maxlen:
            if not self._dropped:
                log.warning("%d messages wait for RabbitMQ to take them; the oldest are dropped", len(self._items))
            self._dropped += 1
            self._items.popleft().end(left=False)
        item.waiting = True
        self._items.append(item)
        if self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(
                self._send_all(), name=f"outbox:{self._key}", context=Context()
            )

    async def close(self) -> None:
        """Give up what is not sent."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)

    async def flushed(self) -> None:
        """Wait until everything is sent."""
        if self._sender is not None:
            await asyncio.wait([self._sender])

    async def _send_all(self) -> None:
        try:
            while self._items:
                await self._link.ready()
                if self._dropped:
                    log.warning("%d messages were dropped while RabbitMQ was away", self._dropped)
                    self._dropped = 0
                self._items.extendleft(reversed(await self._send(self._take())))
        finally:
            self._sender = None

    def _take(self) -> list[Item]:
        batch: list[Item] = []
        size, now = 0, time.monotonic()
        most = _MOST_IN_BUNDLE if self._bundles else _AT_A_TIME
        while self._items and len(batch) < most and size < _BUNDLE_BYTES:
            item = self._items.popleft()
            if item.wanted and item.stamp(now):
                batch.append(item)
                size += memoryview(item.envelope.body).nbytes
        return batch

    async def _send(self, batch: list[Item]) -> list[Item]:
        """Send a batch, and tell what is left of it because the connection was lost meanwhile."""
        if self._bundles:
            return [] if not batch or await self._publish(batch) else batch
        # One after the other on the wire, but not waiting for each other's confirmation.
        sent = await asyncio.gather(*[self._publish([item]) for item in batch])
        return [item for item, done in zip(batch, sent, strict=True) if not done]

    async def _publish(self, batch: Sequence[Item]) -> bool:
        """Send items as one message; false when the connection was lost meanwhile."""
        if len(batch) == 1:
            message = _amqp(batch[0].envelope, self._sender_name)
        else:
            message = _amqp_bundle([one.envelope for one in batch])
        try:
            await self._link.publish(self._exchange, batch[0].key or self._key, message, mandatory=self._mandatory)
        except LinkDownError:
            for item in batch:
                item.doubtful = True
            return False
        except ReturnedError as error:
            self._settle(batch)
            self._return(batch, error)
        except Exception as error:
            # What the client library cannot send at all must not keep the others waiting.
            log.exception("%d messages to %s cannot be sent", len(batch), self._key)
            self._settle(batch)
            self._return(batch, error)
        else:
            self._settle(batch)
        return True

    def _settle(self, batch: Sequence[Item]) -> None:
        for item in batch:
            item.end(left=True)

    def _return(self, batch: Sequence[Item], error: Exception) -> None:
        for item in batch:
            if item.returned is not None:
                item.returned()
            else:
                log.debug("a %s was not taken: %s", item.envelope.kind, error)


def _amqp(envelope: Envelope, sender: str | None = None) -> aio_pika.Message:
    headers: aio_pika.abc.HeadersType = {}
    if envelope.timeout is not None:
        headers["timeout"] = envelope.timeout
    if envelope.context is not None:
        headers["taskContext"] = msgspec.json.encode(envelope.context).decode()
    if envelope.turns:
        headers["queueTurns"] = " ".join(envelope.turns)
    return aio_pika.Message(
        bytes(envelope.body),
        type=envelope.kind,
        # Unique on the wire, where a request and its cancellation are two messages.
        message_id=envelope.id if envelope.kind == "request" else new_uuid(),
        correlation_id=envelope.id,
        reply_to=envelope.reply_to,
        headers=headers,
        content_type=_JSON,
        app_id=sender,
        expiration=_expiration(envelope.timeout),
    )


def _amqp_bundle(envelopes: list[Envelope]) -> aio_pika.Message:
    longest = [one.timeout for one in envelopes if one.timeout is not None]
    return aio_pika.Message(
        encode_bundle(envelopes),
        type="bundle",
        message_id=new_uuid(),
        content_type=_JSON,
        expiration=_expiration(max(longest, default=None) if len(longest) == len(envelopes) else None),
    )


def _expiration(timeout: float | None) -> float:
    return MESSAGE_TTL if timeout is None else min(timeout, MESSAGE_TTL)


def envelopes_of(message: Incoming) -> list[Envelope]:
    """What an AMQP message holds. Raises msgspec.DecodeError."""
    if message.type == "bundle":
        return decode_bundle(message.body)
    headers = message.headers or {}
    timeout, context = headers.get("timeout"), headers.get("taskContext")
    return [
        msgspec.convert(
            {
                # A foreign client need not say what it sends: to a service's queue that is a request.
                "kind": message.type or "request",
                "id": message.correlation_id or message.message_id or new_uuid(),
                "replyTo": message.reply_to,
                "timeout": timeout,
                "context": None if context is None else msgspec.json.decode(str(context)),
                "turns": str(headers.get("queueTurns") or "").split(),
                "body": msgspec.Raw(message.body),
            },
            Envelope,
        )
    ]
