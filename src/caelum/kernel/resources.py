"""The resource types that this process knows: type name ("ZoneVO") to model, filled by the models' declaration.

Invariant: a type name belongs to exactly one model class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, bindparam, inspect, literal, select, union_all

from caelum.kernel.prepared import Prepared, Reading

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from caelum.kernel.database import Database, Row

_models: dict[str, type[Row]] = {}
_FEW = 8
"""Resources about which it is better to remember each than to ask the database about all at once."""


def register(cls: type[Row]) -> None:
    """Record a model under its `__vo__`; models do this by themselves."""
    known = _models.setdefault(cls.__vo__, cls)
    if known.__module__ != cls.__module__:
        raise TypeError(f"resource type {cls.__vo__} is declared by {known.__module__} and {cls.__module__}")
    _models[cls.__vo__] = cls


def model(vo: str) -> type[Row]:
    """The model of a resource type. Raises KeyError."""
    return _models[vo]


def types() -> Mapping[str, type[Row]]:
    """Every resource type with its model."""
    return _models


def is_a(vo: str, ancestor: str) -> bool:
    """Whether a resource type is `ancestor` or a child type of it."""
    known, parent = _models.get(vo), _models.get(ancestor)
    return vo == ancestor or (known is not None and parent is not None and issubclass(known, parent))


async def missing(session: Reading, vo: str, uuids: Iterable[str]) -> list[str]:
    """Those of `uuids` that no resource of this type has, in the given order."""
    wanted = list(dict.fromkeys(uuids))
    found = {uuid for (uuid,) in await _among(model(vo)).rows(session, uuids=wanted)} if wanted else set()
    return [uuid for uuid in wanted if uuid not in found]


@lru_cache
def _among(cls: type[Row]) -> Prepared:
    mapper = inspect(cls)
    here: Any = mapper.local_table.c
    statement = select(here.uuid).where(here.uuid.in_(bindparam("uuids", expanding=True)))
    if mapper.single:
        statement = statement.where(of_types(cls))
    return Prepared(statement)


def of_types(cls: type[Any]) -> ColumnElement[bool]:
    """Whether a row of the table that a child type shares with its parent is of the child type, or a child of that."""
    mapper = inspect(cls)
    column: Any = mapper.polymorphic_on
    found: ColumnElement[bool] = column.in_([one.polymorphic_identity for one in mapper.self_and_descendants])
    return found


async def type_of(session: AsyncSession, uuid: str) -> str | None:
    """The resource type behind a UUID, or None. A row of a child type answers its child type where that is loaded."""
    roots: list[Any] = [cls for cls in _models.values() if cls.__mapper__.inherits is None and hasattr(cls, "uuid")]
    queries = [select(literal(cls.__vo__)).where(cls.uuid == uuid) for cls in roots]
    if not queries:
        return None
    vo: str | None = await session.scalar(union_all(*queries))
    if vo is None:
        return None
    row = await session.get(_models[vo], uuid)
    return vo if row is None else type(row).__vo__


class _Missing(Exception):  # noqa: N818 - says what it is
    """It does not exist: nothing to remember, or whoever invents UUIDs would fill the memory."""


async def _exists(vo: str, uuid: str, session: AsyncSession) -> bool:
    if await missing(session, vo, [uuid]):
        raise _Missing(uuid)
    return True


class Resources:
    """The same, bound to a database, as `node.resources`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def model(self, vo: str) -> type[Any]:
        """The model of a resource type. Raises KeyError."""
        return model(vo)

    def types(self) -> Sequence[str]:
        """The names of all resource types."""
        return list(_models)

    async def missing(self, vo: str, uuids: Iterable[str]) -> list[str]:
        """Those of `uuids` that do not exist as this type."""
        return await missing(self._db.once, vo, uuids)

    async def unknown(self, vo: str, uuids: Iterable[str]) -> list[str]:
        """The same for who asks again and again: that resources of a steady type exist is remembered."""
        wanted = list(dict.fromkeys(uuids))
        if len(wanted) > _FEW or not model(vo).__steady__:
            return await self.missing(vo, wanted)
        return [uuid for uuid in wanted if not await self._remembered(vo, uuid)]

    async def _remembered(self, vo: str, uuid: str) -> bool:
        try:
            return await self._db.remember((_exists, vo, uuid), partial(_exists, vo, uuid))
        except _Missing:
            return False

    async def exists(self, vo: str, uuid: str) -> bool:
        """Whether there is a resource of this type with this UUID."""
        return not await self.missing(vo, [uuid])

    async def type_of(self, uuid: str) -> str | None:
        """The resource type behind a UUID, or None."""
        async with self._db.read() as session:
            return await type_of(session, uuid)
