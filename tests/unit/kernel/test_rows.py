"""Rows written and read past the ORM."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import Table, bindparam, select
from tests.unit.kernel.bakery import BakeryService, CakeModel, FlourModel

from caelum.cloud.vm.model import VmInstanceModel, VmNicModel
from caelum.kernel.database import Base, Database
from caelum.kernel.rows import (
    Rows,
    delete_rows,
    insert_rows,
    new_row,
    read_row,
    read_rows,
    read_whole,
    related,
    update_row,
    update_rows,
    values_of,
)
from caelum.kernel.views import view
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


async def test_a_new_row_is_as_one_of_the_constructor(db: Database) -> None:
    rows = [CakeModel(uuid="1", name="sacher", state="Raw"), new_row(CakeModel, uuid="2", name="sacher", state="Raw")]
    assert (rows[1].name, rows[1].layers) == ("sacher", None)
    async with db.transaction() as tx:
        await insert_rows(tx, rows)
    async with db.read() as session:
        _, second = await read_rows(session, CakeModel, order=["uuid"])
    assert (second.name, second.state, second.layers) == ("sacher", "Raw", 0)
    with pytest.raises(TypeError, match="CakeModel has no candles"):
        new_row(CakeModel, candles=3)


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


async def _bake(db: Database) -> list[CakeModel]:
    cakes = [
        CakeModel(uuid=uuid, name=f"cake-{uuid}", state="Raw", layers=3 - number) for number, uuid in enumerate("abc")
    ]
    async with db.transaction() as tx:
        await insert_rows(tx, cakes)
    return cakes


async def test_rows_are_found_by_what_their_columns_have(db: Database) -> None:
    cakes = await _bake(db)
    for _ in range(3):
        async with db.read() as session:
            assert await read_row(session, CakeModel, "nobody") is None
            one = await read_row(session, CakeModel, "b")
            several = await read_rows(session, CakeModel, order=["layers"], uuid=["a", "c", "x"], state="Raw")
            assert await read_rows(session, CakeModel, uuid=[]) == []
        assert one is not None
        assert (one.name, one.layers, one.create_date) == ("cake-b", 2, cakes[1].create_date)
        assert [row.uuid for row in several] == ["c", "a"]


async def test_what_was_read_belongs_to_no_session(db: Database) -> None:
    await _bake(db)
    async with db.transaction() as tx:
        locked = await read_row(tx, CakeModel, "a", lock=True)
        assert locked is not None
        locked.state = "Burnt"
        assert not tx.dirty
    async with db.read() as session:
        kept = await read_row(session, CakeModel, "a")
    assert kept is not None
    assert kept.state == "Raw"


async def test_a_prepared_statement_answers_with_objects(db: Database) -> None:
    await _bake(db)
    table = cast("Table", CakeModel.__table__)
    tall = Rows(CakeModel, select(table).where(table.c.layers >= bindparam("least")).order_by(table.c.layers))
    async with db.read() as session:
        assert [row.uuid for row in await tall.read(session, least=2)] == ["b", "a"]


async def test_several_rows_are_changed_and_deleted_by_conditions(db: Database) -> None:
    await _bake(db)
    async with db.transaction() as tx:
        assert await update_rows(tx, CakeModel, {"state": "Baked"}, uuid=["a", "b", "x"]) == 2
        assert await update_rows(tx, CakeModel, {"state": "Baked"}, uuid="c", state="Burnt") == 0
        assert await delete_rows(tx, CakeModel, state="Baked", layers=[2]) == 1
    async with db.read() as session:
        rows = await read_rows(session, CakeModel, order=["uuid"])
    assert [(row.uuid, row.state) for row in rows] == [("a", "Baked"), ("c", "Raw")]
    assert rows[0].last_op_date > rows[1].last_op_date


def test_related_rows_are_given() -> None:
    flour = FlourModel(name="rye")
    assert related(CakeModel(uuid="1"), flours=[flour]).__dict__["flours"] == [flour]


async def test_a_row_is_read_whole_with_what_is_loaded_with_it(tmp_path: Path) -> None:
    nics = [
        VmNicModel(
            uuid=f"nic{number}",
            vm_instance_uuid="vm",
            l3_network_uuid="l3",
            mac=f"m{number}",
            internal_name="n",
            device_id=number,
        )
        for number in (1, 0)
    ]
    vm = VmInstanceModel(uuid="vm", name="vm", zone_uuid="z", cpu_num=1, memory_size=1, internal_id=1, state="Running")
    db = await _empty(tmp_path)
    async with db.transaction() as tx:
        await insert_rows(tx, [vm, *nics])
    for _ in range(3):
        async with db.read() as session:
            quick = await read_whole(session, VmInstanceModel, "vm", lock=True)
            assert await read_whole(session, VmInstanceModel, "nobody") is None
            loaded = await session.get_one(VmInstanceModel, "vm")
        assert view(quick) == view(loaded)
        assert [one.uuid for one in view(quick).vm_nics] == ["nic0", "nic1"]
    await db.close()


async def _empty(directory: Path) -> Database:
    db = Database(f"sqlite+aiosqlite:///{directory / 'empty.db'}")
    async with db.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    return db
