"""Which rows an ordinary account may see: those that it owns, that are shared with it, and those that nobody owns.

Invariant: administrators see everything; for everybody else this filter is part of every query's WHERE, so neither
pages nor counts tell of other accounts' resources. A row without an owner of its own that is part of something
(a NIC of its VM, an address of its network) is seen by who sees the whole.

A model may say otherwise by a class method `visible_to(account_uuid) -> ColumnElement[bool]`. The account is a place in
the statement (`ACCOUNT`), so that one statement serves all accounts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    String,
    and_,
    bindparam,
    exists,
    func,
    inspect,
    not_,
    or_,
    select,
    true,
    union_all,
)

from caelum.cloud.ownership import OWNED, AccountResourceRefModel, SharedResourceModel
from caelum.cloud.query.indexes import equal_within

_OWN_ACCOUNT: dict[str, str] = {
    "AccountVO": "uuid",
    "AccountResourceRefVO": "account_uuid",
    "QuotaVO": "identity_uuid",
    "SessionVO": "account_uuid",
}
"""Types whose rows belong to the account that this column names."""
_WHOLES = (
    "resource_uuid",
    "vm_instance_uuid",
    "volume_uuid",
    "image_uuid",
    "security_group_uuid",
    "load_balancer_uuid",
    "vip_uuid",
    "l3_network_uuid",
)
"""Columns that name what a row is part of; the first that a model has decides."""


FEW = 3_000
"""An account that sees at most so many resources of a type is answered from the list of these, and a condition that so
many rows meet from its index. Where there are more, going through all in the wanted order finds a page sooner."""
ACCOUNT = "account"
"""The name of the account's place in a statement."""
_account = bindparam(ACCOUNT, type_=String(32), required=True)


def visible(model: type[Any]) -> ColumnElement[bool]:
    """What rows of `model` the account sees."""
    own_rule: Callable[[Any], ColumnElement[bool]] | None = getattr(model, "visible_to", None)
    if own_rule is not None:
        return own_rule(_account)
    if column := _OWN_ACCOUNT.get(model.__vo__):
        mine: ColumnElement[bool] = getattr(model, column) == _account
        return mine
    if model.__vo__ in OWNED:
        return _accessible(model.uuid, inspect(model).mapper.base_mapper.class_.__vo__)
    whole = next((getattr(model, name) for name in _WHOLES if hasattr(model, name)), None)
    unowned = true() if whole is None else and_(whole.is_not(None), or_(_accessible(whole), _free(whole)))
    if not hasattr(model, "uuid"):
        return unowned
    return or_(_accessible(model.uuid), and_(_free(model.uuid), unowned))


def listed(model: type[Any]) -> Select[Any] | None:
    """The UUIDs of what the account sees of `model`, where ownership alone tells; what is shared may be of any type."""
    if model.__vo__ not in OWNED or hasattr(model, "visible_to"):
        return None
    ref, shared, vo = AccountResourceRefModel, SharedResourceModel, inspect(model).base_mapper.class_.__vo__
    sources = union_all(
        select(ref.resource_uuid).where(ref.account_uuid == _account, ref.resource_type == vo),
        select(shared.resource_uuid).where(shared.receiver_account_uuid == _account),
        select(shared.resource_uuid).where(shared.to_public == true()),
    ).subquery()
    return select(sources.c.resource_uuid)


def is_few(uuids: Select[Any]) -> ColumnElement[bool]:
    """Whether these are at most FEW, which takes no longer when they are many more."""
    return select(func.count() <= FEW).select_from(uuids.limit(FEW + 1).subquery()).scalar_subquery()


def has_few(model: type[Any], condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether at most FEW rows of `model` meet a condition, whoever sees them."""
    return is_few(select(inspect(model).primary_key[0]).where(condition))


def leads_to_few(keys: Select[Any], model: type[Any], column: Any) -> ColumnElement[bool]:
    """Whether at most FEW rows of `model` have one of these keys in a column, and the keys are no more either."""
    return and_(is_few(keys), has_few(model, column.in_(keys.limit(FEW + 1))))


def _free(uuid: Any) -> ColumnElement[bool]:
    """Nobody owns the resource with this UUID column."""
    return not_(exists(select(1).where(AccountResourceRefModel.resource_uuid == uuid)))


def _accessible(uuid: Any, vo: str | None = None) -> ColumnElement[bool]:
    """Whether the account owns the resource, or has it shared with itself or with everybody; of resources of type `vo`
    an index knows who owns them."""
    ref, shared = AccountResourceRefModel, SharedResourceModel
    owned = (
        [ref.resource_uuid == uuid] if vo is None else [equal_within(ref.resource_uuid, uuid), ref.resource_type == vo]
    )
    mine = exists(select(1).where(*owned, ref.account_uuid == _account))
    to_me = or_(shared.receiver_account_uuid == _account, shared.to_public.is_(True))
    return or_(mine, exists(select(1).where(shared.resource_uuid == uuid, to_me)))
