"""Operations begin in the order in which they came, as many at a time as keep the event loop's turns short."""

from __future__ import annotations

import asyncio
import time

from caelum.gateway.admission import Admission


async def test_few_do_not_wait() -> None:
    admission = Admission()
    for _ in range(8):
        turn = admission.turn()
        try:
            turn.send(None)
        except StopIteration:
            continue
        raise AssertionError("it waits")
    assert admission.waiting == 0


async def test_all_begin_in_their_order() -> None:
    admission, begun = Admission(), list[int]()

    async def one(number: int) -> None:
        await admission.turn()
        begun.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(1000)]
    await asyncio.sleep(0)
    assert (len(begun), admission.waiting) == (8, 992)
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks)
    assert (begun, admission.waiting) == (list(range(1000)), 0)


async def test_few_begin_with_a_turn_that_is_long() -> None:
    admission, begun = Admission(), list[float]()

    async def one() -> None:
        await admission.turn()
        begun.append(time.monotonic())
        for _ in range(3):
            time.sleep(0.012)  # noqa: ASYNC251 - what holds the loop up
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(one()) for _ in range(30)]
    turns = 0
    while not all(task.done() for task in tasks):
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 22  # after the first eight, one with each turn
    assert sorted(begun) == begun


async def test_who_gives_up_takes_nobodys_place() -> None:
    admission, begun = Admission(), list[int]()

    async def one(number: int) -> None:
        await admission.turn()
        begun.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(40)]
    await asyncio.sleep(0)
    for task in tasks[8:30]:
        task.cancel()
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert begun == [*range(8), *range(30, 40)]
    await asyncio.sleep(0)
    async with asyncio.timeout(1):
        await admission.turn()
