"""Rows written and read past the ORM's bookkeeping, where that would take longer than the statement.

Invariant: what an object of `insert_rows` and `update_row` says is what the table has. It belongs to no session:
nothing that is changed on it is written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any, TypeVar, cast

from sqlalchemy import Table, bindparam, insert, inspect, update
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.kernel.database import Base
from caelum.kernel.prepared import Prepared

M = TypeVar("M", bound=Base)


def values_of(row: Base) -> dict[str, Any]:
    """What an insert of a new object writes, by column. The object gets the defaults, and None for what is missing."""
    known = row.__dict__
    for name, default in _defaults(type(row)):
        if name not in known:
            setattr(row, name, None if default is None else default())
    return {column: getattr(row, name) for column, name in _columns(type(row))}


async def insert_rows(tx: AsyncSession, rows: Iterable[Base]) -> None:
    """Insert new objects; a model's rows come after those of the models before."""
    by_model: dict[type[Base], list[dict[str, Any]]] = {}
    for row in rows:
        by_model.setdefault(type(row), []).append(values_of(row))
    for model, values in by_model.items():
        for one in values:
            await _insert(model).run(tx, **one)


async def update_row(
    tx: AsyncSession, model: type[M], uuid: str, values: dict[str, Any], **only: Collection[str]
) -> M | None:
    """Set columns of the row with this UUID, when each of the columns in `only` has one of these values, and tell
    what the row is now; None when there is no such row.
    """
    keys = {f"key_{name}": list(allowed) for name, allowed in only.items()}
    statement = _update(model, tuple(values), tuple(only))
    found = (await tx.execute(statement, {**values, **keys, "key_uuid": uuid})).mappings().one_or_none()
    return None if found is None else model(**{name: found[column] for column, name in _all_columns(model)})


@lru_cache
def _update(model: type[Base], names: tuple[str, ...], only: tuple[str, ...]) -> Any:
    """Made once for each set of columns: to make it would take longer than to run it."""
    columns = inspect(model).columns
    conditions = [columns[name].in_(bindparam(f"key_{name}", expanding=True)) for name in only]
    table = cast("Table", model.__table__)
    statement = update(table).where(columns["uuid"] == bindparam("key_uuid"), *conditions)
    return statement.values({columns[name]: bindparam(name) for name in names}).returning(*table.c)


@lru_cache
def _insert(model: type[Base]) -> Prepared:
    return Prepared(insert(cast("Table", model.__table__)).inline(), *(column for column, _ in _columns(model)))


@lru_cache
def _all_columns(model: type[Base]) -> tuple[tuple[str, str], ...]:
    """The table's columns, each with its attribute."""
    return tuple((one.columns[0].name, one.key) for one in inspect(model).column_attrs)


@lru_cache
def _columns(model: type[Base]) -> tuple[tuple[str, str], ...]:
    """The same but for the one that the database numbers."""
    numbered = cast("Table", model.__table__).autoincrement_column
    return tuple((column, name) for column, name in _all_columns(model) if numbered is None or column != numbered.name)


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
