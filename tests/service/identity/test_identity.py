"""Accounts, sessions, ownership and sharing, through the bus and the portal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from caelum.cloud import quota
from caelum.cloud.identity import backoff, passwords
from caelum.cloud.identity import service as identity_service
from caelum.cloud.identity import sessions as sessions_module
from caelum.cloud.identity.api import (
    AccountInventory,
    ChangeResourceOwner,
    CreateAccount,
    DeleteAccount,
    GetAccountQuotaUsage,
    GetResourceAccount,
    LogInByAccount,
    LogOut,
    QueryAccount,
    QueryAccountResourceRef,
    QueryQuota,
    QuerySharedResource,
    RenewSession,
    RevokeResourceSharing,
    SessionInventory,
    ShareResource,
    UpdateAccount,
    UpdateQuota,
    ValidateSession,
)
from caelum.cloud.identity.events import AccountDeleted, AccountLoggedIn, SessionEnded
from caelum.cloud.identity.messages import CheckAccess, CheckSession
from caelum.cloud.identity.model import AccountModel, SessionModel
from caelum.cloud.identity.service import IdentityService
from caelum.cloud.identity.sessions import digest_of
from caelum.cloud.identity.settings import MAX_CONCURRENT_SESSIONS, SESSION_TIMEOUT
from caelum.cloud.ownership import own, owner_of
from caelum.cloud.query.service import QueryService
from caelum.kernel.context import ADMIN_ACCOUNT_UUID, Actor
from caelum.kernel.database import update_where, utcnow
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import QueryCondition
from caelum.testing.cloud import EmbeddedCloud

SERVICES = [IdentityService, QueryService]
SHA512 = identity_service._FIRST_PASSWORD


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[EmbeddedCloud]:
    async with EmbeddedCloud(tmp_path, SERVICES) as made:
        yield made


async def account(cloud: EmbeddedCloud, name: str) -> tuple[AccountInventory, Actor]:
    made = await cloud.api(CreateAccount(name=name, password=f"sha of {name}"))
    return made, Actor(made.uuid, made.uuid)


async def log_in(cloud: EmbeddedCloud, name: str = "admin", password: str = SHA512) -> SessionInventory:
    return await cloud.api(LogInByAccount(account_name=name, password=password))


async def check(cloud: EmbeddedCloud, session: str) -> Actor:
    return await cloud.node.bus.call(CheckSession(session_uuid=session))


async def owned(cloud: EmbeddedCloud, actor: Actor) -> str:
    uuid = new_uuid()
    async with cloud.node.db.transaction() as tx:
        await own(tx, actor.account_uuid, uuid, "VolumeVO")
    return uuid


class TestPasswords:
    async def test_they_are_salted_and_slow_and_match_only_themselves(self) -> None:
        first, second = await passwords.hashed("a"), await passwords.hashed("a")
        assert first != second
        assert await passwords.matches("a", first)
        assert not await passwords.matches("b", first)
        assert not await passwords.matches("a", None)

    async def test_the_stored_one_is_no_password_itself(self, cloud: EmbeddedCloud) -> None:
        async with cloud.node.db.read() as session:
            row = await session.get(AccountModel, ADMIN_ACCOUNT_UUID)
        assert row is not None
        assert SHA512 not in row.password
        with pytest.raises(CloudError):
            await log_in(cloud, password=row.password)


class TestLogin:
    async def test_the_first_administrator(self, cloud: EmbeddedCloud) -> None:
        session = await log_in(cloud)
        assert session.account_uuid == session.user_uuid == ADMIN_ACCOUNT_UUID
        assert session.expired_date - session.create_date == timedelta(seconds=7200)
        assert await check(cloud, session.uuid) == Actor(
            ADMIN_ACCOUNT_UUID, ADMIN_ACCOUNT_UUID, digest_of(session.uuid), is_admin=True
        )
        assert [one.account_uuid for one in await cloud.seen(AccountLoggedIn)] == [ADMIN_ACCOUNT_UUID]

    async def test_it_survives_a_restart_and_is_made_once(self, tmp_path: Path) -> None:
        async with EmbeddedCloud(tmp_path, SERVICES) as first:
            session = await log_in(first)
            await first.api(UpdateAccount(uuid=ADMIN_ACCOUNT_UUID, password="new"))
        async with EmbeddedCloud(tmp_path, SERVICES) as second:
            with pytest.raises(CloudError):
                await check(second, session.uuid)
            await log_in(second, password="new")
            with pytest.raises(CloudError):
                await log_in(second)

    async def test_a_wrong_name_and_a_wrong_password_look_the_same(self, cloud: EmbeddedCloud) -> None:
        errors, times = [], []
        for name in ("admin", "nobody"):
            started = time.monotonic()
            with pytest.raises(CloudError) as caught:
                await log_in(cloud, name, "wrong")
            times.append(time.monotonic() - started)
            errors.append(caught.value.to_wire())
        assert errors[0] == errors[1]
        assert errors[0].code == "ID.1000"
        assert max(times) < 20 * min(times) + 0.05

    async def test_guessing_is_slowed_down_but_nobody_is_locked_out(
        self, cloud: EmbeddedCloud, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(backoff, "FIRST_WAIT", 0.1)
        monkeypatch.setattr(backoff, "LONGEST_WAIT", 0.3)
        waits = []
        for _ in range(8):
            started = time.monotonic()
            with pytest.raises(CloudError):
                await log_in(cloud, "admin", "wrong")
            waits.append(time.monotonic() - started)
        assert max(waits[-2:]) >= 0.3
        started = time.monotonic()
        await log_in(cloud)
        assert time.monotonic() - started < 2
        assert cloud.node.services["identity"]._backoff.wait_for("admin") == 0

    async def test_sessions_are_limited(self, cloud: EmbeddedCloud) -> None:
        await cloud.node.settings.set(MAX_CONCURRENT_SESSIONS, 2)
        for _ in range(2):
            await log_in(cloud)
        with pytest.raises(CloudError) as caught:
            await log_in(cloud)
        assert (caught.value.code, caught.value.facts["limit"]) == ("ID.1006", 2)


class TestSessions:
    async def test_use_extends_it_without_a_write_each_time(
        self, cloud: EmbeddedCloud, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = await log_in(cloud)
        now = [utcnow()]
        monkeypatch.setattr(sessions_module, "utcnow", lambda: now[0])

        async def stored() -> timedelta:
            async with cloud.node.db.read() as reader:
                row = await reader.get(SessionModel, digest_of(session.uuid))
            assert row is not None
            return row.expired_date - now[0]

        for _ in range(10):
            now[0] += timedelta(seconds=5)
            await check(cloud, session.uuid)
        assert await stored() < timedelta(seconds=7200 - 40)
        now[0] += timedelta(seconds=15)
        await check(cloud, session.uuid)
        assert await stored() == timedelta(seconds=7200)
        now[0] += timedelta(seconds=7199)
        await check(cloud, session.uuid)
        now[0] += timedelta(seconds=7201)
        with pytest.raises(CloudError, match=r"ID\.1001"):
            await check(cloud, session.uuid)

    async def test_a_short_timeout_really_ends_it_and_use_really_keeps_it(self, cloud: EmbeddedCloud) -> None:
        await cloud.node.settings.set(SESSION_TIMEOUT, "1")
        kept, left = await log_in(cloud), await log_in(cloud)
        for _ in range(6):
            await asyncio.sleep(0.25)
            await check(cloud, kept.uuid)
        with pytest.raises(CloudError):
            await check(cloud, left.uuid)
        await cloud.node.services["identity"].sessions.purge()

    async def test_logging_out_ends_it_everywhere(self, cloud: EmbeddedCloud) -> None:
        session = await log_in(cloud)
        await cloud.api(LogOut(session_uuid=session.uuid))
        await cloud.api(LogOut(session_uuid=session.uuid))
        with pytest.raises(CloudError):
            await check(cloud, session.uuid)
        assert [one.session_uuid for one in await cloud.seen(SessionEnded)] == [digest_of(session.uuid)]

    async def test_what_another_node_ended_is_noticed_at_the_next_write(
        self, cloud: EmbeddedCloud, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = await log_in(cloud)
        async with cloud.node.db.transaction() as tx:
            await tx.delete(await tx.get(SessionModel, digest_of(session.uuid)))
        await check(cloud, session.uuid)
        monkeypatch.setattr(sessions_module, "SAVE_INTERVAL", 0.0)
        with pytest.raises(CloudError, match=r"ID\.1001"):
            await check(cloud, session.uuid)

    async def test_asking_for_validity_does_not_extend(self, cloud: EmbeddedCloud) -> None:
        session = await log_in(cloud)
        assert (await cloud.api(ValidateSession(session_uuid=session.uuid))).valid
        assert not (await cloud.api(ValidateSession(session_uuid=new_uuid()))).valid

    async def test_renewing_sets_its_end_and_is_for_its_owner(self, cloud: EmbeddedCloud) -> None:
        session = await log_in(cloud)
        renewed = await cloud.api(RenewSession(session_uuid=session.uuid, duration=86400))
        assert renewed.expired_date - utcnow() > timedelta(seconds=86300)
        _, frank = await account(cloud, "frank")
        for stranger, known in ((frank, session.uuid), (None, new_uuid()), (None, digest_of(session.uuid))):
            with pytest.raises(CloudError, match=r"SYS\.1003"):
                await cloud.api(RenewSession(session_uuid=known), stranger)

    async def test_the_database_has_no_session_that_could_be_used(self, cloud: EmbeddedCloud) -> None:
        session = await log_in(cloud)
        async with cloud.node.db.read() as reader:
            rows = [one.uuid for one in await reader.scalars(select(SessionModel))]
        assert rows == [digest_of(session.uuid)]
        with pytest.raises(CloudError, match=r"ID\.1001"):
            await check(cloud, rows[0])

    async def test_expired_ones_are_removed(self, cloud: EmbeddedCloud) -> None:
        session = await log_in(cloud)
        async with cloud.node.db.transaction() as tx:
            past = {"expired_date": utcnow() - timedelta(hours=1)}
            await update_where(tx, SessionModel, past, SessionModel.uuid == digest_of(session.uuid))
        await cloud.node.services["identity"].sessions.purge()
        async with cloud.node.db.read() as reader:
            assert list(await reader.scalars(select(SessionModel))) == []


class TestAccounts:
    async def test_names_are_unique(self, cloud: EmbeddedCloud) -> None:
        await account(cloud, "frank")
        _, eve = await account(cloud, "eve")
        with pytest.raises(CloudError, match="already called frank"):
            await account(cloud, "frank")
        with pytest.raises(CloudError, match="already called frank"):
            await cloud.api(UpdateAccount(uuid=eve.account_uuid, name="frank"))

    async def test_a_new_password_ends_the_other_sessions(self, cloud: EmbeddedCloud) -> None:
        made, _ = await account(cloud, "frank")
        mine, other = [await log_in(cloud, "frank", "sha of frank") for _ in range(2)]
        actor = await check(cloud, mine.uuid)
        with pytest.raises(CloudError, match="old password"):
            await cloud.api(UpdateAccount(uuid=made.uuid, password="new", old_password="wrong"), actor)
        await cloud.api(UpdateAccount(uuid=made.uuid, password="new", old_password="sha of frank"), actor)
        await check(cloud, mine.uuid)
        with pytest.raises(CloudError):
            await check(cloud, other.uuid)
        await log_in(cloud, "frank", "new")

    async def test_an_account_sees_itself_only(self, cloud: EmbeddedCloud) -> None:
        _, frank = await account(cloud, "frank")
        await account(cloud, "eve")
        seen = await cloud.api(QueryAccount(), frank)
        assert [one.name for one in seen.inventories or []] == ["frank"]
        assert (await cloud.api(QueryAccount(count=True))).total == 3
        assert (await cloud.api(QueryQuota(count=True), frank)).total == len(quota.QUOTAS)

    async def test_deleting_one_passes_its_things_to_the_administrator(self, cloud: EmbeddedCloud) -> None:
        made, frank = await account(cloud, "frank")
        session = await log_in(cloud, "frank", "sha of frank")
        volume = await owned(cloud, frank)
        await cloud.api(DeleteAccount(uuid=made.uuid))
        async with cloud.node.db.read() as reader:
            assert await owner_of(reader, volume) == ADMIN_ACCOUNT_UUID
            assert await quota.usage(reader, made.uuid) == []
        with pytest.raises(CloudError):
            await check(cloud, session.uuid)
        assert [one.account_uuid for one in await cloud.seen(AccountDeleted)] == [made.uuid]

    async def test_who_may_delete_whom(self, cloud: EmbeddedCloud) -> None:
        _, frank = await account(cloud, "frank")
        eves, _ = await account(cloud, "eve")
        with pytest.raises(CloudError, match="admin account"):
            await cloud.api(DeleteAccount(uuid=ADMIN_ACCOUNT_UUID))
        with pytest.raises(CloudError, match=r"ID\.1002"):
            await cloud.api(DeleteAccount(uuid=eves.uuid), frank)
        await cloud.api(DeleteAccount(uuid=frank.account_uuid), frank)


class TestSharing:
    async def access(self, cloud: EmbeddedCloud, actor: Actor, uuid: str) -> str:
        found = await cloud.node.bus.call(CheckAccess(account_uuid=actor.account_uuid, resource_uuids=[uuid]))
        return "hidden" if found.hidden else "shared" if found.foreign else "own"

    async def test_with_an_account_with_everybody_and_back(self, cloud: EmbeddedCloud) -> None:
        (_, frank), (_, eve), (_, joe) = [await account(cloud, name) for name in ("frank", "eve", "joe")]
        volume = await owned(cloud, frank)
        seen = [await self.access(cloud, one, volume) for one in (frank, eve, joe)]
        assert seen == ["own", "hidden", "hidden"]
        for _ in range(2):
            await cloud.api(ShareResource(resource_uuids=[volume], account_uuids=[eve.account_uuid]))
        assert await self.access(cloud, eve, volume) == "shared"
        assert await self.access(cloud, joe, volume) == "hidden"
        await cloud.api(ShareResource(resource_uuids=[volume], to_public=True))
        assert await self.access(cloud, joe, volume) == "shared"
        assert (await cloud.api(QuerySharedResource(count=True))).total == 2
        await cloud.api(RevokeResourceSharing(resource_uuids=[volume], to_public=True))
        assert await self.access(cloud, joe, volume) == "hidden"
        assert await self.access(cloud, eve, volume) == "shared"
        await cloud.api(RevokeResourceSharing(resource_uuids=[volume], account_uuids=[eve.account_uuid]))
        assert await self.access(cloud, eve, volume) == "hidden"

    async def test_what_nobody_owns_is_open_and_cannot_be_shared(self, cloud: EmbeddedCloud) -> None:
        _, frank = await account(cloud, "frank")
        assert await self.access(cloud, frank, new_uuid()) == "own"
        with pytest.raises(CloudError, match="owned by no account"):
            await cloud.api(ShareResource(resource_uuids=[new_uuid()], to_public=True))
        with pytest.raises(CloudError, match="accountUuids"):
            await cloud.api(ShareResource(resource_uuids=[await owned(cloud, frank)]))

    async def test_an_account_owns_itself_and_no_other(self, cloud: EmbeddedCloud) -> None:
        (_, frank), (_, eve) = [await account(cloud, name) for name in ("frank", "eve")]
        assert await self.access(cloud, frank, frank.account_uuid) == "own"
        assert await self.access(cloud, frank, eve.account_uuid) == "hidden"

    async def test_owners_can_be_asked_for_and_changed(self, cloud: EmbeddedCloud) -> None:
        (_, frank), (eves, eve) = [await account(cloud, name) for name in ("frank", "eve")]
        volume = await owned(cloud, frank)
        ref = await cloud.api(ChangeResourceOwner(account_uuid=eve.account_uuid, resource_uuid=volume))
        assert ref.account_uuid == eve.account_uuid
        asked = GetResourceAccount(resource_uuids=[volume, new_uuid()])
        assert {uuid: one.name for uuid, one in (await cloud.api(asked)).items()} == {volume: eves.name}
        assert await cloud.api(asked, frank) == {}
        condition = QueryCondition("resourceUuid", "=", volume)
        assert (await cloud.api(QueryAccountResourceRef(conditions=[condition], count=True), eve)).total == 1
        assert (await cloud.api(QueryAccountResourceRef(conditions=[condition], count=True), frank)).total == 0


class TestQuotas:
    async def test_usage_and_change(self, cloud: EmbeddedCloud) -> None:
        made, _ = await account(cloud, "frank")
        async with cloud.node.db.transaction() as tx:
            await quota.take(tx, made.uuid, "vm.num", 3)
        changed = await cloud.api(UpdateQuota(identity_uuid=made.uuid, name="vm.num", value=5))
        assert changed.value == 5
        usages = {one.name: one for one in (await cloud.api(GetAccountQuotaUsage(uuid=made.uuid))).usages}
        assert (usages["vm.num"].used, usages["vm.num"].total) == (3, 5)
        with pytest.raises(CloudError, match="cannot find Quota"):
            await cloud.api(UpdateQuota(identity_uuid=made.uuid, name="nonsense", value=5))
