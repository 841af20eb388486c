"""From replies to bodies: the keys that clients expect, and the `schema` that typed clients need.

Invariant: a successful body is always a JSON object; a failed one has exactly one top-level key, `error`.
"""

from __future__ import annotations

import functools
import typing
from datetime import datetime
from typing import Any

import msgspec

from caelum.gateway.reading import plain
from caelum.kernel import resources
from caelum.kernel.errors import ErrorCode, to_wire
from caelum.kernel.message import ApiMeta, ApiQuery, Inventory, camel, inventories, reply_type
from caelum.kernel.views import to_builtins

Body = dict[str, Any]


def error_body(error: BaseException | ErrorCode) -> Body:
    """`{"error": {...}}`; `details` is never empty, because some clients show nothing else."""
    wire = to_wire(error)
    if not wire.details:
        wire = msgspec.structs.replace(wire, details=wire.description or wire.code)
    return {"error": to_builtins(wire)}


_LEAVES = frozenset({str, int, float, bool, type(None), datetime})


def with_schema(meta: ApiMeta, body: Body) -> Body:
    """The body with the Java class of each object in it by its path, which typed clients decode by."""
    found: dict[str, str] = {}
    for key, hint in body_types(meta).items():
        if key in body:
            _classes(found, key, hint, body[key])
    return {**body, "schema": found}


def body_types(meta: ApiMeta) -> dict[str, Any]:
    """The keys of the operation's successful body, with their types."""
    reply = reply_type(meta.cls)
    if issubclass(meta.cls, ApiQuery):
        return {"inventories": list[reply], "total": int}  # type: ignore[valid-type]
    if reply is None:
        return {}
    if meta.reply_key is not None:
        return {meta.reply_key: reply}
    hints = typing.get_type_hints(reply)
    return {field.encode_name: hints[field.name] for field in msgspec.structs.fields(reply)}


def _classes(found: dict[str, str], path: str, hint: Any, value: Any) -> None:
    """Note the class of each object in a value of this type."""
    origin, inner = _kind(hint)
    if origin is list and isinstance(value, list):
        for index, one in enumerate(value):
            _classes(found, f"{path}[{index}]", inner, one)
    elif origin is dict and isinstance(value, dict):
        for name, one in value.items():
            _classes(found, f"{path}.{name}", inner, one)
    elif origin is msgspec.Struct and isinstance(value, dict):
        _struct_classes(found, path, inner, value)


@functools.cache
def _kind(hint: Any) -> tuple[Any, Any]:
    """What holds objects: a list or dictionary, with the type of what is in it, or a struct itself; else None."""
    kind = plain(hint)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (list, dict):
        return origin, arguments[-1]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return msgspec.Struct, kind
    return None, None


def _struct_classes(found: dict[str, str], path: str, cls: type[msgspec.Struct], value: Body) -> None:
    cls = _concrete(cls, value)
    if java := java_class(cls):
        found[path] = java
    for wire, hint in _nested_fields(cls):
        inner = value.get(wire)
        if inner and isinstance(inner, dict | list):
            _classes(found, f"{path}.{wire}", hint, inner)


@functools.cache
def _nested_fields(cls: type[msgspec.Struct]) -> tuple[tuple[str, Any], ...]:
    """The fields that may hold objects, with their types."""
    fields = msgspec.structs.fields(cls)
    return tuple((one.encode_name, one.type) for one in fields if not _parts(one.type) <= _LEAVES)


def _parts(hint: Any) -> set[Any]:
    return set(typing.get_args(hint)) or {hint}


def _concrete(cls: type[msgspec.Struct], value: Body) -> type[msgspec.Struct]:
    """The child inventory that the value's type field names, or the class itself."""
    meta = getattr(cls, "__inventory__", None)
    field = None if meta is None else type_field(meta.vo)
    if field is None:
        return cls
    return child_of(cls, value.get(camel(field))) or cls


def type_field(vo: str) -> str | None:
    """The snake_case field that tells a resource's child type, or None when it has no children."""
    model = resources.types().get(vo)
    column = None if model is None else model.__mapper__.polymorphic_on
    return None if column is None else str(column.key)


def child_of(cls: type[msgspec.Struct], type_value: Any) -> type[Inventory] | None:
    """The child inventory of `cls` for this value of its type field."""
    if type_value is None:
        return None
    for one in inventories():
        meta = one.__inventory__  # type: ignore[attr-defined]
        if meta.parent == cls.__name__ and meta.type_value == type_value:
            return one
    return None


def java_class(cls: type[msgspec.Struct]) -> str | None:
    """The class name by which typed clients know this struct."""
    meta = getattr(cls, "__inventory__", None)
    return meta.java_class if meta is not None else getattr(cls, "__java_class__", None)
