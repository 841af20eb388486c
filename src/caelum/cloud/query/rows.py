"""Pages read as plain rows: what most queries need costs a fraction of loading objects.

A `Sheet` is what an inventory shows, as columns, and one statement more for each relationship in it. Types with
children of their own, or with more than columns behind a field, have none: these are loaded as objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Select, bindparam, inspect, select
from sqlalchemy.ext.associationproxy import AssociationProxyExtensionType
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapper, RelationshipProperty
from sqlalchemy.sql.elements import BinaryExpression
from sqlalchemy.sql.operators import eq

from caelum.kernel.database import execute

MAX_RELATION_DEPTH = 3
_BATCH = 500
_KEYS = "keys"


class Part(msgspec.Struct, frozen=True):
    """A relationship that an inventory shows."""

    name: str
    at: int
    """Which column of the whole leads to the part."""
    several: bool
    statement: Select[Any]
    """Selects the parts of many wholes; its last column says whose each is."""
    sheet: Sheet


class Sheet(msgspec.Struct, frozen=True):
    """What an inventory shows, as columns."""

    inventory: type[Any]
    columns: tuple[Any, ...]
    names: tuple[str, ...]
    """The fields of the first columns; those after them only lead to parts."""
    parts: tuple[Part, ...]
    derived: Callable[[Any], dict[str, Any]] | None
    """Further fields, from a row."""

    async def read(self, session: AsyncSession, statement: Select[Any], values: dict[str, Any]) -> list[Any]:
        """The inventories that a statement of these columns finds."""
        return await self._inventories(session, (await execute(session, statement, values)).all())

    async def _inventories(self, session: AsyncSession, rows: Sequence[Any]) -> list[Any]:
        fields = [dict(zip(self.names, row, strict=False)) for row in rows]
        if self.derived is not None:
            for values, row in zip(fields, rows, strict=True):
                values.update(self.derived(row))
        for part in self.parts:
            found = await self._parts(session, part, rows)
            for values, row in zip(fields, rows, strict=True):
                mine = found.get(row[part.at], [])
                values[part.name] = mine if part.several else next(iter(mine), None)
        return [self.inventory(**one) for one in fields]

    async def _parts(self, session: AsyncSession, part: Part, rows: Sequence[Any]) -> dict[Any, list[Any]]:
        """The parts of these rows, by what leads to them."""
        keys = list(dict.fromkeys(row[part.at] for row in rows if row[part.at] is not None))
        found: dict[Any, list[Any]] = {}
        for begin in range(0, len(keys), _BATCH):
            answer = await execute(session, part.statement, {_KEYS: keys[begin : begin + _BATCH]})
            inner = answer.all()
            for row, one in zip(inner, await part.sheet._inventories(session, inner), strict=True):
                found.setdefault(row[-1], []).append(one)
        return found


def sheet(model: type[Any], fields: Sequence[str] | None = None, depth: int = MAX_RELATION_DEPTH) -> Sheet | None:
    """How to read a model's rows; of its relationships only those in `fields`, by their names on the wire. None: not as
    plain rows."""
    mapper: Mapper[Any] = inspect(model)
    inventory = getattr(model, "__inventory__", None)
    if inventory is None or mapper.polymorphic_on is not None:
        return None
    kinds = [one.extension_type for one in mapper.all_orm_descriptors.values()]
    if AssociationProxyExtensionType.ASSOCIATION_PROXY in kinds:
        return None
    wanted = shown(mapper)
    names = [one.key for one in mapper.column_attrs if one.key in wanted]
    leading = dict.fromkeys(names)
    asked = (
        wanted
        if fields is None
        else {one.name for one in msgspec.structs.fields(inventory) if one.encode_name in fields}
    )
    parts = []
    for relation in mapper.relationships if depth else ():
        if relation.key in asked:
            part = _part(mapper, relation, leading, depth)
            if part is None:
                return None
            parts.append(part)
    columns = tuple(getattr(model, one) for one in leading)
    return Sheet(inventory, columns, tuple(names), tuple(parts), getattr(model, "extra_view", None))


def _part(
    mapper: Mapper[Any], relation: RelationshipProperty[Any], leading: dict[str, None], depth: int
) -> Part | None:
    """The statement for a relationship over one pair of equal columns; notes the column that leads there."""
    pairs, inner = relation.local_remote_pairs or [], sheet(relation.mapper.class_, None, depth - 1)
    joined = relation.primaryjoin
    plain = isinstance(joined, BinaryExpression) and joined.operator is eq
    if inner is None or relation.secondary is not None or len(pairs) != 1 or not plain:
        return None
    local, remote = pairs[0]
    key = mapper.get_property_by_column(local).key
    leading.setdefault(key)
    among = remote.in_(bindparam(_KEYS, expanding=True))
    statement = select(*inner.columns, remote.label("whole")).where(among).order_by(*(relation.order_by or ()))
    return Part(relation.key, list(leading).index(key), bool(relation.uselist), statement, inner)


def shown(mapper: Mapper[Any]) -> frozenset[str]:
    """What its inventory shows of a model."""
    inventory = getattr(mapper.class_, "__inventory__", None)
    return frozenset() if inventory is None else frozenset(inventory.__struct_fields__)
