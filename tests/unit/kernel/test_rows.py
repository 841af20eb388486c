"""Rows written and read past the ORM."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.unit.kernel.bakery import BakeryService, CakeModel, FlourModel

from caelum.kernel.database import Database
from caelum.kernel.rows import insert_rows, update_row, values_of
from caelum.testing.cloud import EmbeddedCloud


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with EmbeddedCloud(tmp_path, [BakeryService]) as cloud:
        yield cloud.node.db


async def test_objects_know_their_defaults(db: Database) -> None:
    cakes = [CakeModel(uuid=str(number), name="sacher", state="Raw") for number in range(3)]
    async with db.transaction() as tx:
        await insert_rows(tx, [cakes[0], FlourModel(name="rye"), *cakes[1:]])
    async with db.read() as session:
        kept = await session.get_one(CakeModel, "1")
        assert (kept.layers, kept.create_date) == (0, cakes[1].create_date)
        assert (await session.get_one(FlourModel, "rye")).used == 0


def test_what_is_missing_is_none() -> None:
    assert values_of(CakeModel(uuid="1", layers=7))["layers"] == 7
    assert values_of(CakeModel(uuid="1"))["name"] is None


async def test_an_update_tells_what_the_row_is_now(db: Database) -> None:
    cake = CakeModel(uuid="1", name="sacher", state="Raw")
    async with db.transaction() as tx:
        await insert_rows(tx, [cake])
        baked = await update_row(tx, CakeModel, "1", {"state": "Baked"}, state=["Raw", "Warm"])
        again = await update_row(tx, CakeModel, "1", {"state": "Baked"}, state=["Raw", "Warm"])
        assert await update_row(tx, CakeModel, "2", {"state": "Baked"}) is None
    assert again is None
    assert baked is not None
    assert (baked.name, baked.state) == ("sacher", "Baked")
    assert baked.last_op_date > cake.last_op_date
