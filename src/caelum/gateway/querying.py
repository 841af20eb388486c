"""From a query's HTTP form to a query message: `q`, `sort`, `fields`, paging.

Invariant: what the text means is settled here alone; the query service gets conditions with a name, one operator and a
value, whatever way they came in.
"""

from __future__ import annotations

from typing import Any

from caelum.gateway.reading import Query
from caelum.gateway.refusal import Refusal
from caelum.kernel.message import QueryCondition

_OPERATORS = (
    ("!=", "!="),
    (">=", ">="),
    ("<=", "<="),
    ("!?=", "not in"),
    ("!~=", "not like"),
    ("~=", "like"),
    ("?=", "in"),
    ("=", "="),
    (">", ">"),
    ("<", "<"),
    ("is null", "is null"),
    ("not null", "is not null"),
)
"""In the original's order: the first of these found anywhere in the text is the operator."""
_NO_VALUE = ("is null", "is not null")
_INT32 = 2**31


def from_query_string(variables: dict[str, str], query: Query) -> dict[str, Any]:
    """The arguments of a query message. A path with a UUID means that resource, and nothing else counts then."""
    if "uuid" in variables:
        return {"conditions": [QueryCondition("uuid", "=", variables["uuid"])]}
    values: dict[str, Any] = {"conditions": [condition(one) for one in query.get("q", ())]}
    for wire, name in (("limit", "limit"), ("start", "start")):
        if wire in query:
            values[name] = _number(wire, query[wire][0])
    for wire, name in (("count", "count"), ("replyWithCount", "reply_with_count")):
        if wire in query:
            values[name] = _truth(wire, query[wire][0])
    for wire, name in (("groupBy", "group_by"), ("filterName", "filter_name")):
        if wire in query:
            values[name] = query[wire][0]
    if query.get("sort", [""])[0]:
        values["sort_by"], values["sort_direction"] = sort(query["sort"][0])
    if "fields" in query:
        values["fields"] = [one.strip() for one in query["fields"][0].split(",") if one.strip()]
    return values


def condition(text: str) -> QueryCondition:
    """`name~=web%` as a condition."""
    found = next(((sign, op) for sign, op in _OPERATORS if sign in text), None)
    if found is None:
        raise Refusal(400, f"Invalid query string[{text[:255]}]: it has no operator")
    sign, op = found
    name, _, value = text.partition(sign)
    # "x is not null" holds the operator's text "not null" after a stray "is".
    name = name.strip().removesuffix(" is")
    if not name:
        raise Refusal(400, f"Invalid query string[{text[:255]}]: it names no field")
    if op in _NO_VALUE:
        return QueryCondition(name, op)
    if not value:
        raise Refusal(400, f"Invalid query string[{text[:255]}]: it has no value")
    return QueryCondition(name, op, value)


def sort(text: str) -> tuple[str, str]:
    """`-createDate` as field and direction. A plus that a client did not encode arrives as a blank."""
    direction = "desc" if text.startswith("-") else "asc"
    field = text.strip().removeprefix("+").removeprefix("-").strip()
    if not field:
        raise Refusal(400, "the parameter sort names no field")
    return field, direction


def _number(name: str, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise Refusal(400, f"the parameter {name} is not a number: {text[:64]}") from None
    if not 0 <= value < _INT32:
        raise Refusal(400, f"the parameter {name} is not between 0 and {_INT32 - 1}: {text[:64]}")
    return value


def _truth(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise Refusal(400, f"the parameter {name} must be true or false: {text[:64]}")
    return text.lower() == "true"
