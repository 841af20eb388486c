"""Which rows an ordinary account may see: those that it owns, that are shared with it, and those that nobody owns.

Invariant: administrators see everything; for everybody else this filter is part of every query's WHERE, so neither
pages nor counts tell of other accounts' resources. A row without an owner of its own that is part of something
(a NIC of its VM, an address of its network) is seen by who sees the whole.

A model may say otherwise by a class method `visible_to(account_uuid) -> ColumnElement[bool]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, not_, or_, select, true

from caelum.cloud.ownership import AccountResourceRefModel, SharedResourceModel

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


def visible(model: type[Any], account_uuid: str) -> ColumnElement[bool]:
    """What rows of `model` the account sees."""
    own_rule: Callable[[str], ColumnElement[bool]] | None = getattr(model, "visible_to", None)
    if own_rule is not None:
        return own_rule(account_uuid)
    if column := _OWN_ACCOUNT.get(model.__vo__):
        mine: ColumnElement[bool] = getattr(model, column) == account_uuid
        return mine
    whole = next((getattr(model, name) for name in _WHOLES if hasattr(model, name)), None)
    unowned = true() if whole is None else and_(whole.is_not(None), or_(accessible(whole, account_uuid), _free(whole)))
    if not hasattr(model, "uuid"):
        return unowned
    return or_(accessible(model.uuid, account_uuid), and_(_free(model.uuid), unowned))


def _free(uuid: Any) -> ColumnElement[bool]:
    """Nobody owns the resource with this UUID column."""
    return not_(exists(select(1).where(AccountResourceRefModel.resource_uuid == uuid)))


def accessible(uuid: Any, account_uuid: str) -> ColumnElement[bool]:
    """Whether the account owns the resource, or has it shared with itself or with everybody."""
    ref, shared = AccountResourceRefModel, SharedResourceModel
    mine = exists(select(1).where(ref.resource_uuid == uuid, ref.account_uuid == account_uuid))
    to_me = or_(shared.receiver_account_uuid == account_uuid, shared.to_public.is_(True))
    return or_(mine, exists(select(1).where(shared.resource_uuid == uuid, to_me)))
