"""How much of each thing an account may have, counted as it is taken.

Invariant: `used` is the sum of what was taken and not given back; it moves in the transaction that makes or deletes
what is counted, by one conditional statement, so two takers at once cannot both get the last one. What was taken under
a key is taken once, however often it is asked for, and exactly that is given back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from sqlalchemy import BigInteger, String, Table, UniqueConstraint, bindparam, case, delete, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from caelum.kernel.context import ADMIN_ACCOUNT_UUID
from caelum.kernel.database import Base, Resource, conflict_insert, on_sqlite
from caelum.kernel.errors import CloudError, error_type
from caelum.kernel.ids import derived_uuid
from caelum.kernel.prepared import Prepared
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
    await take_all(tx, account_uuid, {name: amount}, key=key)


async def take_all(
    tx: AsyncSession, account_uuid: str, amounts: Mapping[str, int], *, key: str | None = None, freely: bool = False
) -> None:
    """The same for several quotas at once. `freely` refuses nobody: for what is taken already, whoever allowed it."""
    if key is not None:
        await take_under(tx, account_uuid, {key: amounts}, freely=freely)
    else:
        await _take(tx, account_uuid, amounts, freely)


async def take_under(
    tx: AsyncSession, account_uuid: str, by_key: Mapping[str, Mapping[str, int]], *, freely: bool = False
) -> None:
    """The same for what several keys take of several quotas, given by key."""
    amounts: dict[str, int] = {}
    for name, key in await _note(tx, account_uuid, by_key):
        amounts[name] = amounts.get(name, 0) + by_key[key][name]
    await _take(tx, account_uuid, amounts, freely)


async def _take(tx: AsyncSession, account_uuid: str, amounts: Mapping[str, int], freely: bool) -> None:
    freely = freely or account_uuid == ADMIN_ACCOUNT_UUID
    counted = await _count(tx, account_uuid, amounts, freely)
    for name in [one for one in amounts if one not in counted]:
        quota = await _quota(tx, account_uuid, name)
        if not await _count(tx, account_uuid, {name: amounts[name]}, freely):
            await tx.refresh(quota)
            raise _exceeding(quota, amounts[name])


def _exceeding(quota: QuotaModel, amount: int) -> CloudError:
    return CloudError(
        QUOTA_EXCEEDING,
        f"quota exceeding. The account[uuid: {quota.identity_uuid}] exceeds a quota[name: {quota.name},"
        f" value: {quota.value}], Current used:{quota.used}, Request:{amount}. Please contact the administrator.",
        account=quota.identity_uuid,
        quota=quota.name,
        limit=quota.value,
        used=quota.used,
        request=amount,
    )


async def give(tx: AsyncSession, account_uuid: str, name: str, amount: int = 1, *, key: str | None = None) -> None:
    """Give back; with a `key` exactly what was taken under it, whoever took it, and nothing when nothing was."""
    if key is not None:
        await give_all(tx, [name], key)
    else:
        await _uncount(tx, account_uuid, {name: amount})


async def give_all(tx: AsyncSession, names: Sequence[str], *keys: str) -> None:
    """Give back what was taken under keys, of several quotas at once.

    A transaction that gives back to several quotas of an account does so by one call: else it may wait for ever for
    another one that changes the same, for each call locks in an order of its own.
    """
    taken = await _FORGET.rows(tx, usage_keys=keys, names=names)
    by_account: dict[str, dict[str, int]] = {}
    for name, account_uuid, amount in taken:
        amounts = by_account.setdefault(account_uuid, {})
        amounts[name] = amounts.get(name, 0) + amount
    for account_uuid in sorted(by_account):
        await _uncount(tx, account_uuid, by_account[account_uuid])


async def usage(session: AsyncSession, account_uuid: str) -> list[tuple[str, int, int]]:
    """Name, used and allowed amount of each quota of an account."""
    rows = await session.scalars(select(QuotaModel).where(QuotaModel.identity_uuid == account_uuid))
    return [(row.name, row.used, row.value) for row in rows]


_USAGE = cast("Table", QuotaUsageModel.__table__)
_FORGET = Prepared(
    delete(_USAGE)
    .where(
        _USAGE.c.key.in_(bindparam("usage_keys", expanding=True)), _USAGE.c.name.in_(bindparam("names", expanding=True))
    )
    .returning(_USAGE.c.name, _USAGE.c.account_uuid, _USAGE.c.amount)
)


async def _note(tx: AsyncSession, account_uuid: str, by_key: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str]]:
    """Note what is taken under keys; of which quotas and keys nothing was noted before."""
    values: dict[str, Any] = {}
    taken = [(name, key, amount) for key, amounts in by_key.items() for name, amount in amounts.items()]
    for number, (name, key, amount) in enumerate(taken):
        values |= {f"name_{number}": name, f"key_{number}": key, f"amount_{number}": amount}
    return [(name, key) for name, key in await _noting(len(taken)).rows(tx, **values, account=account_uuid)]


@lru_cache
def _noting(count: int) -> Prepared:
    statement = conflict_insert(QuotaUsageModel)
    rows = [
        {
            "name": bindparam(f"name_{number}", type_=String),
            "key": bindparam(f"key_{number}", type_=String),
            "account_uuid": bindparam("account", type_=String),
            "amount": bindparam(f"amount_{number}", type_=BigInteger),
        }
        for number in range(count)
    ]
    noted = statement.table.c
    return Prepared(statement.values(rows).on_conflict_do_nothing().returning(noted.name, noted.key))


async def _count(tx: AsyncSession, account_uuid: str, amounts: Mapping[str, int], freely: bool) -> set[str]:
    """Count more of quotas that the account has and that allow it (all do, if `freely`); which those are."""
    return await _change(tx, "take freely" if freely else "take", account_uuid, amounts)


async def _uncount(tx: AsyncSession, account_uuid: str, amounts: Mapping[str, int]) -> None:
    await _change(tx, "give", account_uuid, {name: -amount for name, amount in amounts.items()})


async def _change(tx: AsyncSession, how: str, account_uuid: str, amounts: Mapping[str, int]) -> set[str]:
    if not amounts:
        return set()
    uuids = {_uuid(account_uuid, name): name for name in amounts}
    if len(uuids) > 1 and not on_sqlite(tx):
        # In one order, so that of two who change several nobody waits for the other for ever.
        await _locking().rows(tx, keys=list(uuids))
    values: dict[str, Any] = {}
    for number, (uuid, name) in enumerate(uuids.items()):
        values[f"uuid_{number}"], values[f"amount_{number}"] = uuid, amounts[name]
    return {uuids[uuid] for (uuid,) in await _changing(len(uuids), how).rows(tx, **values)}


@lru_cache(maxsize=4096)
def _uuid(account_uuid: str, name: str) -> str:
    return derived_uuid("quota", account_uuid, name)


@lru_cache
def _locking() -> Prepared:
    uuid = cast("Table", QuotaModel.__table__).c.uuid
    mine = uuid.in_(bindparam("keys", expanding=True))
    return Prepared(select(uuid).where(mine).order_by(uuid).with_for_update())


@lru_cache
def _changing(count: int, how: str) -> Prepared:
    """One statement for so many quotas of an account, each changed by an amount of its own."""
    table = cast("Table", QuotaModel.__table__)
    keys = [bindparam(f"uuid_{number}", type_=String) for number in range(count)]
    amounts = [bindparam(f"amount_{number}", type_=BigInteger) for number in range(count)]
    amount = case(*((table.c.uuid == key, one) for key, one in zip(keys, amounts, strict=True)), else_=0)
    used = table.c.used + amount
    fits = {"take": [used <= table.c.value], "take freely": [], "give": [used >= 0]}[how]
    mine = or_(*(table.c.uuid == key for key in keys))
    return Prepared(update(table).where(mine, *fits).values(used=used).returning(table.c.uuid))


async def _quota(tx: AsyncSession, account_uuid: str, name: str) -> QuotaModel:
    """The account's quota, made with the setting's value where an account has none yet."""
    uuid = _uuid(account_uuid, name)
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
