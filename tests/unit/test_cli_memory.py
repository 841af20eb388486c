"""Collections of old objects stay short, and no garbage is kept for ever."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable

import pytest

from caelum.cli import memory
from caelum.cli.memory import Collections, SpareMemory, map_large_blocks


class Ring:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


class Plain:
    """Refers to nothing."""


@pytest.fixture
async def collections() -> AsyncIterator[Collections]:
    former = gc.get_threshold()
    watching = Collections()
    watching.start()
    yield watching
    watching.stop()
    gc.unfreeze()
    gc.set_threshold(*former)


async def test_what_survives_a_long_collection_is_not_looked_at_again(
    collections: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = gc.get_freeze_count()
    kept = [Ring() for _ in range(1000)]
    gc.collect()
    monkeypatch.setattr(memory, "_LONG", 0.0)
    gc.collect()
    assert gc.get_freeze_count() >= frozen + len(kept)


async def test_a_short_collection_freezes_nothing(collections: Collections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LONG", 1e6)
    frozen = gc.get_freeze_count()
    kept = [Ring() for _ in range(1000)]
    gc.collect()
    assert gc.get_freeze_count() <= frozen
    assert kept


async def test_garbage_that_was_frozen_goes_with_the_next_thaw(
    collections: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_LONG", 0.0)
    ring = Ring()
    gone = weakref.ref(ring)
    gc.collect()
    del ring
    gc.collect()
    assert gone() is not None
    monkeypatch.setattr(memory, "_THAW", 0.0)
    gc.collect()
    assert gone() is None


async def test_the_young_are_left_to_the_collector(collections: Collections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LONG", 0.0)
    frozen = gc.get_freeze_count()
    kept = [Ring() for _ in range(1000)]
    gc.collect(1)
    assert gc.get_freeze_count() <= frozen
    assert kept


async def test_the_young_are_looked_at_though_as_many_are_freed_as_made(
    collections: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_LOOK", 0.01)
    monkeypatch.setattr(memory, "_WORK", 0.0)
    collections.stop()
    collections.start()
    kept = [Plain() for _ in range(30_000)]
    gc.collect()
    for number in range(len(kept)):  # never more made than freed, so Python would look at none of them
        kept[number] = Plain()
    assert _young() >= len(kept)
    await _until(lambda: _young() < len(kept))


async def test_looks_that_take_long_come_after_less_work_and_others_after_more(collections: Collections) -> None:
    for took, work in ((0.01, 0.1), (0.02, 0.025), (1.0, 0.02), (0.004, 0.02), (0.001, 0.04), (0.0, 0.08)):
        collections._adapt(took)
        assert collections._work == pytest.approx(work)
    for _ in range(5):
        collections._adapt(0.0)
    assert collections._work == memory._WORK


async def test_those_between_young_and_old_are_not_looked_at(collections: Collections) -> None:
    before = gc.get_stats()[1]["collections"]
    kept = [Ring() for _ in range(300_000)]
    assert gc.get_stats()[1]["collections"] == before
    assert kept


async def test_an_idle_server_collects_nothing(collections: Collections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LOOK", 0.001)
    monkeypatch.setattr(collections, "_work", 1e6)
    gc.collect()
    before = gc.get_stats()[0]["collections"]
    await asyncio.sleep(0.15)
    assert gc.get_stats()[0]["collections"] == before


async def test_what_survives_several_looks_is_frozen_until_the_thaw(
    collections: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_LOOK", 0.001)
    monkeypatch.setattr(memory, "_WORK", 0.0)
    monkeypatch.setattr(memory, "_SETTLED", 0.0)
    ring = Ring()
    gone = weakref.ref(ring)
    collections.stop()
    collections.start()  # freezes the ring
    frozen = gc.get_freeze_count()
    kept = [Ring() for _ in range(1000)]
    await _until(lambda: gc.get_freeze_count() >= frozen + len(kept))
    del ring
    await asyncio.sleep(0.05)
    assert gone() is not None
    monkeypatch.setattr(memory, "_THAW", 0.0)
    await _until(lambda: gone() is None)


async def test_nothing_is_observed_after_the_end(collections: Collections) -> None:
    collections.stop()
    collections.stop()
    assert collections.observe not in gc.callbacks
    assert collections._next_look is None


def test_who_never_started_can_be_stopped() -> None:
    Collections().stop()


async def test_memory_is_given_back_after_much_work_once_it_is_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CALM_LOOK", 0.01)
    used, given, before = [0.0], [], threading.active_count()
    monkeypatch.setattr(memory.time, "process_time", lambda: used[0])
    spare = SpareMemory()
    spare._trim = given.append
    spare.start()
    used[0] += memory._MUCH + 1
    await asyncio.sleep(0.02)  # the look that finds the work finds that it is not over
    await _until(lambda: len(given) == 1)
    await asyncio.sleep(0.1)
    assert given == [0]
    used[0] += memory._MUCH - 1
    await asyncio.sleep(0.1)
    assert given == [0]
    spare.stop()
    used[0] += memory._MUCH
    await asyncio.sleep(0.1)
    assert given == [0]
    assert threading.active_count() <= before + 1


def test_memory_can_be_given_back_anywhere() -> None:
    spare = SpareMemory()
    spare._give_back()
    spare.stop()


def _young() -> int:
    return len(gc.get_objects(generation=0))


def test_large_blocks_can_be_mapped_anywhere() -> None:
    began = time.monotonic()
    map_large_blocks()
    assert time.monotonic() - began < 1


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the collector wakes nobody
            await asyncio.sleep(0.01)
