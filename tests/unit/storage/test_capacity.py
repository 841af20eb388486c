"""The books of primary storages: nothing is promised twice, and everything comes back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from caelum.cloud.primary_storage.capacity import Place, Terms, is_recorded, move, pin, record, release, reserve
from caelum.cloud.primary_storage.errors import ALLOCATE_ERROR, RESERVED_ELSEWHERE
from caelum.cloud.primary_storage.extension import PhysicalCapacity
from caelum.cloud.primary_storage.model import (
    LocalStorageHostRefModel,
    PrimaryStorageCapacityModel,
    PrimaryStorageModel,
    StorageReservationModel,
)
from caelum.kernel.database import Base, Database
from caelum.kernel.errors import CloudError

PS, HOST, OTHER = "a" * 32, "b" * 32, "c" * 32
GIB = 1 << 30


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}", synchronous="OFF")
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with database.transaction() as tx:
        tx.add(PrimaryStorageModel(uuid=PS, name="ps", zone_uuid="z" * 32, url="/ps", type="LocalStorage"))
        await tx.flush()
        tx.add(PrimaryStorageCapacityModel(uuid=PS))
    for host in (HOST, OTHER):
        await look(database, host, 10 * GIB, 8 * GIB)
    yield database
    await database.close()


async def look(db: Database, host: str, total: int, available: int, terms: Terms | None = None) -> None:
    async with db.transaction() as tx:
        await record(tx, PS, host, PhysicalCapacity(total, available), terms or Terms(), True)


async def free(db: Database, host: str = HOST) -> int:
    async with db.read() as session:
        return (await session.get_one(LocalStorageHostRefModel, (PS, host))).available_capacity


async def whole(db: Database) -> int:
    async with db.read() as session:
        return (await session.get_one(PrimaryStorageCapacityModel, PS)).available_capacity


def here(host: str = HOST) -> Place:
    return Place(PS, host, True)


async def test_what_the_system_uses_is_never_promised(db: Database) -> None:
    assert await free(db) == 8 * GIB
    assert await whole(db) == 16 * GIB


async def test_the_same_key_takes_its_space_once_and_gives_back_exactly_that(db: Database) -> None:
    for _ in range(3):
        async with db.transaction() as tx:
            await reserve(tx, here(), "v1", 3 * GIB, Terms(ratio=2.0))
    assert await free(db) == 8 * GIB - 3 * GIB // 2
    assert await whole(db) == 16 * GIB - 3 * GIB // 2
    for _ in range(2):
        async with db.transaction() as tx:
            await release(tx, "v1")
    assert (await free(db), await whole(db)) == (8 * GIB, 16 * GIB)


async def test_a_refusal_has_the_numbers_and_changes_nothing(db: Database) -> None:
    with pytest.raises(CloudError) as refused:
        async with db.transaction() as tx:
            await reserve(tx, here(), "v1", 8 * GIB, Terms(reserved=GIB))
    assert refused.value.kind is ALLOCATE_ERROR
    assert refused.value.facts["available"] == 8 * GIB
    assert refused.value.facts["reserved"] == GIB
    assert str(8 * GIB) in refused.value.details
    assert await free(db) == 8 * GIB
    async with db.read() as session:
        assert await session.scalar(select(func.count()).select_from(StorageReservationModel)) == 0


@pytest.mark.parametrize("host_bound", [True, False])
async def test_a_key_cannot_be_in_two_places(db: Database, host_bound: bool) -> None:
    async with db.transaction() as tx:
        await reserve(tx, Place(PS, HOST, host_bound), "v1", GIB, Terms())
    with pytest.raises(CloudError, match="must be released") as refused:
        async with db.transaction() as tx:
            await reserve(tx, here(OTHER), "v1", GIB, Terms())
    assert refused.value.kind is RESERVED_ELSEWHERE


async def test_a_host_bound_storage_wants_a_host() -> None:
    with pytest.raises(CloudError, match="a host must be named"):
        Place(PS, None, True)


async def test_a_hundred_takers_at_once_share_what_is_there(db: Database) -> None:
    async def take(number: int) -> bool:
        try:
            async with db.transaction() as tx:
                await reserve(tx, here(), f"v{number}", GIB, Terms(reserved=GIB))
        except CloudError:
            return False
        return True

    assert sum(await asyncio.gather(*(take(number) for number in range(100)))) == 7
    assert await free(db) == GIB


async def test_random_reservations_and_returns_end_where_they_began(db: Database) -> None:
    dice, held = random.Random(7), set()

    async def once(number: int) -> None:
        key = f"v{number % 20}"
        host = HOST if number % 2 == 0 else OTHER
        try:
            async with db.transaction() as tx:
                if key in held and dice.random() < 0.5:
                    await release(tx, key)
                    held.discard(key)
                else:
                    await reserve(tx, here(host), key, dice.randrange(1, GIB), Terms(ratio=1.3))
                    held.add(key)
        except CloudError:
            pass

    for number in range(200):
        await once(number)
    async with db.read() as session:
        charged = await session.scalar(select(func.sum(StorageReservationModel.charged)))
    assert await whole(db) == 16 * GIB - (charged or 0)
    for key in list(held):
        async with db.transaction() as tx:
            await release(tx, key)
    assert (await free(db), await free(db, OTHER), await whole(db)) == (8 * GIB, 8 * GIB, 16 * GIB)


async def test_a_look_at_the_disk_derives_the_books_anew_at_todays_ratio(db: Database) -> None:
    async with db.transaction() as tx:
        await reserve(tx, here(), "volume", 4 * GIB, Terms())
        await reserve(tx, here(), "cache", GIB, Terms(), scaled=False)
    async with db.transaction() as tx:
        (await tx.get_one(LocalStorageHostRefModel, (PS, HOST))).available_capacity = 17
    await look(db, HOST, 10 * GIB, 3 * GIB, Terms(ratio=2.0))
    assert await free(db) == 8 * GIB - 2 * GIB - GIB
    assert await whole(db) == 8 * GIB + 5 * GIB


async def test_a_disk_that_grew_offers_more(db: Database) -> None:
    await look(db, HOST, 20 * GIB, 18 * GIB)
    assert await free(db) == 18 * GIB


async def test_a_reservation_changes_its_name_once(db: Database) -> None:
    async with db.transaction() as tx:
        await reserve(tx, here(), "v1", GIB, Terms())
        await pin(tx, "v1", "/ps/v1.qcow2")
    for _ in range(2):
        async with db.transaction() as tx:
            await move(tx, "v1", "trash")
    async with db.read() as session:
        assert (await session.get_one(StorageReservationModel, "trash")).install_path == "/ps/v1.qcow2"
        assert await session.get(StorageReservationModel, "v1") is None
    with pytest.raises(CloudError):
        async with db.transaction() as tx:
            await move(tx, "none", "other")


async def test_a_share_is_recorded_while_the_host_says_the_same(db: Database) -> None:
    async def recorded(total: int = 10, available: int = 8, ratio: float = 1.0, host: str = HOST) -> bool:
        physical = PhysicalCapacity(total * GIB, available * GIB)
        async with db.read() as session:
            return await is_recorded(session, PS, host, physical, Terms(ratio))

    assert await recorded()
    assert not await recorded(total=11)
    assert not await recorded(available=7)
    assert not await recorded(host="d" * 32)
    async with db.transaction() as tx:
        await reserve(tx, here(), "volume", 2 * GIB, Terms())
    assert await recorded()
    assert not await recorded(ratio=2.0)
    async with db.transaction() as tx:
        (await tx.get_one(LocalStorageHostRefModel, (PS, HOST))).available_capacity -= 1
    assert not await recorded()
    await look(db, HOST, 10 * GIB, 8 * GIB)
    assert await recorded()
    async with db.transaction() as tx:
        (await tx.get_one(LocalStorageHostRefModel, (PS, HOST))).status = "Disconnected"
    assert not await recorded()
