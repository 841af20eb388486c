"""Work queues: order, parallelism, and no way to get stuck."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextvars import Context

import pytest

from caelum.kernel import context
from caelum.kernel.errors import CANCELED, TIMEOUT, CloudError
from caelum.kernel.queue import QUEUE_FULL, QUEUE_REENTERED, WorkQueues, outside


class Probe:
    """Records the order of starts and how many ran at once."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.ended: list[int] = []
        self.now = 0
        self.peak = 0

    async def work(self, number: int, seconds: float = 0.002) -> int:
        self.started.append(number)
        self.now += 1
        self.peak = max(self.peak, self.now)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.now -= 1
        self.ended.append(number)
        return number


@pytest.fixture
def queues() -> WorkQueues:
    return WorkQueues()


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.mark.parametrize(("level", "peak"), [(1, 1), (5, 5), (0, 100)])
async def test_level_bounds_the_parallelism_and_tasks_start_in_order(
    queues: WorkQueues, probe: Probe, level: int, peak: int
) -> None:
    results = await asyncio.gather(*(queues.run("sig", level, probe.work, n) for n in range(100)))
    assert results == list(range(100))
    assert probe.started == list(range(100))
    assert probe.peak == peak
    assert queues.dump() == {}


async def test_signatures_do_not_wait_for_each_other(queues: WorkQueues, probe: Probe) -> None:
    await asyncio.gather(*(queues.run(f"sig-{n}", 1, probe.work, n) for n in range(20)))
    assert probe.peak == 20


async def test_an_exception_passes_and_the_next_task_runs(queues: WorkQueues, probe: Probe) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("broken")

    first, second = await asyncio.gather(
        queues.run("sig", 1, fail), queues.run("sig", 1, probe.work, 2), return_exceptions=True
    )
    assert isinstance(first, ValueError)
    assert second == 2
    assert queues.dump() == {}


async def test_a_raised_level_lets_waiting_tasks_start(queues: WorkQueues, probe: Probe) -> None:
    tasks = [asyncio.create_task(queues.run("sig", 1, probe.work, n, 0.5)) for n in range(4)]
    await asyncio.sleep(0.005)
    assert probe.started == [0]
    tasks.append(asyncio.create_task(queues.run("sig", 3, probe.work, 4, 0.5)))
    await asyncio.sleep(0.005)
    assert probe.started == [0, 1, 2]
    await asyncio.gather(*tasks)
    assert probe.started == [0, 1, 2, 3, 4]


async def test_a_cancelled_waiter_leaves_the_queue_and_never_runs(queues: WorkQueues, probe: Probe) -> None:
    tasks = [asyncio.create_task(queues.run("sig", 1, probe.work, n)) for n in range(5)]
    await asyncio.sleep(0)
    tasks[2].cancel()
    tasks[3].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert probe.started == [0, 1, 4]
    assert isinstance(results[2], asyncio.CancelledError)
    assert queues.dump() == {}


async def test_a_waiter_cancelled_at_the_moment_of_its_turn_passes_it_on(queues: WorkQueues, probe: Probe) -> None:
    async with queues.turn("sig"):
        second = asyncio.create_task(queues.run("sig", 1, probe.work, 2), context=Context())
        third = asyncio.create_task(queues.run("sig", 1, probe.work, 3), context=Context())
        await asyncio.sleep(0)
    second.cancel()
    assert await third == 3
    assert probe.started == [3]
    assert queues.dump() == {}


async def test_a_cancelled_running_task_frees_its_turn(queues: WorkQueues, probe: Probe) -> None:
    first = asyncio.create_task(queues.run("sig", 1, probe.work, 1, 10))
    await asyncio.sleep(0.005)
    second = asyncio.create_task(queues.run("sig", 1, probe.work, 2))
    first.cancel()
    assert await second == 2
    assert queues.dump() == {}


@pytest.mark.parametrize("seconds", [2.0, -1.0])
async def test_a_deadline_takes_waiting_tasks_out(queues: WorkQueues, probe: Probe, seconds: float) -> None:
    async with queues.turn("sig"):
        with context.use(context.TaskContext(deadline=time.monotonic() + seconds)):
            late = [asyncio.create_task(queues.run("sig", 1, probe.work, n), context=outside()) for n in range(1, 1001)]
        results = await asyncio.gather(*late, return_exceptions=True)
        assert all(isinstance(one, CloudError) and one.kind is TIMEOUT for one in results)
        assert queues.depth() == (1, 1, 0)
    if seconds > 0:
        assert "queue sig, behind 1 running" in str(results[0])
    assert probe.started == []
    assert queues.dump() == {}


async def test_the_queue_is_capped_and_says_so_with_numbers(probe: Probe) -> None:
    queues = WorkQueues(cap=3)
    tasks = [asyncio.create_task(queues.run("sig", 1, probe.work, n)) for n in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(CloudError) as caught:
        await queues.run("sig", 1, probe.work, 9)
    assert caught.value.kind is QUEUE_FULL
    assert caught.value.facts == {"queue": "sig", "pending": 3, "cap": 3, "running": 1}
    assert await asyncio.gather(*tasks) == [0, 1, 2, 3]


async def test_ten_thousand_waiting_tasks_are_quick_to_add_and_to_cancel(queues: WorkQueues, probe: Probe) -> None:
    release = asyncio.Event()

    async def holder() -> None:
        async with queues.turn("sig"):
            await release.wait()

    first = asyncio.create_task(holder())
    await asyncio.sleep(0)
    begun = time.process_time()
    tasks = [asyncio.create_task(queues.run("sig", 1, probe.work, n, 0)) for n in range(10_000)]
    await asyncio.sleep(0)
    assert queues.depth() == (1, 1, 10_000)
    for task in tasks[:-1]:
        task.cancel()
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(first, *tasks, return_exceptions=True)
    assert time.process_time() - begun < 3
    assert probe.started == [9999]


async def test_reentrance_is_refused_for_every_form_of_waiting(queues: WorkQueues, probe: Probe) -> None:
    async def by_run() -> int:
        return await queues.run("sig", 1, probe.work, 1)

    async def by_turn() -> None:
        async with queues.turn("sig"):
            pass

    async def by_submit() -> int:
        return await queues.submit("sig", 1, probe.work, 2)

    async def by_single_flight() -> int:
        return await queues.run("sig", 1, probe.work, 3, single_flight="key")

    async def through_another_queue() -> int:
        return await queues.run("other", 1, by_run)

    async def through_a_child_task() -> int:
        return await asyncio.create_task(by_run())

    for function in (by_run, by_turn, by_single_flight, through_another_queue, through_a_child_task):
        with pytest.raises(CloudError) as caught:
            await queues.run("sig", 1, function)
        assert caught.value.kind is QUEUE_REENTERED, function
    assert probe.started == []
    with pytest.raises(CloudError, match="may not wait"):
        await queues.run("sig", 1, by_submit)
    while queues.dump():  # noqa: ASYNC110 - nothing tells when a submitted task has left
        await asyncio.sleep(0.001)
    assert probe.started == [2], "what was submitted runs, only waiting for it is refused"


async def test_reentrance_is_allowed_where_nothing_waits(queues: WorkQueues, probe: Probe) -> None:
    async def unlimited() -> int:
        return await queues.run("sig", 0, probe.work, 1)

    assert await queues.run("sig", 0, unlimited) == 1
    background: list[asyncio.Task[int]] = []

    async def leaves_a_task() -> None:
        async def later() -> int:
            await asyncio.sleep(0.01)
            return await queues.run("sig", 1, probe.work, 2)

        background.append(asyncio.create_task(later()))

    await queues.run("sig", 1, leaves_a_task)
    assert await background[0] == 2


async def test_submit_returns_a_handle_that_can_be_cancelled(queues: WorkQueues, probe: Probe) -> None:
    first = queues.submit("sig", 1, probe.work, 1, 0.01)
    second = queues.submit("sig", 1, probe.work, 2)
    third = queues.submit("sig", 1, probe.work, 3)
    assert second.cancel()
    with pytest.raises(CloudError) as caught:
        await second
    assert caught.value.kind is CANCELED
    assert await first == 1
    assert await third == 3
    assert first.done()
    assert not first.cancel()
    assert probe.started == [1, 3]
    assert queues.dump() == {}


async def test_a_submitted_task_that_fails_unseen_is_logged(
    queues: WorkQueues, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise ValueError("nobody waits for me")

    with caplog.at_level(logging.ERROR):
        queues.submit("sig", 1, fail)
        await asyncio.sleep(0.01)
    assert "nobody waits for me" in caplog.text


async def test_dedup_joins_a_waiting_task_but_not_a_running_one(queues: WorkQueues, probe: Probe) -> None:
    tasks = [asyncio.create_task(queues.run("sig", 1, probe.work, n, 0.01, dedup="sync")) for n in range(5)]
    results = await asyncio.gather(*tasks)
    assert results == [0, 1, 1, 1, 1]
    assert probe.started == [0, 1]
    assert await queues.run("sig", 1, probe.work, 7, dedup="sync") == 7


async def test_single_flight_shares_the_running_execution(queues: WorkQueues, probe: Probe) -> None:
    first = asyncio.create_task(queues.run("sig", 1, probe.work, 0, 0.02, single_flight="connect"))
    await asyncio.sleep(0.005)
    second = asyncio.create_task(queues.run("sig", 1, probe.work, 1, single_flight="connect"))
    other = asyncio.create_task(queues.run("sig", 1, probe.work, 2, single_flight="other"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == 0, "the leader's cancellation does not end what others wait for"
    assert await other == 2
    assert await queues.run("sig", 1, probe.work, 3, single_flight="connect") == 3


async def test_a_shared_error_reaches_everyone(queues: WorkQueues) -> None:
    async def fail() -> None:
        await asyncio.sleep(0.005)
        raise ValueError("shared")

    results = await asyncio.gather(
        *(queues.run("sig", 1, fail, single_flight="key") for _ in range(3)), return_exceptions=True
    )
    assert [str(one) for one in results] == ["shared"] * 3


async def test_a_shared_task_that_waits_is_dropped_with_its_last_waiter(queues: WorkQueues, probe: Probe) -> None:
    first = asyncio.create_task(queues.run("sig", 1, probe.work, 0, 0.02))
    await asyncio.sleep(0)
    waiters = [asyncio.create_task(queues.run("sig", 1, probe.work, 1, single_flight="key")) for _ in range(2)]
    await asyncio.sleep(0)
    waiters[0].cancel()
    await asyncio.sleep(0)
    assert queues.depth() == (1, 1, 1)
    waiters[1].cancel()
    await asyncio.gather(first, *waiters, return_exceptions=True)
    assert probe.started == [0]
    assert queues.dump() == {}


async def test_the_completion_notice_ends_the_turn_not_the_return(queues: WorkQueues, probe: Probe) -> None:
    notices: list[Callable[[], None]] = []

    async def early(done: Callable[[], None]) -> str:
        notices.append(done)
        return "returned"

    handle = queues.hold("sig", 1, early)
    next_one = asyncio.create_task(queues.run("sig", 1, probe.work, 2))
    await asyncio.sleep(0.02)
    assert probe.started == []
    assert queues.depth() == (1, 1, 1)
    notices[0]()
    notices[0]()
    assert await handle == "returned"
    assert await next_one == 2
    assert probe.peak == 1


async def test_a_held_turn_ends_with_an_exception_or_the_deadline(queues: WorkQueues, probe: Probe) -> None:
    async def broken(done: Callable[[], None]) -> None:
        raise ValueError("before the notice")

    async def forgetful(done: Callable[[], None]) -> None:
        return None

    handle = queues.hold("sig", 1, broken)
    with pytest.raises(ValueError, match="before the notice"):
        await handle
    with context.use(context.TaskContext(deadline=time.monotonic() + 0.02)):
        forgotten = queues.hold("sig", 1, forgetful)
    with pytest.raises(CloudError) as caught:
        await forgotten
    assert caught.value.kind is TIMEOUT
    assert await queues.run("sig", 1, probe.work, 1) == 1


async def test_the_task_context_reaches_submitted_tasks(queues: WorkQueues) -> None:
    async def who() -> str | None:
        return context.current().job_uuid

    with context.use(context.TaskContext(job_uuid="job")):
        handle = queues.submit("sig", 1, who)
    assert await handle == "job"


async def test_introspection_names_tasks_and_ages(queues: WorkQueues, probe: Probe) -> None:
    with context.use(context.TaskContext(job_uuid="job-1")):
        tasks = [
            asyncio.create_task(queues.run("vm-1", 1, probe.work, n, 0.03, name=name))
            for n, name in enumerate(("stop", "start"))
        ]
    await asyncio.sleep(0.02)
    dump = queues.dump()["vm-1"]
    assert [one.name for one in dump.running] == ["stop"]
    assert [one.name for one in dump.pending] == ["start"]
    assert dump.level == 1
    assert 0.01 < dump.running[0].age < 0.1
    assert dump.pending[0].job_uuid == "job-1"
    await asyncio.gather(*tasks)


async def test_a_growing_queue_warns(queues: WorkQueues, probe: Probe, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        await asyncio.gather(*(queues.run("sig", 1, probe.work, n, 0) for n in range(260)))
    assert ["50 tasks wait" in one or "250 tasks wait" in one for one in caplog.messages] == [True, True]


async def test_a_thousand_random_cancellations_leave_nothing(queues: WorkQueues, probe: Probe) -> None:
    tasks = []
    for n in range(1000):
        tasks.append(asyncio.create_task(queues.run(f"sig-{n % 7}", n % 3, probe.work, n, 0.0005 * (n % 5))))
        if n % 3 == 0:
            await asyncio.sleep(0)
        if n % 4 == 0:
            tasks[n // 2].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(one, int | asyncio.CancelledError) for one in results)
    assert queues.dump() == {}
    assert probe.now == 0
