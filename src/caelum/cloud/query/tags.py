"""Conditions on a resource's tags: `__systemTag__`, `__userTag__` (their text) and `__tagUuid__` (a tag pattern).

Invariant: a negated operator means "has no such tag", not "has another tag". Secret parts of tags are compared for
administrators only.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, exists, not_, select
from sqlalchemy.orm import aliased

from caelum.cloud.query.indexes import unindexed
from caelum.cloud.query.schema import Target, comparable
from caelum.cloud.query.values import POSITIVE, Places, compare
from caelum.kernel import resources
from caelum.kernel.errors import invalid
from caelum.kernel.message import QueryCondition
from caelum.kernel.tag import MASK

_TABLES = {
    "__systemTag__": ("SystemTagVO", "tag"),
    "__userTag__": ("UserTagVO", "tag"),
    "__tagUuid__": ("UserTagVO", "tag_pattern_uuid"),
}


def tag_condition(at: Target, one: QueryCondition, places: Places, *, restricted: bool) -> ColumnElement[bool]:
    """Whether a row of `at` has a tag that meets the condition; `restricted` to what an ordinary account sees of it."""
    tags, attribute = _tags(one.name)
    if "uuid" not in at.columns:
        raise invalid(one.name, f"{at.name} has no UUID and so no tags")
    negated = one.op in POSITIVE
    condition = QueryCondition(one.name, POSITIVE.get(one.op, one.op), one.value)
    met = compare(unindexed(comparable(tags, attribute, restricted=restricted)), condition, places)
    has = exists().where(tags.resource_uuid == at.attribute("uuid"), met)
    return not_(has) if negated else has


def tagged_with(one: QueryCondition, places: Places, *, restricted: bool) -> Select[Any] | None:
    """The UUIDs of what has one of the tags that the condition names, which an index knows; None if it does not."""
    if restricted and may_be_masked(one):
        return None
    tags, attribute = _tags(one.name)
    # A tag with secret parts looks like none of the values, and so only the text itself needs to be looked up.
    seen = [compare(comparable(tags, attribute, restricted=True), one, places.again())] if restricted else []
    return select(tags.resource_uuid).where(compare(getattr(tags, attribute), one, places), *seen)


def may_be_masked(one: QueryCondition) -> bool:
    """Whether the condition's text may be what an ordinary account sees of a tag with secret parts."""
    return MASK in (one.value or "")


def _tags(name: str) -> tuple[Any, str]:
    """The tags of this kind, and the attribute that is compared. An alias, as a query may be about tags itself."""
    vo, attribute = _TABLES[name]
    tags: Any = resources.types().get(vo)
    if tags is None:
        raise invalid(name, f"tags of type {vo} are not loaded")
    return aliased(tags), attribute
