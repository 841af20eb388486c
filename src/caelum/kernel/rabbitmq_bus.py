"""The bus of a cloud of several management nodes: what the ring gives to another node crosses RabbitMQ.

Invariant: the promises of `bus.py` hold across nodes. A call gets exactly one answer, within its time. What this node
serves itself takes no trip. While the broker is away, local calls go on and others wait a while, then fail with
`BUS_UNAVAILABLE`. A request is done at most once by the node that takes it: calls that wait for an answer when the
connection comes back, or for long, are sent again, and the receiver knows them by their id.

`rabbitmq_link` keeps the connection, `rabbitmq_outbox` sends, `rabbitmq_wire` has the JSON; docs/bus.md tells it all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVar

import msgspec

from caelum.kernel import context, freshness
from caelum.kernel.bus import BUS_UNAVAILABLE, ApiCall, ApiHandler, BusBase
from caelum.kernel.context import TaskContext
from caelum.kernel.database import refuse_in_transaction
from caelum.kernel.errors import TIMEOUT, UNDELIVERABLE, CloudError, as_cloud_error
from caelum.kernel.events import CanonicalEvent, EventHub
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import Message
from caelum.kernel.queue import WorkQueues, enter_turns, name_turns
from caelum.kernel.rabbitmq_link import Incoming, Link
from caelum.kernel.rabbitmq_outbox import Item, Outbox, envelopes_of
from caelum.kernel.rabbitmq_served import ServedRequests
from caelum.kernel.rabbitmq_topology import (
    BROADCAST,
    NODE_REPLIES,
    P2P,
    Topology,
    event_key,
    quietly,
    service_queue,
)
from caelum.kernel.rabbitmq_wire import (
    Envelope,
    decode_event,
    decode_message,
    decode_reply,
    encode_error,
    encode_event,
    encode_message,
    encode_reply,
)
from caelum.kernel.ring import Ring

log = logging.getLogger(__name__)

R = TypeVar("R")

PATIENCE = 60.0
"""How long a call to another node waits for a broker that is away, in seconds."""
SETTLE_SECONDS = 20.0
"""After a reconnection, how long queues of other nodes may be missing that are still in the ring."""
ASK_AGAIN = 10.0
"""After so many seconds without an answer a call is sent again: a queue whose node was cut off for long goes with what
waited in it, and nobody is told."""
_RETRY_PAUSE = 0.5
_ASLEEP = 1.0
_FLUSH_SECONDS = 2.0
_EVENT_BACKLOG = 10_000
_REPLY_BACKLOG = 50_000
_KNOWN_EVENTS = 10_000


class _Call:
    """A call to another node, from its beginning to its answer."""

    __slots__ = ("answer", "item", "keys", "msg", "node", "outbox", "sent_at")

    def __init__(self, msg: Message[Any], node: str, keys: list[str], answer: asyncio.Future[Any]) -> None:
        self.msg = msg
        self.node = node
        self.keys = keys
        self.answer = answer
        self.item: Item | None = None
        self.outbox: Outbox | None = None
        self.sent_at = 0.0

    @property
    def may_be_at_work(self) -> bool:
        """Whether the node that was asked may have it, though its queue is gone."""
        return self.item is not None and self.item.doubtful and self.is_for_node

    @property
    def is_for_node(self) -> bool:
        """Whether it goes to a node's own queue, and not to one that several processes may share."""
        return self.keys[0].endswith(self.node)

    def fail(self, error: CloudError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class RabbitMqBus(BusBase):
    """Calls and events between the nodes of a cluster, and with services in other processes."""

    def __init__(
        self,
        url: str,
        ring: Ring,
        queues: WorkQueues,
        events: EventHub,
        level_of: Callable[[Any], int] | None = None,
    ) -> None:
        super().__init__(ring, queues, events, level_of)
        self._topology = Topology(ring.me, self._take_requests, self._take_replies, self._take_events, self._take_api)
        self._link = Link(url, f"caelum {ring.me}", self._topology.declare, self._up, self._down)
        self._calls: dict[str, _Call] = {}
        self._served = ServedRequests()
        self._outboxes: dict[tuple[str, str], Outbox] = {}
        self._event_outbox: Outbox | None = None
        self._known_events: OrderedDict[str, None] = OrderedDict()
        self._api_handler: ApiHandler | None = None
        self._answers: set[Item] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._impatience: asyncio.TimerHandle | None = None
        self._asking: asyncio.TimerHandle | None = None
        self._started = False
        self._no_more: Callable[[], None] | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, and serve what the registered services handle."""
        self._started = True
        self._no_more = self.ring.on_gone(self._gone)
        self._topology.serve(one.service for one in self.endpoints())
        await self._link.start()
        self._ask_later()

    def register(self, service: object) -> None:
        """See `BusBase.register`; once started, the service's queue is declared too."""
        super().register(service)
        new = self._topology.serve(one.service for one in self.endpoints())
        if new and self._link.up:
            self._spawn(quietly(self._topology.declare_services(new)))

    async def drain(self, seconds: float) -> None:
        """Take no more requests from others, then wait for the running handlers."""
        if self._link.up:
            await self._topology.retire()
        await super().drain(seconds)

    async def stop(self) -> None:
        """Send what is still to be sent, for a short while, and disconnect. Calls that wait get an error."""
        self._started = False
        if self._no_more is not None:
            self._no_more()
            self._no_more = None
        boxes = self._boxes()
        if self._link.up:
            await self._flush(boxes)
        self._forget_impatience()
        if self._asking is not None:
            self._asking.cancel()
        for call in list(self._calls.values()):
            call.fail(CloudError(UNDELIVERABLE, f"node[{self.ring.me}] is stopping", node=self.ring.me))
        for task in [*self._served.tasks(), *self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, *[one.close() for one in boxes], return_exceptions=True)
        for item in self._answers:
            item.end(left=False)
        await self._topology.remove()
        await self._link.stop()

    async def _flush(self, boxes: list[Outbox]) -> None:
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await asyncio.gather(*[one.flushed() for one in boxes])
        except TimeoutError:
            log.warning("some messages could not be sent before the node stopped")

    def _boxes(self) -> list[Outbox]:
        found = list(self._outboxes.values())
        return found if self._event_outbox is None else [*found, self._event_outbox]

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the connection comes and goes --------------------------------------------------------------------------------

    def _up(self, again: bool) -> None:
        self._forget_impatience()
        for call in self._calls.values():
            self._put_again(call)
        if again:
            self._spawn(self.reconnected())

    def _put_again(self, call: _Call) -> None:
        """Whether it had arrived, or its answer was lost, nobody can know. The receiver recognises it."""
        if call.item is not None and not call.item.waiting:
            call.item.doubtful = True
            self._put(call)

    def _ask_later(self) -> None:
        due = time.monotonic() + ASK_AGAIN / 2
        self._asking = asyncio.get_running_loop().call_later(ASK_AGAIN / 2, self._ask_again, due)

    def _ask_again(self, due: float) -> None:
        """Send again what has had no answer for long. Not to services of other processes, which may have one queue for
        several of them; and not when this process has slept, for then the answers wait to be read."""
        self._ask_later()
        now = time.monotonic()
        if not self._link.up or now - due > _ASLEEP:
            return
        for call in self._calls.values():
            if call.sent_at <= now - ASK_AGAIN and call.is_for_node:
                self._put_again(call)

    def _down(self) -> None:
        self._forget_impatience()
        self._impatience = asyncio.get_running_loop().call_later(PATIENCE, self._give_up)

    def _forget_impatience(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None

    def _give_up(self) -> None:
        log.error("RabbitMQ is away since %.0f s; %d calls to other nodes fail", PATIENCE, len(self._calls))
        for call in list(self._calls.values()):
            call.fail(self._unavailable(call.msg, "its outcome is unknown"))

    def _unavailable(self, msg: Message[Any], so: str) -> CloudError:
        name = msg.__meta__.name
        details = f"RabbitMQ at {self._link.where} is away since {PATIENCE:.0f} s: message[{name}], {so}"
        return CloudError(BUS_UNAVAILABLE, details, message=name)

    def _gone(self, node: str) -> None:
        for call in list(self._calls.values()):
            if call.node == node != self.ring.me:
                call.fail(self._undeliverable(call, f"node[{node}] left the cluster", left=True))

    # --- the caller's side --------------------------------------------------------------------------------------------

    @property
    def sent(self) -> int:
        """See `BusBase.sent`."""
        return self._link.published

    def reaches(self, cls: type[Message[Any]]) -> bool:
        """Whether somebody may handle this message: a local service, or a process that serves another service."""
        return self.serves(cls) or not self._topology.serves(cls.__meta__.service)

    async def call(self, msg: Message[R], timeout: float | None = None) -> R:
        """See `Bus.call`."""
        ring = self.ring
        node = ring.me if ring.alone else self.destination(msg)
        if not self._started or (node == ring.me and (type(msg) in self._table or not self.reaches(type(msg)))):
            return await self.call_local(msg, timeout)
        refuse_in_transaction(f"call {type(msg).__name__}")
        return await self._call_remote(msg, node, timeout)  # type: ignore[no-any-return]

    async def _call_remote(self, msg: Message[Any], node: str, timeout: float | None) -> Any:
        meta, body = msg.__meta__, encode_message(msg)
        limit = meta.timeout if timeout is None or timeout > meta.timeout else timeout
        task_context, loop = context.current(), asyncio.get_running_loop()
        limit = min(limit, task_context.remaining() or limit)
        deadline = time.monotonic() + limit
        request = new_uuid()
        call = _Call(msg, node, self._keys(msg, node), loop.create_future())
        await self._wait_for_broker(call, limit)
        expiry = loop.call_later(deadline - time.monotonic(), self._expire, call, limit)
        try:
            call.item = Item(
                Envelope(
                    kind="request", id=request, reply_to=self._topology.reply_queue,
                    context=context.with_deadline(task_context, None), turns=name_turns(), body=msgspec.Raw(body),
                ),
                deadline, lambda: self._returned(call),
            )  # fmt: skip
            self._calls[request] = call
            self._put(call)
            return await call.answer
        finally:
            freshness.heard()
            expiry.cancel()
            if self._calls.pop(request, None) is not None:
                self._withdraw(request, call)

    def _keys(self, msg: Message[Any], node: str) -> list[str]:
        """Where to send it, in this order: the node's queue, and that of a service in another process."""
        service = msg.__meta__.service
        keys = [] if node == self.ring.me else [service_queue(service, node)]
        return keys if self._topology.serves(service) else [*keys, service_queue(service)]

    async def _wait_for_broker(self, call: _Call, limit: float) -> None:
        if self._link.up:
            return
        try:
            async with asyncio.timeout(min(PATIENCE, limit)):
                await self._link.ready()
        except TimeoutError:
            raise self._unavailable(call.msg, "which was not sent") from None
        if call.node != self.ring.me and call.node not in self.ring.members:
            raise self._undeliverable(call, f"node[{call.node}] left the cluster", left=True)

    def _put(self, call: _Call) -> None:
        if call.item is None or call.item.waiting or call.answer.done():
            return
        key = call.keys[0]
        call.outbox = self._outbox(P2P, key, bundles=call.is_for_node)
        call.outbox.put(call.item)
        call.sent_at = time.monotonic()

    def _outbox(self, exchange: str, key: str, *, bundles: bool, most: int | None = None) -> Outbox:
        found = self._outboxes.get((exchange, key))
        if found is None:
            if len(self._outboxes) > 1000:
                self._outboxes = {name: box for name, box in self._outboxes.items() if not box.idle}
            found = self._outboxes[exchange, key] = Outbox(self._link, exchange, key, bundles=bundles, most=most)
        return found

    def _expire(self, call: _Call, seconds: float) -> None:
        meta = call.msg.__meta__
        text = f"message {meta.name} to service[{meta.service}] on node[{call.node}] got no answer in {seconds:.1f} s"
        call.fail(CloudError(TIMEOUT, text, message=meta.name, seconds=seconds))

    def _withdraw(self, request: str, call: _Call) -> None:
        """The caller has left: what has not begun there shall not begin."""
        item, outbox = call.item, call.outbox
        if item is None or outbox is None:
            return
        item.wanted = False
        # When its time is over, the receiver knows that itself.
        if item.deadline is None or item.deadline > time.monotonic():
            outbox.put(Item(Envelope(kind="cancel", id=request)))

    def _returned(self, call: _Call) -> None:
        """No queue has this name."""
        if len(call.keys) > 1 and not call.may_be_at_work:
            call.keys.pop(0)
            self._put(call)
        elif call.node in self.ring.members and self._settling():
            # It comes back from the same loss of the broker as we did, only later.
            asyncio.get_running_loop().call_later(_RETRY_PAUSE, self._put, call)
        elif not call.may_be_at_work:
            certain = call.item is not None and not call.item.doubtful
            call.fail(self._undeliverable(call, f"no queue[{call.keys[0]}] exists", left=True, undelivered=certain))

    def _settling(self) -> bool:
        return self._link.returned_at > 0 and time.monotonic() - self._link.returned_at < SETTLE_SECONDS

    def _undeliverable(self, call: _Call, why: str, **facts: Any) -> CloudError:
        meta = call.msg.__meta__
        details = f"message[{meta.name}] to service[{meta.service}] on node[{call.node}] cannot be delivered: {why}"
        return CloudError(UNDELIVERABLE, details, service=meta.service, message=meta.name, node=call.node, **facts)

    async def _take_replies(self, message: Incoming) -> None:
        for envelope in _opened(message):
            call = self._calls.get(envelope.id)
            if call is None or call.answer.done():
                log.debug("a late or doubled answer to request %s is dropped", envelope.id)
                continue
            del self._calls[envelope.id]
            try:
                call.answer.set_result(decode_reply(envelope.body, call.msg.__meta__.reply))
            except CloudError as error:
                call.answer.set_exception(error)
            except Exception as error:
                # The others in the same bundle must not wait for it.
                log.exception("the answer of message %s cannot be read", call.msg.__meta__.name)
                call.answer.set_exception(as_cloud_error(error))

    # --- the handler's side -------------------------------------------------------------------------------------------

    async def _take_requests(self, message: Incoming) -> None:
        for envelope in _opened(message):
            if envelope.kind == "cancel":
                self._cancel(envelope.id)
            elif envelope.kind == "request":
                self._request(envelope)

    def _request(self, envelope: Envelope) -> None:
        known = self._served.find(envelope.id)
        if known is None:
            work = asyncio.get_running_loop().create_task(self._serve_request(envelope), context=Context())
            self._served.begin(envelope.id, work)
        elif known.done:
            log.info("request %s arrived again after its answer", envelope.id)
            again = CloudError(UNDELIVERABLE, "the request was answered, or taken back, before it arrived again")
            self._reply(envelope, known.answer or encode_error(again))

    async def _serve_request(self, envelope: Envelope) -> None:
        answer: bytes | None = None
        try:
            answer = await self._answer_of(envelope)
            self._reply(envelope, answer)
        finally:
            self._served.end(envelope.id, answer)

    async def _answer_of(self, envelope: Envelope) -> bytes:
        deadline = None if envelope.timeout is None else time.monotonic() + envelope.timeout
        context.enter(context.with_deadline(envelope.context or TaskContext(), deadline))
        enter_turns(envelope.turns)
        try:
            msg = decode_message(envelope.body)
            with freshness.begun():
                reply = await self.call_local(msg)
        except Exception as error:
            return encode_error(error)
        return encode_reply(msg.__meta__.reply, reply)

    def _reply(self, envelope: Envelope, body: bytes) -> None:
        if envelope.reply_to:
            self._send_back(envelope.reply_to, Item(_reply_envelope(envelope.id, body)))

    def _send_back(self, reply_to: str, item: Item) -> None:
        bundles = reply_to.startswith(NODE_REPLIES)
        self._outbox("", reply_to, bundles=bundles, most=_REPLY_BACKLOG).put(item)

    async def answer(self, reply_to: str, request: str, body: bytes) -> bool:
        """See `BusBase.answer`."""
        outcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        item = Item(_reply_envelope(request, body), outcome=outcome)
        self._answers.add(item)
        self._send_back(reply_to, item)
        try:
            return await outcome
        finally:
            self._answers.discard(item)

    def _cancel(self, request: str) -> None:
        known = self._served.find(request)
        if known is None:
            self._served.end(request, None)
        elif known.task is not None:
            # Takes it out of its queue; a handler that has begun runs on.
            known.task.cancel()
            # Here, because a task that is cancelled before its first line runs none of its own clean-up.
            self._served.end(request, None)

    # --- events -------------------------------------------------------------------------------------------------------

    def publish(self, event: CanonicalEvent) -> None:
        """See `Bus.publish`."""
        self.events.deliver(event)
        if not self._started:
            return
        try:
            body = encode_event(event, self.ring.me)
        except (TypeError, ValueError):
            log.exception("event %s cannot be told to other nodes", event.path)
            return
        if self._event_outbox is None:
            self._event_outbox = Outbox(
                self._link, BROADCAST, "", bundles=False, mandatory=False, most=_EVENT_BACKLOG, sender=self.ring.me
            )
        item = Item(Envelope(kind="event", id=new_uuid(), body=msgspec.Raw(body)), key=event_key(event.path))
        self._event_outbox.put(item)

    async def _take_events(self, message: Incoming) -> None:
        if message.app_id == self.ring.me:
            return  # delivered already, when it was published
        for envelope in _opened(message):
            if envelope.kind != "event" or envelope.id in self._known_events:
                continue
            self._known_events[envelope.id] = None
            if len(self._known_events) > _KNOWN_EVENTS:
                self._known_events.popitem(last=False)
            try:
                node, event = decode_event(envelope.body)
            except (CloudError, msgspec.DecodeError) as error:
                log.warning("an event that cannot be read is dropped: %s", error)
                continue
            if event is not None and node != self.ring.me and self.events.deliver(event):
                freshness.all_heard()

    # --- operations by AMQP -------------------------------------------------------------------------------------------

    async def open_api(self, handler: ApiHandler) -> None:
        """See `BusBase.open_api`."""
        self._api_handler = handler
        await self._topology.open_api()

    async def close_api(self) -> None:
        """See `BusBase.close_api`."""
        self._api_handler = None
        await self._topology.close_api()

    async def _take_api(self, message: Incoming) -> None:
        handler = self._api_handler
        if handler is None:
            await quietly(message.nack(requeue=True))
            return
        call = ApiCall(
            id=message.message_id or new_uuid(),
            correlation=message.correlation_id or message.message_id or "",
            reply_to=message.reply_to,
            body=message.body,
            timeout=_seconds((message.headers or {}).get("timeout")),
        )
        answer = await handler(call)
        # Until the broker has the answer the operation is not settled: when this node dies, another one answers.
        if answer is None or not call.reply_to or await self.answer(call.reply_to, call.correlation, answer):
            await quietly(message.ack())


def _reply_envelope(request: str, body: bytes) -> Envelope:
    return Envelope(kind="reply", id=request, body=msgspec.Raw(body))


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _opened(message: Incoming) -> list[Envelope]:
    try:
        return envelopes_of(message)
    except msgspec.DecodeError as error:
        log.warning("a message from %s that cannot be read is dropped: %s", message.app_id or "somebody", error)
        return []
