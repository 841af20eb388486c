"""Statements that are compiled once: for those that run again and again.

Invariant: a prepared statement runs in the session's transaction as any other, with the same values, defaults and
errors. It goes past SQLAlchemy straight to the driver, which takes a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from sqlalchemy import BindParameter, CursorResult, Dialect, Executable, Numeric
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler

from caelum.kernel import postgresql_sessions, sqlite

_Convert = Callable[[Any], Any]
KEPT = (sqlite.KeptSession, postgresql_sessions.KeptSession)
"""Sessions that run a statement as the driver takes it."""


class Prepared:
    """A Core statement (`select(table.c...)`, `insert(table)`, `update(table)`, `delete(table)`) with `bindparam`s.

        _STATE = Prepared(select(_JOB.c.state).where(_JOB.c.uuid == bindparam("key")))
        rows = await _STATE.rows(session, key=uuid)

    Declare it once, at the module's level. It works on tables and answers with tuples; what was only added to the
    session, and not flushed, it does not see, and objects that are loaded do not see what it changes. An insert takes
    the values of the columns by name: `columns`, and those with a default of their own besides. `IN` has to be spelled
    as `or_`: a list has no fixed number of places.
    """

    def __init__(self, statement: Executable, *columns: str) -> None:
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, _Compiled] = {}
        """By the dialect's name."""

    async def rows(self, session: AsyncSession, /, **values: Any) -> Sequence[Sequence[Any]]:
        """The rows that it selects."""
        kept = session.sync_session
        if not isinstance(kept, KEPT):
            with session.no_autoflush:
                return (await session.execute(self._statement, values)).all()
        compiled = self._compiled_for(kept)
        rows, _ = await kept.run(compiled.text, compiled.bound(values))
        return [compiled.row(one) for one in rows] if compiled.converts else rows

    async def run(self, session: AsyncSession, /, **values: Any) -> int:
        """Let it happen; how many rows it changed."""
        kept = session.sync_session
        if not isinstance(kept, KEPT):
            with session.no_autoflush:
                return cast("CursorResult[Any]", await session.execute(self._statement, values)).rowcount
        compiled = self._compiled_for(kept)
        _, count = await kept.run(compiled.text, compiled.bound(values))
        return count

    def _compiled_for(self, kept: Session) -> _Compiled:
        dialect = cast("Any", kept.bind).dialect
        found = self._compiled.get(dialect.name)
        if found is None:
            found = self._compiled[dialect.name] = _Compiled(self._statement, self._columns, dialect)
        return found


class _Place(NamedTuple):
    """Where a value goes: what it is called, what it is when none is given, how the driver gets it."""

    name: str
    otherwise: Callable[[], Any] | None
    convert: _Convert | None


class _Compiled:
    """What the driver gets, and how values become the driver's and back."""

    def __init__(self, statement: Any, columns: Sequence[str], dialect: Dialect) -> None:
        compiled: SQLCompiler = statement.compile(dialect=dialect, column_keys=list(columns) or None)
        if compiled.post_compile_params:
            raise TypeError(f"a prepared statement cannot have lists of values: {compiled}")
        self.text = str(compiled)
        defaults = {one.key: _constant(one.default) for one in compiled.insert_prefetch}
        defaults |= {one.key: _constant(one.onupdate) for one in compiled.update_prefetch}
        self._places = [
            _Place(name, defaults.get(name) or _fixed(bind), bind.type.dialect_impl(dialect).bind_processor(dialect))
            for name, bind in ((name, compiled.binds[name]) for name in compiled.positiontup or ())
        ]
        types = [one.type.dialect_impl(dialect) for one in getattr(statement, "selected_columns", ())]
        found = [_back(one, dialect) for one in types]
        self.converts = any(found)
        self._convert: list[_Convert] = [one or _same for one in found]

    def bound(self, values: dict[str, Any]) -> list[Any]:
        """The values in the order of their places."""
        found = []
        for name, otherwise, convert in self._places:
            value = values[name] if otherwise is None or name in values else otherwise()
            found.append(value if convert is None else convert(value))
        return found

    def row(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """A row in Python's types."""
        return tuple(convert(value) for convert, value in zip(self._convert, row, strict=True))


def _back(kind: Any, dialect: Dialect) -> _Convert | None:
    """What turns the driver's value into Python's. PostgreSQL's gives numbers as they are."""
    if dialect.name == "postgresql" and isinstance(kind, Numeric):
        return None
    return cast("_Convert | None", kind.result_processor(dialect, None))


def _same(value: Any) -> Any:
    return value


def _fixed(bind: BindParameter[Any]) -> Callable[[], Any] | None:
    """What gives a constant of the statement; None for a place that a caller fills."""
    return None if bind.required else lambda: bind.effective_value


def _constant(default: Any) -> Callable[[], Any]:
    """What gives a column's value when none is given."""
    given = default.arg
    return (lambda: given(None)) if default.is_callable else (lambda: given)
