"""What deleting an account means for identity itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, or_, update

from caelum.cloud import quota
from caelum.cloud.identity.access_keys import forget_of
from caelum.cloud.identity.events import AccountDeleted
from caelum.cloud.identity.model import AccountModel
from caelum.cloud.ownership import AccountResourceRefModel, SharedResourceModel
from caelum.kernel.cascade import CascadeExtension
from caelum.kernel.context import ADMIN_ACCOUNT_UUID
from caelum.kernel.tag import drop_tags

if TYPE_CHECKING:
    from caelum.cloud.identity.sessions import Sessions
    from caelum.kernel.node import Node


class AccountCascade(CascadeExtension):
    """The account goes last: what no service deleted with it passes to the administrator."""

    resource = "AccountVO"

    def __init__(self, node: Node, sessions: Sessions) -> None:
        self._node = node
        self._sessions = sessions

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:
        """End the sessions, then remove the account with all that is recorded of it in one transaction."""
        for uuid in uuids:
            await self._sessions.close_of(uuid)
            await self._delete(uuid)
            self._node.bus.publish(AccountDeleted(account_uuid=uuid))

    async def _delete(self, uuid: str) -> None:
        ref, shared = AccountResourceRefModel, SharedResourceModel
        async with self._node.db.transaction() as tx:
            await forget_of(tx, uuid)
            await tx.execute(
                update(ref)
                .where(ref.account_uuid == uuid)
                .values(account_uuid=ADMIN_ACCOUNT_UUID, owner_account_uuid=ADMIN_ACCOUNT_UUID)
            )
            involved = or_(shared.receiver_account_uuid == uuid, shared.owner_account_uuid == uuid)
            await tx.execute(delete(shared).where(involved))
            await quota.close_account(tx, uuid)
            await drop_tags(tx, uuid)
            await tx.execute(delete(AccountModel).where(AccountModel.uuid == uuid))
