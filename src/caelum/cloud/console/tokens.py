"""Console tokens: kept as SHA-256, used once.

Invariant: a token that was used, is past its time, or whose VM has stopped has no row that could be found; the row is
deleted in the same statement that decides who uses it.
"""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import CursorResult, delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.console.errors import TOKEN_REFUSED
from caelum.cloud.console.model import ConsoleTokenModel
from caelum.kernel.database import utcnow
from caelum.kernel.errors import CloudError

ANY = "any"


async def find(session: AsyncSession, digest: str, *lines: str) -> ConsoleTokenModel:
    """The unused token that is good for one of these lines. Raises CONSOLE.1001."""
    row = await session.get(ConsoleTokenModel, digest)
    if row is None or row.line not in lines or row.expire_date <= utcnow():
        raise refused()
    return row


async def take(tx: AsyncSession, digest: str, *lines: str) -> None:
    """Use a token up. Raises CONSOLE.1001 when somebody else did, or it cannot be used."""
    row = ConsoleTokenModel
    good = (row.digest == digest, row.line.in_(lines), row.expire_date > utcnow())
    if await _delete(tx, *good) != 1:
        raise refused()


async def holders(session: AsyncSession) -> frozenset[str]:
    """The VMs that have tokens."""
    return frozenset(await session.scalars(select(ConsoleTokenModel.vm_instance_uuid).distinct()))


async def revoke(tx: AsyncSession, vm_uuid: str) -> int:
    """Make all tokens of a VM useless; how many there were."""
    return await _delete(tx, ConsoleTokenModel.vm_instance_uuid == vm_uuid)


async def purge(tx: AsyncSession) -> int:
    """Forget tokens whose time is over."""
    return await _delete(tx, ConsoleTokenModel.expire_date <= utcnow())


async def _delete(tx: AsyncSession, *conditions: Any) -> int:
    return cast("CursorResult[Any]", await tx.execute(delete(ConsoleTokenModel).where(*conditions))).rowcount


def refused() -> CloudError:
    """One error for every reason: which one it was is nobody's business who holds a bad token."""
    return CloudError(TOKEN_REFUSED, "the console token is unknown, used, expired, or for something else")
