"""Management nodes with everything that a client sees: several on one database and one broker, in this process."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from caelum.cloud.identity.service import IdentityService
from caelum.cloud.management.service import ManagementService
from caelum.cloud.query.service import QueryService
from caelum.cloud.zone.service import ZoneService
from caelum.gateway.server import Gateway
from caelum.kernel.ids import new_uuid
from caelum.kernel.node import Node, PartSpec
from caelum.kernel.rabbitmq_topology import API_PORTAL, P2P
from caelum.testing.cloud import EmbeddedCloud

SERVICES: list[PartSpec] = [ManagementService, IdentityService, QueryService, ZoneService]
PASSWORD = hashlib.sha512(b"password").hexdigest()


class Member(NamedTuple):
    """One node of a cluster, as its clients see it."""

    cloud: EmbeddedCloud
    gateway: Gateway

    @property
    def node(self) -> Node:
        return self.cloud.node


@asynccontextmanager
async def nodes(
    directory: Path, url: str, count: int, services: Sequence[PartSpec] = SERVICES
) -> AsyncIterator[list[Member]]:
    """So many nodes with their gateways, which know of each other."""
    database = f"sqlite+aiosqlite:///{directory / 'caelum.db'}"
    made: list[Member] = []
    async with AsyncExitStack() as stack:
        for number in range(count):
            cloud = EmbeddedCloud(directory / f"node-{number}", services, bus_url=url, database_url=database)
            gateway = Gateway(cloud.node)
            await gateway.start()
            stack.push_async_callback(gateway.stop, 1)
            made.append(Member(await stack.enter_async_context(cloud), gateway))
        for one in made:
            for other in made:
                one.node.ring.join(other.node.uuid)
        yield made


class AmqpClient:
    """A client that knows the broker and nothing else: no node, no library of ours."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stack = AsyncExitStack()
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self.session: str | None = None

    async def __aenter__(self) -> AmqpClient:
        connection = await self._stack.enter_async_context(await aio_pika.connect(self._url))
        channel = await connection.channel()
        self._replies = await channel.declare_queue(exclusive=True)
        await self._replies.consume(self._take, no_ack=True)
        self._exchange = await channel.get_exchange(P2P, ensure=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _take(self, message: AbstractIncomingMessage) -> None:
        future = self._waiting.pop(message.correlation_id or "", None)
        assert future is not None, "an answer that nobody waits for, or a second one"
        future.set_result(json.loads(message.body))

    async def ask(self, name: str, /, *, request: str | None = None, **fields: Any) -> Any:
        """The content of the answer to an operation, with the class that it has as `answerClass`."""
        request = request or new_uuid()
        body = dict(fields)
        if self.session is not None:
            body["session"] = {"uuid": self.session}
        self._waiting[request] = future = asyncio.get_running_loop().create_future()
        message = aio_pika.Message(
            json.dumps({name: body}).encode(),
            message_id=request, correlation_id=request, reply_to=self._replies.name,
        )  # fmt: skip
        await self._exchange.publish(message, API_PORTAL)
        answer = await asyncio.wait_for(future, 60)
        (answer_class, content) = next(iter(answer.items()))
        return {**content, "answerClass": answer_class}

    async def log_in(self) -> AmqpClient:
        """Log in as the administrator."""
        name = "org.zstack.header.identity.APILogInByAccountMsg"
        answer = await self.ask(name, accountName="admin", password=PASSWORD)
        assert answer["success"], answer
        self.session = answer["inventory"]["uuid"]
        return self
