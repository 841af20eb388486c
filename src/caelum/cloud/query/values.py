"""From a condition's text to a comparison with a column of whatever type.

A comparison names its value instead of holding it, so that one statement serves every query of the same shape: the
places for values are counted while it is built, and `Places.values` reads them from the conditions of each query.

Invariant: values reach SQL only as bound parameters of the column's type; a text that is no such value is refused
before any statement runs. Texts compare exactly; `like` ignores case on every database.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import JSON, BindParameter, ColumnElement, String, bindparam, cast, func
from sqlalchemy.ext.associationproxy import AssociationProxyInstance
from sqlalchemy.orm import QueryableAttribute
from sqlalchemy.types import TypeEngine

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


Read = Callable[[QueryCondition], Any]
"""What a condition's text means to the column that it is compared with. Raises SYS.1007."""
_Column = QueryableAttribute[Any] | ColumnElement[Any]


class Places:
    """The places for values in a statement, in the order of the conditions."""

    def __init__(self, first: int = 0) -> None:
        self._first = first
        self._reads: list[Read | None] = []

    def take(self, kind: TypeEngine[Any], read: Read, *, several: bool = False) -> BindParameter[Any]:
        """The place of the next condition's value."""
        self._reads.append(read)
        return bindparam(f"value{self._next - 1}", type_=kind, expanding=several, required=True)

    @property
    def _next(self) -> int:
        return self._first + len(self._reads)

    def again(self) -> Places:
        """The place that comes next, for another form of the same condition."""
        return Places(self._next)

    def skip(self) -> None:
        """The next condition needs no value."""
        self._reads.append(None)

    def values(self, conditions: Iterable[QueryCondition]) -> dict[str, Any]:
        """The values of a query of this shape. Raises SYS.1007 for a text that means nothing."""
        pairs = enumerate(zip(self._reads, conditions, strict=True))
        return {f"value{at}": read(one) for at, (read, one) in pairs if read is not None}


def compare(column: _Column, condition: QueryCondition, places: Places) -> ColumnElement[bool]:
    """The condition as SQL over this column."""
    op = condition.op
    if isinstance(column, AssociationProxyInstance):
        return _any_of(column, condition, places)
    if op in ("is null", "is not null"):
        places.skip()
        return column.is_(None) if op == "is null" else column.is_not(None)
    if condition.value is None:
        raise bad_value(condition.name, None, f"a value for the operator {op}")
    if op in ("like", "not like"):
        return _like(column, condition, places)
    if op in ("in", "not in"):
        values = places.take(column.type, lambda one: _list(column, one), several=True)
        return column.not_in(values) if op == "not in" else column.in_(values)
    if op not in _COMPARE:
        raise invalid(condition.name, f"the operator[{op}] is unknown; there are {', '.join(OPERATORS)}")
    value = places.take(column.type, lambda one: _typed(column, one.name, one.value or ""))
    return _COMPARE[op](column, value)


def _any_of(values: AssociationProxyInstance[Any], condition: QueryCondition, places: Places) -> ColumnElement[bool]:
    """A condition on a list of values (DNS servers, cluster UUIDs): one of them meets it; negated, none does."""
    if condition.op in ("is null", "is not null"):
        places.skip()
        return ~values.any() if condition.op == "is null" else values.any()
    positive = POSITIVE.get(condition.op)
    wanted = msgspec.structs.replace(condition, op=positive or condition.op)
    remote: Any = values.remote_attr
    met = values.any(compare(remote, wanted, places))
    return met if positive is None else ~met


def _like(column: _Column, condition: QueryCondition, places: Places) -> ColumnElement[bool]:
    text: ColumnElement[Any] = func.lower(column if isinstance(column.type, String) else cast(column, String))
    place = places.take(String(), lambda one: _pattern(one.value or ""))
    # Folded by the database on both sides: its idea of lower case is not Python's for all of Unicode.
    found = text.like(func.lower(place), escape="\\")
    return ~found if condition.op == "not like" else found


def _pattern(pattern: str) -> str:
    # An escape character that escapes nothing means itself; PostgreSQL would refuse the pattern.
    trailing = len(pattern) - len(pattern.rstrip("\\"))
    return f"{pattern}\\" if trailing % 2 else pattern


def _list(column: _Column, condition: QueryCondition) -> list[Any]:
    texts = (condition.value or "").split(",")
    if len(texts) > MAX_IN_VALUES:
        raise invalid(condition.name, f"{len(texts)} values are listed, at most {MAX_IN_VALUES} may be")
    return [_typed(column, condition.name, one) for one in texts]


def _typed(column: _Column, name: str, text: str) -> Any:
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
