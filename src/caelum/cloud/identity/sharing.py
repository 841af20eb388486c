"""Sharing resources with accounts or with everybody.

Invariant: a sharing exists once; repeating a request changes nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.ownership import AccountResourceRefModel, SharedResourceModel
from caelum.kernel.errors import invalid

Sharing = tuple[str, str | None]
"""A resource and who gets it; None is everybody."""


async def share(
    tx: AsyncSession, resource_uuids: Sequence[str], account_uuids: Sequence[str], *, to_public: bool
) -> None:
    """Share each resource with each of these accounts, and with everybody when `to_public`."""
    if not account_uuids and not to_public:
        raise invalid("accountUuids", "name the accounts to share with, or set toPublic")
    owners = await _owners(tx, resource_uuids)
    row = SharedResourceModel
    found = await tx.execute(
        select(row.resource_uuid, row.receiver_account_uuid).where(row.resource_uuid.in_(list(resource_uuids)))
    )
    known: set[Sharing] = {(uuid, receiver) for uuid, receiver in found}
    receivers: list[str | None] = [*account_uuids, *([None] if to_public else [])]
    for uuid in dict.fromkeys(resource_uuids):
        owner, kind = owners[uuid]
        for receiver in dict.fromkeys(receivers):
            if (uuid, receiver) not in known and receiver != owner:
                tx.add(
                    row(
                        owner_account_uuid=owner,
                        receiver_account_uuid=receiver,
                        to_public=receiver is None,
                        resource_type=kind,
                        resource_uuid=uuid,
                    )
                )


async def revoke(
    tx: AsyncSession,
    resource_uuids: Sequence[str],
    account_uuids: Sequence[str],
    *,
    to_public: bool,
    everything: bool,
) -> None:
    """Take back the sharing with these accounts, with everybody when `to_public`, or all of it."""
    row = SharedResourceModel
    statement = delete(row).where(row.resource_uuid.in_(list(resource_uuids)))
    if not everything:
        wanted = [row.receiver_account_uuid.in_(list(account_uuids))]
        if to_public:
            wanted.append(row.to_public.is_(True))
        statement = statement.where(or_(*wanted))
    await tx.execute(statement)


async def _owners(tx: AsyncSession, resource_uuids: Sequence[str]) -> dict[str, tuple[str, str]]:
    ref = AccountResourceRefModel
    rows = await tx.scalars(select(ref).where(ref.resource_uuid.in_(list(resource_uuids))))
    owners = {row.resource_uuid: (row.account_uuid, row.resource_type) for row in rows}
    if missing := [uuid for uuid in resource_uuids if uuid not in owners]:
        raise invalid("resourceUuids", f"the resources {missing} are owned by no account and cannot be shared")
    return owners
