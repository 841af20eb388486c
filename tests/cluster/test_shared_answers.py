"""Several nodes on one PostgreSQL: what each keeps of it is what it would answer now, and their sessions are whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextvars import Context
from pathlib import Path

import pytest
from sqlalchemy import bindparam, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.zone.model import ZoneModel
from caelum.kernel import freshness, postgresql_sessions
from caelum.kernel.database import Database
from caelum.kernel.errors import CloudError
from caelum.kernel.jobs import JobModel
from caelum.kernel.postgresql import CONFLICT
from caelum.kernel.postgresql_sessions import KeptSession
from caelum.kernel.prepared import Prepared
from caelum.kernel.rows import insert_rows
from caelum.kernel.tag import SystemTagModel
from caelum.testing.databases import of_cluster

_COUNT = Prepared(select(ZoneModel.__table__.c.name).where(ZoneModel.__table__.c.uuid == bindparam("key")))


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[tuple[Database, Database]]:
    """Two nodes' access to the same database."""
    both = Database(of_cluster(tmp_path)), Database(of_cluster(tmp_path))
    yield both
    for one in both:
        await one.close()


async def names(session: AsyncSession) -> list[str]:
    return list(await session.scalars(select(ZoneModel.name).order_by(ZoneModel.name)))


async def jobs(session: AsyncSession) -> list[str]:
    return list(await session.scalars(select(JobModel.uuid)))


def zone(name: str) -> ZoneModel:
    return ZoneModel(uuid=name, name=name, state="Enabled", type="zone", is_default=False)


def tag(name: str) -> SystemTagModel:
    return SystemTagModel(
        uuid=name, resource_uuid=name, resource_type="ZoneVO", tag=name, inherent=False, type="System"
    )


async def sent(db: Database, times: int = 1) -> int:
    """How many statements it takes to be told the names so often."""
    before = db.statements
    for _ in range(times):
        await db.remember("names", names)
    return db.statements - before


async def test_an_answer_is_kept_until_any_node_changes_its_table(nodes: tuple[Database, Database]) -> None:
    one, other = nodes
    assert await one.remember("names", names) == []
    assert await sent(one) == 1  # the versions alone
    async with other.transaction() as tx:
        tx.add(zone("a"))
        await tx.flush()
        assert await one.remember("names", names) == []  # not committed yet
    assert await one.remember("names", names) == ["a"]
    assert await sent(one) == 1
    async with other.transaction() as tx:
        await tx.execute(text("UPDATE zone SET name = 'b'"))
    assert await one.remember("names", names) == ["b"]
    async with one.transaction() as tx:
        await tx.execute(text("DELETE FROM zone"))
    assert await one.remember("names", names) == []
    assert await other.remember("names", names) == []


async def test_work_sees_what_it_changed_and_what_its_node_changed(
    nodes: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freshness, "MOST_SECONDS", 60.0)
    one, _ = nodes
    with freshness.begun():
        assert await one.remember("names", names) == []
        assert await sent(one, 3) == 0, "it heard nothing since"
        async with one.transaction() as tx:
            await insert_rows(tx, [zone("a")])
        assert await one.remember("names", names) == ["a"]
        await asyncio.create_task(_add(one, zone("b")), context=Context())
        assert await one.remember("names", names) == ["a", "b"]
        async with one.transaction() as tx:
            tx.add(zone("c"))
        assert await one.remember("names", names) == ["a", "b", "c"]
        assert await sent(one) == 0


async def test_work_sees_what_another_node_told_it(nodes: tuple[Database, Database]) -> None:
    one, other = nodes
    with freshness.begun():
        assert await one.remember("names", names) == []
        await asyncio.create_task(_add(other, zone("a")), context=Context())
        freshness.all_heard()
        assert await one.remember("names", names) == ["a"]
        await asyncio.create_task(_add(other, zone("b")), context=Context())
        await asyncio.sleep(freshness.MOST_SECONDS)
        assert await one.remember("names", names) == ["a", "b"], "nor is anything old for long"


async def _add(db: Database, row: ZoneModel) -> None:
    async with db.transaction() as tx:
        await insert_rows(tx, [row])


async def test_what_is_rolled_back_changed_nothing(nodes: tuple[Database, Database]) -> None:
    one, other = nodes
    await one.remember("names", names)
    with contextlib.suppress(ZeroDivisionError):
        async with other.transaction() as tx:
            tx.add(zone("a"))
            await tx.flush()
            raise ZeroDivisionError
    assert await sent(one) == 1


async def test_answers_from_tables_that_change_often_are_not_kept(nodes: tuple[Database, Database]) -> None:
    one, _ = nodes
    await one.remember("jobs", jobs)
    before = one.statements
    await one.remember("jobs", jobs)
    assert one.statements - before == 2


async def test_many_who_ask_at_a_time_share_a_question(nodes: tuple[Database, Database]) -> None:
    one, _ = nodes
    await one.remember("names", names)
    before = one.statements
    await asyncio.gather(*(one.remember("names", names) for _ in range(50)))
    assert one.statements - before <= 2


async def test_changes_of_several_tables_in_any_order_end(nodes: tuple[Database, Database]) -> None:
    one, other = nodes

    async def change(db: Database, number: int) -> None:
        rows = [zone(f"z{number}"), tag(f"t{number}")]
        async with db.transaction() as tx:
            for row in reversed(rows) if number % 2 else rows:
                tx.add(row)
                await tx.flush()

    for number in range(0, 40, 4):
        await asyncio.gather(*(change(db, number + place) for place, db in enumerate((one, other, one, other))))
    assert len(await one.remember("names", names)) == 40


async def test_a_prepared_statement_sees_what_its_transaction_wrote(nodes: tuple[Database, Database]) -> None:
    one, _ = nodes
    async with one.transaction() as tx:
        tx.add(zone("a"))
        await tx.flush()
        assert [tuple(row) for row in await _COUNT.rows(tx, key="a")] == [("a",)]
    async with one.read() as session:
        assert [tuple(row) for row in await _COUNT.rows(session, key="a")] == [("a",)]


async def test_a_transaction_whose_statement_failed_commits_nothing_though_nobody_looked(
    nodes: tuple[Database, Database],
) -> None:
    one, _ = nodes
    broken = Prepared(select(text("1 / (SELECT count(*) FROM zone WHERE uuid = 'none')")))

    async def write() -> None:
        async with one.transaction() as tx:
            tx.add(zone("a"))
            await tx.flush()
            with contextlib.suppress(DBAPIError):
                await broken.rows(tx)

    with pytest.raises(DBAPIError):
        await write()
    async with one.read() as session:
        assert await names(session) == []


async def test_a_transaction_that_failed_does_not_go_on_as_another_one(nodes: tuple[Database, Database]) -> None:
    one, _ = nodes
    broken = Prepared(select(text("1 / (SELECT count(*) FROM zone WHERE uuid = 'none')")))

    async def write() -> None:
        async with one.transaction() as tx:
            await insert_rows(tx, [zone("a")])
            with contextlib.suppress(DBAPIError):
                await broken.rows(tx)
            await insert_rows(tx, [zone("b")])

    with pytest.raises(SQLAlchemyError):
        await write()
    async with one.read() as session:
        assert await names(session) == []


async def test_a_statement_meets_a_change_of_its_table_once(nodes: tuple[Database, Database]) -> None:
    one, other = nodes

    async def ask() -> int:
        async with one.read() as session:
            assert isinstance(session, KeptSession)
            await session.run("SELECT * FROM altered", ())
        return 1

    async with other.transaction() as tx:
        await tx.execute(text("CREATE TABLE altered (x int)"))
    await ask()
    async with other.transaction() as tx:
        await tx.execute(text("ALTER TABLE altered ADD COLUMN y int"))
    with pytest.raises(CloudError) as conflict:
        await ask()
    assert conflict.value.kind is CONFLICT
    assert await ask() == 1


async def test_who_is_cancelled_leaves_no_transaction_behind(nodes: tuple[Database, Database]) -> None:
    one, _ = nodes
    slow = Prepared(select(text("pg_sleep(20)")))

    async def wait() -> None:
        async with one.transaction() as tx:
            tx.add(zone("a"))
            await tx.flush()
            await slow.rows(tx)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(10), one.transaction() as tx:  # the server was told that nobody waits any more
        tx.add(zone("a"))
    async with one.read() as session:
        assert await names(session) == ["a"]


async def test_a_commit_begins_the_next_transaction_which_nobody_needs_for_long(
    nodes: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = nodes
    connections = one._kept[0]
    assert isinstance(connections, postgresql_sessions.Connections)
    monkeypatch.setattr(connections, "_warm", 0.3)
    for name in ("a", "b"):
        async with one.transaction() as tx:
            await insert_rows(tx, [zone(name)])
    async with one.read(single=True) as session:
        assert len(await _COUNT.rows(session, key="b")) == 1
        async with one.transaction() as tx:
            await insert_rows(tx, [zone("c")])
        assert len(await _COUNT.rows(session, key="c")) == 1, "each statement sees what is true then"
    assert any(kept.begun for kept in connections._begun)
    async with asyncio.timeout(10):
        while connections._begun or connections._tasks:  # noqa: ASYNC110 - they are plain lists
            await asyncio.sleep(0.05)
    assert connections._free
    assert not any(kept.driver.is_in_transaction() for kept in connections._free)
