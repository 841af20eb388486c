"""From rows to inventories, and from any answer to the bytes that clients read.

Invariant: a view never touches the database: relationships that were not loaded keep the inventory's default.
On the wire None is left out, everything else is there (also empty lists, zero and false), and times are the
original's text in UTC.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple, get_args

import msgspec
from sqlalchemy import inspect

from caelum.kernel.database import Row
from caelum.kernel.message import ApiMeta, Inventory, inventories, inventory_meta
from caelum.kernel.message import api as api_meta

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_PLAIN = frozenset({str, int, float, bool, type(None), msgspec.Raw})

_Plan = tuple[type[Inventory], tuple[str, ...], tuple[str, ...], bool]
_plans: dict[type, _Plan] = {}
_forms: dict[type, _Form] = {}


class Shown(ABC):
    """What makes its own wire form, without inventories in between."""

    @abstractmethod
    def wire(self) -> Any:
        """Dictionaries, lists and scalars with wire names, as `to_builtins` makes of inventories."""


def view(row: Any) -> Any:
    """The inventory of a row: fields by name from its columns and its loaded relationships, then `extra_view()`."""
    inventory, columns, relations, derived = _plans.get(type(row)) or _plan(type(row))
    loaded = row.__dict__
    values = {name: loaded[name] if name in loaded else getattr(row, name) for name in columns}
    for name in relations:
        if name in loaded:
            values[name] = _related(loaded[name])
    if derived:
        values.update(row.extra_view())
    return inventory(**values)


def view_of(model: type[Any], values: Mapping[str, Any]) -> Any:
    """The inventory of a row of `model` whose columns were read without it; for models that derive nothing."""
    inventory, columns, _, derived = _plans.get(model) or _plan(model)
    if derived:
        raise TypeError(f"a view of {model.__name__} needs the object itself")
    return inventory(**{name: values[name] for name in columns})


def views(rows: Iterable[Any]) -> list[Any]:
    """The inventories of several rows, in order."""
    return [view(row) for row in rows]


def _related(value: Any) -> Any:
    if value is None:
        return None
    return [view(one) for one in value] if isinstance(value, list) else view(value)


def _plan(model: type[Row]) -> _Plan:
    mapper, inventory = inspect(model), _inventory_of(model)
    wanted = set(inventory.__struct_fields__)
    columns = tuple(one.key for one in mapper.column_attrs if one.key in wanted)
    relations = tuple(one.key for one in mapper.relationships if one.key in wanted)
    _plans[model] = plan = (inventory, columns, relations, hasattr(model, "extra_view"))
    return plan


def _inventory_of(model: type[Row]) -> type[Inventory]:
    declared: type[Inventory] | None = getattr(model, "__inventory__", None)
    if declared is not None:
        return declared
    return next(one for one in inventories() if inventory_meta(one).vo == model.__vo__)


@lru_cache(maxsize=8192)
def format_time(moment: datetime) -> str:
    """`Nov 22, 2026 7:15:56 PM`: the original's form, whatever the process's locale is."""
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC)
    half = "AM" if moment.hour < 12 else "PM"
    clock = f"{moment.hour % 12 or 12}:{moment.minute:02}:{moment.second:02}"
    return f"{_MONTHS[moment.month - 1]} {moment.day}, {moment.year} {clock} {half}"


def parse_time(text: str) -> datetime:
    """The inverse of `format_time`, also for `2026-11-22 19:15:56`. Raises ValueError."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        month, _, rest = text.partition(" ")
        if month not in _MONTHS:
            raise
        return datetime.strptime(f"{_MONTHS.index(month) + 1} {rest}", "%m %d, %Y %I:%M:%S %p")


def to_builtins(value: Any) -> Any:
    """`value` as dictionaries, lists and scalars with wire names; None values of structs and mappings left out."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    convert = _converters.get(kind) or _converter(kind)
    return convert(value)


def encode(value: Any) -> bytes:
    """`value` as the JSON that clients read."""
    return msgspec.json.encode(to_builtins(value))


class _Form(NamedTuple):
    """How a struct is written."""

    values: Callable[[Any], tuple[Any, ...]]
    names: tuple[str, ...]
    open: tuple[str, ...]
    """Names of the fields whose values may need to be converted, as their types tell."""
    tag: dict[str, Any]


def _struct(value: Any) -> dict[str, Any]:
    kind = type(value)
    form = _forms.get(kind) or _form(kind)
    result = {name: item for name, item in zip(form.names, form.values(value), strict=True) if item is not None}
    for name in form.open:
        item = result.get(name)
        if item is not None and type(item) not in _PLAIN:
            result[name] = to_builtins(item)
    return {**form.tag, **result} if form.tag else result


def _form(kind: type[Any]) -> _Form:
    fields, config = msgspec.structs.fields(kind), kind.__struct_config__
    names = tuple(one.encode_name for one in fields)
    tag = {} if config.tag is None else {config.tag_field: config.tag}
    _forms[kind] = form = _Form(_getter([one.name for one in fields]), names, _open(fields), tag)
    return form


def _getter(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: tuple(getattr(value, name) for name in names)


def _open(fields: tuple[msgspec.structs.FieldInfo, ...]) -> tuple[str, ...]:
    return tuple(one.encode_name for one in fields if not set(get_args(one.type) or (one.type,)) <= _PLAIN)


def _mapping(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): to_builtins(item) for key, item in value.items() if item is not None}


def _list(value: Iterable[Any]) -> list[Any]:
    return [to_builtins(item) for item in value]


_converters: dict[type, Callable[[Any], Any]] = {datetime: format_time, dict: _mapping, list: _list, tuple: _list}


def _converter(kind: type) -> Callable[[Any], Any]:
    if issubclass(kind, msgspec.Struct):
        convert: Callable[[Any], Any] = _struct
    elif issubclass(kind, Row):
        convert = _row
    elif issubclass(kind, Shown):
        convert = kind.wire
    elif issubclass(kind, enum.Enum):
        convert = _enum
    elif issubclass(kind, Mapping):
        convert = _mapping
    elif issubclass(kind, (set, frozenset, list, tuple)):
        convert = _list
    else:
        convert = msgspec.to_builtins
    _converters[kind] = convert
    return convert


def _row(value: Row) -> Any:
    return _struct(view(value))


def _enum(value: enum.Enum) -> Any:
    return value.value


def reply_body(api: str, reply: Any) -> str:
    """The JSON body that answers the operation `api` with `reply`."""
    return msgspec.json.encode(reply_value(api_meta(api), reply)).decode()


def reply_value(meta: ApiMeta | None, reply: Any) -> dict[str, Any]:
    """The same as plain JSON values, always an object."""
    if reply is None:
        return {}
    value = to_builtins(reply)
    if meta is not None and meta.reply_key is not None:
        return {meta.reply_key: value}
    return value if isinstance(value, dict) else {}
