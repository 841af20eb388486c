"""Who may use what: ownership and sharing, read together.

Invariant: a resource that nobody owns (a zone, a host) is open to everybody here; the operations on it are guarded by
their permission instead.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.identity.messages import Access
from caelum.cloud.identity.model import AccountModel
from caelum.cloud.ownership import AccountResourceRefModel, SharedResourceModel


async def access_of(
    session: AsyncSession, account_uuid: str, resource_uuids: Iterable[str], *, unowned_too: bool = False
) -> Access:
    """Which of these resources belong to others, and which of those the account may not even know of.

    `unowned_too` counts what nobody owns among what belongs to others.
    """
    wanted = [uuid for uuid in dict.fromkeys(resource_uuids) if uuid != account_uuid]
    owners = await _owners(session, wanted)
    accounts = await session.scalars(select(AccountModel.uuid).where(AccountModel.uuid.in_(wanted)))
    # Every account is its own owner, and nobody else's.
    owners |= {uuid: uuid for uuid in accounts}
    nobody = "" if unowned_too else account_uuid
    foreign = [uuid for uuid in wanted if owners.get(uuid, nobody) != account_uuid]
    shared = await _shared(session, account_uuid, foreign)
    return Access(hidden=[uuid for uuid in foreign if uuid not in shared], foreign=foreign)


async def owners_of(session: AsyncSession, resource_uuids: Iterable[str]) -> dict[str, AccountModel]:
    """The owners of those of these resources that have one."""
    owners = await _owners(session, resource_uuids)
    query = select(AccountModel).where(AccountModel.uuid.in_(set(owners.values())))
    accounts = {row.uuid: row for row in await session.scalars(query)}
    return {uuid: accounts[owner] for uuid, owner in owners.items() if owner in accounts}


async def _owners(session: AsyncSession, resource_uuids: Iterable[str]) -> dict[str, str]:
    ref = AccountResourceRefModel
    rows = await session.execute(
        select(ref.resource_uuid, ref.account_uuid).where(ref.resource_uuid.in_(list(resource_uuids)))
    )
    return {row.resource_uuid: row.account_uuid for row in rows}


async def _shared(session: AsyncSession, account_uuid: str, resource_uuids: list[str]) -> set[str]:
    row = SharedResourceModel
    to_me = or_(row.receiver_account_uuid == account_uuid, row.to_public.is_(True))
    return set(await session.scalars(select(row.resource_uuid).where(row.resource_uuid.in_(resource_uuids), to_me)))
