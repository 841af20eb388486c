"""The bus: exactly one answer, in time, whatever the handler does."""

import asyncio
import gc
import logging
import time

import pytest
from tests.unit.kernel.zoo import Deadline, Fed, Feed, Glance, Sleepy, Unheard, Wash, ZooService, make_bus

from caelum.kernel import context
from caelum.kernel.errors import CANCELED, INTERNAL, OPERATION_ERROR, TIMEOUT, UNDELIVERABLE, CloudError
from caelum.kernel.events import CanonicalEvent
from caelum.kernel.queue import QUEUE_REENTERED, _held


async def test_a_call_returns_the_reply_and_passes_the_object_itself() -> None:
    bus, zoo = make_bus()
    assert await bus.call(Feed(portion=7)) == 7
    assert zoo.fed == [7]


async def test_who_only_reads_is_a_part_of_the_caller() -> None:
    bus, _ = make_bus()
    assert await bus.call(Glance()) is asyncio.current_task()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await bus.call(Glance(seconds=60))
    with pytest.raises(CloudError) as caught:
        await bus.call(Glance(fail=True))
    assert caught.value.kind is INTERNAL
    over = context.with_deadline(context.current(), time.monotonic() - 1)
    with context.use(over), pytest.raises(CloudError) as late:
        await bus.call(Glance())
    assert late.value.kind is TIMEOUT
    counted = bus.endpoint_of(Glance()).stats
    assert (counted.count, counted.errors) == (3, 2)


async def test_a_message_without_service_is_undeliverable_at_once() -> None:
    bus, _ = make_bus()
    begun = time.monotonic()
    with pytest.raises(CloudError) as caught:
        await bus.call(Unheard(), timeout=30)
    assert caught.value.kind is UNDELIVERABLE
    assert caught.value.facts == {"service": "nobody", "message": "Unheard"}
    assert time.monotonic() - begun < 0.1


async def test_a_message_of_another_node_is_undeliverable_in_memory() -> None:
    bus, _ = make_bus()
    bus.ring.join("node-b")
    answers = await bus.call_all([Feed(uuid=f"animal-{n}") for n in range(40)])
    refused = [one for one in answers if isinstance(one, CloudError)]
    assert 0 < len(refused) < 40
    assert all(one.kind is UNDELIVERABLE and one.facts["node"] == "node-b" for one in refused)


async def test_the_ring_decides_the_destination() -> None:
    bus, _ = make_bus()
    bus.ring.join("node-b")
    assert {bus.destination(Feed(uuid=f"animal-{n}")) for n in range(40)} == {"node-a", "node-b"}
    assert bus.destination(Feed(uuid="lion")) == bus.ring.owner("lion")
    assert bus.destination(Wash(uuid=None)) == "node-a"
    assert bus.destination(Sleepy()) == "node-a"


async def test_a_handlers_error_keeps_its_type_and_facts() -> None:
    bus, _ = make_bus()
    with pytest.raises(CloudError) as caught:
        await bus.call(Feed(portion=9, fail="cloud"))
    assert caught.value.kind is OPERATION_ERROR
    assert caught.value.facts == {"portion": 9}


async def test_a_bug_becomes_an_internal_error_and_its_trace_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    bus, _ = make_bus()
    with caplog.at_level(logging.ERROR), pytest.raises(CloudError) as caught:
        await bus.call(Feed(fail="bug"))
    assert caught.value.kind is INTERNAL
    wire = caught.value.to_wire()
    assert "Traceback" not in repr(wire)
    assert ".py" not in wire.details
    assert "zoo.py" in caplog.text


async def test_a_timeout_comes_once_and_in_time_and_the_late_answer_is_dropped() -> None:
    bus, zoo = make_bus()
    begun = time.monotonic()
    with pytest.raises(CloudError) as caught:
        await bus.call(Feed(portion=3, seconds=0.15), timeout=0.05)
    assert caught.value.kind is TIMEOUT
    assert 0.05 <= time.monotonic() - begun < 0.12
    assert zoo.fed == []
    await asyncio.sleep(0.15)
    assert zoo.fed == [3], "the handler is not torn by its caller's time-out"
    assert bus.busy() == []


async def test_the_messages_own_timeout_bounds_a_longer_one() -> None:
    bus, _ = make_bus()
    begun = time.monotonic()
    with pytest.raises(CloudError, match=r"no answer in 0\.1 s"):
        await bus.call(Sleepy(), timeout=60)
    assert time.monotonic() - begun < 0.5
    await bus.drain(0)


async def test_deadlines_shrink_along_the_call_chain_and_never_grow() -> None:
    bus, _ = make_bus()
    left = await bus.call(Deadline(depth=3), timeout=2)
    assert left is not None
    assert 1.5 < left <= 2
    with context.use(context.TaskContext(deadline=time.monotonic() + 0.5)):
        left = await bus.call(Deadline(depth=3), timeout=2)
    assert left is not None
    assert left <= 0.5


async def test_a_passed_deadline_fails_before_the_handler_runs() -> None:
    bus, zoo = make_bus()
    with context.use(context.TaskContext(deadline=time.monotonic() - 1)), pytest.raises(CloudError) as caught:
        await bus.call(Feed())
    assert caught.value.kind is TIMEOUT
    assert zoo.fed == []


async def test_a_handler_gets_the_callers_context() -> None:
    bus, _ = make_bus()
    seen: list[context.TaskContext] = []

    async def spy(msg: Deadline) -> None:
        seen.append(context.current())

    bus._table[Deadline].handler = spy
    actor = context.Actor("an-account", "a-user")
    with context.use(context.TaskContext(actor=actor, job_uuid="job", trace="trace", fence="flow:2", step_key="k")):
        await bus.call(Deadline())
    assert (seen[0].actor, seen[0].job_uuid, seen[0].trace) == (actor, "job", "trace")
    assert (seen[0].fence, seen[0].step_key) == ("flow:2", "k")
    assert seen[0].deadline is not None


async def test_a_cancelled_caller_does_not_tear_a_handler_that_has_begun() -> None:
    bus, zoo = make_bus()
    caller = asyncio.create_task(bus.call(Feed(portion=4, seconds=0.05)))
    await asyncio.sleep(0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await asyncio.sleep(0.08)
    assert zoo.fed == [4]


async def test_a_cancelled_caller_takes_its_waiting_message_out_of_the_queue() -> None:
    bus, zoo = make_bus()
    first = asyncio.create_task(bus.call(Wash(number=1, seconds=0.05)))
    await asyncio.sleep(0)
    second = asyncio.create_task(bus.call(Wash(number=2)))
    third = asyncio.create_task(bus.call(Wash(number=3)))
    await asyncio.sleep(0.01)
    second.cancel()
    assert await asyncio.gather(first, third) == [1, 3]
    assert zoo.washed == [1, 3]
    assert bus.queues.dump() == {}
    assert bus.busy() == []


async def test_a_message_whose_time_passes_in_the_queue_never_runs() -> None:
    bus, zoo = make_bus()
    first = asyncio.create_task(bus.call(Wash(number=1, seconds=0.1)))
    await asyncio.sleep(0)
    with pytest.raises(CloudError, match=r"queue"):
        await bus.call(Wash(number=2), timeout=0.03)
    await first
    await asyncio.sleep(0.01)
    assert zoo.washed == [1]


async def test_messages_of_one_resource_run_one_after_another_and_of_others_beside_them() -> None:
    bus, zoo = make_bus()
    await bus.call_all([Wash(number=n, seconds=0.001) for n in range(10)])
    assert zoo.washed == list(range(10))
    assert zoo.peak == 1
    await bus.call_all([Wash(uuid=f"animal-{n}", seconds=0.01) for n in range(10)])
    assert zoo.peak == 10


async def test_a_message_about_no_resource_yet_runs_outside_any_queue() -> None:
    bus, zoo = make_bus()
    await bus.call_all([Wash(uuid=None, seconds=0.01) for _ in range(5)])
    assert zoo.peak == 5


async def test_a_handler_that_calls_into_its_own_queue_is_refused_instead_of_deadlocking() -> None:
    bus, _ = make_bus()
    with pytest.raises(CloudError) as caught:
        await bus.call(Wash(again=True), timeout=2)
    assert caught.value.kind is QUEUE_REENTERED


async def test_send_from_a_turn_does_not_count_as_waiting() -> None:
    bus, zoo = make_bus()

    async def resend(msg: Wash) -> int:
        if msg.number < 3:
            bus.send(Wash(number=msg.number + 1))
        zoo.washed.append(msg.number)
        assert len(_held.get()) == 1
        return msg.number

    bus._table[Wash].handler = resend
    await bus.call(Wash(number=1))
    await asyncio.sleep(0.01)
    assert zoo.washed == [1, 2, 3]


async def test_a_failed_send_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    bus, _ = make_bus()
    with caplog.at_level(logging.ERROR):
        bus.send(Unheard())
        await asyncio.sleep(0.01)
    assert "Unheard" in caplog.text


async def test_a_list_of_calls_keeps_request_order_and_the_parallelism() -> None:
    bus, zoo = make_bus()
    begun = time.monotonic()
    portions = [Feed(portion=n, seconds=0.02, fail="cloud" if n == 4 else None) for n in range(10)]
    answers = await bus.call_all(portions, parallelism=2)
    assert zoo.peak == 2
    assert time.monotonic() - begun > 0.09
    assert [one for n, one in enumerate(answers) if n != 4] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert isinstance(answers[4], CloudError)
    zoo.peak = 0
    await bus.call_all(portions)
    assert zoo.peak == 10
    assert await bus.call_all([]) == []


async def test_two_handlers_for_a_message_are_a_programming_error() -> None:
    bus, zoo = make_bus()
    with pytest.raises(TypeError, match="is handled by ZooService and ZooService"):
        bus.register(ZooService(bus))
    bus.unregister(zoo)
    assert not bus.serves(Feed)


async def test_draining_waits_and_then_cancels_with_an_answer() -> None:
    bus, _ = make_bus()
    caller = asyncio.create_task(bus.call(Feed(seconds=10)))
    await asyncio.sleep(0.01)
    await bus.drain(0.02)
    with pytest.raises(CloudError) as caught:
        await caller
    assert caught.value.kind is CANCELED


async def test_an_event_that_nobody_wants_is_not_delivered() -> None:
    bus, _ = make_bus()
    fed: list[int] = []

    async def take(event: Fed) -> None:
        fed.append(event.portion)

    bus.subscribe(Fed, take, lambda event: event.portion > 1)
    assert not bus.events.deliver(Fed(animal_name="lion", portion=1))
    assert bus.events.deliver(Fed(animal_name="lion", portion=2))
    await bus.events.idle()
    assert fed == [2]


async def test_a_subscriber_that_cannot_say_what_it_wants_gets_it(caplog: pytest.LogCaptureFixture) -> None:
    bus, _ = make_bus()
    taken: list[int] = []

    async def take(event: Fed) -> None:
        taken.append(event.portion)

    def broken(_event: Fed) -> bool:
        raise ValueError("a subscriber's bug")

    bus.subscribe(Fed, take, broken)
    bus.publish(Fed(animal_name="lion", portion=1))
    await bus.events.idle()
    assert taken == [1]
    assert "cannot say whether it wants" in caplog.text


async def test_events_reach_subscribers_in_order_and_failures_are_isolated(caplog: pytest.LogCaptureFixture) -> None:
    bus, _ = make_bus()
    got: list[int] = []
    everything: list[CanonicalEvent] = []

    async def slow(event: Fed) -> None:
        await asyncio.sleep(0.001 * (5 - event.portion))
        got.append(event.portion)

    async def broken(event: Fed) -> None:
        raise ValueError("a subscriber's bug")

    async def all_events(event: CanonicalEvent) -> None:
        everything.append(event)

    bus.subscribe(Fed, broken)
    unsubscribe = bus.subscribe(Fed, slow)
    bus.subscribe(CanonicalEvent, all_events)
    with caplog.at_level(logging.ERROR):
        for portion in range(5):
            bus.publish(Fed(animal_name="lion", portion=portion))
        await bus.events.idle()
    assert got == [0, 1, 2, 3, 4]
    assert len(everything) == 5
    assert "a subscriber's bug" in caplog.text
    unsubscribe()
    bus.publish(Fed(animal_name="lion", portion=9))
    await bus.events.idle()
    assert 9 not in got


async def test_events_can_be_followed_by_path() -> None:
    bus, _ = make_bus()
    got: list[str] = []

    async def take(event: CanonicalEvent) -> None:
        got.append(event.path)

    bus.events.subscribe_path("/zoo/{name}/fed", take)
    bus.events.subscribe_path("/zoo/lion/*", take)
    bus.events.subscribe_path("/vm/*", take)
    bus.publish(Fed(animal_name="lion", portion=1))
    bus.publish(Fed(animal_name="bear", portion=1))
    await bus.events.idle()
    assert sorted(got) == ["/zoo/bear/fed", "/zoo/lion/fed", "/zoo/lion/fed"]


async def test_a_subscriber_works_outside_the_publishers_job_and_queue() -> None:
    bus, zoo = make_bus()
    seen: list[tuple[str | None, float | None]] = []

    async def take(event: Fed) -> None:
        seen.append((context.current().job_uuid, context.current().deadline))
        await bus.call(Wash(number=8))

    async def publish(msg: Wash) -> int:
        zoo.washed.append(msg.number)
        if msg.number == 1:
            bus.publish(Fed(animal_name="lion", portion=1))
        return 0

    bus.subscribe(Fed, take)
    bus._table[Wash].handler = publish
    with context.use(context.TaskContext(job_uuid="job")):
        await bus.call(Wash(number=1))
    await bus.events.idle()
    assert seen == [(None, None)]
    assert zoo.washed == [1, 8]


async def test_no_tasks_or_futures_are_left_behind() -> None:
    bus, _ = make_bus()
    for _ in range(50):
        caller = asyncio.create_task(bus.call(Wash()))
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
    await asyncio.sleep(0.01)
    gc.collect()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert bus.busy() == []
    assert bus.queues.dump() == {}


async def test_ten_thousand_calls_in_memory_take_less_than_two_seconds() -> None:
    bus, _ = make_bus()
    msg = Deadline()
    begun = time.process_time()
    for _ in range(10_000):
        await bus.call(msg)
    assert time.process_time() - begun < 2


async def test_the_numbers_of_calls_are_counted() -> None:
    bus, _ = make_bus()
    await bus.call_all([Feed(fail="cloud" if n == 0 else None) for n in range(4)])
    stats = next(one.stats for one in bus.endpoints() if one.name == "Feed")
    assert (stats.count, stats.errors) == (4, 1)
    assert dict(stats.cumulative())["+Inf"] == 4
