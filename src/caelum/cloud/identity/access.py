"""Who may use what: ownership and sharing, read together.

Invariant: a resource that nobody owns (a zone, a host) is open to everybody here; the operations on it are guarded by
their permission instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from sqlalchemy import BindParameter, Table, bindparam, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.identity.messages import Access
from caelum.cloud.identity.model import AccountModel
from caelum.cloud.ownership import AccountResourceRefModel, SharedResourceModel
from caelum.kernel.prepared import Prepared
from caelum.kernel.rows import read_rows


async def access_of(
    session: AsyncSession, account_uuid: str, resource_uuids: Iterable[str], *, unowned_too: bool = False
) -> Access:
    """Which of these resources belong to others, and which of those the account may not even know of.

    `unowned_too` counts what nobody owns among what belongs to others.
    """
    wanted = [uuid for uuid in dict.fromkeys(resource_uuids) if uuid != account_uuid]
    owners = await _owners(session, wanted)
    # Every account is its own owner, and nobody else's.
    owners |= {uuid: uuid for (uuid,) in await _ACCOUNTS.rows(session, uuids=wanted)}
    nobody = "" if unowned_too else account_uuid
    foreign = [uuid for uuid in wanted if owners.get(uuid, nobody) != account_uuid]
    shared = await _shared(session, account_uuid, foreign)
    return Access(hidden=[uuid for uuid in foreign if uuid not in shared], foreign=foreign)


async def owners_of(session: AsyncSession, resource_uuids: Iterable[str]) -> dict[str, AccountModel]:
    """The owners of those of these resources that have one."""
    owners = await _owners(session, resource_uuids)
    accounts = {row.uuid: row for row in await read_rows(session, AccountModel, uuid=set(owners.values()))}
    return {uuid: accounts[owner] for uuid, owner in owners.items() if owner in accounts}


async def _owners(session: AsyncSession, resource_uuids: Iterable[str]) -> dict[str, str]:
    found = await _OWNERS.rows(session, uuids=list(resource_uuids))
    return {row[0]: row[1] for row in found}


async def _shared(session: AsyncSession, account_uuid: str, resource_uuids: list[str]) -> set[str]:
    if not resource_uuids:
        return set()
    return {uuid for (uuid,) in await _SHARED.rows(session, uuids=resource_uuids, receiver=account_uuid)}


_AMONG: BindParameter[list[str]] = bindparam("uuids", expanding=True)
_ACCOUNT = cast("Table", AccountModel.__table__).c
_ACCOUNTS = Prepared(select(_ACCOUNT.uuid).where(_ACCOUNT.uuid.in_(_AMONG)))
_REF = cast("Table", AccountResourceRefModel.__table__).c
_OWNERS = Prepared(select(_REF.resource_uuid, _REF.account_uuid).where(_REF.resource_uuid.in_(_AMONG)))
_SHARE = cast("Table", SharedResourceModel.__table__).c
_TO_ME = or_(_SHARE.receiver_account_uuid == bindparam("receiver"), _SHARE.to_public.is_(True))
_SHARED = Prepared(select(_SHARE.resource_uuid).where(_SHARE.resource_uuid.in_(_AMONG), _TO_ME))
