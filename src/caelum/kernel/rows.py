"""Rows written and read past the ORM's bookkeeping, where that would take longer than the statement.

Invariant: an object of this module says what the table has when it was read or written, and belongs to no session:
nothing that is changed on it is written, and no session knows of what is written here. What such an object was never
given, as rows of other tables that refer to it, is not loaded when it is asked for.

The conditions of all functions are the columns' values by attribute, or several that a column may have:

    vms = await read_rows(session, VmInstanceModel, host_uuid=host.uuid, state=["Running", "Paused"])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar, cast

from sqlalchemy import ColumnElement, Executable, Table, bindparam, delete, insert, inspect, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import ClassManager, Mapper, RelationshipProperty

from caelum.kernel.database import Base
from caelum.kernel.prepared import Prepared, Reading
from caelum.kernel.resources import of_types

M = TypeVar("M", bound=Base)


class Rows(Generic[M]):
    """A prepared statement (`prepared.py`) that answers with whole rows of a model, in the order of `select(table)`.

    _OF_HOST = Rows(VmInstanceModel, select(_VM).where(_VM.c.host_uuid == bindparam("host")).order_by(_VM.c.name))
    vms = await _OF_HOST.read(session, host=host_uuid)
    """

    def __init__(self, model: type[M], statement: Executable) -> None:
        self._model = model
        self._statement = Prepared(statement)

    async def read(self, session: Reading, /, **values: Any) -> list[M]:
        """The objects."""
        make = _kind(self._model).make
        return [make(one) for one in await self._statement.rows(session, **values)]


async def read_rows(
    session: Reading, model: type[M], /, *, order: Sequence[str] = (), lock: bool = False, **only: Any
) -> list[M]:
    """The rows that meet the conditions, ordered by these attributes.

    In a transaction, `lock` keeps them as they are until its end, as it does for objects that a session loads.
    """
    statement = _select(model, tuple(order), lock, _shape(only))
    return await statement.read(session, **_keys(only))


async def read_row(session: Reading, model: type[M], uuid: str, *, lock: bool = False) -> M | None:
    """The row with this UUID, or None."""
    found = await read_rows(session, model, lock=lock, uuid=uuid)
    return found[0] if found else None


async def read_whole(session: AsyncSession, model: type[M], uuid: str, *, lock: bool = False) -> M | None:
    """The same with what belongs to its relationships that are loaded with it (`lazy="selectin"`), and to theirs."""
    row = await read_row(session, model, uuid, lock=lock)
    return None if row is None else await read_related(session, row)


async def read_related(session: AsyncSession, row: M) -> M:
    """Give an object what belongs to those relationships, as the session sees it."""
    await _read_related(session, type(row), [row])
    return row


async def _read_related(session: AsyncSession, model: type[Base], rows: list[Any]) -> None:
    for one in _relations(model):
        found = await one.statement.read(session, keys=[getattr(row, one.here) for row in rows])
        if found:
            await _read_related(session, one.target, found)
        for row in rows:
            mine = [other for other in found if getattr(other, one.there) == getattr(row, one.here)]
            related(row, **{one.name: mine if one.several else next(iter(mine), None)})


def new_row(model: type[M], /, **values: Any) -> M:
    """A new object with these attributes. The model's own constructor takes as long as the insertion."""
    kind = _kind(model)
    if not kind.known >= values.keys():
        raise TypeError(f"{model.__name__} has no {', '.join(sorted(values.keys() - kind.known))}")
    row: M = kind.manager.new_instance()
    row.__dict__.update(values)
    return row


def related(row: M, **rows: Any) -> M:
    """Give an object what belongs to its relationships, so that views of it show that."""
    row.__dict__.update(rows)
    return row


def values_of(row: Base) -> dict[str, Any]:
    """What an insert of a new object writes, by column. The object gets the defaults, and None for what is missing."""
    known = row.__dict__  # it is in no session that would have to know of changes
    for name, default in _defaults(type(row)):
        if name not in known:
            known[name] = None if default is None else default()
    return {column: known[name] for column, name in _columns(type(row))}


async def insert_rows(tx: AsyncSession, rows: Iterable[Base]) -> None:
    """Insert new objects; a model's rows come after those of the models before."""
    by_model: dict[type[Base], list[dict[str, Any]]] = {}
    for row in rows:
        by_model.setdefault(type(row), []).append(values_of(row))
    for model, values in by_model.items():
        for one in values:
            await _insert(model).run(tx, **one)


async def update_row(tx: AsyncSession, model: type[M], uuid: str, values: dict[str, Any], /, **only: Any) -> M | None:
    """Set attributes of the row with this UUID, if it meets the conditions, and tell what it is now; None when there is
    no such row.
    """
    only["uuid"] = uuid
    found = await _update(model, tuple(values), _shape(only), whole=True).rows(tx, **values, **_keys(only))
    return _kind(model).make(found[0]) if found else None


async def update_rows(tx: AsyncSession, model: type[Base], values: dict[str, Any], /, **only: Any) -> int:
    """Set attributes of the rows that meet the conditions; how many there were."""
    return await _update(model, tuple(values), _shape(only), whole=False).run(tx, **values, **_keys(only))


async def delete_rows(tx: AsyncSession, model: type[Base], /, **only: Any) -> int:
    """Delete the rows that meet the conditions; how many there were."""
    return await _delete(model, _shape(only)).run(tx, **_keys(only))


class _Kind(NamedTuple, Generic[M]):
    """How objects of a model are made of their rows."""

    manager: ClassManager[M]
    names: tuple[str, ...]
    """The attributes, in the order of the table's columns."""
    type_at: int | None
    """Where a row says which of the model's types it is."""
    types: dict[Any, Any]
    known: frozenset[str]

    def make(self, values: Sequence[Any]) -> M:
        """The object of a row."""
        manager = self.manager
        if self.type_at is not None:
            manager = self.types[values[self.type_at]].class_manager
        row = manager.new_instance()
        row.__dict__.update(zip(self.names, values, strict=True))
        return row


@lru_cache
def _kind(model: type[M]) -> _Kind[M]:
    mapper = inspect(model)
    by_column = {one.columns[0].name: one.key for one in mapper.column_attrs}
    names = [by_column[one.name] for one in _table(model).c]
    of_type = mapper.polymorphic_on
    type_at = None if of_type is None else names.index(mapper.get_property_by_column(cast("Any", of_type)).key)
    return _Kind(
        cast("ClassManager[M]", mapper.class_manager),
        tuple(names),
        type_at,
        cast("dict[Any, Any]", mapper.polymorphic_map),
        frozenset(names),
    )


def _table(model: type[Base]) -> Table:
    """The model's table, which has all of its columns."""
    table = inspect(model).persist_selectable
    if not isinstance(table, Table):
        raise TypeError(f"{model.__name__} is kept in several tables")
    return table


class _Relation(NamedTuple):
    """A relationship that is loaded with its row: rows of `target` whose attribute `there` is the row's `here`."""

    name: str
    target: type[Base]
    here: str
    there: str
    several: bool
    statement: Rows[Base]


@lru_cache
def _relations(model: type[Base]) -> tuple[_Relation, ...]:
    mapper = inspect(model)
    return tuple(_relation(mapper, one) for one in mapper.relationships if one.lazy == "selectin")


def _relation(mapper: Mapper[Any], relation: RelationshipProperty[Any]) -> _Relation:
    ((here, there),) = relation.local_remote_pairs or ()
    target: type[Base] = relation.mapper.class_
    columns = _table(target).c
    among = columns[there.name].in_(bindparam("keys", expanding=True))
    order = (columns[cast("Any", one).name] for one in relation.order_by or ())
    return _Relation(
        relation.key,
        target,
        mapper.get_property_by_column(here).key,
        relation.mapper.get_property_by_column(there).key,
        bool(relation.uselist),
        Rows(target, select(_table(target)).where(among).order_by(*order)),
    )


_Shape = tuple[tuple[str, bool], ...]
"""The attributes of the conditions, each with whether it may have several values."""


def _shape(only: dict[str, Any]) -> _Shape:
    return tuple((name, _is_list(value)) for name, value in only.items())


def _keys(only: dict[str, Any]) -> dict[str, Any]:
    return {f"key_{name}": list(value) if _is_list(value) else value for name, value in only.items()}


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, set, frozenset))


def _conditions(model: type[Base], shape: _Shape) -> list[ColumnElement[bool]]:
    mapper = inspect(model)
    columns = mapper.columns
    found = [
        columns[name].in_(bindparam(f"key_{name}", expanding=True))
        if several
        else columns[name] == bindparam(f"key_{name}")
        for name, several in shape
    ]
    return [*found, of_types(model)] if mapper.single else found


# Each is made once: to make a statement would take longer than to run it.


@lru_cache(maxsize=1024)
def _select(model: type[M], order: tuple[str, ...], lock: bool, shape: _Shape) -> Rows[M]:
    columns = inspect(model).columns
    statement = select(_table(model)).where(*_conditions(model, shape)).order_by(*(columns[name] for name in order))
    # As of objects that a session loads: rows that refer to it may be written meanwhile.
    return Rows(model, statement.with_for_update(key_share=True) if lock else statement)


@lru_cache(maxsize=1024)
def _update(model: type[Base], names: tuple[str, ...], shape: _Shape, *, whole: bool) -> Prepared:
    columns, table = inspect(model).columns, _table(model)
    statement = update(table).where(*_conditions(model, shape))
    statement = statement.values({columns[name]: bindparam(name) for name in names})
    return Prepared(statement.returning(*table.c) if whole else statement)


@lru_cache(maxsize=1024)
def _delete(model: type[Base], shape: _Shape) -> Prepared:
    return Prepared(delete(_table(model)).where(*_conditions(model, shape)))


@lru_cache
def _insert(model: type[Base]) -> Prepared:
    return Prepared(insert(cast("Table", model.__table__)).inline(), *(column for column, _ in _columns(model)))


@lru_cache
def _columns(model: type[Base]) -> tuple[tuple[str, str], ...]:
    """The table's columns, each with its attribute, but for the one that the database numbers."""
    numbered = cast("Table", model.__table__).autoincrement_column
    found = ((one.columns[0].name, one.key) for one in inspect(model).column_attrs)
    return tuple((column, name) for column, name in found if numbered is None or column != numbered.name)


@lru_cache
def _defaults(model: type[Base]) -> tuple[tuple[str, Any], ...]:
    found = []
    for one in inspect(model).column_attrs:
        default = one.columns[0].default
        found.append((one.key, None if default is None else _maker(default)))
    return tuple(found)


def _maker(default: Any) -> Any:
    """A function without arguments that gives the default."""
    if default.is_callable:
        return lambda: default.arg(None)  # SQLAlchemy wraps functions to take its context
    return lambda: default.arg
