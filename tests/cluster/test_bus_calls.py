"""Calls between nodes over a real broker keep the promises of the bus."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.cluster.peers import Fail, Look, Peers, Relay, until
from tests.unit.kernel.zoo import Fed, Feed, Unheard, Wash

from caelum.kernel import context
from caelum.kernel.context import Actor, TaskContext
from caelum.kernel.errors import INTERNAL, OPERATION_ERROR, TIMEOUT, UNDELIVERABLE, CloudError
from caelum.kernel.message import Message, message
from caelum.kernel.queue import QUEUE_REENTERED
from caelum.kernel.service import handles


@message(service="late", route_by="uuid")
class WhoAreYou(Message[str], kw_only=True):
    """Answers the node's UUID."""

    uuid: str


class Late:
    """A service that is registered when its node runs already."""

    name = "late"

    @handles(WhoAreYou)
    async def who(self, msg: WhoAreYou) -> str:
        return self.node

    def __init__(self, node: str) -> None:
        self.node = node


async def test_a_message_goes_to_the_node_that_the_ring_names(peers: Peers) -> None:
    a, b, c = await peers(3)
    for other in (a, b, c):
        assert await a.bus.call(Feed(uuid=a.key_of(other), portion=7)) == 7
    assert [one.zoo.fed for one in (a, b, c)] == [[7], [7], [7]]


async def test_many_calls_at_once_are_all_answered_in_request_order(peers: Peers) -> None:
    a, b = await peers(2)
    keys = a.keys_of(b, 1000)
    answers = await a.bus.call_all([Feed(uuid=key, portion=n) for n, key in enumerate(keys)])
    assert answers == list(range(1000))
    assert b.zoo.fed == list(range(1000)), "requests of one node to another keep their order"


async def test_the_task_context_goes_along_with_its_deadline_on_the_receivers_clock(peers: Peers) -> None:
    a, b = await peers(2)
    sent = TaskContext(
        actor=Actor("account", "user", "session", False),
        job_uuid="job", api="APIFeedMsg", deadline=time.monotonic() + 20, trace="trace", step_key="key", fence="flow:3",
    )  # fmt: skip
    with context.use(sent):
        seen = await a.bus.call(Look(uuid=a.key_of(b)))
    assert seen.deadline is not None
    assert 0 < seen.deadline - time.monotonic() <= 20
    assert context.with_deadline(seen, None) == context.with_deadline(sent, None)


async def test_errors_come_back_with_type_facts_and_causes(peers: Peers) -> None:
    a, b = await peers(2)
    key = a.key_of(b)
    with pytest.raises(CloudError) as caught:
        await a.bus.call(Feed(uuid=key, portion=9, fail="cloud"))
    assert caught.value.kind is OPERATION_ERROR
    assert caught.value.facts == {"portion": 9}
    with pytest.raises(CloudError) as caught:
        await a.bus.call(Feed(uuid=key, fail="bug"))
    assert caught.value.kind is INTERNAL
    assert ".py" not in caught.value.to_wire().details


async def test_the_chain_of_causes_survives(peers: Peers) -> None:
    a, b = await peers(2)
    with pytest.raises(CloudError, match="cannot write") as caught:
        await a.bus.call(Fail(uuid=a.key_of(b)))
    wire = caught.value.to_wire()
    assert wire.cause is not None
    assert wire.cause.details == "no space"
    assert wire.cause.cause is not None
    assert wire.cause.cause.opaque == {"free": 0}


async def test_the_deadline_is_kept_and_a_late_answer_is_dropped(peers: Peers) -> None:
    a, b = await peers(2)
    begun = time.monotonic()
    with pytest.raises(CloudError) as caught:
        await a.bus.call(Feed(uuid=a.key_of(b), portion=3, seconds=1.0), timeout=0.3)
    assert caught.value.kind is TIMEOUT
    assert 0.3 <= time.monotonic() - begun < 0.9
    await until(lambda: b.zoo.fed == [3])
    assert await a.bus.call(Feed(uuid=a.key_of(b), portion=4)) == 4


async def test_a_caller_that_gives_up_takes_its_request_out_of_the_queue(peers: Peers) -> None:
    a, b = await peers(2)
    key = a.key_of(b)
    first = asyncio.create_task(a.bus.call(Wash(uuid=key, number=1, seconds=1.0)))
    await until(lambda: b.zoo.working == 1)
    second = asyncio.create_task(a.bus.call(Wash(uuid=key, number=2)))
    await until(lambda: bool(b.queues.dump()) and len(b.queues.dump()[f"wash-{key}"].pending) == 1)
    second.cancel()
    await until(lambda: not b.queues.dump()[f"wash-{key}"].pending)
    assert await first == 1
    assert await a.bus.call(Wash(uuid=key, number=3)) == 3
    assert b.zoo.washed == [1, 3]


async def test_a_handler_that_has_begun_is_not_torn_by_its_callers_end(peers: Peers) -> None:
    a, b = await peers(2)
    call = asyncio.create_task(a.bus.call(Wash(uuid=a.key_of(b), number=1, seconds=0.5)))
    await until(lambda: b.zoo.working == 1)
    call.cancel()
    await until(lambda: b.zoo.washed == [1])


async def test_a_message_that_nobody_serves_is_undeliverable_at_once(peers: Peers) -> None:
    a, _ = await peers(2)
    begun = time.monotonic()
    with pytest.raises(CloudError) as caught:
        await a.bus.call(Unheard(), timeout=30)
    assert caught.value.kind is UNDELIVERABLE
    assert time.monotonic() - begun < 1.0


async def test_a_node_without_queue_is_undeliverable_at_once(peers: Peers) -> None:
    a, _ = await peers(2)
    a.ring.join("ghost")
    ghost = next(name for n in range(10_000) if a.ring.owner(name := f"animal-{n}") == "ghost")
    begun = time.monotonic()
    with pytest.raises(CloudError, match="no queue") as caught:
        await a.bus.call(Feed(uuid=ghost), timeout=30)
    assert caught.value.kind is UNDELIVERABLE
    assert time.monotonic() - begun < 1.0


async def test_a_call_that_comes_back_into_the_queue_of_its_own_caller_is_refused(peers: Peers) -> None:
    a, b, c = await peers(3)
    here, (there, elsewhere) = a.key_of(a), (a.key_of(b), a.key_of(c))
    assert await a.bus.call(Relay(uuid=here, then=[there, elsewhere, a.keys_of(a, 2)[1]])) == 4
    begun = time.monotonic()
    with pytest.raises(CloudError) as caught:
        await a.bus.call(Relay(uuid=here, then=[there, elsewhere, here]))
    assert caught.value.kind is QUEUE_REENTERED
    assert time.monotonic() - begun < 5
    assert await b.bus.call(Relay(uuid=here, then=[there, elsewhere])) == 3, "ended turns are forgotten"


async def test_calls_to_a_node_that_leaves_fail_at_once(peers: Peers) -> None:
    a, b, c = await peers(3)
    calls = [asyncio.create_task(a.bus.call(Feed(uuid=key, seconds=20.0))) for key in a.keys_of(b, 20)]
    other = asyncio.create_task(a.bus.call(Feed(uuid=a.key_of(c), portion=5, seconds=1.0)))
    await until(lambda: b.zoo.working == 20)
    a.ring.leave(b.uuid)
    begun = time.monotonic()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(one, CloudError) and one.kind is UNDELIVERABLE for one in errors)
    assert time.monotonic() - begun < 1.0
    assert await other == 5


async def test_a_node_that_stops_tells_its_callers(peers: Peers) -> None:
    a, b = await peers(2)
    key = a.key_of(b)
    running = asyncio.create_task(a.bus.call(Feed(uuid=key, seconds=20.0)))
    await until(lambda: b.zoo.working == 1)
    await b.bus.drain(0.1)
    with pytest.raises(CloudError, match="its node is stopping"):
        await running
    with pytest.raises(CloudError, match="no queue") as caught:
        await a.bus.call(Feed(uuid=key), timeout=10)
    assert caught.value.kind is UNDELIVERABLE


async def test_a_service_that_comes_late_is_reached_too(peers: Peers) -> None:
    a, b = await peers(2)
    for one in (a, b):
        one.bus.register(Late(one.uuid))
    key = a.key_of(b)
    begun = time.monotonic()
    answer: str | CloudError = ""
    while answer != b.uuid:
        # Its queue is there a moment after its registration.
        assert time.monotonic() - begun < 10
        [answer] = await a.bus.call_all([WhoAreYou(uuid=key)])
        assert answer == b.uuid or (isinstance(answer, CloudError) and answer.kind is UNDELIVERABLE)


async def test_events_reach_every_node_in_order_and_once(peers: Peers) -> None:
    a, b, c = await peers(3)
    for n in range(500):
        a.bus.publish(Fed(animal_name="lion", portion=n))
    for one in (a, b, c):
        await until(lambda one=one: len(one.fed) >= 500)  # type: ignore[misc]
    b.bus.publish(Fed(animal_name="end", portion=0))
    for one in (a, b, c):
        await until(lambda one=one: ("end", 0) in one.fed)  # type: ignore[misc]
        assert one.fed == [*(("lion", n) for n in range(500)), ("end", 0)]


async def test_a_local_call_takes_no_trip(peers: Peers) -> None:
    a, b = await peers(2)
    msg = Feed(uuid=a.key_of(a), portion=2)
    seen = []
    original = a.bus.endpoint_of(msg).handler

    async def watch(given: Feed) -> object:
        seen.append(given)
        return await original(given)

    a.bus.endpoint_of(msg).handler = watch
    assert await a.bus.call(msg) == 2
    assert seen[0] is msg, "the object itself is passed"
    assert b.zoo.fed == []
