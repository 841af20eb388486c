"""Statements that are compiled once: for those that run again and again.

Invariant: a prepared statement runs in the session's transaction as any other, with the same values, defaults and
errors. It goes past SQLAlchemy straight to the driver, which takes a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, cast

from sqlalchemy import BindParameter, CursorResult, DateTime, Dialect, Executable, Numeric
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase

from caelum.kernel import postgresql_sessions, sqlite
from caelum.kernel.single import Single

_Convert = Callable[[Any], Any]
_LONG = 1024
"""Lists that are longer come seldom: each is as long as it is, and what was made for it is not kept."""
Reading = AsyncSession | Single
"""What runs a statement that reads: a session, or one for this statement alone."""
_KEPT = (sqlite.KeptSession, postgresql_sessions.KeptSession, Single)
"""What runs a statement as the driver takes it."""


class Prepared:
    """A Core statement (`select(table.c...)`, `insert(table)`, `update(table)`, `delete(table)`) with `bindparam`s.

        _STATE = Prepared(select(_JOB.c.state).where(_JOB.c.uuid == bindparam("key")))
        rows = await _STATE.rows(session, key=uuid)

    Declare it once, at the module's level. It works on tables and answers with tuples, also of RETURNING; what was only
    added to the session, and not flushed, it does not see, and objects that are loaded do not see what it changes. An
    insert takes the values of the columns by name: `columns`, and those with a default of their own besides. A list is
    given for `column.in_(bindparam("keys", expanding=True))`.
    """

    def __init__(self, statement: Executable, *columns: str) -> None:
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, _Compiled] = {}
        """By the dialect's name."""

    async def rows(self, session: Reading, /, **values: Any) -> Sequence[Sequence[Any]]:
        """The rows that it selects, or returns of what it changed."""
        if not isinstance(session, _KEPT):
            with session.no_autoflush:
                return (await session.execute(self._statement, values)).all()
        compiled = self._compiled_for(session.dialect)
        rows, _ = await session.run(*compiled.bound(values))
        return [compiled.row(one) for one in rows] if compiled.converts else rows

    async def run(self, session: AsyncSession, /, **values: Any) -> int:
        """Let it happen; how many rows it changed."""
        if not isinstance(session, _KEPT):
            with session.no_autoflush:
                return cast("CursorResult[Any]", await session.execute(self._statement, values)).rowcount
        compiled = self._compiled_for(session.dialect)
        _, count = await session.run(*compiled.bound(values))
        return count

    def _compiled_for(self, dialect: Dialect) -> _Compiled:
        found = self._compiled.get(dialect.name)
        if found is None:
            found = self._compiled[dialect.name] = _Compiled(self._statement, self._columns, dialect)
        return found


class _Place(NamedTuple):
    """Where a value goes: what it is called, what it is when none is given, how the driver gets it; of a list, where
    in it the value stands."""

    name: str
    otherwise: Callable[[], Any] | None
    convert: _Convert | None
    at: int | None = None


class _Form:
    """The statement as the driver gets it, with lists of certain lengths."""

    __slots__ = ("_converts", "_items", "_names", "_otherwise", "text")

    def __init__(self, text: str, places: Sequence[_Place]) -> None:
        self.text = text
        self._names = [one.name for one in places]
        self._otherwise = {one.name: one.otherwise for one in places if one.otherwise is not None}
        self._items = [(index, one.at) for index, one in enumerate(places) if one.at is not None]
        self._converts = [(index, one.convert) for index, one in enumerate(places) if one.convert is not None]

    def filled(self, values: dict[str, Any]) -> list[Any]:
        """The values in the order of their places, as the driver gets them."""
        for name, otherwise in self._otherwise.items():
            if name not in values:
                values[name] = otherwise()
        found = [values[name] for name in self._names]
        for index, at in self._items:
            found[index] = found[index][at]
        for index, convert in self._converts:
            found[index] = convert(found[index])
        return found


class _Compiled:
    """What the driver gets, and how values become the driver's and back."""

    def __init__(self, statement: Any, columns: Sequence[str], dialect: Dialect) -> None:
        compiled: SQLCompiler = statement.compile(dialect=dialect, column_keys=list(columns) or None)
        if compiled.literal_execute_params:
            raise TypeError(f"a prepared statement cannot have values that are written into it: {compiled}")
        self._compiled, self._dialect = compiled, dialect
        self._otherwise = {one.key: _constant(one.default) for one in compiled.insert_prefetch}
        self._otherwise |= {one.key: _constant(one.onupdate) for one in compiled.update_prefetch}
        self._lists = {name: _fixed(bind) for name, bind in compiled.binds.items() if bind.expanding}
        self._forms: dict[tuple[int, ...], _Form] = {}
        self._single = None if self._lists else _Form(str(compiled), [self._place(one) for one in _names(compiled)])
        types = [one.type.dialect_impl(dialect) for one in _selected(statement)]
        found = [(index, _back(one, dialect)) for index, one in enumerate(types)]
        self._back: list[tuple[int, _Convert]] = [(index, one) for index, one in found if one is not None]
        self.converts = bool(self._back)

    def _place(self, name: str, at: int | None = None) -> _Place:
        bind = self._compiled.binds[name]
        convert = _forth(bind.type.dialect_impl(self._dialect), self._dialect)
        return _Place(name, self._otherwise.get(name) or _fixed(bind), convert, at)

    def bound(self, values: dict[str, Any]) -> tuple[str, list[Any]]:
        """The statement, and the values in the order of their places."""
        form = self._single or self._form(values)
        return form.text, form.filled(values)

    def _form(self, values: dict[str, Any]) -> _Form:
        """The form for these lists, which it makes longer where that saves forms."""
        for name, fixed in self._lists.items():
            values[name] = _filled(values[name] if fixed is None or name in values else fixed())
        lengths = tuple(len(values[name]) for name in self._lists)
        return self._forms.get(lengths) or self._expand(lengths)

    def _expand(self, lengths: tuple[int, ...]) -> _Form:
        nothing: dict[str, Any] = dict.fromkeys(self._compiled.binds)
        lists = {name: [None] * length for name, length in zip(self._lists, lengths, strict=True)}
        expanded = self._compiled.construct_expanded_state(nothing | lists)
        parts = {part: (name, index) for name, names in expanded.parameter_expansion.items()
                 for index, part in enumerate(names)}  # fmt: skip
        places = [self._place(*parts.get(name, (name, None))) for name in expanded.positiontup or ()]
        form = _Form(expanded.statement, places)
        if max(lengths) <= _LONG:
            self._forms[lengths] = form
        return form

    def row(self, row: Sequence[Any]) -> list[Any]:
        """A row in Python's types."""
        values = list(row)
        for index, convert in self._back:
            values[index] = convert(values[index])
        return values


def _names(compiled: SQLCompiler) -> Sequence[str]:
    return compiled.positiontup or ()


def _selected(statement: Any) -> Any:
    """The columns that a statement answers with."""
    return statement.exported_columns if isinstance(statement, UpdateBase) else statement.selected_columns


def _filled(values: Any) -> list[Any]:
    """A list as long as the next power of two, for the same by `IN`: each length is a statement of its own."""
    found = list(values)
    if not found or len(found) > _LONG:
        return found
    return found + found[-1:] * ((1 << (len(found) - 1).bit_length()) - len(found))


def _forth(kind: Any, dialect: Dialect) -> _Convert | None:
    """What turns Python's value into the driver's."""
    if dialect.name == "sqlite" and isinstance(kind, DateTime):
        return _time_text
    return cast("_Convert | None", kind.bind_processor(dialect))


def _time_text(moment: datetime | None) -> str | None:
    """A time as SQLAlchemy writes it for SQLite, which takes it several times as long."""
    return None if moment is None else moment.isoformat(" ", "microseconds")


def _back(kind: Any, dialect: Dialect) -> _Convert | None:
    """What turns the driver's value into Python's. PostgreSQL's gives numbers as they are."""
    if dialect.name == "postgresql" and isinstance(kind, Numeric):
        return None
    return cast("_Convert | None", kind.result_processor(dialect, None))


def _fixed(bind: BindParameter[Any]) -> Callable[[], Any] | None:
    """What gives a constant of the statement; None for a place that a caller fills."""
    return None if bind.required else lambda: bind.effective_value


def _constant(default: Any) -> Callable[[], Any]:
    """What gives a column's value when none is given."""
    given = default.arg
    return (lambda: given(None)) if default.is_callable else (lambda: given)
