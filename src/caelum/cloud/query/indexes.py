"""Which index answers a condition, where SQLite would guess: it does not count what is in its tables.

Invariant: nothing here changes what a query finds, only how. PostgreSQL counts for itself, and sees plain columns.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table, UniqueConstraint
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import ColumnProperty
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction, ReturnTypeFromArgs
from sqlalchemy.types import NullType


class unindexed(ReturnTypeFromArgs[Any]):  # noqa: N801 - a function of SQL
    """The value of a column, for a condition that no index is to be chosen for."""

    inherit_cache = True


@compiles(unindexed)
def _plain(function: Any, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(function.clauses.clauses[0], **options)


@compiles(unindexed, "sqlite")
def _plus(function: Any, compiler: SQLCompiler, **options: Any) -> str:
    return f"+{_plain(function, compiler, **options)}"


class equal_within(GenericFunction[Any]):  # noqa: N801 - a function of SQL
    """Whether two values are equal, of which an index knows the first as the last of its columns. SQLite would take an
    index of that column alone, if that is unique, and then read the row for the other columns."""

    type = NullType()  # SQLite has no truth values: one of its own type would be compared with 1
    inherit_cache = True


@compiles(equal_within)
def _equal(function: Any, compiler: SQLCompiler, **options: Any) -> str:
    left, right = (compiler.process(one, **options) for one in function.clauses.clauses)
    return f"{left} = {right}"


@compiles(equal_within, "sqlite")
def _between(function: Any, compiler: SQLCompiler, **options: Any) -> str:
    left, right = (compiler.process(one, **options) for one in function.clauses.clauses)
    return f"{left} BETWEEN {right} AND {right}"


def finds_many(attribute: Any) -> bool:
    """Whether a value of this attribute is looked up in an index, and may have any number of rows."""
    return any(not unique for unique in _leading(attribute)) and not finds_one(attribute)


def finds_one(attribute: Any) -> bool:
    """Whether a value of this attribute has one row, which an index knows."""
    return any(_leading(attribute))


def is_indexed(attribute: Any) -> bool:
    """Whether an index knows the rows with a value of this attribute."""
    return bool(_leading(attribute))


def _leading(attribute: Any) -> list[bool]:
    """The indexes that begin with this attribute's column: whether it is all that they have, and unique."""
    column = getattr(attribute, "property", None)
    if not isinstance(column, ColumnProperty) or not isinstance(table := column.columns[0].table, Table):
        return []
    keys: list[tuple[list[Any], bool]] = [(list(table.primary_key.columns), True)]
    keys += [(list(one.columns), bool(one.unique)) for one in table.indexes]
    keys += [(list(one.columns), True) for one in table.constraints if isinstance(one, UniqueConstraint)]
    return [unique and len(columns) == 1 for columns, unique in keys if columns and columns[0] is column.columns[0]]
