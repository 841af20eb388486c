"""How long work that may be repeated waits for what is away."""

import pytest

from caelum.kernel import patience
from caelum.kernel.patience import Patience


def _is_os_error(error: BaseException) -> bool:
    return isinstance(error, OSError)


def test_what_does_not_pass_is_not_borne() -> None:
    assert not Patience(_is_os_error).bears(ValueError())


def test_patience_ends_some_time_after_the_first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(patience.time, "monotonic", lambda: now)
    one = Patience(_is_os_error)
    now += 10 * patience.AWAY_SECONDS
    assert one.bears(OSError())
    for _ in range(int(patience.AWAY_SECONDS / 60) - 1):
        now += 60
        assert one.bears(OSError())
    now += 60
    assert not one.bears(OSError())


async def test_patience_begins_anew_with_each_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses = 1000.0, []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(patience.time, "monotonic", lambda: now)
    monkeypatch.setattr(patience.asyncio, "sleep", sleep)
    one = Patience(_is_os_error)
    assert one.bears(OSError())
    await one.pause()
    await one.pause()
    now += 2 * patience.AWAY_SECONDS
    assert one.bears(OSError())
    await one.pause()
    now += 60
    assert one.bears(OSError())
    await one.pause()
    assert pauses == [0.2, 0.4, 0.2, 0.4]
