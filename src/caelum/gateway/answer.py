"""From replies to bodies: the keys that clients expect, and the `schema` that typed clients need.

Invariant: a successful body is always a JSON object; a failed one has exactly one top-level key, `error`.
"""

from __future__ import annotations

import functools
import typing
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from caelum.gateway.reading import plain
from caelum.kernel import resources
from caelum.kernel.errors import ErrorCode, to_wire
from caelum.kernel.message import ApiMeta, ApiQuery, Inventory, camel, inventories, reply_type
from caelum.kernel.views import to_builtins

if TYPE_CHECKING:
    from caelum.kernel.database import Row

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
            _classes(found, key, _holder(hint), body[key])
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


class _Holder(NamedTuple):
    """Where objects may be: in a list or a dictionary, which holds what `inner` says, or an object of class `inner`."""

    origin: Any
    inner: Any


class _Shape(NamedTuple):
    """What a class tells of its objects, and which of their fields may hold further ones."""

    java: str | None
    type_field: str | None
    """The field on the wire that names the child class."""
    nested: tuple[tuple[str, _Holder], ...]


def _classes(found: dict[str, str], path: str, holder: _Holder | None, value: Any) -> None:
    """Note the class of each object in a value."""
    if holder is None:
        return
    origin, inner = holder
    if origin is list and isinstance(value, list):
        for index, one in enumerate(value):
            _classes(found, f"{path}[{index}]", inner, one)
    elif origin is dict and isinstance(value, dict):
        for name, one in value.items():
            _classes(found, f"{path}.{name}", inner, one)
    elif origin is msgspec.Struct and isinstance(value, dict):
        _struct_classes(found, path, inner, value)


@functools.cache
def _holder(hint: Any) -> _Holder | None:
    """How a value of this type holds objects; None when it holds none."""
    kind = plain(hint)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (list, dict):
        return _Holder(origin, _holder(arguments[-1]))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _Holder(msgspec.Struct, kind)
    return None


def _struct_classes(found: dict[str, str], path: str, cls: type[msgspec.Struct], value: Body) -> None:
    shape = _shape_of(cls)
    if shape.type_field is not None:
        shape = _shape_of(child_of(cls, value.get(shape.type_field)) or cls)
    if shape.java:
        found[path] = shape.java
    for wire, holder in shape.nested:
        if inner := value.get(wire):
            _classes(found, f"{path}.{wire}", holder, inner)


def _shape_of(cls: type[msgspec.Struct]) -> _Shape:
    meta = getattr(cls, "__inventory__", None)
    return _shape(cls, None if meta is None else resources.types().get(meta.vo))


@functools.cache
def _shape(cls: type[msgspec.Struct], model: type[Row] | None) -> _Shape:
    field = None if model is None else _type_field(model)
    return _Shape(java_class(cls), None if field is None else camel(field), _nested_fields(cls))


def _nested_fields(cls: type[msgspec.Struct]) -> tuple[tuple[str, _Holder], ...]:
    """The fields that may hold objects, and how."""
    fields = [one for one in msgspec.structs.fields(cls) if not _parts(one.type) <= _LEAVES]
    held = [(one.encode_name, _holder(one.type)) for one in fields]
    return tuple((name, holder) for name, holder in held if holder is not None)


def _parts(hint: Any) -> set[Any]:
    return set(typing.get_args(hint)) or {hint}


def _type_field(model: type[Row]) -> str | None:
    """The snake_case field that tells a resource's child type, or None when it has no children."""
    column = model.__mapper__.polymorphic_on
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
