"""From a condition's text to a comparison with a column of whatever type.

Invariant: values reach SQL only as bound parameters of the column's type; a text that is no such value is refused
before any statement runs. Texts compare exactly; `like` ignores case on every database.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import JSON, ColumnElement, String, cast, false, func, true
from sqlalchemy.ext.associationproxy import AssociationProxyInstance
from sqlalchemy.orm import QueryableAttribute

from caelum.cloud.query.errors import bad_value
from caelum.kernel.errors import invalid
from caelum.kernel.message import QueryCondition
from caelum.kernel.views import parse_time

MAX_IN_VALUES = 1000
_INT64 = 2**63
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_COMPARE: dict[str, Callable[[Any, Any], ColumnElement[bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
OPERATORS = (*_COMPARE, "in", "not in", "like", "not like", "is null", "is not null")
POSITIVE = {"!=": "=", "not in": "in", "not like": "like", "is null": "is not null"}
"""Each negated operator with what it negates."""


def compare(column: QueryableAttribute[Any], condition: QueryCondition) -> ColumnElement[bool]:
    """The condition as SQL over this column."""
    op = condition.op
    if isinstance(column, AssociationProxyInstance):
        return _any_of(column, condition)
    if op in ("is null", "is not null"):
        return column.is_(None) if op == "is null" else column.is_not(None)
    if condition.value is None:
        raise bad_value(condition.name, None, f"a value for the operator {op}")
    if op in ("like", "not like"):
        return _like(column, condition.value, negated=op == "not like")
    if op in ("in", "not in"):
        return _among(column, condition, negated=op == "not in")
    if op not in _COMPARE:
        raise invalid(condition.name, f"the operator[{op}] is unknown; there are {', '.join(OPERATORS)}")
    return _COMPARE[op](column, _typed(column, condition.name, condition.value))


def _any_of(values: AssociationProxyInstance[Any], condition: QueryCondition) -> ColumnElement[bool]:
    """A condition on a list of values (DNS servers, cluster UUIDs): one of them meets it; negated, none does."""
    if condition.op in ("is null", "is not null"):
        return ~values.any() if condition.op == "is null" else values.any()
    positive = POSITIVE.get(condition.op)
    wanted = msgspec.structs.replace(condition, op=positive or condition.op)
    remote: Any = values.remote_attr
    met = values.any(compare(remote, wanted))
    return met if positive is None else ~met


def _like(column: QueryableAttribute[Any], pattern: str, *, negated: bool) -> ColumnElement[bool]:
    text: ColumnElement[Any] = func.lower(column if isinstance(column.type, String) else cast(column, String))
    trailing = len(pattern) - len(pattern.rstrip("\\"))
    if trailing % 2:
        # An escape character that escapes nothing means itself; PostgreSQL would refuse the pattern.
        pattern += "\\"
    # Folded by the database on both sides: its idea of lower case is not Python's for all of Unicode.
    found = text.like(func.lower(pattern), escape="\\")
    return ~found if negated else found


def _among(column: QueryableAttribute[Any], condition: QueryCondition, *, negated: bool) -> ColumnElement[bool]:
    texts = (condition.value or "").split(",")
    if len(texts) > MAX_IN_VALUES:
        raise invalid(condition.name, f"{len(texts)} values are listed, at most {MAX_IN_VALUES} may be")
    values = [_typed(column, condition.name, one) for one in texts]
    return column.not_in(values) if negated else column.in_(values)


def _typed(column: QueryableAttribute[Any], name: str, text: str) -> Any:
    if isinstance(column.type, JSON):
        raise invalid(name, "the field holds a structure, which cannot be compared")
    kind = column.type.python_type
    if kind is bool:
        if text.strip().lower() not in _TRUTH:
            raise bad_value(name, text, "true or false")
        return _TRUTH[text.strip().lower()]
    try:
        return _parsed(kind, text)
    except (ValueError, OverflowError):
        raise bad_value(name, text, _WANTED.get(kind, f"a {kind.__name__}")) from None


_WANTED = {
    int: "a whole number of 64 bits",
    float: "a number",
    datetime: "a time like 'Nov 22, 2026 7:15:56 PM' or '2026-11-22 19:15:56'",
}


def _parsed(kind: type, text: str) -> Any:
    if kind is int:
        number = int(text)
        if not -_INT64 <= number < _INT64:
            raise OverflowError
        return number
    if kind is datetime:
        moment = parse_time(text.strip())
        return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
    return text if kind is str else kind(text)


def nothing() -> ColumnElement[bool]:
    """A condition that no row meets."""
    return false()


def anything() -> ColumnElement[bool]:
    """A condition that every row meets."""
    return true()
