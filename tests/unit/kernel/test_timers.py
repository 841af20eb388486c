"""Timers: one run at a time, and no error ends them."""

import asyncio
import logging
from types import SimpleNamespace

import pytest

from caelum.kernel import context
from caelum.kernel.timers import Timers


async def test_a_timer_repeats_in_spite_of_errors_until_it_is_stopped(caplog: pytest.LogCaptureFixture) -> None:
    timers, runs = Timers(lambda setting: setting.value), []

    async def tick() -> None:
        runs.append(context.current().api)
        if len(runs) == 1:
            raise ValueError("first run fails")

    timer = timers.every(0.01, tick, name="tick")
    await asyncio.sleep(0.03)
    assert runs == [], "timers wait for the node's start"
    with caplog.at_level(logging.ERROR), context.use(context.TaskContext(job_uuid="job", deadline=0)):
        timers.start()
        await asyncio.sleep(0.1)
    assert len(runs) >= 3
    assert set(runs) == {"timer:tick"}
    assert (timer.failures, timer.runs) == (1, len(runs))
    assert "first run fails" in caplog.text
    await timers.stop()
    stopped = len(runs)
    await asyncio.sleep(0.03)
    assert len(runs) == stopped


async def test_runs_do_not_overlap() -> None:
    timers, now, peak = Timers(lambda setting: setting.value), 0, 0

    async def slow() -> None:
        nonlocal now, peak
        now += 1
        peak = max(peak, now)
        await asyncio.sleep(0.03)
        now -= 1

    timers.start()
    timer = timers.every(0.001, slow)
    await asyncio.sleep(0.1)
    await timers.stop()
    assert peak == 1
    assert 2 <= timer.runs <= 4


async def test_an_interval_may_be_a_setting_and_a_run_may_be_asked_for() -> None:
    setting = SimpleNamespace(value=3600)
    timers, runs = Timers(lambda one: one.value), []

    async def tick() -> None:
        runs.append(1)

    timers.start()
    timer = timers.every(setting, tick, name="hourly")  # type: ignore[arg-type]
    await asyncio.sleep(0.02)
    assert runs == []
    timer.run_now()
    await asyncio.sleep(0.02)
    assert runs == [1]
    setting.value = 0.01
    timer.run_now()
    await asyncio.sleep(0.1)
    assert len(runs) > 3
    await timers.stop()
