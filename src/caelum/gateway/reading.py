"""From HTTP to parameters: JSON bodies and query strings, read as leniently as clients expect and no more.

Invariant: what leaves here has the declared Python types, fits a database (64-bit integers, real Unicode, no NUL), and
is bounded in size and depth. Whether a parameter is missing or has a wrong value is judged by the portal, not here.
"""

from __future__ import annotations

import functools
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NoReturn, Union
from urllib.parse import unquote_to_bytes

import msgspec

from caelum.gateway.refusal import Refusal
from caelum.kernel.message import ApiMeta, ParamMeta, parameters

MAX_DEPTH = 32
"""Deepest nesting of a request's JSON."""
MAX_QUERY_FIELDS = 1000
"""Most names in one query string."""
_INT64 = 2**63

Query = dict[str, list[str]]


def read_json(raw: bytes) -> dict[str, Any]:
    """The body as a dictionary; an empty body and `null` are `{}`."""
    if not raw.strip():
        return {}
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise Refusal(400, "the body is not valid UTF-8") from None
    except RecursionError:
        raise Refusal(400, f"the JSON is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise Refusal(400, f"the body is not valid JSON: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refusal(400, "the body must be a JSON object")
    _check_values(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:64]!r} appears twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _check_values(root: Any) -> None:
    """Refuse what no database or peer could hold. A work list instead of recursion: the input chooses the depth."""
    pending = [(root, 1)]
    while pending:
        value, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise Refusal(400, f"the JSON is nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, str):
            check_text(value)
        elif isinstance(value, float) and value in (float("inf"), float("-inf")):
            raise Refusal(400, "a number is too large")
        elif isinstance(value, list):
            pending.extend((one, depth + 1) for one in value)
        elif isinstance(value, dict):
            pending.extend((one, depth + 1) for pair in value.items() for one in pair)


def check_text(value: str) -> None:
    """Refuse text that cannot be stored: NUL characters and lone surrogates."""
    if "\0" in value:
        raise Refusal(400, "NUL characters are not allowed in text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Refusal(400, "the text has a lone surrogate, which is not valid Unicode") from None


def read_query(raw: str) -> Query:
    """A raw query string as names with all their values, in order."""
    result: Query = {}
    pairs = [one for one in raw.split("&") if one]
    if len(pairs) > MAX_QUERY_FIELDS:
        raise Refusal(400, f"the query string has {len(pairs)} fields, more than {MAX_QUERY_FIELDS}")
    for pair in pairs:
        name, _, value = pair.partition("=")
        result.setdefault(_unquoted(name), []).append(_unquoted(value))
    return result


def _unquoted(text: str) -> str:
    try:
        value = unquote_to_bytes(text.replace("+", " ")).decode()
    except UnicodeDecodeError:
        raise Refusal(400, "the query string is not valid UTF-8") from None
    check_text(value)
    return value


@functools.cache
def api_parameters(meta: ApiMeta) -> dict[str, ParamMeta]:
    """The parameters of an operation by wire name."""
    return {one.wire: one for one in parameters(meta.cls)}


def from_query(meta: ApiMeta, query: Query) -> dict[str, Any]:
    """The parameters that a GET or DELETE carries in its query string, by wire name; unknown names are ignored."""
    found: dict[str, Any] = {}
    for wire, param in api_parameters(meta).items():
        kind = _container(param.type)
        if kind is list:
            values = [*query.get(wire, ()), *_indexed(query, wire)]
            if values:
                found[wire] = values
        elif kind is dict:
            prefix = wire + "."
            if entries := {name[len(prefix) :]: value[0] for name, value in query.items() if name.startswith(prefix)}:
                found[wire] = entries
        elif wire in query:
            if len(query[wire]) > 1:
                raise Refusal(400, f"the parameter {wire} is given {len(query[wire])} times")
            # Clients write `deleteMode=` for "none chosen".
            if query[wire][0] or param.param.valid_values is None:
                found[wire] = query[wire][0]
    return found


def _indexed(query: Query, wire: str) -> list[str]:
    """`u.0=a&u.1=b`, the other way to write a list."""
    prefix = wire + "."
    numbered = [(name[len(prefix) :], values) for name, values in query.items() if name.startswith(prefix)]
    entries = [(int(index), values[0]) for index, values in numbered if index.isascii() and index.isdigit()]
    return [value for _, value in sorted(entries)]


def from_body(meta: ApiMeta, body: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a POST or PUT carries under its body key, with the top-level tags, which win."""
    inner = body.get(meta.body_key or "")
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        raise Refusal(400, f"the value of {meta.body_key!r} in the body must be a JSON object")
    tags = {name: body[name] for name in ("systemTags", "userTags") if body.get(name) is not None}
    return {**inner, **tags}


def typed(meta: ApiMeta, found: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by wire name as arguments of the message class; null means absent, unknown names are dropped."""
    known = api_parameters(meta)
    return {
        known[wire].name: _convert(wire, value, known[wire].type)
        for wire, value in found.items()
        if wire in known and value is not None
    }


def _convert(wire: str, value: Any, hint: Any) -> Any:
    try:
        return msgspec.convert(_lenient(hint)(value), hint, strict=False)
    except msgspec.ValidationError as error:
        raise Refusal(400, f"the parameter {wire} has a bad value: {error}") from None
    except RecursionError:
        raise Refusal(400, f"the parameter {wire} is nested too deeply") from None


def plain(hint: Any) -> Any:
    """`X` of `X | None`."""
    if typing.get_origin(hint) is Annotated:
        return plain(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (Union, types.UnionType):
        rest = [one for one in typing.get_args(hint) if one is not type(None)]
        return rest[0] if len(rest) == 1 else hint
    return hint


def _container(hint: Any) -> type | None:
    kind = plain(hint)
    origin = typing.get_origin(kind) or kind
    return origin if origin in (list, dict) else None


@functools.cache
def _lenient(hint: Any) -> Callable[[Any], Any]:
    """What makes a value acceptable where text is declared: clients send numbers and booleans for strings."""
    kind = plain(hint)
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind is str:
        return _as_text
    if kind is int:
        return _in_range
    if origin is list and arguments:
        return functools.partial(_each, _lenient(arguments[0]))
    if origin is dict and len(arguments) == 2:
        return functools.partial(_each_value, _lenient(arguments[1]))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return functools.partial(_each_field, kind)
    return lambda value: value


def _as_text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _in_range(value: Any) -> Any:
    number = value
    if isinstance(value, str) and value.lstrip("-").isdecimal():
        number = int(value) if len(value) < 32 else _INT64
    if isinstance(number, int) and not -_INT64 <= number < _INT64:
        raise msgspec.ValidationError(f"{str(value)[:32]} does not fit into 64 bits")
    return value


def _each(convert: Callable[[Any], Any], value: Any) -> Any:
    return [convert(one) for one in value] if isinstance(value, list) else value


def _each_value(convert: Callable[[Any], Any], value: Any) -> Any:
    return {name: convert(one) for name, one in value.items()} if isinstance(value, dict) else value


def _each_field(cls: type[msgspec.Struct], value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    hints = _wire_hints(cls)
    return {name: _lenient(hints[name])(one) if name in hints else one for name, one in value.items()}


@functools.cache
def _wire_hints(cls: type[msgspec.Struct]) -> Mapping[str, Any]:
    return {field.encode_name: field.type for field in msgspec.structs.fields(cls)}
