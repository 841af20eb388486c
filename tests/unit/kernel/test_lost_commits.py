"""A connection that is lost during a commit: nobody knows whether it happened, and everything has its effect once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from tests.unit.kernel.bakery import BakeCake, BakeryService, CakeModel, FlourModel, oven_of

from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.journal import LIVE, JournalModel
from caelum.kernel.node import Node
from caelum.kernel.postgresql import CONFLICT, DATABASE_UNAVAILABLE
from caelum.testing.cloud import EmbeddedCloud


class Losing:
    """The commits of a node, of which the one with this number fails, after or before it happened."""

    def __init__(self, node: Node, number: int, *, happens: bool, kind: Any = DATABASE_UNAVAILABLE) -> None:
        self.count = 0
        self._number, self._happens, self._kind = number, happens, kind
        self._commit = node.db._commit
        node.db._commit = self.commit  # type: ignore[method-assign]

    async def commit(self, session: AsyncSession) -> None:
        """Commit, and lose the answer, or the connection before it."""
        self.count += 1
        if self.count != self._number:
            await self._commit(session)
            return
        if self._happens:
            await self._commit(session)
        facts = {"ambiguous": True} if self._kind is DATABASE_UNAVAILABLE else {}
        raise CloudError(self._kind, "the connection was lost", **facts)


async def _bake(tmp_path: Path, number: int, *, burn: bool, **losing: Any) -> bool:
    """Bake with one lost commit; False when there are fewer commits."""
    async with EmbeddedCloud(tmp_path / str(number), [BakeryService]) as cloud:
        cake, commits = new_uuid(), Losing(cloud.node, number, **losing)
        answered = await _answer(cloud, cake, burn)
        async with cloud.node.db.read() as session:
            row, flour = await session.get(CakeModel, cake), await session.get_one(FlourModel, "wheat")
            left = list(await session.scalars(select(JournalModel.uuid).where(JournalModel.state.in_(LIVE))))
        assert left == []
        made = row is not None
        assert flour.used == (3 if made else 0)
        assert await oven_of(cloud.node).dump() == {
            "tins": [(tin, cake) for tin in oven_of(cloud.node).tins] if made else [],
            "icing": [cake] if made else [],
        }
        if row is not None:
            assert (row.state, row.layers) == ("Baked", 1)
        # A beginning that did not happen is the caller's to repeat; everything else is settled by the workflow.
        assert answered == ("burnt" if burn else "Baked") or (not made and "lost" in answered)
        return commits.count >= number


async def _answer(cloud: EmbeddedCloud, cake: str, burn: bool) -> str:
    try:
        state: str = (await cloud.api(BakeCake(uuid=cake, burn=burn))).state
    except CloudError as error:
        return error.details
    return state


@pytest.mark.parametrize("burn", [False, True])
@pytest.mark.parametrize("happens", [False, True])
async def test_each_commit_that_is_lost_is_settled(tmp_path: Path, burn: bool, happens: bool) -> None:
    number = 1
    while await _bake(tmp_path, number, burn=burn, happens=happens):
        number += 1
    assert number > 8


async def test_each_commit_that_met_another_writer_is_repeated(tmp_path: Path) -> None:
    number = 1
    while await _bake(tmp_path, number, burn=False, happens=False, kind=CONFLICT):
        number += 1
    assert number > 8
