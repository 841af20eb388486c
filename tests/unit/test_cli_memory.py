"""Collections of old objects stay short, and no garbage is kept for ever."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator

import pytest

from caelum.cli import memory
from caelum.cli.memory import Collections, map_large_blocks


class Ring:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def collections() -> Iterator[Collections]:
    former = gc.get_threshold()
    watching = Collections()
    watching.start()
    yield watching
    watching.stop()
    gc.unfreeze()
    gc.set_threshold(*former)


def test_what_survives_a_long_collection_is_not_looked_at_again(
    collections: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = gc.get_freeze_count()
    kept = [Ring() for _ in range(1000)]
    gc.collect()
    monkeypatch.setattr(memory, "_LONG", 0.0)
    gc.collect()
    assert gc.get_freeze_count() >= frozen + len(kept)


def test_a_short_collection_freezes_nothing(collections: Collections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LONG", 1e6)
    frozen = gc.get_freeze_count()
    kept = [Ring() for _ in range(1000)]
    gc.collect()
    assert gc.get_freeze_count() <= frozen
    assert kept


def test_garbage_that_was_frozen_goes_with_the_next_thaw(
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


def test_the_young_are_left_to_the_collector(collections: Collections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LONG", 0.0)
    frozen = gc.get_freeze_count()
    kept = [Ring() for _ in range(1000)]
    gc.collect(1)
    assert gc.get_freeze_count() <= frozen
    assert kept


def test_nothing_is_observed_after_the_end() -> None:
    watching = Collections()
    watching.stop()
    assert watching.observe not in gc.callbacks


def test_large_blocks_can_be_mapped_anywhere() -> None:
    began = time.monotonic()
    map_large_blocks()
    assert time.monotonic() - began < 1
