"""Services in other processes: they declare their queue and answer; the cloud calls them like its own."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage
from tests.cluster.peers import Peers, until
from tests.unit.kernel.zoo import Fed

from caelum.cluster.rabbitmq import RabbitMq
from caelum.kernel.errors import UNDELIVERABLE, CloudError
from caelum.kernel.message import Inventory, Message, message


class Greeting(Inventory, kw_only=True):
    """What a foreign service answers."""

    text: str
    create_date: datetime


@message(service="foreign", route_by="uuid")
class Greet(Message[Greeting], kw_only=True):
    """Declared here, served elsewhere."""

    uuid: str
    full_name: str


@asynccontextmanager
async def foreign_service(url: str, taken: list[dict[str, Any]]) -> AsyncIterator[None]:
    """A service as somebody without this library would write it."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("caelum.message.foreign", auto_delete=True)
        await queue.bind("caelum.p2p", "caelum.message.foreign")

        async def serve(request: AbstractIncomingMessage) -> None:
            await request.ack()
            if request.type != "request":
                return
            body = json.loads(request.body)["Greet"]
            taken.append({**body, "timeout": request.headers["timeout"]})
            if body["fullName"] == "nobody":
                error = {"code": "FOREIGN.1", "description": "Cannot greet", "details": "there is nobody"}
                answer: dict[str, Any] = {"success": False, "error": error}
            else:
                result = {"text": f"Hello, {body['fullName']}!", "createDate": "2026-11-22T19:15:56"}
                answer = {"success": True, "result": result}
            reply = aio_pika.Message(
                json.dumps({"MessageReply": answer}).encode(), type="reply", correlation_id=request.correlation_id
            )
            await channel.default_exchange.publish(reply, request.reply_to or "")

        await queue.consume(serve)
        yield


async def test_a_foreign_service_is_called_like_any_other(peers: Peers, broker: RabbitMq) -> None:
    a, b = await peers(2)
    taken: list[dict[str, Any]] = []
    async with foreign_service(broker.url, taken):
        for key in (a.key_of(a), a.key_of(b)):
            greeting = await a.bus.call(Greet(uuid=key, full_name="Ada"), timeout=20)
            assert greeting == Greeting(text="Hello, Ada!", create_date=datetime(2026, 11, 22, 19, 15, 56))
        answers = await a.bus.call_all([Greet(uuid="x", full_name=str(n)) for n in range(200)], parallelism=50)
        assert [one.text for one in answers if isinstance(one, Greeting)] == [f"Hello, {n}!" for n in range(200)]
        with pytest.raises(CloudError, match="there is nobody") as caught:
            await a.bus.call(Greet(uuid="x", full_name="nobody"))
        assert caught.value.code == "FOREIGN.1"
    assert 0 < taken[0]["timeout"] <= 20


async def test_a_dead_foreign_service_is_undeliverable_at_once(peers: Peers, broker: RabbitMq) -> None:
    a, b = await peers(2)
    async with foreign_service(broker.url, []):
        await a.bus.call(Greet(uuid=a.key_of(b), full_name="Ada"))
    begun = time.monotonic()
    for key in (a.key_of(a), a.key_of(b)):
        with pytest.raises(CloudError, match="no queue") as caught:
            await a.bus.call(Greet(uuid=key, full_name="Ada"), timeout=30)
        assert caught.value.kind is UNDELIVERABLE
    assert time.monotonic() - begun < 2.0


async def test_a_foreign_process_follows_canonical_events(peers: Peers, broker: RabbitMq) -> None:
    a, b = await peers(2)
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind("caelum.broadcast", "canonicalEvent.zoo.*.fed")
        seen: list[Any] = []

        async def note(event: AbstractIncomingMessage) -> None:
            await event.ack()
            seen.append((event.routing_key, json.loads(event.body)["CanonicalEvent"]))

        await queue.consume(note)
        for n in range(3):
            b.bus.publish(Fed(animal_name="lion", portion=n))
        await until(lambda: len(seen) >= 3)
    assert [(key, one["path"], one["managementNodeId"]) for key, one in seen] == [
        ("canonicalEvent.zoo.lion.fed", "/zoo/lion/fed", b.uuid)
    ] * 3
    assert [one["content"]["portion"] for _, one in seen] == [0, 1, 2]
    assert a.uuid != b.uuid


async def test_a_foreign_process_tells_an_event(peers: Peers, broker: RabbitMq) -> None:
    a, b = await peers(2)
    news = {"path": "/zoo/tiger/fed", "content": {"animalName": "tiger", "portion": 9}}
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange("caelum.broadcast")
        message = aio_pika.Message(json.dumps({"CanonicalEvent": news}).encode(), type="event")
        await exchange.publish(message, "canonicalEvent.zoo.tiger.fed")
    await until(lambda: a.fed == b.fed == [("tiger", 9)])
    await asyncio.sleep(0)


async def test_a_foreign_process_calls_a_service_of_a_node(peers: Peers, broker: RabbitMq) -> None:
    [a] = await peers(1)
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        replies = await channel.declare_queue(exclusive=True)
        exchange = await channel.get_exchange("caelum.p2p")
        for number, body in enumerate((b'{"Feed":{"uuid":"lion","portion":4}}', b'{"Feed":{"portion":"x"}}', b"]")):
            request = aio_pika.Message(body, correlation_id=str(number), reply_to=replies.name)
            await exchange.publish(request, f"caelum.message.zoo.{a.uuid}")
        answers = {}
        async with replies.iterator(no_ack=True, timeout=20) as incoming:
            async for one in incoming:
                answers[one.correlation_id] = json.loads(one.body)["MessageReply"]
                if len(answers) == 3:
                    break
    assert answers["0"] == {"success": True, "result": 4}
    assert [answers[one]["error"]["code"] for one in "12"] == ["SYS.1007", "SYS.1007"]
