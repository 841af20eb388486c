"""Conditions on a resource's tags: `__systemTag__`, `__userTag__` (their text) and `__tagUuid__` (a tag pattern).

Invariant: a negated operator means "has no such tag", not "has another tag". Secret parts of tags are compared for
administrators only.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, exists, not_

from caelum.cloud.query.schema import Target, comparable
from caelum.cloud.query.values import POSITIVE, Places, compare
from caelum.kernel import resources
from caelum.kernel.errors import invalid
from caelum.kernel.message import QueryCondition

_TABLES = {
    "__systemTag__": ("SystemTagVO", "tag"),
    "__userTag__": ("UserTagVO", "tag"),
    "__tagUuid__": ("UserTagVO", "tag_pattern_uuid"),
}


def tag_condition(
    at: Target, name: str, one: QueryCondition, places: Places, *, restricted: bool
) -> ColumnElement[bool]:
    """Whether a row of `at` has a tag that meets the condition; `restricted` to what an ordinary account sees of it."""
    vo, attribute = _TABLES[name]
    tags: Any = resources.types().get(vo)
    if tags is None:
        raise invalid(name, f"tags of type {vo} are not loaded")
    if "uuid" not in at.columns:
        raise invalid(name, f"{at.name} has no UUID and so no tags")
    negated = one.op in POSITIVE
    condition = QueryCondition(name, POSITIVE.get(one.op, one.op), one.value)
    met = compare(comparable(tags, attribute, restricted=restricted), condition, places)
    has = exists().where(tags.resource_uuid == at.attribute("uuid"), met)
    return not_(has) if negated else has
