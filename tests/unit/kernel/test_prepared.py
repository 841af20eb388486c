"""Prepared statements: the same values, defaults, errors and transactions as any other statement."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

import pytest
from sqlalchemy import Table, bindparam, delete, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.kernel.database import Database, is_unique_violation, utcnow
from caelum.kernel.jobs import JobModel
from caelum.kernel.journal import JournalModel
from caelum.kernel.prepared import Prepared

_JOB = cast("Table", JobModel.__table__)
_RUN = cast("Table", JournalModel.__table__)
_ADD = Prepared(insert(_JOB), "uuid", "api", "actor", "node_uuid")
_COUNT_UP = Prepared(
    update(_JOB).where(_JOB.c.uuid == bindparam("key")).values(percent=_JOB.c.percent + bindparam("more"))
)
_FIND = Prepared(select(_JOB.c.actor, _JOB.c.state, _JOB.c.percent, _JOB.c.create_date).where(
    _JOB.c.uuid == bindparam("key"), _JOB.c.state == "Processing"
))  # fmt: skip
_DROP = Prepared(delete(_JOB).where(_JOB.c.uuid == bindparam("key")))


async def _add(tx: AsyncSession, uuid: str = "a") -> None:
    await _ADD.run(tx, uuid=uuid, api="x", actor={"who": [1]}, node_uuid="n")


async def _percent(db: Database, uuid: str = "a") -> Any:
    async with db.read() as session:
        found = await _FIND.rows(session, key=uuid)
    return found[0][2] if found else None


async def test_values_defaults_and_types(db: Database) -> None:
    for uuid in "abc":  # the first goes by SQLAlchemy, later ones past it
        async with db.transaction() as tx:
            await _add(tx, uuid)
        async with db.read() as session:
            ((actor, state, percent, created),) = await _FIND.rows(session, key=uuid)
        assert (actor, state, percent) == ({"who": [1]}, "Processing", 0)
        assert isinstance(created, datetime)
    async with db.transaction() as tx:
        assert await _COUNT_UP.run(tx, key="a", more=3) == 1
        assert await _COUNT_UP.run(tx, key="nobody", more=3) == 0
        assert await _DROP.run(tx, key="b") == 1
    assert [await _percent(db, uuid) for uuid in "abc"] == [3, None, 0]


async def test_times_are_written_as_objects_have_them(db: Database) -> None:
    whole, part = datetime(2026, 1, 2, 3, 4, 5), datetime(2026, 1, 2, 3, 4, 5, 60)
    finish = Prepared(update(_JOB).where(_JOB.c.uuid == bindparam("key")).values(finish_date=bindparam("moment")))
    for moment in (whole, part, None):
        async with db.transaction() as tx:
            tx.add(JobModel(uuid="object", api="x", actor={}, node_uuid="n", finish_date=moment))
            await tx.flush()
            await _add(tx)
            await finish.run(tx, key="a", moment=moment)
            assert len((await tx.execute(text("SELECT DISTINCT finish_date FROM api_job"))).all()) == 1
            await tx.execute(delete(JobModel))


async def test_they_share_the_transaction_with_other_statements(db: Database) -> None:
    for _ in range(4):
        async with db.transaction() as tx:
            await _add(tx)
            row = await tx.get_one(JobModel, "a")
            row.percent = 5
            await tx.flush()
            await _COUNT_UP.run(tx, key="a", more=2)
            assert await _percent(db) is None, "a reader sees what is not committed"
        assert await _percent(db) == 7
        async with db.transaction() as tx:
            await tx.delete(await tx.get_one(JobModel, "a"))


async def test_what_raises_leaves_no_trace(db: Database) -> None:
    for _ in range(4):
        with pytest.raises(ValueError, match="no"):
            await _fail(db)
        assert await _percent(db) is None
    async with db.transaction() as tx:
        await _add(tx)
        await tx.rollback()
    assert await _percent(db) is None


async def _fail(db: Database) -> None:
    async with db.transaction() as tx:
        await _add(tx)
        raise ValueError("no")


async def test_errors_are_those_of_other_statements(db: Database) -> None:
    for _ in range(4):
        async with db.transaction() as tx:
            await _DROP.run(tx, key="a")
            await _add(tx)
        with pytest.raises(IntegrityError) as caught:
            async with db.transaction() as tx:
                await _add(tx)
        assert is_unique_violation(caught.value)
    assert await _percent(db) == 0


async def test_a_change_is_noted_with_its_time_and_for_what_is_remembered(db: Database) -> None:
    row = dict.fromkeys(("uuid", "name", "subject", "owner", "ctx"), "x") | {"actor": {}}
    adding = Prepared(insert(_RUN), *row)
    moving = Prepared(update(_RUN).where(_RUN.c.uuid == bindparam("key")).values(position=bindparam("position")))
    async with db.transaction() as tx:
        await adding.run(tx, **row)

    async def load(session: AsyncSession) -> tuple[int, datetime]:
        kept = await session.get_one(JournalModel, "x")
        return kept.position, kept.last_op_date

    _, before = await db.remember("x", load)
    for number in range(1, 5):
        async with db.transaction() as tx:
            await moving.run(tx, key="x", position=number)
        position, changed = await db.remember("x", load)
        assert position == number
        assert changed > before


_AMONG = Prepared(
    select(_JOB.c.uuid, _JOB.c.create_date)
    .where(_JOB.c.uuid.in_(bindparam("keys", expanding=True)), _JOB.c.state.in_(["Processing", "Done"]))
    .order_by(_JOB.c.uuid)
)
_FINISH = Prepared(
    update(_JOB)
    .where(_JOB.c.uuid.in_(bindparam("keys", expanding=True)), _JOB.c.percent < bindparam("most"))
    .values(percent=bindparam("percent"), finish_date=bindparam("at"))
    .returning(_JOB.c.uuid, _JOB.c.actor, _JOB.c.finish_date)
)


async def test_lists_of_any_length(db: Database) -> None:
    async with db.transaction() as tx:
        for uuid in "abcdefgh":
            await _add(tx, uuid)
    for keys in ("", "a", "ab", "abc", "abcde", "xbz", "abcdefghijk"):
        for _ in range(3):
            async with db.read() as session:
                found = await _AMONG.rows(session, keys=list(keys))
            assert [uuid for uuid, _ in found] == [one for one in keys if one in "abcdefgh"]
            assert all(isinstance(created, datetime) for _, created in found)
    async with db.read() as session:
        found = await _AMONG.rows(session, keys=["a", *map(str, range(20_000))])
    assert [uuid for uuid, _ in found] == ["a"]


async def test_what_was_changed_is_returned_in_its_types(db: Database) -> None:
    at = utcnow()
    async with db.transaction() as tx:
        for uuid in "abc":
            await _add(tx, uuid)
    for percent in range(1, 5):
        async with db.transaction() as tx:
            found = await _FINISH.rows(tx, keys=("a", "c"), most=percent, percent=percent, at=at)
            assert sorted(map(tuple, found)) == [("a", {"who": [1]}, at), ("c", {"who": [1]}, at)]
            assert await _FINISH.run(tx, keys=("a", "c"), most=percent, percent=percent, at=at) == 0
