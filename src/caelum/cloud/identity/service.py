"""The identity service: accounts, logins, ownership and sharing.

Invariant: the built-in administrator always exists and is an administrator; an account's name is its own; what an
account owned never becomes ownerless when the account goes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sqlalchemy import select

from caelum.cloud import ownership, quota
from caelum.cloud.identity import passwords
from caelum.cloud.identity.access import access_of, owners_of
from caelum.cloud.identity.access_keys import AccessKeys, check_owner
from caelum.cloud.identity.api import (
    NORMAL,
    SYSTEM_ADMIN,
    AccessKeyInventory,
    AccountInventory,
    AccountResourceRefInventory,
    ChangeAccessKeyState,
    ChangeResourceOwner,
    CreateAccessKey,
    CreateAccount,
    DeleteAccessKey,
    DeleteAccount,
    GetAccountQuotaUsage,
    GetResourceAccount,
    LogInByAccount,
    LogOut,
    QuotaInventory,
    QuotaUsage,
    QuotaUsageReply,
    RenewSession,
    RevokeResourceSharing,
    SessionInventory,
    ShareResource,
    UpdateAccount,
    UpdateQuota,
    ValidateSession,
    ValidateSessionReply,
)
from caelum.cloud.identity.backoff import Backoff
from caelum.cloud.identity.cascade import AccountCascade
from caelum.cloud.identity.errors import PERMISSION_DENIED, wrong_credentials
from caelum.cloud.identity.events import AccountLoggedIn
from caelum.cloud.identity.messages import (
    Access,
    CheckAccess,
    CheckActor,
    CheckSession,
    CheckSignature,
    DropOwner,
    RecordOwner,
)
from caelum.cloud.identity.model import AccountModel
from caelum.cloud.identity.sessions import Sessions
from caelum.cloud.identity.settings import CLEANUP_INTERVAL
from caelum.cloud.identity.sharing import revoke, share
from caelum.kernel import context
from caelum.kernel.context import ADMIN_ACCOUNT_UUID, Actor
from caelum.kernel.database import is_unique_violation, unique
from caelum.kernel.errors import INVALID_ARGUMENT, RESOURCE_NOT_FOUND, CloudError, invalid, not_found
from caelum.kernel.ids import new_uuid
from caelum.kernel.resources import type_of
from caelum.kernel.service import Service, handles, intercepts
from caelum.kernel.tag import save_tags
from caelum.kernel.views import view

if TYPE_CHECKING:
    from caelum.kernel.node import Node

_ADMIN_NAME = "admin"
_FIRST_PASSWORD = (
    "b109f3bbbc244eb82441917ed06d618b9008dd09b3befd1b5e07394c706a8bb9"  # noqa: S105 - the documented first password
    "80b1d7785e5976ec049b46df5f1326af5a2ea6d103fd07c95385ffab0cacbc86"
)
"""The SHA-512 of "password", with which clients expect to log in at first."""


class IdentityService(Service):
    """Owns accounts, sessions, ownership and sharing."""

    name = "identity"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.sessions = Sessions(node)
        self.keys = AccessKeys(node)
        self._backoff = Backoff()
        node.extensions.add(AccountCascade(node, self.sessions))

    async def start(self) -> None:
        """Make the administrator when the cloud is new, and watch for sessions that are over."""
        await self._make_admin()
        self.sessions.start()
        self.node.timers.every(CLEANUP_INTERVAL, self.sessions.purge, name="identity.sessions.purge")

    async def _make_admin(self) -> None:
        async with self.node.db.read() as session:
            known = await session.get(AccountModel, ADMIN_ACCOUNT_UUID)
        if known is not None:
            return
        row = AccountModel(
            uuid=ADMIN_ACCOUNT_UUID,
            name=_ADMIN_NAME,
            type=SYSTEM_ADMIN,
            password=await passwords.hashed(_FIRST_PASSWORD),
        )
        try:
            async with self.node.db.transaction() as tx:
                tx.add(row)
                await quota.open_account(tx, row.uuid)
        except Exception as error:
            # Another node of a new cloud starts now and was first.
            if not is_unique_violation(error):
                raise

    # --- sessions -----------------------------------------------------------------------------------------------------

    @handles(LogInByAccount)
    async def log_in(self, msg: LogInByAccount) -> SessionInventory:
        """Open a session when the password is right."""
        await asyncio.sleep(self._backoff.wait_for(msg.account_name))
        async with self.node.db.read() as session:
            row = await session.scalar(select(AccountModel).where(AccountModel.name == msg.account_name))
        if not await passwords.matches(msg.password, None if row is None else row.password) or row is None:
            self._backoff.failed(msg.account_name)
            raise wrong_credentials()
        self._backoff.succeeded(msg.account_name)
        opened = await self.sessions.open(row)
        self.node.bus.publish(AccountLoggedIn(account_uuid=row.uuid, user_uuid=row.uuid, name=row.name))
        return opened

    @handles(LogOut)
    async def log_out(self, msg: LogOut) -> None:
        """End a session."""
        if msg.session_uuid is not None:
            await self.sessions.close(msg.session_uuid)

    @handles(ValidateSession)
    async def validate(self, msg: ValidateSession) -> ValidateSessionReply:
        """Tell whether a session is valid."""
        return ValidateSessionReply(valid=await self.sessions.is_valid(msg.session_uuid))

    @handles(RenewSession)
    async def renew(self, msg: RenewSession) -> SessionInventory:
        """Extend a session; nobody extends another account's."""
        asking = context.current().actor
        try:
            actor = await self.sessions.check(msg.session_uuid)
        except CloudError:
            actor = None
        if actor is None or not (asking.is_admin or actor.account_uuid == asking.account_uuid):
            # Without its UUID, which this error would keep in the database: it may be somebody's.
            raise CloudError(RESOURCE_NOT_FOUND, "no such session of this account")
        return await self.sessions.renew(msg.session_uuid, msg.duration)

    @handles(CheckSession)
    async def check_session(self, msg: CheckSession) -> Actor:
        """Who asks."""
        return await self.sessions.check(msg.session_uuid)

    @handles(CheckActor)
    async def check_actor(self, msg: CheckActor) -> Actor:
        """Who asked."""
        return await self.sessions.check_actor(msg.actor)

    # --- access keys --------------------------------------------------------------------------------------------------

    @intercepts(CreateAccessKey)
    async def check_key_owner(self, msg: CreateAccessKey) -> None:
        """Keys are made by whom they speak for, or by an administrator."""
        check_owner(msg)

    @handles(CreateAccessKey)
    async def create_key(self, msg: CreateAccessKey) -> AccessKeyInventory:
        """Make an access key."""
        return await self.keys.create(msg)

    @handles(ChangeAccessKeyState)
    async def change_key_state(self, msg: ChangeAccessKeyState) -> AccessKeyInventory:
        """Enable or disable an access key."""
        return await self.keys.change_state(msg)

    @handles(DeleteAccessKey)
    async def delete_key(self, msg: DeleteAccessKey) -> None:
        """Delete an access key."""
        await self.keys.delete(msg.uuid)

    @handles(CheckSignature)
    async def check_signature(self, msg: CheckSignature) -> Actor:
        """Who signed."""
        return await self.keys.check(msg)

    # --- accounts -----------------------------------------------------------------------------------------------------

    @handles(CreateAccount)
    async def create(self, msg: CreateAccount) -> AccountInventory:
        """Create an account with its quotas."""
        row = AccountModel(
            uuid=msg.resource_uuid or new_uuid(),
            name=msg.name,
            type=msg.type or NORMAL,
            description=msg.description,
            password=await passwords.hashed(msg.password),
        )
        taken = f"unable to create an account. An account already called {msg.name}"
        async with self.node.db.transaction() as tx:
            async with unique(tx, INVALID_ARGUMENT, taken):
                tx.add(row)
            await quota.open_account(tx, row.uuid)
            await save_tags(tx, msg, row.uuid)
        return self._inventory(row)

    @handles(UpdateAccount)
    async def update(self, msg: UpdateAccount) -> AccountInventory:
        """Change an account; a new password ends its other sessions."""
        await self._check_old_password(msg)
        password = None if msg.password is None else await passwords.hashed(msg.password)
        async with self.node.db.transaction() as tx:
            row = await tx.get(AccountModel, msg.uuid)
            if row is None:
                raise not_found("AccountVO", msg.uuid)
            async with unique(tx, INVALID_ARGUMENT, f"an account is already called {msg.name}"):
                row.name = msg.name or row.name
            row.description = row.description if msg.description is None else msg.description
            row.password = password or row.password
        if password is not None:
            await self.sessions.close_of(row.uuid, but=context.current().actor.session_uuid)
        return self._inventory(row)

    async def _check_old_password(self, msg: UpdateAccount) -> None:
        if msg.old_password is None:
            return
        async with self.node.db.read() as session:
            row = await session.get(AccountModel, msg.uuid)
        if not await passwords.matches(msg.old_password, None if row is None else row.password):
            raise invalid("oldPassword", "the old password is not equal to the original password, cannot update")

    @intercepts(DeleteAccount)
    async def check_deletion(self, msg: DeleteAccount) -> None:
        """Nobody deletes the built-in administrator, and only administrators delete others."""
        actor = context.current().actor
        if msg.uuid == ADMIN_ACCOUNT_UUID:
            raise invalid("uuid", "unable to delete an admin account")
        if not actor.is_admin and actor.account_uuid != msg.uuid:
            raise CloudError(PERMISSION_DENIED, f"account[{actor.account_uuid}] may not delete account[{msg.uuid}]")

    @handles(DeleteAccount, queue="account-{uuid}")
    async def delete(self, msg: DeleteAccount) -> None:
        """Delete an account with what it owns."""
        mode = "Enforcing" if msg.delete_mode == "Enforcing" else "Permissive"
        await self.node.cascade.delete("AccountVO", [msg.uuid], mode)

    def _inventory(self, row: AccountModel) -> AccountInventory:
        found: AccountInventory = view(row)
        return found

    # --- ownership ----------------------------------------------------------------------------------------------------

    @handles(CheckAccess, reads=True)
    async def check_access(self, msg: CheckAccess) -> Access:
        """Which resources the account may not use."""
        async with self.node.db.read() as session:
            return await access_of(session, msg.account_uuid, msg.resource_uuids, unowned_too=msg.unowned_too)

    @handles(RecordOwner)
    async def record_owner(self, msg: RecordOwner) -> None:
        """Note a resource's owner."""
        async with self.node.db.transaction() as tx:
            await ownership.own(tx, msg.account_uuid, msg.resource_uuid, msg.resource_type)

    @handles(DropOwner)
    async def drop_owner(self, msg: DropOwner) -> None:
        """Forget a resource's owner."""
        async with self.node.db.transaction() as tx:
            await ownership.disown(tx, msg.resource_uuid)

    @handles(GetResourceAccount)
    async def get_resource_account(self, msg: GetResourceAccount) -> dict[str, AccountInventory]:
        """The owners of resources, as far as the caller may see them."""
        async with self.node.db.read() as session:
            rows = await owners_of(session, msg.resource_uuids)
        actor = context.current().actor
        return {
            uuid: self._inventory(row) for uuid, row in rows.items() if actor.is_admin or row.uuid == actor.account_uuid
        }

    @handles(ChangeResourceOwner)
    async def change_owner(self, msg: ChangeResourceOwner) -> AccountResourceRefInventory:
        """Give a resource to another account."""
        ref = ownership.AccountResourceRefModel
        async with self.node.db.transaction() as tx:
            row = await tx.scalar(select(ref).where(ref.resource_uuid == msg.resource_uuid))
            if row is None:
                vo = await type_of(tx, msg.resource_uuid) or "ResourceVO"
                raise invalid("resourceUuid", f"the resource[{msg.resource_uuid}] of type {vo} is owned by no account")
            await ownership.own(tx, msg.account_uuid, msg.resource_uuid, row.resource_type)
            await tx.refresh(row)
        found: AccountResourceRefInventory = view(row)
        return found

    # --- sharing ------------------------------------------------------------------------------------------------------

    @handles(ShareResource)
    async def share(self, msg: ShareResource) -> None:
        """Let accounts, or everybody, use resources."""
        async with self.node.db.transaction() as tx:
            await share(tx, msg.resource_uuids, msg.account_uuids or [], to_public=msg.to_public)

    @handles(RevokeResourceSharing)
    async def revoke(self, msg: RevokeResourceSharing) -> None:
        """Take sharings back."""
        async with self.node.db.transaction() as tx:
            await revoke(tx, msg.resource_uuids, msg.account_uuids or [], to_public=msg.to_public, everything=msg.all)

    # --- quotas -------------------------------------------------------------------------------------------------------

    @handles(GetAccountQuotaUsage)
    async def quota_usage(self, msg: GetAccountQuotaUsage) -> QuotaUsageReply:
        """What an account may have, and has."""
        async with self.node.db.read() as session:
            found = await quota.usage(session, msg.uuid)
        return QuotaUsageReply(usages=[QuotaUsage(name=name, total=total, used=used) for name, used, total in found])

    @handles(UpdateQuota)
    async def update_quota(self, msg: UpdateQuota) -> QuotaInventory:
        """Change what an account may have; what it already has stays."""
        model = quota.QuotaModel
        async with self.node.db.transaction() as tx:
            row = await tx.scalar(select(model).where(model.identity_uuid == msg.identity_uuid, model.name == msg.name))
            if row is None:
                raise invalid("name", f"cannot find Quota[name: {msg.name}] for the account[uuid: {msg.identity_uuid}]")
            row.value = msg.value
        found: QuotaInventory = view(row)
        return found
