"""Ownership and quotas, which commit with the resource."""

import asyncio

import pytest
from sqlalchemy import select

from caelum.cloud.ownership import AccountResourceRefModel, SharedResourceModel, disown, own, own_all, owner_of
from caelum.cloud.quota import QUOTAS, close_account, give, give_all, open_account, take, take_all, take_under, usage
from caelum.kernel.context import ADMIN_ACCOUNT_UUID
from caelum.kernel.database import Database
from caelum.kernel.errors import CloudError

from . import test_tag  # noqa: F401 - declares TestPlaneVO and its child TestJetVO


async def test_one_owner_per_resource(db: Database) -> None:
    for account in ("a", "a", "b"):
        async with db.transaction() as tx:
            await own(tx, account, "jet", "TestJetVO")
    async with db.read() as session:
        rows = list(await session.scalars(select(AccountResourceRefModel)))
        assert [(row.account_uuid, row.resource_type, row.concrete_resource_type) for row in rows] == [
            ("b", "TestPlaneVO", "TestJetVO")
        ]
        assert await owner_of(session, "jet") == "b"
        assert await owner_of(session, "ship") is None
    async with db.transaction() as tx:
        tx.add(SharedResourceModel(owner_account_uuid="b", resource_type="TestPlaneVO", resource_uuid="jet"))
    async with db.transaction() as tx:
        await disown(tx, "jet")
        assert await owner_of(tx, "jet") is None
        assert list(await tx.scalars(select(SharedResourceModel))) == []


async def _used(db: Database, account: str, name: str) -> tuple[int, int]:
    async with db.read() as session:
        return next((used, value) for one, used, value in await usage(session, account) if one == name)


async def test_a_quota_is_taken_until_it_is_used_up(db: Database) -> None:
    async def one(number: int) -> None:
        async with db.transaction() as tx:
            await take(tx, "a", "vm.num", key=f"vm{number}")

    results = await asyncio.gather(*(one(number) for number in range(25)), return_exceptions=True)
    refusals = [error for error in results if isinstance(error, CloudError)]
    assert len(refusals) == 5
    assert {(error.code, error.facts["limit"], error.facts["used"]) for error in refusals} == {("ID.1003", 20, 20)}
    assert await _used(db, "a", "vm.num") == (20, 20)


async def test_a_key_takes_once_and_gives_exactly_that_back(db: Database) -> None:
    for _ in range(2):
        async with db.transaction() as tx:
            await take(tx, "a", "volume.capacity", 7, key="v")
            await take(tx, "a", "volume.capacity", 2)
    assert (await _used(db, "a", "volume.capacity"))[0] == 11
    for _ in range(2):
        async with db.transaction() as tx:
            await give(tx, "somebody", "volume.capacity", 1, key="v")
    assert (await _used(db, "a", "volume.capacity"))[0] == 4
    async with db.transaction() as tx:
        await give(tx, "a", "volume.capacity", 4)
    assert (await _used(db, "a", "volume.capacity"))[0] == 0


async def test_the_administrator_is_counted_but_not_refused(db: Database) -> None:
    async with db.transaction() as tx:
        await take(tx, ADMIN_ACCOUNT_UUID, "vm.num", 100)
    assert await _used(db, ADMIN_ACCOUNT_UUID, "vm.num") == (100, 20)


async def test_accounts_are_opened_and_closed(db: Database) -> None:
    async with db.transaction() as tx:
        await open_account(tx, "a")
        assert {name for name, _, _ in await usage(tx, "a")} == set(QUOTAS)
    async with db.transaction() as tx:
        await take(tx, "a", "vm.num", key="v")
        await close_account(tx, "a")
        assert await usage(tx, "a") == []


@pytest.mark.parametrize("name", ["vm.num", "image.size"])
async def test_what_did_not_commit_was_not_taken(db: Database, name: str) -> None:
    async def fail() -> None:
        async with db.transaction() as tx:
            await take(tx, "a", name, key="v")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await fail()
    async with db.transaction() as tx:
        await take(tx, "a", name, key="v")
    assert (await _used(db, "a", name))[0] == 1


async def test_several_quotas_are_counted_by_two_statements_and_given_back_by_two(db: Database) -> None:
    amounts = {"vm.num": 1, "vm.cpuNum": 4}
    async with db.transaction() as tx:
        await open_account(tx, "many")
        before = db.statements
        await take_all(tx, "many", amounts, key="vm1")
        assert db.statements - before == 2
        await take_all(tx, "many", {**amounts, "vm.totalNum": 1}, key="vm1")  # only what is new
    assert [(await _used(db, "many", one))[0] for one in ("vm.num", "vm.cpuNum", "vm.totalNum")] == [1, 4, 1]
    with pytest.raises(CloudError) as caught:
        async with db.transaction() as tx:
            await take_all(tx, "many", {"vm.num": 1, "vm.cpuNum": 77}, key="vm2")
    assert (caught.value.facts["quota"], caught.value.facts["used"], caught.value.facts["request"]) == (
        "vm.cpuNum", 4, 77,
    )  # fmt: skip
    async with db.transaction() as tx:
        before = db.statements
        await give_all(tx, list(amounts), "vm1")
        assert db.statements - before == 2
        await give_all(tx, list(amounts), "vm1")  # it has given everything back
    assert [(await _used(db, "many", one))[0] for one in ("vm.num", "vm.cpuNum", "vm.totalNum")] == [0, 0, 1]


async def test_several_keys_take_at_once_and_each_once(db: Database) -> None:
    vm, disk = {"vm.num": 1, "volume.capacity": 5}, {"volume.capacity": 7}
    for _ in range(2):
        async with db.transaction() as tx:
            await take_under(tx, "a", {"vm": vm, "disk": disk})
    assert [(await _used(db, "a", name))[0] for name in ("vm.num", "volume.capacity")] == [1, 12]
    with pytest.raises(CloudError) as refused:
        async with db.transaction() as tx:
            await take_under(tx, "a", {"large": {"volume.capacity": 1 << 60}, "small": {"vm.num": 1}})
    assert refused.value.facts["quota"] == "volume.capacity"
    async with db.transaction() as tx:
        await give_all(tx, ["vm.num", "volume.capacity"], "disk")
    assert [(await _used(db, "a", name))[0] for name in ("vm.num", "volume.capacity")] == [1, 5]


async def test_several_resources_get_their_owner_at_once(db: Database) -> None:
    for account in ("a", "b"):
        async with db.transaction() as tx:
            await own_all(tx, account, {"jet": "TestJetVO", "plane": "TestPlaneVO"})
    async with db.read() as session:
        rows = list(await session.scalars(select(AccountResourceRefModel)))
    assert {(row.resource_uuid, row.account_uuid, row.concrete_resource_type) for row in rows} == {
        ("jet", "b", "TestJetVO"), ("plane", "b", "TestPlaneVO"),
    }  # fmt: skip
    assert all((row.permission, row.is_shared) == (2, False) and row.create_date for row in rows)
