"""The connection to RabbitMQ: kept up, and put in order again each time that it comes back.

Invariant: whoever publishes learns what became of it: confirmed, returned (`ReturnedError`), or unknown because the
connection was lost (`LinkDownError`). Nothing is sent before the topology was declared on this connection.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractIncomingMessage
from aio_pika.exceptions import AMQPError, DeliveryError, PublishError
from yarl import URL

log = logging.getLogger(__name__)
T = TypeVar("T")
# They log each failed attempt as an error with its trace, and each queue that we delete. What we say is enough.
logging.getLogger("aiormq.connection").setLevel(logging.CRITICAL)
logging.getLogger("aio_pika.queue").setLevel(logging.WARNING)

CONNECT_SECONDS = 20.0
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 3.0
HEARTBEAT = 10
"""Seconds; a broker that is silent for three of them is taken for lost."""
BROKEN = (AMQPError, OSError, RuntimeError, asyncio.InvalidStateError)
"""What the client library raises when a connection or channel is not there (any more)."""

Incoming = AbstractIncomingMessage
Consumer = Callable[[Incoming], Awaitable[None]]


class LinkDownError(ConnectionError):
    """The connection was lost, so nobody knows whether the broker has the message."""


class ReturnedError(Exception):
    """The broker knows no queue for the message."""


async def _uncancelled(work: Awaitable[T]) -> T:
    """Do it. Raises LinkDownError where it is cancelled though nobody cancelled us: that is how the client library ends
    what waits for a connection or channel that closes, and it must not end whoever waits with it."""
    try:
        return await work
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise LinkDownError("the connection to RabbitMQ was lost") from None


class Link:
    """One connection. `declare(link)` makes the topology and begins to consume; it runs at each connection.

    `on_up(again)` and `on_down()` are called after each connection and each loss.
    """

    def __init__(
        self,
        url: str,
        name: str,
        declare: Callable[[Link], Awaitable[None]],
        on_up: Callable[[bool], None],
        on_down: Callable[[], None],
    ) -> None:
        address = URL(url)
        self._url = address if "heartbeat" in address.query else address.update_query(heartbeat=HEARTBEAT)
        self._name = name
        self._declare, self._on_up, self._on_down = declare, on_up, on_down
        self._up = asyncio.Event()
        self._lost = asyncio.Event()
        self._connection: AbstractConnection | None = None
        self._publishing: AbstractChannel | None = None
        self._connected_times = 0
        self._on_closed: Callable[..., None] = partial(self._closed, 0)
        self._exchanges: dict[str, AbstractExchange] = {}
        self._keeper: asyncio.Task[None] | None = None
        self.returned_at = 0.0
        """When the connection came back last, in `time.monotonic()`; 0: it was never lost."""
        self.published = 0
        """Messages that were given to the broker."""

    @property
    def up(self) -> bool:
        """Whether the broker can be reached now."""
        return self._up.is_set()

    @property
    def where(self) -> str:
        """The broker's address, without the password."""
        return f"{self._url.host}:{self._url.port or 5672}"

    async def start(self) -> None:
        """Connect, however long it takes, and keep connected from then on."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="rabbitmq")
        await self.ready()

    async def stop(self) -> None:
        """Disconnect."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        self._up.clear()
        await self._close()

    async def ready(self) -> None:
        """Wait until the broker can be reached."""
        await self._up.wait()

    # --- connecting ---------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        pause, again = FIRST_PAUSE, False
        while True:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await _uncancelled(self._connect())
            except Exception as error:
                # Whatever a broker that comes and goes makes of the client library: this task must not end.
                log.warning("RabbitMQ at %s cannot be reached, next try in %.0f s: %r", self.where, pause, error)
                await self._close()
                # Not all nodes at the same moment.
                await asyncio.sleep(pause * random.uniform(0.8, 1.0))  # noqa: S311 - no secret
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            await self._connected(again)
            again = True

    async def _connected(self, again: bool) -> None:
        """Tell that the broker is there, and wait until it is not."""
        if again:
            self.returned_at = time.monotonic()
        log.info("connected to RabbitMQ at %s", self.where)
        self._up.set()
        self._on_up(again)
        await self._lost.wait()
        log.warning("the connection to RabbitMQ at %s is lost", self.where)
        self._on_down()
        await self._close()

    async def _connect(self) -> None:
        self._lost.clear()
        self._connected_times += 1
        self._on_closed = partial(self._closed, self._connected_times)
        self._connection = await aio_pika.connect(
            self._url, timeout=CONNECT_SECONDS, client_properties={"connection_name": self._name}
        )
        self._connection.close_callbacks.add(self._on_closed)
        self._publishing = await self.channel(confirms=True)
        await self._declare(self)
        if self._lost.is_set():
            raise LinkDownError("the connection was lost while the topology was declared")

    def _closed(self, time_of: int, *_: Any) -> None:
        if time_of != self._connected_times:
            # A channel of a connection that was given up already.
            return
        # Both at once: whoever tries again must wait, and not keep the loop busy until the keeper has noticed.
        self._up.clear()
        self._lost.set()

    async def _close(self) -> None:
        self._connected_times += 1  # nobody hears of its end any more
        connection, self._connection, self._publishing = self._connection, None, None
        self._exchanges.clear()
        if connection is not None:
            try:
                async with asyncio.timeout(2):
                    await _uncancelled(connection.close())
            except Exception:
                log.debug("the connection to RabbitMQ could not be closed in order", exc_info=True)

    # --- what the bus does with it ------------------------------------------------------------------------------------

    async def channel(self, *, prefetch: int | None = None, confirms: bool = False) -> AbstractChannel:
        """A new channel; when it closes, the whole connection is made anew. Raises LinkDownError."""
        if self._connection is None:
            raise LinkDownError("there is no connection to RabbitMQ")
        channel = await self._connection.channel(publisher_confirms=confirms, on_return_raises=confirms)
        channel.close_callbacks.add(self._on_closed)
        # A queue that somebody deleted under us is declared anew, with everything else.
        (await channel.get_underlay_channel()).on_consumer_cancel_callbacks.add(self._on_closed)
        if prefetch is not None:
            await channel.set_qos(prefetch_count=prefetch)
        return channel

    async def publish(self, exchange: str, key: str, message: aio_pika.Message, *, mandatory: bool = True) -> None:
        """Publish and wait for the broker's confirmation. Raises LinkDownError, ReturnedError."""
        channel = self._publishing
        if channel is None or not self.up:
            raise LinkDownError("there is no connection to RabbitMQ")
        self.published += 1
        try:
            target = self._exchanges.get(exchange)
            if target is None:
                target = await _uncancelled(self._exchange(channel, exchange))
            await _uncancelled(target.publish(message, key, mandatory=mandatory))
        except PublishError as error:
            raise ReturnedError(key) from error
        except DeliveryError as error:
            # Refused by the broker itself (a queue's limit, an internal error): as good as not there.
            raise ReturnedError(f"{key}: {error!r}") from error
        except BROKEN as error:
            self._broken(channel)
            raise LinkDownError(f"the connection to RabbitMQ was lost: {error!r}") from error

    def _broken(self, channel: AbstractChannel) -> None:
        if channel is self._publishing:
            self._on_closed()

    async def _exchange(self, channel: AbstractChannel, name: str) -> AbstractExchange:
        found = channel.default_exchange if not name else await channel.get_exchange(name, ensure=False)
        self._exchanges[name] = found
        return found
