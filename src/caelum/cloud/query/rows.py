"""Pages read as plain rows: what most queries need costs a fraction of loading objects.

A `Sheet` is what an inventory shows, as columns, and one statement more for each relationship in it. Types with
children of their own, or with more than columns behind a field, have none: these are loaded as objects.

What was read becomes inventories for who looks at them. What clients get is made of the rows themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import msgspec
from sqlalchemy import Boolean, DateTime, Float, Integer, String, bindparam, inspect, select
from sqlalchemy.ext.associationproxy import AssociationProxyExtensionType
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapper, RelationshipProperty
from sqlalchemy.sql.elements import BinaryExpression
from sqlalchemy.sql.operators import eq

from caelum.kernel.database import Base
from caelum.kernel.prepared import Prepared
from caelum.kernel.views import Shown, format_time, to_builtins

T = TypeVar("T")
_Row = Sequence[Any]

MAX_RELATION_DEPTH = 3
_BATCH = 500
_KEYS = "keys"
_PLAIN = (String, Integer, Float, Boolean)
"""Types of columns whose values are on the wire as they are."""


class Part(msgspec.Struct, frozen=True):
    """A relationship that an inventory shows."""

    name: str
    wire: str
    at: int
    """Which column of the whole leads to the part."""
    several: bool
    statement: Prepared
    """Selects the parts of many wholes; its last column says whose each is."""
    sheet: Sheet


class Sheet(msgspec.Struct, frozen=True):
    """What an inventory shows, as columns."""

    inventory: type[msgspec.Struct]
    columns: tuple[Any, ...]
    leading: tuple[str, ...]
    """The attributes of all columns."""
    names: tuple[str, ...]
    """The fields of the first columns; those after them only lead to parts."""
    wire: tuple[str, ...]
    """The same fields as clients know them."""
    written: tuple[tuple[str, Callable[[Any], Any]], ...]
    """Those of them that clients get in another form, and how that is made."""
    constants: dict[str, Any]
    """What clients see in fields that no column gives, by their names on the wire."""
    parts: tuple[Part, ...]
    derived: Callable[[Any], dict[str, Any]] | None
    """Further fields, from a row."""

    async def read(self, session: AsyncSession, statement: Prepared, values: dict[str, Any]) -> Inventories:
        """The inventories that a statement of these columns finds."""
        return await self._with_parts(session, await statement.rows(session, **values))

    async def _with_parts(self, session: AsyncSession, rows: Sequence[_Row]) -> Inventories:
        return Inventories(self, rows, [await self._parts(session, part, rows) for part in self.parts])

    async def _parts(self, session: AsyncSession, part: Part, rows: Sequence[_Row]) -> Inventories:
        """The parts of these rows."""
        keys = list(dict.fromkeys(row[part.at] for row in rows if row[part.at] is not None))
        found: list[_Row] = []
        for begin in range(0, len(keys), _BATCH):
            found += await part.statement.rows(session, **{_KEYS: keys[begin : begin + _BATCH]})
        return await part.sheet._with_parts(session, found)

    def fields(self, row: _Row) -> dict[str, Any]:
        """The fields of an inventory but for its parts."""
        fields = dict(zip(self.names, row, strict=False))
        return fields if self.derived is None else fields | self._derived(self.derived, row)

    def wire_fields(self, row: _Row) -> dict[str, Any]:
        """The same in its wire form."""
        fields = {name: value for name, value in zip(self.wire, row, strict=False) if value is not None}
        for name, write in self.written:
            if name in fields:
                fields[name] = write(fields[name])
        if self.constants:
            fields = {**self.constants, **fields}
        if self.derived is not None:
            known = _wire_names(self.inventory)
            fields |= {known[name]: to_builtins(value) for name, value in self._derived(self.derived, row).items()}
            fields = {name: value for name, value in fields.items() if value is not None}
        return fields

    def _derived(self, derive: Callable[[Any], dict[str, Any]], row: _Row) -> dict[str, Any]:
        return derive(SimpleNamespace(**dict(zip(self.leading, row, strict=False))))


class Inventories(Shown, Sequence[Any]):
    """What was found, in its order."""

    def __init__(self, sheet: Sheet, rows: Sequence[_Row], parts: list[Inventories]) -> None:
        self._sheet, self._rows, self._parts = sheet, rows, parts

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: Any) -> Any:
        return self._objects[at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._objects == list(other)

    __hash__ = None  # type: ignore[assignment]  # as that of a list

    @cached_property
    def _objects(self) -> list[Any]:
        fields = [self._sheet.fields(row) for row in self._rows]
        for part, found in zip(self._sheet.parts, self._parts, strict=True):
            for values, mine in zip(fields, self._by_whole(part, found, found._objects), strict=True):
                values[part.name] = mine if part.several else next(iter(mine), None)
        return [self._sheet.inventory(**one) for one in fields]

    def wire(self) -> list[dict[str, Any]]:
        """What clients see."""
        fields = [self._sheet.wire_fields(row) for row in self._rows]
        for part, found in zip(self._sheet.parts, self._parts, strict=True):
            for values, mine in zip(fields, self._by_whole(part, found, found.wire()), strict=True):
                if part.several:
                    values[part.wire] = mine
                elif mine:
                    values[part.wire] = mine[0]
        return fields

    def _by_whole(self, part: Part, found: Inventories, forms: list[T]) -> list[list[T]]:
        """The parts of each row, in some form."""
        owned: dict[Any, list[T]] = {}
        for row, form in zip(found._rows, forms, strict=True):
            owned.setdefault(row[-1], []).append(form)
        return [owned.get(row[part.at], []) for row in self._rows]


def sheet(model: type[Any], fields: tuple[str, ...] | None = None) -> Sheet | None:
    """How to read a model's rows; of its relationships only those in `fields`, by their names on the wire. None: not as
    plain rows."""
    return _sheet(cast("type[Base]", model), fields, MAX_RELATION_DEPTH)


@lru_cache(maxsize=1024)
def _sheet(model: type[Base], fields: tuple[str, ...] | None, depth: int) -> Sheet | None:
    mapper: Mapper[Any] = inspect(model)
    inventory = getattr(model, "__inventory__", None)
    if inventory is None or mapper.polymorphic_on is not None:
        return None
    kinds = [one.extension_type for one in mapper.all_orm_descriptors.values()]
    if AssociationProxyExtensionType.ASSOCIATION_PROXY in kinds:
        return None
    known = _wire_names(inventory)
    names = [one.key for one in mapper.column_attrs if one.key in known]
    leading = dict.fromkeys(names)
    parts = []
    for relation in mapper.relationships if depth else ():
        if relation.key in known and (fields is None or known[relation.key] in fields):
            part = _part(mapper, relation, leading, depth)
            if part is None:
                return None
            parts.append(part)
    return Sheet(
        inventory=inventory,
        columns=tuple(getattr(model, one) for one in leading),
        leading=tuple(leading),
        names=tuple(names),
        wire=tuple(known[name] for name in names),
        written=tuple(_written(mapper, {name: known[name] for name in names})),
        constants=_constants(inventory, {*names, *(one.name for one in parts)}),
        parts=tuple(parts),
        derived=getattr(model, "extra_view", None),
    )


def _part(
    mapper: Mapper[Any], relation: RelationshipProperty[Any], leading: dict[str, None], depth: int
) -> Part | None:
    """The statement for a relationship over one pair of equal columns; notes the column that leads there."""
    pairs = relation.local_remote_pairs or []
    inner = _sheet(cast("type[Base]", relation.mapper.class_), None, depth - 1)
    joined = relation.primaryjoin
    plain = isinstance(joined, BinaryExpression) and joined.operator is eq
    if inner is None or relation.secondary is not None or len(pairs) != 1 or not plain:
        return None
    local, remote = pairs[0]
    key = mapper.get_property_by_column(local).key
    leading.setdefault(key)
    among = remote.in_(bindparam(_KEYS, expanding=True))
    statement = select(*inner.columns, remote.label("whole")).where(among).order_by(*(relation.order_by or ()))
    return Part(
        name=relation.key,
        wire=_wire_names(mapper.class_.__inventory__)[relation.key],
        at=list(leading).index(key),
        several=bool(relation.uselist),
        statement=Prepared(statement),
        sheet=inner,
    )


@lru_cache
def _wire_names(inventory: type[msgspec.Struct]) -> dict[str, str]:
    return {one.name: one.encode_name for one in msgspec.structs.fields(inventory)}


def _written(mapper: Mapper[Any], wire: dict[str, str]) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    for name in wire:
        kind = mapper.columns[name].type
        if isinstance(kind, DateTime):
            yield wire[name], format_time
        elif not isinstance(kind, _PLAIN):
            yield wire[name], to_builtins


def _constants(inventory: type[Any], given: set[str]) -> dict[str, Any]:
    """What an inventory says in the fields that it is not given."""
    config = inventory.__struct_config__
    found = {} if config.tag is None else {config.tag_field: config.tag}
    for one in msgspec.structs.fields(inventory):
        default = one.default if one.default_factory is msgspec.NODEFAULT else one.default_factory()
        if one.name not in given and default is not None and default is not msgspec.NODEFAULT:
            found[one.encode_name] = to_builtins(default)
    return found


def shown(mapper: Mapper[Any]) -> frozenset[str]:
    """What its inventory shows of a model."""
    inventory = getattr(mapper.class_, "__inventory__", None)
    return frozenset() if inventory is None else frozenset(inventory.__struct_fields__)
