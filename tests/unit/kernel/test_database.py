"""The database: transactions that hold or leave no trace, one writer at a time, conditional updates."""

import asyncio
import random
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import ForeignKey, String, UniqueConstraint, delete, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Mapped, mapped_column, relationship

from caelum.kernel import blocks, database, resources
from caelum.kernel.database import Database, Resource, after_commit, in_transaction, unique, update_where, utcnow
from caelum.kernel.errors import INVALID_ARGUMENT, CloudError


class ShelfModel(Resource):
    __tablename__ = "test_shelf"
    __vo__ = "TestShelfVO"
    __mapper_args__ = {"polymorphic_on": "type"}  # noqa: RUF012
    __table_args__ = (UniqueConstraint("name"),)

    name: Mapped[str]
    type: Mapped[str] = mapped_column(default="plain")
    total: Mapped[int] = mapped_column(default=10)
    used: Mapped[int] = mapped_column(default=0)
    books: Mapped[list["BookModel"]] = relationship(lazy="selectin")


class GlassShelfModel(ShelfModel):
    __vo__ = "TestGlassShelfVO"
    __mapper_args__ = {"polymorphic_identity": "glass"}  # noqa: RUF012

    thickness: Mapped[int | None]


class BookModel(Resource):
    __tablename__ = "test_book"
    __vo__ = "TestBookVO"

    shelf_uuid: Mapped[str] = mapped_column(String(32), ForeignKey("test_shelf.uuid"))


async def _add(db: Database, *rows: Resource) -> None:
    async with db.transaction() as tx:
        tx.add_all(rows)


async def _names(db: Database) -> list[str]:
    async with db.read() as session:
        return list(await session.scalars(select(ShelfModel.name).order_by(ShelfModel.name)))


async def test_commit_and_rollback(db: Database) -> None:
    await _add(db, ShelfModel(uuid="a", name="a"))

    async def fail() -> None:
        async with db.transaction() as tx:
            tx.add(ShelfModel(uuid="b", name="b"))
            await tx.flush()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await fail()
    assert await _names(db) == ["a"]


async def test_times_are_kept_by_themselves(db: Database) -> None:
    before = utcnow()
    await _add(db, ShelfModel(uuid="a", name="a"))
    async with db.transaction() as tx:
        row = await tx.get_one(ShelfModel, "a")
        created, changed = row.create_date, row.last_op_date
        assert isinstance(created, datetime)
        assert created.tzinfo is None
        assert before <= created <= utcnow()
        await update_where(tx, ShelfModel, {"used": 1}, ShelfModel.uuid == "a")
        assert row.last_op_date > changed
        assert row.create_date == created


async def test_a_conditional_update_counts_and_refreshes(db: Database) -> None:
    await _add(db, ShelfModel(uuid="a", name="a"))
    shelf = ShelfModel
    async with db.transaction() as tx:
        row = await tx.get_one(shelf, "a")
        for _ in range(3):
            assert await update_where(tx, shelf, {"used": shelf.used + 3}, shelf.used + 3 <= shelf.total) == 1
        assert await update_where(tx, shelf, {"used": shelf.used + 3}, shelf.used + 3 <= shelf.total) == 0
        assert row.used == 9


async def test_writers_take_turns_and_capacity_is_never_overdrawn(db: Database) -> None:
    await _add(db, ShelfModel(uuid="a", name="a", total=25))
    shelf = ShelfModel

    async def take() -> int:
        async with db.transaction() as tx:
            return await update_where(tx, shelf, {"used": shelf.used + 1}, shelf.used < shelf.total)

    assert sum(await asyncio.gather(*(take() for _ in range(40)))) == 25


async def test_readers_see_one_state_and_do_not_wait_for_the_writer(db: Database) -> None:
    await _add(db, ShelfModel(uuid="a", name="a"))
    async with db.read() as session:
        assert await session.scalar(select(func.count()).select_from(ShelfModel)) == 1
        await _add_elsewhere(db)
        assert await session.scalar(select(func.count()).select_from(ShelfModel)) == 1
    assert len(await _names(db)) == 2


async def _add_elsewhere(db: Database) -> None:
    await asyncio.wait_for(_add(db, ShelfModel(uuid="b", name="b")), 5)


async def test_a_reader_cannot_write(db: Database) -> None:
    async with db.read() as session:
        session.add(ShelfModel(uuid="a", name="a"))
        with pytest.raises(DBAPIError, match=r"read.?only"):
            await session.flush()


async def test_foreign_keys_hold(db: Database) -> None:
    with pytest.raises(IntegrityError):
        await _add(db, BookModel(uuid="b", shelf_uuid="nowhere"))


async def test_a_unique_violation_is_a_typed_error_and_the_transaction_goes_on(db: Database) -> None:
    await _add(db, ShelfModel(uuid="a", name="a"))
    async with db.transaction() as tx:
        with pytest.raises(CloudError, match="name taken") as caught:
            async with unique(tx, INVALID_ARGUMENT, "name taken", name="a"):
                tx.add(ShelfModel(uuid="b", name="a"))
        assert caught.value.facts == {"name": "a"}
        tx.add(ShelfModel(uuid="c", name="c"))
    assert await _names(db) == ["a", "c"]


async def test_other_violations_stay_what_they_are(db: Database) -> None:
    async with db.transaction() as tx:
        with pytest.raises(IntegrityError):
            async with unique(tx, INVALID_ARGUMENT, "name taken"):
                tx.add(BookModel(uuid="b", shelf_uuid="nowhere"))


async def test_a_transaction_in_a_transaction_is_refused(db: Database) -> None:
    async with db.transaction():
        assert in_transaction()
        with pytest.raises(RuntimeError, match="open another transaction"):
            async with db.transaction():
                pass
        assert not await asyncio.create_task(_asks())
    assert not in_transaction()


async def _asks() -> bool:
    return in_transaction()


async def test_cancelled_transactions_leak_nothing(db: Database) -> None:
    await _add(db, ShelfModel(uuid="a", name="a", total=10**6))
    shelf, committed = ShelfModel, 0

    async def work() -> None:
        nonlocal committed
        async with db.transaction() as tx:
            for _ in range(4):
                await update_where(tx, shelf, {"used": shelf.used + 1}, shelf.uuid == "a")

    for number in range(120):
        tasks = [asyncio.create_task(work()) for _ in range(2)]
        # In wall time and in turns of the loop, so that every await of a transaction is hit.
        for _ in range(number % 40):
            await asyncio.sleep(0)
        await asyncio.sleep(random.random() * 0.01 * (number % 2))
        tasks[0].cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    async with db.transaction() as tx:
        used = await tx.scalar(select(shelf.used))
    assert used is not None
    assert used % 4 == 0, "a transaction was committed by halves"
    assert used >= 120 * 4


async def test_cancelled_readers_do_not_stay_in_the_past(db: Database) -> None:
    await _add(db, ShelfModel(uuid="a", name="a"))

    async def look() -> int | None:
        async with db.read() as session:
            return await session.scalar(select(ShelfModel.used))

    for number in range(120):
        task = asyncio.create_task(look())
        for _ in range(number % 30):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    async with db.transaction() as tx:
        await update_where(tx, ShelfModel, {"used": 7})
    assert await asyncio.gather(*(look() for _ in range(8))) == [7] * 8


async def test_child_types_share_the_table_and_unknown_ones_load_as_the_parent(db: Database) -> None:
    await _add(db, GlassShelfModel(uuid="a", name="a", thickness=3), GlassShelfModel(uuid="b", name="b"))
    async with db.transaction() as tx:
        await update_where(tx, ShelfModel, {"type": "steel"}, ShelfModel.uuid == "b")
    async with db.read() as session:
        kinds = [type(row) for row in await session.scalars(select(ShelfModel).order_by(ShelfModel.name))]
        assert kinds == [GlassShelfModel, ShelfModel]
        assert await resources.type_of(session, "a") == "TestGlassShelfVO"
        assert await resources.type_of(session, "b") == "TestShelfVO"
        assert await resources.type_of(session, "z") is None
        assert await resources.missing(session, "TestShelfVO", ["z", "a", "y"]) == ["z", "y"]
    assert resources.is_a("TestGlassShelfVO", "TestShelfVO")
    assert not resources.is_a("TestShelfVO", "TestGlassShelfVO")


async def test_that_a_resource_of_a_steady_type_exists_is_remembered(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = resources.Resources(db)
    await _add(db, ShelfModel(uuid="a", name="a"), ShelfModel(uuid="b", name="b"))
    monkeypatch.setattr(ShelfModel, "__steady__", True)
    assert await known.unknown("TestShelfVO", ["a", "z", "a"]) == ["z"]
    assert await known.unknown("TestShelfVO", ["b", "a"]) == []
    before = db.statements
    assert await known.unknown("TestShelfVO", ["b", "a"]) == []
    assert await known.unknown("TestShelfVO", ["a", "b"]) == []
    assert db.statements == before
    assert await known.unknown("TestShelfVO", []) == []
    async with db.transaction() as tx:
        await tx.execute(delete(ShelfModel).where(ShelfModel.uuid == "a"))
    assert await known.unknown("TestShelfVO", ["b", "a"]) == ["a"]
    await _add(db, ShelfModel(uuid="a", name="anew"))
    assert await known.unknown("TestShelfVO", ["b", "a"]) == []


async def test_what_was_committed_survives_the_process(tmp_path: Path) -> None:
    """The process is killed without any closing; the next one finds what was committed, and nothing else."""
    script = (
        "import asyncio, os, signal, sys\n"
        "from caelum.kernel.database import Database\n"
        "from caelum.kernel.settings import GlobalConfigModel as G\n"
        "async def main():\n"
        "    db = Database('sqlite+aiosqlite:///' + sys.argv[1]); await db.migrate()\n"
        "    async with db.transaction() as tx:\n"
        "        tx.add(G(category='t', name='kept', default_value='', value=''))\n"
        "    async with db.transaction() as tx:\n"
        "        tx.add(G(category='t', name='lost', default_value='', value='')); await tx.flush()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    import sys

    from caelum.kernel.settings import GlobalConfigModel

    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, f"{tmp_path}/k.db")
    assert await asyncio.wait_for(process.wait(), 60) == -9
    again = Database(f"sqlite+aiosqlite:///{tmp_path}/k.db")
    async with again.transaction() as tx:
        assert list(await tx.scalars(select(GlobalConfigModel.name))) == ["kept"]
    await again.close()


async def test_news_of_a_commit_reach_the_others_when_one_fails_to_take_them(db: Database) -> None:
    told: list[str] = []

    def broken() -> None:
        raise ValueError("broken")

    async with db.transaction() as tx:
        after_commit(tx, broken)
        after_commit(tx, lambda: told.append("news"))
    assert told == ["news"]


async def test_the_turn_to_write_is_given_back_whatever_fails_at_the_end(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_holding: object) -> None:
        raise ValueError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(database, "leave_transaction", broken)
        with pytest.raises(ValueError, match="broken"):
            async with db.transaction():
                pass
    blocks._writing.set(None)
    async with asyncio.timeout(5), db.transaction():
        pass
