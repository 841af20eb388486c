"""What many who ask for the tables' versions at a time get."""

from __future__ import annotations

import asyncio

import pytest

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
