"""Who owns what. The table lives here, and not in the identity service, so that the owner commits with the resource.

Invariant: a resource has at most one owner, from the transaction that makes it to the one that deletes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import cast

from sqlalchemy import DateTime, Index, Select, String, Table, bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from caelum.kernel import resources
from caelum.kernel.database import Row, conflict_insert, utcnow
from caelum.kernel.prepared import Prepared
from caelum.kernel.rows import delete_rows

ALL_PERMISSIONS = 2
"""The original's number for a permission to read and write."""
OWNED = frozenset(
    {
        "VmInstanceVO", "VmNicVO", "VolumeVO", "ImageVO", "InstanceOfferingVO", "DiskOfferingVO", "L2NetworkVO",
        "L3NetworkVO", "IpRangeVO", "ReservedIpRangeVO",
    }
)  # fmt: skip
"""Types of which every resource has an owner."""


class AccountResourceRefModel(Row):
    """A resource's owner."""

    __tablename__ = "account_resource_ref"
    __vo__ = "AccountResourceRefVO"
    __table_args__ = (Index("ix_account_resource_ref_account", "account_uuid", "resource_type", "resource_uuid"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    account_uuid: Mapped[str] = mapped_column(String(32))
    owner_account_uuid: Mapped[str] = mapped_column(String(32))
    resource_uuid: Mapped[str] = mapped_column(String(32), unique=True)
    resource_type: Mapped[str] = mapped_column(String(255))
    concrete_resource_type: Mapped[str] = mapped_column(String(512))
    permission: Mapped[int] = mapped_column(default=ALL_PERMISSIONS)
    is_shared: Mapped[bool] = mapped_column(default=False)
    create_date: Mapped[datetime] = mapped_column(default=utcnow)
    last_op_date: Mapped[datetime] = mapped_column(default=utcnow, onupdate=utcnow)


class SharedResourceModel(Row):
    """A resource that its owner shares with an account, or with everybody (`to_public`)."""

    __tablename__ = "shared_resource"
    __vo__ = "SharedResourceVO"
    __table_args__ = (
        Index("ix_shared_resource_receiver", "receiver_account_uuid"),
        Index("ix_shared_resource_public", "to_public"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    owner_account_uuid: Mapped[str] = mapped_column(String(32))
    receiver_account_uuid: Mapped[str | None] = mapped_column(String(32))
    resource_type: Mapped[str] = mapped_column(String(255))
    resource_uuid: Mapped[str] = mapped_column(String(32), index=True)
    permission: Mapped[int] = mapped_column(default=1)
    to_public: Mapped[bool] = mapped_column(default=False)
    create_date: Mapped[datetime] = mapped_column(default=utcnow)
    last_op_date: Mapped[datetime] = mapped_column(default=utcnow, onupdate=utcnow)


async def own(tx: AsyncSession, account_uuid: str, resource_uuid: str, resource_type: str) -> None:
    """Make the account the owner of the resource, in place of any other."""
    await own_all(tx, account_uuid, {resource_uuid: resource_type})


async def own_all(tx: AsyncSession, account_uuid: str, types: Mapping[str, str]) -> None:
    """The same for several resources, given with their types."""
    values: dict[str, str] = {}
    for number, (resource_uuid, resource_type) in enumerate(types.items()):
        values[f"resource_{number}"], values[f"type_{number}"] = resource_uuid, resource_type
        values[f"root_{number}"] = _root_type(resource_type)
    await _owning(len(types)).run(tx, **values, account=account_uuid, now=utcnow())


@lru_cache
def _owning(count: int) -> Prepared:
    """One statement for so many resources. Of several rows, each must say what a column has by default."""
    statement, now = conflict_insert(AccountResourceRefModel).inline(), bindparam("now", type_=DateTime)
    account = bindparam("account", type_=String)
    rows = [
        {
            "account_uuid": account,
            "owner_account_uuid": account,
            "resource_uuid": bindparam(f"resource_{number}", type_=String),
            "resource_type": bindparam(f"root_{number}", type_=String),
            "concrete_resource_type": bindparam(f"type_{number}", type_=String),
            "permission": ALL_PERMISSIONS,
            "is_shared": False,
            "create_date": now,
            "last_op_date": now,
        }
        for number in range(count)
    ]
    taken_over = {name: statement.excluded[name] for name in ("account_uuid", "owner_account_uuid", "last_op_date")}
    return Prepared(statement.values(rows).on_conflict_do_update(index_elements=["resource_uuid"], set_=taken_over))


async def disown(tx: AsyncSession, *resource_uuids: str) -> None:
    """Forget the owner of resources that are deleted, and with whom they were shared."""
    if resource_uuids:
        for model in (AccountResourceRefModel, SharedResourceModel):
            await delete_rows(tx, model, resource_uuid=resource_uuids)


async def owner_of(session: AsyncSession, resource_uuid: str) -> str | None:
    """The account that owns the resource, or None: nobody does, or it is not a thing that is owned."""
    found = await _OWNER.rows(session, key=resource_uuid)
    return found[0][0] if found else None


_OWNERS = cast("Table", AccountResourceRefModel.__table__).c
_OWNER = Prepared(select(_OWNERS.account_uuid).where(_OWNERS.resource_uuid == bindparam("key")))


def owned_by(account_uuids: list[str], resource_type: str) -> Select[str]:
    """The UUIDs of the resources of a type that belong to any of the accounts, as a query."""
    row = AccountResourceRefModel
    return select(row.resource_uuid).where(row.account_uuid.in_(account_uuids), row.resource_type == resource_type)


def _root_type(resource_type: str) -> str:
    """Ownership is recorded, and asked for, by the type of the whole family (L2NetworkVO for a VLAN network)."""
    model = resources.types().get(resource_type)
    return resource_type if model is None else model.__mapper__.base_mapper.class_.__vo__
