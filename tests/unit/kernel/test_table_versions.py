"""What many who ask for the tables' versions at a time get."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from caelum.kernel import freshness
from caelum.kernel.errors import CANCELED, CloudError
from caelum.kernel.postgresql import DATABASE_UNAVAILABLE
from caelum.kernel.table_versions import Versions


async def test_each_who_asked_has_an_error_of_its_own() -> None:
    async def ask() -> str:
        raise CloudError(DATABASE_UNAVAILABLE, "away", place="here")

    versions = Versions(ask)
    one, other = await asyncio.gather(versions.now(), versions.now(), return_exceptions=True)
    assert isinstance(one, CloudError)
    assert isinstance(other, CloudError)
    assert one is not other
    one.facts["more"] = 1
    assert (other.kind, other.details, other.facts) == (DATABASE_UNAVAILABLE, "away", {"place": "here"})


@pytest.mark.parametrize("turns", [0, 3])
async def test_nobody_waits_for_what_is_asked_no_more(turns: int) -> None:
    """Before the question has begun, and while it is under way and others wait for the next."""

    async def ask() -> str:
        await asyncio.Event().wait()
        return ""

    versions = Versions(ask)
    first = asyncio.create_task(versions.now())
    await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0)
    then = asyncio.create_task(versions.now())
    await asyncio.sleep(0)
    await versions.stop()
    async with asyncio.timeout(5):
        left = await asyncio.gather(first, then, return_exceptions=True)
    assert [one.kind for one in left if isinstance(one, CloudError)] == [CANCELED] * 2


async def _asked_once_more(versions: Versions, asked: list[int]) -> bool:
    before = len(asked)
    await versions.current()
    return len(asked) > before


async def test_work_asks_again_only_after_it_heard_something(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    async def ask() -> str:
        asked.append(1)
        return "zone 1"

    versions = Versions(ask)
    assert await _asked_once_more(versions, asked)
    assert await _asked_once_more(versions, asked), "nobody knows what work without a beginning heard"
    with freshness.begun():
        assert await _asked_once_more(versions, asked), "it may know of what happened before it began"
        assert not await _asked_once_more(versions, asked)
        assert not await asyncio.create_task(_asked_once_more(versions, asked)), "a part of the same work"
        freshness.heard()
        assert await _asked_once_more(versions, asked)
        context = contextvars.Context()
        await asyncio.create_task(asyncio.sleep(0), context=context)
        context.run(freshness.heard)
        assert not await _asked_once_more(versions, asked), "other work heard something"
        context.run(freshness.all_heard)
        assert await _asked_once_more(versions, asked)
        monkeypatch.setattr(freshness, "MOST_SECONDS", 0.0)
        assert await _asked_once_more(versions, asked)


async def test_what_is_heard_while_a_question_is_under_way_needs_another() -> None:
    begun, answer = asyncio.Event(), asyncio.Event()

    async def ask() -> str:
        begun.set()
        await answer.wait()
        return "zone 1"

    versions = Versions(ask)
    with freshness.begun():
        first = asyncio.create_task(versions.current())
        await begun.wait()
        freshness.heard()
        answer.set()
        await first
        assert versions._last is not None
        since = freshness.since()
        assert since is not None
        assert since > versions._last.moment
