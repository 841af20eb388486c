"""The bus: services call each other by messages only, and every call ends with exactly one answer.

Invariant: a call returns the handler's reply or raises one `CloudError`, within the smallest of the caller's deadline,
the given time-out and the message's own. A handler that has begun is never torn by its caller's end: it runs on, the
deadline in its context makes its own calls expire, and its late answer is dropped. While it still waits for its turn in
a queue, the caller's end takes it out. A handler that only reads records is a part of its caller instead: it leaves
nothing undone when it is torn, and what it waits for is the database, which has limits of its own.

`BusBase` is what all transports share: the dispatch table, routing, lists of calls, events.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from caelum.kernel import context
from caelum.kernel.database import refuse_in_transaction
from caelum.kernel.errors import CANCELED, TIMEOUT, UNDELIVERABLE, CloudError, as_cloud_error, error_type
from caelum.kernel.events import CanonicalEvent, EventHub, Unsubscribe
from caelum.kernel.message import Message
from caelum.kernel.metrics import CallStats
from caelum.kernel.queue import WorkQueues, outside
from caelum.kernel.ring import Ring
from caelum.kernel.service import Handler, Handling, handlings

log = logging.getLogger(__name__)

BUS_UNAVAILABLE = error_type(
    "CAELUM.1010",
    "The message broker can not be reached",
    "The node tries to connect again by itself; repeat the request once RabbitMQ runs.",
    transient=True,
)

Reconnected = Callable[[], Awaitable[None] | None]

R = TypeVar("R")
E = TypeVar("E", bound=CanonicalEvent)


class Bus(Protocol):
    """What services see of the bus."""

    async def call(self, msg: Message[R], timeout: float | None = None) -> R:
        """The handler's reply. Raises CloudError."""

    async def call_all(self, msgs: Sequence[Message[R]], parallelism: int = 0) -> list[R | CloudError]:
        """The replies or errors in request order, at most `parallelism` calls at a time (0: all at once)."""

    def send(self, msg: Message[Any]) -> None:
        """Deliver without waiting; a failure is logged."""

    def publish(self, event: CanonicalEvent) -> None:
        """Tell the event to every subscriber on every node."""

    def subscribe(
        self, cls: type[E], handler: Callable[[E], Awaitable[None]], wanted: Callable[[E], bool] | None = None
    ) -> Unsubscribe:
        """Call `handler(event)` for each event of the class for which `wanted(event)` is true when it happens, which
        costs nothing where it is not; returns what ends it."""

    def on_reconnect(self, callback: Reconnected) -> Unsubscribe:
        """Call `callback` each time that events of other nodes may have been missed; returns what ends it."""


class ApiCall(msgspec.Struct, frozen=True, kw_only=True):
    """An operation that a client sent to the portal's queue. `correlation` is what its answer must carry."""

    id: str
    correlation: str
    reply_to: str | None
    body: bytes
    timeout: float | None = None


ApiHandler = Callable[[ApiCall], Awaitable[bytes | None]]
"""Answers an operation with the body to send; None: an answer will follow (`BusBase.answer`), or nobody wants one."""


class Endpoint:
    """A handler in the dispatch table, with all that a call needs looked up."""

    __slots__ = (
        "handler", "level", "name", "owner", "reads", "repeatable", "reply",
        "service", "setting", "signature", "stats", "timeout",
    )  # fmt: skip

    def __init__(self, handling: Handling, handler: Handler, owner: object) -> None:
        meta = handling.cls.__meta__
        self.name = meta.name
        self.service = meta.service
        self.timeout = meta.timeout
        self.reply = meta.reply
        self.handler = handler
        self.owner = owner
        self.signature = handling.signature
        self.reads = handling.reads
        self.level = handling.level if isinstance(handling.level, int) else 1
        self.setting = None if isinstance(handling.level, int) else handling.level
        self.repeatable = handling.repeatable
        self.stats = CallStats()


class BusBase:
    """Dispatch to the local handlers. Transports add the way to other nodes."""

    def __init__(
        self, ring: Ring, queues: WorkQueues, events: EventHub, level_of: Callable[[Any], int] | None = None
    ) -> None:
        self.ring = ring
        self.queues = queues
        self.events = events
        self._level_of = level_of
        self._table: dict[type, Endpoint] = {}
        self._working: dict[asyncio.Task[None], Endpoint] = {}
        self._on_reconnect: list[Reconnected] = []

    async def start(self) -> None:
        """Connect, where there is something to connect to."""

    async def stop(self) -> None:
        """Disconnect."""

    # --- registration -----------------------------------------------------------------------------------------------

    def register(self, service: object) -> None:
        """Enter all handlers of a service; a second handler for a message is a programming error."""
        found = {handling.cls: Endpoint(handling, handler, service) for handling, handler in handlings(service)}
        for cls in found:
            if cls in self._table:
                first = type(self._table[cls].owner).__name__
                raise TypeError(f"{cls.__name__} is handled by {first} and {type(service).__name__}")
        self._table.update(found)

    def unregister(self, service: object) -> None:
        """Take a service's handlers out; its running handlers go on."""
        for cls in [cls for cls, endpoint in self._table.items() if endpoint.owner is service]:
            del self._table[cls]

    def endpoints(self) -> list[Endpoint]:
        """The dispatch table, for metrics and diagnosis."""
        return list(self._table.values())

    def serves(self, cls: type[Message[Any]]) -> bool:
        """Whether a local service handles this message class."""
        return cls in self._table

    def is_repeatable(self, cls: type[Message[Any]]) -> bool:
        """Whether a local service handles this message class and declares that it may be done anew (`handles`)."""
        endpoint = self._table.get(cls)
        return endpoint is not None and endpoint.repeatable

    def reaches(self, cls: type[Message[Any]]) -> bool:
        """Whether a message of this class may find a handler, here or in another process."""
        return self.serves(cls)

    # --- routing ----------------------------------------------------------------------------------------------------

    def destination(self, msg: Message[Any]) -> str:
        """The UUID of the node that serves this message: the ring decides by the resource that it is about."""
        field = msg.__meta__.route_by
        key = None if field is None else getattr(msg, field)
        return self.ring.owner(key) if isinstance(key, str) and not self.ring.alone else self.ring.me

    def endpoint_of(self, msg: Message[Any]) -> Endpoint:
        """The local handler. Raises UNDELIVERABLE."""
        endpoint = self._table.get(type(msg))
        if endpoint is None:
            meta = msg.__meta__
            raise CloudError(
                UNDELIVERABLE,
                f"no service[{meta.service}] on node[{self.ring.me}] handles message[{meta.name}]",
                service=meta.service,
                message=meta.name,
            )
        return endpoint

    # --- the caller's side ------------------------------------------------------------------------------------------

    @abstractmethod
    async def call(self, msg: Message[R], timeout: float | None = None) -> R:
        """See `Bus.call`."""

    async def call_all(self, msgs: Sequence[Message[R]], parallelism: int = 0) -> list[R | CloudError]:
        """See `Bus.call_all`."""
        refuse_in_transaction(f"call {len(msgs)} messages")
        if len(msgs) == 1:
            return [await self._call_or_error(msgs[0])]
        results: list[Any] = [None] * len(msgs)
        waiting = iter(enumerate(msgs))

        async def work() -> None:
            for index, msg in waiting:
                results[index] = await self._call_or_error(msg)

        width = len(msgs) if parallelism <= 0 else min(parallelism, len(msgs))
        async with asyncio.TaskGroup() as group:
            for _ in range(width):
                group.create_task(work())
        return results

    async def _call_or_error(self, msg: Message[R]) -> R | CloudError:
        try:
            return await self.call(msg)
        except CloudError as error:
            return error

    def send(self, msg: Message[Any]) -> None:
        """See `Bus.send`."""
        # Nobody waits: neither the sender's deadline nor its turn in a queue binds the work.
        asyncio.get_running_loop().create_task(self._send(msg), context=outside(deadline=False))

    async def _send(self, msg: Message[Any]) -> None:
        try:
            await self.call(msg)
        except CloudError as error:
            log.error("message %s, sent without waiting, failed: %s", msg.__meta__.name, error)

    # --- the handler's side -----------------------------------------------------------------------------------------

    async def call_local(self, msg: Message[R], timeout: float | None = None) -> R:
        """Run the local handler of a message and wait for its answer."""
        refuse_in_transaction(f"call {type(msg).__name__}")
        endpoint = self.endpoint_of(msg)
        if endpoint.reads:
            context.current().remaining()
            return await self._read(endpoint, msg)
        limit = endpoint.timeout if timeout is None or timeout > endpoint.timeout else timeout
        now = time.monotonic()
        task_context = context.current()
        if task_context.deadline is None or task_context.deadline > now + limit:
            task_context = context.with_deadline(task_context, now + limit)
        else:
            limit = task_context.remaining() or 0.0
        loop = asyncio.get_running_loop()
        exchange = Exchange(endpoint, msg, task_context, loop.create_future())
        exchange.task = task = loop.create_task(self._serve(exchange))
        self._working[task] = endpoint
        expiry = loop.call_later(limit, exchange.expire, limit)
        try:
            return await exchange.answer  # type: ignore[no-any-return]
        finally:
            expiry.cancel()
            if not exchange.begun and task.cancel():
                # A task that is cancelled before its first line runs none of its own clean-up.
                self._working.pop(task, None)

    async def _read(self, endpoint: Endpoint, msg: Message[R]) -> R:
        """The answer of a handler that only reads."""
        started, failed = time.monotonic(), True
        try:
            reply: R = await endpoint.handler(msg)
            failed = False
        except CloudError:
            raise
        except Exception as error:
            raise self._failure(endpoint, error) from error
        finally:
            endpoint.stats.record(time.monotonic() - started, failed)
        return reply

    async def _serve(self, exchange: Exchange) -> None:
        endpoint, answer = exchange.endpoint, exchange.answer
        context.enter(exchange.context)
        started = time.monotonic()
        failed = True
        try:
            reply = await self._dispatch(exchange)
            failed = False
            if not answer.done():
                answer.set_result(reply)
        except BaseException as error:
            if not answer.done():
                answer.set_exception(self._failure(endpoint, error))
            elif exchange.begun:
                log.warning("message %s failed after its caller had left: %s", endpoint.name, error)
            if not isinstance(error, Exception | asyncio.CancelledError):
                raise
        finally:
            endpoint.stats.record(time.monotonic() - started, failed)
            self._working.pop(exchange.task, None)  # type: ignore[arg-type]

    async def _dispatch(self, exchange: Exchange) -> Any:
        endpoint, msg = exchange.endpoint, exchange.msg
        signature = None if endpoint.signature is None else endpoint.signature(msg)
        if signature is None:
            exchange.begun = True
            return await endpoint.handler(msg)
        level = endpoint.level
        if endpoint.setting is not None and self._level_of is not None:
            level = self._level_of(endpoint.setting)
        return await self.queues.run(signature, level, exchange.begin, name=endpoint.name)

    def _failure(self, endpoint: Endpoint, error: BaseException) -> CloudError:
        if isinstance(error, CloudError):
            return error
        if isinstance(error, asyncio.CancelledError):
            details = f"message {endpoint.name} was cancelled: its node is stopping"
            return CloudError(CANCELED, details, node=self.ring.me, stopping=True)
        if not isinstance(error, TimeoutError):
            log.error("the handler of message %s failed", endpoint.name, exc_info=error)
        return as_cloud_error(error)

    # --- events -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def publish(self, event: CanonicalEvent) -> None:
        """See `Bus.publish`."""

    def subscribe(
        self, cls: type[E], handler: Callable[[E], Awaitable[None]], wanted: Callable[[E], bool] | None = None
    ) -> Unsubscribe:
        """See `Bus.subscribe`."""
        return self.events.subscribe(cls, handler, wanted)

    # --- what only a bus between processes has ------------------------------------------------------------------------

    @property
    def sent(self) -> int:
        """How many messages this node gave to a broker."""
        return 0

    def on_reconnect(self, callback: Reconnected) -> Unsubscribe:
        """See `Bus.on_reconnect`. A bus within one process never misses an event."""
        self._on_reconnect.append(callback)
        return lambda: self._on_reconnect.remove(callback)

    async def reconnected(self) -> None:
        """Tell those who rely on events that they may have missed some; one that fails disturbs no other."""
        for callback in list(self._on_reconnect):
            try:
                result = callback()
                if inspect.isawaitable(result):
                    await result
            except Exception:
                log.exception(
                    "%s failed after the bus was connected again", getattr(callback, "__qualname__", callback)
                )

    async def open_api(self, handler: ApiHandler) -> None:
        """Begin to take operations that clients send by AMQP, where there is a broker."""

    async def close_api(self) -> None:
        """Take no more of them."""

    async def answer(self, reply_to: str, request: str, body: bytes) -> bool:
        """Send an answer to an operation that came by AMQP, and wait, however long, until the broker has it or knows
        nobody who takes it; false when it was given up before, because the node stops or too much waits."""
        raise NotImplementedError(f"no answer to {reply_to}: this bus takes no operations")

    # --- end --------------------------------------------------------------------------------------------------------

    def busy(self) -> list[str]:
        """The names of the messages that are being handled."""
        return [endpoint.name for endpoint in self._working.values()]

    async def drain(self, seconds: float) -> None:
        """Wait for the running handlers, at most so long; then cancel what is left."""
        if self._working:
            await asyncio.wait(list(self._working), timeout=seconds)
        left = list(self._working)
        if left:
            log.warning("cancelling %d handlers that run on: %s", len(left), sorted(set(self.busy())))
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class Exchange:
    """A message on its way to its handler, and the future of its one answer."""

    __slots__ = ("answer", "begun", "context", "endpoint", "msg", "task")

    def __init__(
        self, endpoint: Endpoint, msg: Message[Any], task_context: context.TaskContext, answer: asyncio.Future[Any]
    ) -> None:
        self.endpoint = endpoint
        self.msg = msg
        self.context = task_context
        self.answer = answer
        self.task: asyncio.Task[None] | None = None
        """What runs the handler."""
        self.begun = False

    async def begin(self) -> Any:
        """The handler's turn has come: from here on nobody tears it."""
        self.begun = True
        return await self.endpoint.handler(self.msg)

    def expire(self, seconds: float) -> None:
        """The time is over."""
        if not self.answer.done():
            self.answer.set_exception(
                CloudError(
                    TIMEOUT,
                    f"message {self.endpoint.name} to service[{self.endpoint.service}] got no answer in {seconds:.1f} s"
                    + ("" if self.begun else ", and had not begun: it waited in its queue"),
                    message=self.endpoint.name,
                    seconds=seconds,
                )
            )
