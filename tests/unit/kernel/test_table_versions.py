"""What many who ask for the tables' versions at a time get."""

from __future__ import annotations

import asyncio

from caelum.kernel.errors import CloudError
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
