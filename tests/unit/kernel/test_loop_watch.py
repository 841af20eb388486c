"""The lag of the event loop: what is counted, and what operators are told."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from caelum.cli.onlooker import Onlooker
from caelum.kernel import loop_watch
from caelum.kernel.loop_watch import BOUNDS, INTERVAL, LoopWatch
from caelum.kernel.metrics import Metrics


def counts(watch: LoopWatch) -> dict[float, int]:
    """How many looks had at most which lag, and more than the bound before."""
    return {bound: count for bound, count in zip((*BOUNDS, 9.9), watch.lags.counts, strict=True) if count}


def late(seconds: float, waited: float = 0.0) -> LoopWatch:
    """A watch whose loop was looked at so late."""
    watch = LoopWatch()
    watch.due = 100.0
    watch._look(100.0 + seconds, waited)
    return watch


class TestCounting:
    def test_a_loop_that_is_in_time(self) -> None:
        watch = late(0.0004)
        assert counts(watch) == {0.001: 1}
        assert watch.due == pytest.approx(100 + INTERVAL)

    def test_looks_that_were_due_during_a_stall_are_made_up_for(self) -> None:
        watch = late(0.345)
        assert counts(watch) == {0.05: 1, 0.25: 2, 0.5: 1}
        assert watch.lags.sum == pytest.approx(0.345 + 0.245 + 0.145 + 0.045)
        assert watch.last == watch.worst == pytest.approx(0.345)
        assert watch.due == pytest.approx(100.4)

    def test_what_others_had_the_processors_for_is_not_its_own(self) -> None:
        watch = late(0.09, waited=0.095)  # half of the time since the look before
        assert counts(watch) == {0.1: 1}
        assert watch.own_lags.sum == pytest.approx(0.045)

    def test_both_are_metrics(self) -> None:
        metrics = Metrics()
        metrics.loop.due = 100.0
        metrics.loop._look(100.03, 0.1)
        text = metrics.render().decode()
        for name in ("sampled", "own"):
            assert f'caelum_loop_lag_{name}_seconds_bucket{{le="0.05"}} 1.0' in text
        assert 'caelum_loop_lag_sampled_seconds_bucket{le="0.01"} 0.0' in text
        assert 'caelum_loop_lag_own_seconds_bucket{le="0.01"} 1.0' in text


class TestTelling:
    def test_of_other_programs(self, caplog: pytest.LogCaptureFixture) -> None:
        late(0.5, waited=0.3)
        assert "held up for 0.50 s, 0.25 s of it by other programs" in caplog.text

    def test_not_again_and_again(self, caplog: pytest.LogCaptureFixture) -> None:
        watch = late(0.5)
        for _ in range(5):
            watch._look((watch.due or 0) + 0.5, 0.0)
        assert caplog.text.count("held up") == 1
        watch._look((watch.due or 0) + 60, 0.0)
        assert caplog.text.count("held up") == 2

    def test_not_of_short_ones(self, caplog: pytest.LogCaptureFixture) -> None:
        late(0.15)
        assert not caplog.text


async def hold_up(seconds: float) -> None:
    """Block the loop, as no code should."""
    time.sleep(seconds)  # noqa: ASYNC251 - that is the point


async def test_who_holds_the_loop_up_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    watch = LoopWatch()
    onlooker = Onlooker(watch)
    watch.start()
    onlooker.start()
    try:
        await asyncio.sleep(0.01)
        await asyncio.create_task(hold_up(0.6))
        await asyncio.sleep(2 * INTERVAL)
    finally:
        onlooker.stop()
        await watch.stop()
    assert "the event loop was held up for" in caplog.text
    assert "hold_up (test_loop_watch.py:" in caplog.text
    assert "in task hold_up" in caplog.text
    assert watch.worst > loop_watch._WARNING


async def test_a_loop_in_time_is_not_looked_at() -> None:
    watch = LoopWatch()
    onlooker = Onlooker(watch)
    watch.start()
    onlooker.start()
    await asyncio.sleep(0.3)
    onlooker.stop()
    await watch.stop()
    assert watch.due is None
    assert sum(watch.lags.counts) >= 2


def test_who_never_looked_on_can_be_stopped() -> None:
    Onlooker(LoopWatch()).stop()
