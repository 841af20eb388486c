"""The broker fails, forgets, repeats itself; calls end in time, and nothing is done twice."""

from __future__ import annotations

import asyncio
import time

import aio_pika
import pytest
from tests.cluster.peers import Peers, until
from tests.unit.kernel.zoo import Fed, Feed, Wash

from caelum.cluster.rabbitmq import RabbitMq
from caelum.kernel import rabbitmq_bus
from caelum.kernel.bus import BUS_UNAVAILABLE
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.rabbitmq_topology import P2P, service_queue
from caelum.kernel.rabbitmq_wire import decode_reply, encode_message

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a broker takes longer to start than calls would wait."""
    monkeypatch.setattr(rabbitmq_bus, "PATIENCE", 300.0)


@pytest.mark.usefixtures("patient")
async def test_calls_in_flight_survive_a_restart_of_the_broker(peers: Peers, broker: RabbitMq) -> None:
    a, b = await peers(2)
    missed = []
    a.bus.on_reconnect(lambda: missed.append("a"))
    keys = a.keys_of(b, 200)
    calls = [asyncio.create_task(a.bus.call(Feed(uuid=key, portion=n, seconds=8.0))) for n, key in enumerate(keys)]
    await until(lambda: b.zoo.working == 200)
    await broker.restart()
    assert await asyncio.wait_for(asyncio.gather(*calls), 120) == list(range(200))
    assert sorted(b.zoo.fed) == list(range(200)), "each request is done once"
    assert await a.bus.call(Feed(uuid=keys[0], portion=1000)) == 1000
    assert missed == ["a"]


@pytest.mark.usefixtures("patient")
async def test_a_broker_that_lost_everything_gets_its_topology_back(peers: Peers, broker: RabbitMq) -> None:
    a, b = await peers(2)
    await broker.wipe()
    waiting = asyncio.create_task(a.bus.call(Feed(uuid=a.key_of(b), portion=1)))
    await broker.start()
    assert await asyncio.wait_for(waiting, 120) == 1
    assert await b.bus.call(Feed(uuid=b.key_of(a), portion=2)) == 2
    # What is told before the other is back, too, is told to nobody: its queue was lost with everything else.
    a.bus.publish(Fed(animal_name="both are back", portion=1))
    await until(lambda: ("both are back", 1) in b.fed)


async def test_without_a_broker_local_calls_go_on_and_others_fail_in_time(
    peers: Peers, broker: RabbitMq, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await peers(2)
    here, there = a.key_of(a), a.key_of(b)
    in_flight = asyncio.create_task(a.bus.call(Feed(uuid=there, portion=1, seconds=60.0)))
    await until(lambda: b.zoo.working == 1)
    monkeypatch.setattr(rabbitmq_bus, "PATIENCE", 1.0)
    await broker.kill()
    try:
        assert await a.bus.call(Feed(uuid=here, portion=2)) == 2
        begun = time.monotonic()
        await until(lambda: not a.bus._link.up)  # what is sent before that may have arrived
        with pytest.raises(CloudError, match="which was not sent") as caught:
            await a.bus.call(Feed(uuid=there, portion=3))
        assert caught.value.kind is BUS_UNAVAILABLE
        assert caught.value.kind.transient
        with pytest.raises(CloudError, match="its outcome is unknown") as caught:
            await in_flight
        assert caught.value.kind is BUS_UNAVAILABLE
        assert time.monotonic() - begun < 10
    finally:
        await broker.start()
    monkeypatch.undo()
    assert await a.bus.call(Feed(uuid=there, portion=4)) == 4


async def test_events_beyond_the_backlog_are_dropped_with_a_word(
    peers: Peers, broker: RabbitMq, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rabbitmq_bus, "_EVENT_BACKLOG", 10)
    a, b = await peers(2)
    await broker.kill()
    for n in range(30):
        a.bus.publish(Fed(animal_name="lion", portion=n))
    await broker.start()
    await until(lambda: ("lion", 29) in b.fed)
    assert [portion for _, portion in b.fed] == list(range(20, 30))
    assert [portion for _, portion in a.fed] == list(range(30)), "local subscribers miss none"
    assert "20 messages" in caplog.text


async def test_a_request_that_arrives_twice_is_done_once_and_answered_each_time(peers: Peers, broker: RabbitMq) -> None:
    _, b = await peers(2)
    connection = await aio_pika.connect(broker.url)
    async with connection:
        channel = await connection.channel()
        replies = await channel.declare_queue(exclusive=True)
        exchange = await channel.get_exchange(P2P)
        request = new_uuid()
        for pause in (0.0, 0.0, 0.7):
            await asyncio.sleep(pause)
            body = encode_message(Wash(uuid="lion", number=5, seconds=0.3))
            message = aio_pika.Message(body, message_id=request, correlation_id=request, reply_to=replies.name)
            await exchange.publish(message, service_queue("zoo", b.uuid))
        answers = []
        async with replies.iterator(timeout=20) as incoming:
            async for one in incoming:
                await one.ack()
                answers.append((one.correlation_id, decode_reply(one.body, int)))
                if len(answers) == 2:
                    break
    assert answers == [(request, 5)] * 2, (
        "while it runs, the second asks for the same answer; after it, it gets it again"
    )
    assert b.zoo.washed == [5]


async def test_a_queue_that_somebody_deletes_is_declared_again(peers: Peers, broker: RabbitMq) -> None:
    a, b = await peers(2)
    connection = await aio_pika.connect(broker.url)
    async with connection:
        channel = await connection.channel()
        await channel.queue_delete(service_queue("zoo", b.uuid))
    key = a.key_of(b)
    answer: int | CloudError = 0
    begun = time.monotonic()
    while answer != 6:
        assert time.monotonic() - begun < 30
        [answer] = await a.bus.call_all([Feed(uuid=key, portion=6)])


async def test_what_was_lost_with_the_queue_of_a_node_that_was_cut_off_is_asked_again(
    peers: Peers, broker: RabbitMq, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rabbitmq_bus, "ASK_AGAIN", 0.4)
    a, b = await peers(2)
    name, topology = service_queue("zoo", b.uuid), b.bus._topology
    queue, consumer = topology._queues.pop(name)
    await queue.cancel(consumer)
    waiting = asyncio.create_task(a.bus.call(Feed(uuid=a.key_of(b), portion=7)))
    await until(lambda: a.bus.sent > 0)
    # As it does when it expires: the request is lost, and what is sent next comes back.
    await queue.delete(if_unused=False, if_empty=False)
    await asyncio.sleep(1.5)
    assert not waiting.done()
    await topology.declare_services(["zoo"])
    assert await asyncio.wait_for(waiting, 30) == 7
    assert b.zoo.fed == [7]


async def test_who_ends_its_work_while_it_takes_no_more_is_waited_for(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked again meanwhile comes back, for its queues are gone."""
    monkeypatch.setattr(rabbitmq_bus, "ASK_AGAIN", 0.4)
    a, b = await peers(2)
    long = asyncio.create_task(a.bus.call(Feed(uuid=a.key_of(b), portion=8, seconds=3.0)))
    await until(lambda: b.zoo.working == 1)
    a.ring.leave(b.uuid, ends_work=True)
    await b.bus.drain(10)
    assert await asyncio.wait_for(long, 30) == 8
    assert b.zoo.fed == [8]


async def test_nothing_waits_for_ever_when_the_node_stops_while_the_broker_is_away(
    peers: Peers, broker: RabbitMq
) -> None:
    a, b = await peers(2)
    calls = [asyncio.create_task(a.bus.call(Feed(uuid=key, seconds=60.0))) for key in a.keys_of(b, 10)]
    await until(lambda: b.zoo.working == 10)
    await broker.kill()
    try:
        waiting = asyncio.create_task(a.bus.call(Feed(uuid=a.key_of(b))))
        await asyncio.sleep(0.1)
        await asyncio.wait_for(a.bus.stop(), 15)
        waiting.cancel()
        errors = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
        assert all(isinstance(one, CloudError) for one in errors)
    finally:
        await broker.start()
