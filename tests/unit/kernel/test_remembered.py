"""What is remembered of the database is what it would answer now."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import ForeignKey, String, bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from caelum.kernel.database import Base, Database, insert_new, update_where
from caelum.kernel.prepared import Prepared, Reading


class CoopModel(Base):
    __tablename__ = "test_coop"

    uuid: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str]


class HenModel(Base):
    __tablename__ = "test_hen"

    uuid: Mapped[str] = mapped_column(String(32), primary_key=True)
    coop_uuid: Mapped[str] = mapped_column(String(32), ForeignKey("test_coop.uuid", ondelete="CASCADE"))


class FoxModel(Base):
    __tablename__ = "test_fox"

    uuid: Mapped[str] = mapped_column(String(32), primary_key=True)


@contextmanager
def reads(db: Database, expected: int) -> Iterator[None]:
    """How many statements the block sends."""
    before = db.statements
    yield
    assert db.statements - before == expected


async def name(session: AsyncSession) -> str | None:
    return await session.scalar(select(CoopModel.name).where(CoopModel.uuid == "a"))


async def hens(session: AsyncSession) -> int:
    return await session.scalar(select(func.count()).select_from(HenModel)) or 0


async def foxes(session: AsyncSession) -> int:
    return await session.scalar(select(func.count()).select_from(FoxModel)) or 0


@pytest.fixture
async def coop(db: Database) -> Database:
    async with db.transaction() as tx:
        tx.add(CoopModel(uuid="a", name="old"))
        await tx.flush()
        tx.add(HenModel(uuid="h", coop_uuid="a"))
    return db


async def test_it_is_read_once_until_its_table_changes(coop: Database) -> None:
    assert await coop.remember("name", name) == "old"
    with reads(coop, 0):
        assert await coop.remember("name", name) == "old"
    async with coop.transaction() as tx:
        tx.add(FoxModel(uuid="f"))
    with reads(coop, 0):
        assert await coop.remember("name", name) == "old"
    async with coop.transaction() as tx:
        await update_where(tx, CoopModel, {"name": "new"}, CoopModel.uuid == "a")
    with reads(coop, 1):
        assert await coop.remember("name", name) == "new"


async def test_a_row_that_goes_with_another_is_not_remembered(coop: Database) -> None:
    assert await coop.remember("hens", hens) == 1
    async with coop.transaction() as tx:
        await tx.execute(CoopModel.__table__.delete())
    assert await coop.remember("hens", hens) == 0


async def test_what_a_statement_that_nobody_understands_changed_is_forgotten(coop: Database) -> None:
    await coop.remember("name", name)
    async with coop.transaction() as tx:
        await tx.execute(text("REPLACE INTO test_coop (uuid, name) VALUES ('a', 'replaced')"))
    assert await coop.remember("name", name) == "replaced"


async def test_an_answer_that_was_read_while_another_wrote_is_not_kept(coop: Database) -> None:
    reading, written = asyncio.Event(), asyncio.Event()

    async def slow(session: AsyncSession) -> str | None:
        found = await name(session)
        reading.set()
        await written.wait()
        return found

    first = asyncio.create_task(coop.remember("name", slow))
    await reading.wait()
    async with coop.transaction() as tx:
        await update_where(tx, CoopModel, {"name": "new"}, CoopModel.uuid == "a")
    written.set()
    assert await first == "old"
    assert await coop.remember("name", name) == "new"


async def test_nothing_is_remembered_of_a_transaction_that_is_not_over(coop: Database) -> None:
    async with coop.transaction() as tx:
        await update_where(tx, CoopModel, {"name": "new"}, CoopModel.uuid == "a")
        assert await coop.remember("name", name) == "old"
    assert await coop.remember("name", name) == "new"


async def test_a_transaction_is_told_what_it_sees(coop: Database) -> None:
    async with coop.transaction() as tx:
        assert [await coop.remember("name", name, tx) for _ in range(2)] == ["old", "old"]
    with reads(coop, 0):
        assert await coop.remember("name", name) == "old"
    async with coop.transaction() as tx:
        await update_where(tx, CoopModel, {"name": "never"}, CoopModel.uuid == "a")
        assert await coop.remember("name", name, tx) == "never"
        assert await coop.remember("name", name) == "old"
        await tx.rollback()
    assert await coop.remember("name", name) == "old"


async def test_an_answer_depends_on_the_answers_in_it(coop: Database) -> None:
    async def outer(_session: AsyncSession) -> str:
        return f"{await coop.remember('name', name)}!"

    assert [await coop.remember(number, outer) for number in (1, 2)] == ["old!", "old!"]
    async with coop.transaction() as tx:
        await update_where(tx, CoopModel, {"name": "new"}, CoopModel.uuid == "a")
    assert [await coop.remember(number, outer) for number in (1, 2)] == ["new!", "new!"]


async def test_what_a_single_statement_reads_is_remembered_without_a_session(coop: Database) -> None:
    named = Prepared(select(CoopModel.__table__.c.name).where(CoopModel.__table__.c.uuid == bindparam("key")))

    async def load(session: Reading) -> str:
        assert session is coop.once
        ((found,),) = await named.rows(session, key="a")
        return str(found)

    assert await coop.remember_one("name", load) == "old"
    with reads(coop, 0):
        assert await coop.remember_one("name", load) == "old"
    async with coop.transaction() as tx:
        await update_where(tx, CoopModel, {"name": "new"}, CoopModel.uuid == "a")
        # Somebody else asks meanwhile, and must not be told of what is not committed.
        assert await asyncio.create_task(coop.remember_one("name", load)) == "old"
    with reads(coop, 1):
        assert await coop.remember_one("name", load) == "new"


async def test_answers_that_are_not_true_any_more_do_not_stay_for_ever(coop: Database) -> None:
    for number in range(20):
        await coop.remember(("name", number), name)
    for number in range(5):
        await coop.remember(("hens", number), hens)
    async with coop.transaction() as tx:
        await update_where(tx, CoopModel, {"name": "new"}, CoopModel.uuid == "a")
    for number in range(30):
        await coop.remember(("foxes", number), foxes)
    kept = coop._remembered._kept.keys()
    assert {one for one in kept if isinstance(one, tuple)} == {("foxes", number) for number in range(30)}
    with reads(coop, 0):
        await coop.remember(("foxes", 0), foxes)


async def test_a_failure_is_not_remembered(coop: Database) -> None:
    async def fail(_session: AsyncSession) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await coop.remember("name", fail)
    assert await coop.remember("name", name) == "old"


async def test_a_row_is_inserted_unless_there_is_one(coop: Database) -> None:
    async with coop.transaction() as tx:
        assert await insert_new(tx, CoopModel, uuid="b", name="second")
        assert not await insert_new(tx, CoopModel, uuid="a", name="another")
    assert await coop.remember("name", name) == "old"


async def test_an_update_sees_what_waits_in_the_session(coop: Database) -> None:
    async with coop.transaction() as tx:
        tx.add(CoopModel(uuid="c", name="third"))
        assert await update_where(tx, CoopModel, {"name": "renamed"}, CoopModel.uuid == "c") == 1
