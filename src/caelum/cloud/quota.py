"""How much of each thing an account may have, counted as it is taken.

Invariant: `used` is the sum of what was taken and not given back; it moves in the transaction that makes or deletes
what is counted, by one conditional statement, so two takers at once cannot both get the last one. What was taken under
a key is taken once, however often it is asked for, and exactly that is given back.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    CursorResult,
    String,
    Table,
    UniqueConstraint,
    Update,
    bindparam,
    delete,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from caelum.kernel.context import ADMIN_ACCOUNT_UUID
from caelum.kernel.database import Base, Resource, insert_new, update_where
from caelum.kernel.errors import CloudError, error_type
from caelum.kernel.ids import derived_uuid
from caelum.kernel.settings import GlobalConfigModel, Setting, find_setting, setting

QUOTA_EXCEEDING = error_type(
    "ID.1003",
    "The user exceeds a quota of a resource",
    "Delete what is no longer needed, or ask the administrator for a higher quota (UpdateQuota).",
)

_DEFAULTS = {
    "vm.num": 20,
    "vm.totalNum": 20,
    "vm.cpuNum": 80,
    "vm.memorySize": 85899345920,
    "volume.data.num": 40,
    "volume.capacity": 10995116277760,
    "snapshot.volume.num": 200,
    "image.num": 20,
    "image.size": 10995116277760,
    "l3.num": 20,
    "vxlan.num": 8,
    "securityGroup.num": 20,
    "vip.num": 20,
    "eip.num": 20,
    "portForwarding.num": 20,
    "loadBalancer.num": 20,
    "listener.num": 20,
    "ssh_key_pair.num": 20,
}

QUOTAS: dict[str, Setting[int]] = {
    name: setting("quota", name, value, int, f"default quota for {name}", minimum=0)
    for name, value in _DEFAULTS.items()
}
"""What is counted; each setting is what a new account may have."""


class QuotaModel(Resource):
    """What one account may have, and has, of one thing."""

    __tablename__ = "quota"
    __vo__ = "QuotaVO"
    __table_args__ = (UniqueConstraint("identity_uuid", "name"),)

    name: Mapped[str] = mapped_column(String(255))
    identity_uuid: Mapped[str] = mapped_column(String(32))
    identity_type: Mapped[str] = mapped_column(String(255), default="AccountVO")
    value: Mapped[int]
    used: Mapped[int] = mapped_column(default=0)


class QuotaUsageModel(Base):
    """What was taken under one key."""

    __tablename__ = "quota_usage"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    account_uuid: Mapped[str] = mapped_column(String(32), index=True)
    amount: Mapped[int]


async def open_account(tx: AsyncSession, account_uuid: str) -> None:
    """Give a new account its quotas."""
    for name in QUOTAS:
        await _quota(tx, account_uuid, name)


async def close_account(tx: AsyncSession, account_uuid: str) -> None:
    """Remove the quotas of a deleted account."""
    await tx.execute(delete(QuotaModel).where(QuotaModel.identity_uuid == account_uuid))
    await tx.execute(delete(QuotaUsageModel).where(QuotaUsageModel.account_uuid == account_uuid))


async def take(tx: AsyncSession, account_uuid: str, name: str, amount: int = 1, *, key: str | None = None) -> None:
    """Count `amount` more of `name` for the account; `QUOTA_EXCEEDING` with the numbers when that is too much.

    Give a `key` (the resource's UUID) where the call may be repeated. Administrators are counted, never refused.
    """
    values = {"account_uuid": account_uuid, "amount": amount}
    if key is not None and not await insert_new(tx, QuotaUsageModel, name=name, key=key, **values):
        return
    if await _count(tx, account_uuid, name, amount):
        return
    quota = await _quota(tx, account_uuid, name)
    if not await _count(tx, account_uuid, name, amount):
        await tx.refresh(quota)
        raise CloudError(
            QUOTA_EXCEEDING,
            f"quota exceeding. The account[uuid: {account_uuid}] exceeds a quota[name: {name}, value: {quota.value}],"
            f" Current used:{quota.used}, Request:{amount}. Please contact the administrator.",
            account=account_uuid,
            quota=name,
            limit=quota.value,
            used=quota.used,
            request=amount,
        )


async def give(tx: AsyncSession, account_uuid: str, name: str, amount: int = 1, *, key: str | None = None) -> None:
    """Give back; with a `key` exactly what was taken under it, whoever took it, and nothing when nothing was."""
    if key is not None:
        taken = await tx.get(QuotaUsageModel, (name, key))
        if taken is None:
            return
        account_uuid, amount = taken.account_uuid, taken.amount
        await tx.delete(taken)
    await update_where(
        tx,
        QuotaModel,
        {"used": QuotaModel.used - amount},
        QuotaModel.identity_uuid == account_uuid,
        QuotaModel.name == name,
        QuotaModel.used >= amount,
    )


async def usage(session: AsyncSession, account_uuid: str) -> list[tuple[str, int, int]]:
    """Name, used and allowed amount of each quota of an account."""
    rows = await session.scalars(select(QuotaModel).where(QuotaModel.identity_uuid == account_uuid))
    return [(row.name, row.used, row.value) for row in rows]


async def _count(tx: AsyncSession, account_uuid: str, name: str, amount: int) -> bool:
    """Count more of a quota that the account has and that allows it; administrators' always do."""
    statement = _counting(limited=account_uuid != ADMIN_ACCOUNT_UUID)
    values = {"key_uuid": derived_uuid("quota", account_uuid, name), "amount": amount}
    return cast("CursorResult[Any]", await tx.execute(statement, values)).rowcount > 0


@lru_cache
def _counting(*, limited: bool) -> Update:
    here, amount = cast("Table", QuotaModel.__table__).c, bindparam("amount", type_=BigInteger)
    fits = [here.used + amount <= here.value] if limited else []
    statement = update(cast("Table", QuotaModel.__table__)).where(here.uuid == bindparam("key_uuid"), *fits)
    return statement.values(used=here.used + amount)


async def _quota(tx: AsyncSession, account_uuid: str, name: str) -> QuotaModel:
    """The account's quota, made with the setting's value where an account has none yet."""
    uuid = derived_uuid("quota", account_uuid, name)
    row = await tx.get(QuotaModel, uuid)
    if row is None:
        declared, config = find_setting("quota", name), GlobalConfigModel
        text = await tx.scalar(select(config.value).where(config.category == "quota", config.name == name))
        value = declared.default if text is None else declared.parse(text)
        row = QuotaModel(uuid=uuid, name=name, identity_uuid=account_uuid, value=value, used=0)
        try:
            async with tx.begin_nested():
                tx.add(row)
        except IntegrityError:
            row = await tx.get_one(QuotaModel, uuid)  # another node made it at the same moment
    return row
