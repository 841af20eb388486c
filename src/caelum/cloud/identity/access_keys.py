"""Access keys: requests signed with HMAC-SHA1, as ZStack's clients do.

Invariant: a key speaks for its account and nobody else, only while it is enabled. Its secret is told once, when it is
made; the database has it sealed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.identity.api import SYSTEM_ADMIN, AccessKeyInventory, ChangeAccessKeyState, CreateAccessKey
from caelum.cloud.identity.errors import ACCESS_KEY_REFUSED, PERMISSION_DENIED
from caelum.cloud.identity.messages import CheckSignature
from caelum.cloud.identity.model import AccessKeyModel, AccountModel
from caelum.cloud.ownership import disown, own
from caelum.cloud.switch import ENABLED, switch
from caelum.kernel import context
from caelum.kernel.context import Actor
from caelum.kernel.database import unique
from caelum.kernel.errors import INVALID_ARGUMENT, CloudError, invalid, not_found
from caelum.kernel.ids import new_uuid
from caelum.kernel.tag import drop_tags, save_tags
from caelum.kernel.views import view

if TYPE_CHECKING:
    from caelum.kernel.node import Node

_STATES = switch("AccessKey")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_ID_LENGTH, _SECRET_LENGTH = 20, 40


def check_owner(msg: CreateAccessKey) -> None:
    """An account makes keys of its own, an administrator those of any; there are no users besides accounts."""
    actor = context.current().actor
    if not actor.is_admin and msg.account_uuid != actor.account_uuid:
        raise CloudError(PERMISSION_DENIED, "an access key of another account can be made by administrators only")
    if msg.user_uuid != msg.account_uuid:
        raise invalid("userUuid", f"account[uuid:{msg.account_uuid}] has no user but itself; give its own UUID")


class AccessKeys:
    """The access keys of the cloud."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def create(self, msg: CreateAccessKey) -> AccessKeyInventory:
        """A new key; the answer is the only one that has its secret."""
        secret = msg.access_key_secret or _random(_SECRET_LENGTH)
        uuid = msg.resource_uuid or new_uuid()
        row = AccessKeyModel(
            uuid=uuid, description=msg.description, account_uuid=msg.account_uuid, user_uuid=msg.user_uuid,
            access_key_id=msg.access_key_id or _random(_ID_LENGTH),
            sealed_secret=self._node.vault.seal(secret, uuid),
        )  # fmt: skip
        async with self._node.db.transaction() as tx:
            async with unique(tx, INVALID_ARGUMENT, f"an access key has the identifier {row.access_key_id} already"):
                tx.add(row)
            await own(tx, msg.account_uuid, uuid, "AccessKeyVO")
            await save_tags(tx, msg, uuid)
        made: AccessKeyInventory = view(row)
        return msgspec.structs.replace(made, access_key_secret=secret)

    async def change_state(self, msg: ChangeAccessKeyState) -> AccessKeyInventory:
        """Enable or disable a key."""
        async with self._node.db.transaction() as tx:
            row = await tx.get(AccessKeyModel, msg.uuid)
            if row is None:
                raise not_found("AccessKeyVO", msg.uuid)
            row.state = _STATES.next(row.state, msg.state_event)
        changed: AccessKeyInventory = view(row)
        return changed

    async def delete(self, uuid: str) -> None:
        """Delete a key; one that is gone already is a success."""
        async with self._node.db.transaction() as tx:
            await _forget(tx, uuid)

    async def check(self, msg: CheckSignature) -> Actor:
        """Whose key signed one of the texts."""
        async with self._node.db.read() as session:
            query = select(AccessKeyModel, AccountModel.type).join(
                AccountModel, AccountModel.uuid == AccessKeyModel.account_uuid
            )
            found = (await session.execute(query.where(AccessKeyModel.access_key_id == msg.access_key_id))).first()
        if found is None or found[0].state != ENABLED:
            raise CloudError(ACCESS_KEY_REFUSED, f"access key id: {msg.access_key_id} does not existed or disabled")
        row, account_type = found
        secret = self._node.vault.open(row.sealed_secret, row.uuid)
        if not any(hmac.compare_digest(sign(secret, text).encode(), msg.signature.encode()) for text in msg.texts):
            raise CloudError(ACCESS_KEY_REFUSED, "wrong accessKey signature")
        return Actor(row.account_uuid, row.user_uuid, None, account_type == SYSTEM_ADMIN)


async def forget_of(tx: AsyncSession, account_uuid: str) -> None:
    """Delete the keys of an account that goes."""
    for uuid in await tx.scalars(select(AccessKeyModel.uuid).where(AccessKeyModel.account_uuid == account_uuid)):
        await _forget(tx, uuid)


async def _forget(tx: AsyncSession, uuid: str) -> None:
    await tx.execute(delete(AccessKeyModel).where(AccessKeyModel.uuid == uuid))
    await drop_tags(tx, uuid)
    await disown(tx, uuid)


def sign(secret: str, text: str) -> str:
    """The signature of a text: Base64 of its HMAC-SHA1, which clients dictate."""
    return base64.b64encode(hmac.digest(secret.encode(), text.encode(), hashlib.sha1)).decode()


def _random(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))
