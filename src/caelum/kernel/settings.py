"""Settings: declared once in code, changed at run time, overridden for single resources.

Invariant: every declared setting has its row in `global_config`, so that a query sees it; the value in memory is
the row's on every node, because each change is published, and whoever hears of one reads the row: of two changes at
once, the later one holds everywhere, in whatever order the news arrive. Overrides live in `resource_config`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from sqlalchemy import String, Text, UniqueConstraint, delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from caelum.kernel.database import Database, Resource, Row, is_unique_violation, update_where
from caelum.kernel.errors import INVALID_ARGUMENT, RESOURCE_NOT_FOUND, CloudError
from caelum.kernel.events import CanonicalEvent, canonical
from caelum.kernel.ids import new_uuid

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from caelum.kernel.bus import Bus

log = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_KEPT = 1000
"""Overrides of one setting that are kept in memory; nearly always there are none."""

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class Size(int):
    """A number of bytes, written as "1G" or plainly."""


class Seconds(int):
    """A length of time, written as "14d", "5m" or plainly."""


class GlobalConfigModel(Row):
    """The value of a setting."""

    __tablename__ = "global_config"
    __vo__ = "GlobalConfigVO"
    __table_args__ = (UniqueConstraint("category", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    category: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(Text)
    default_value: Mapped[str] = mapped_column(Text)
    value: Mapped[str] = mapped_column(Text)


class ResourceConfigModel(Resource):
    """The value of a setting for one resource."""

    __tablename__ = "resource_config"
    __steady__ = True
    __vo__ = "ResourceConfigVO"
    __table_args__ = (UniqueConstraint("resource_uuid", "category", "name"),)

    resource_uuid: Mapped[str] = mapped_column(String(32))
    resource_type: Mapped[str] = mapped_column(String(255))
    category: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(Text)
    value: Mapped[str] = mapped_column(Text)


@canonical("/globalConfig/update/{category}/{name}/{nodeUuid}")
class GlobalConfigUpdated(CanonicalEvent):
    """A setting has a new value."""

    category: str
    name: str
    node_uuid: str
    old_value: str
    new_value: str


@canonical("/resourceConfig/update/{category}/{name}/{nodeUuid}")
class ResourceConfigUpdated(CanonicalEvent):
    """A resource's override of a setting changed, or went (no `new_value`)."""

    category: str
    name: str
    node_uuid: str
    resource_uuid: str
    old_value: str | None = None
    new_value: str | None = None


class Setting(Generic[T]):
    """A declared setting. `valid` lists what is allowed; bounds are inclusive; `bindable` names the resource types
    that may override it.
    """

    def __init__(
        self,
        category: str,
        name: str,
        default: T | str,
        type: type[T],  # noqa: A002 - reads as what it is
        description: str,
        *,
        valid: tuple[str, ...] | None = None,
        minimum: float | None = None,
        maximum: float | None = None,
        bindable: tuple[str, ...] = (),
        validator: Callable[[T], None] | None = None,
    ) -> None:
        self.category, self.name, self.type, self.description = category, name, type, description
        self.valid, self.minimum, self.maximum = valid, minimum, maximum
        self.bindable, self.validator = bindable, validator
        self.default_text = self.text(default)
        self.default = self.parse(self.default_text)

    def __repr__(self) -> str:
        return f"{self.category}/{self.name}"

    def text(self, value: T | str) -> str:
        """A value as it is stored."""
        return str(value).lower() if isinstance(value, bool) else str(value)

    def parse(self, text: str) -> T:
        """The value that `text` stands for; an `INVALID_ARGUMENT` when it is none that the setting allows."""
        try:
            value = cast("T", _PARSERS[self.type](text.strip() if self.type is not str else text))
        except ValueError as error:
            raise self._invalid(text, f"it is not a {self.type.__name__}") from error
        if self.valid is not None and text not in self.valid:
            raise self._invalid(text, f"allowed are {', '.join(self.valid)}")
        if self.minimum is not None and cast("float", value) < self.minimum:
            raise self._invalid(text, f"the minimum is {self.minimum}")
        if self.maximum is not None and cast("float", value) > self.maximum:
            raise self._invalid(text, f"the maximum is {self.maximum}")
        if self.validator is not None:
            self.validator(value)
        return value

    def _invalid(self, text: str, why: str) -> CloudError:
        details = f"{text!r} is no value for setting {self!r}: {why}"
        return CloudError(INVALID_ARGUMENT, details, category=self.category, name=self.name)


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _parse_unit(text: str, pattern: str, units: Mapping[str, int]) -> int:
    match = re.fullmatch(pattern, text)
    if match is None:
        raise ValueError(text)
    return int(match[1]) * units[match[2]]


def parse_size(text: str) -> Size:
    """`1G` -> 1073741824. Raises ValueError."""
    return Size(_parse_unit(text.upper(), r"(-?\d+)\s*([KMGT]?)B?", _UNITS))


def parse_seconds(text: str) -> Seconds:
    """`14d` -> 1209600. Raises ValueError."""
    return Seconds(_parse_unit(text.lower(), r"(-?\d+)\s*([smhdw]?)", _SECONDS))


_PARSERS: dict[type, Callable[[str], Any]] = {
    str: str, int: int, float: float, bool: _parse_bool, Size: parse_size, Seconds: parse_seconds,
}  # fmt: skip

_declared: dict[tuple[str, str], Setting[Any]] = {}


def setting(
    category: str,
    name: str,
    default: T | str,
    type: type[T],  # noqa: A002 - as in Setting
    description: str,
    *,
    valid: tuple[str, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    bindable: tuple[str, ...] = (),
    validator: Callable[[T], None] | None = None,
) -> Setting[T]:
    """Declare a setting."""
    declared = Setting(
        category, name, default, type, description,
        valid=valid, minimum=minimum, maximum=maximum, bindable=bindable, validator=validator,
    )  # fmt: skip
    known = _declared.setdefault((category, name), declared)
    if (known.default_text, known.type, known.description) != (declared.default_text, type, description):
        raise ValueError(f"setting {declared!r} is declared twice, differently")
    return known


def declared_settings() -> Iterable[Setting[Any]]:
    """Every declared setting."""
    return _declared.values()


def find_setting(category: str, name: str) -> Setting[Any]:
    """The setting of this name; RESOURCE_NOT_FOUND when there is none."""
    found = _declared.get((category, name))
    if found is None:
        raise CloudError(
            RESOURCE_NOT_FOUND, f"no setting [category:{category}, name:{name}]", category=category, name=name
        )
    return found


Callback = Callable[[Any], Awaitable[None] | None]


class Settings:
    """The values of all settings on this node."""

    def __init__(self, db: Database, bus: Bus, node_uuid: str) -> None:
        self._db, self._bus, self._node_uuid = db, bus, node_uuid
        self._values: dict[tuple[str, str], Any] = {}
        self._callbacks: dict[tuple[str, str], list[Callback]] = {}
        self._reading = asyncio.Lock()
        self._telling: defaultdict[Setting[Any], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._looking: asyncio.Task[None] | None = None
        self._again = False

    async def start(self) -> None:
        """Make the rows of new settings, load all values, and follow the changes that other nodes make."""
        self._bus.subscribe(GlobalConfigUpdated, self._changed)
        self._bus.on_reconnect(self.reload)
        try:
            await self._materialise()
        except IntegrityError as error:
            if not is_unique_violation(error):
                raise
            await self._materialise()  # another node that starts now made them first

    async def _materialise(self) -> None:
        async with self._db.transaction() as tx:
            rows = {(row.category, row.name): row for row in await tx.scalars(select(GlobalConfigModel))}
            for key, one in _declared.items():
                row = rows.get(key)
                if row is None:
                    row = GlobalConfigModel(category=one.category, name=one.name, value=one.default_text)
                    tx.add(row)
                elif row.value == row.default_value:
                    row.value = one.default_text  # nobody chose it, so a new version's default applies
                row.description, row.default_value = one.description, one.default_text
                self._values[key] = _value_of(one, row.value)

    async def reload(self) -> None:
        """Read all values again, and tell those who follow a setting whose value was changed unheard."""
        await self._refresh()

    def look_again(self) -> None:
        """`reload` in the background: a node died, perhaps before it told of its last change."""
        self._again = True
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look(), name="settings", context=Context())

    async def _look(self) -> None:
        """Read until nobody asked since the last reading began: that may not have seen what is asked for."""
        while self._again:
            self._again = False
            await self._refresh()

    def get(self, setting: Setting[T]) -> T:
        """The value."""
        return cast("T", self._values.get((setting.category, setting.name), setting.default))

    async def get_for(self, setting: Setting[T], *resource_uuids: str) -> T:
        """The value for a resource: the override of the first of `resource_uuids` that has one, else the setting's.

        Name the resource first, then what contains it (VM, cluster, zone).
        """
        texts = await self._overrides(setting)
        if texts is None:
            async with self._db.read() as session:
                texts = await overrides(session, setting, resource_uuids)
        for uuid in resource_uuids:
            if uuid in texts:
                return _value_of(setting, texts[uuid])
        return self.get(setting)

    async def _overrides(self, setting: Setting[Any]) -> dict[str, str] | None:
        """Every override of a setting, as text by resource UUID; None when there are too many to keep."""

        async def load(session: AsyncSession) -> dict[str, str] | None:
            row = ResourceConfigModel
            mine = (row.category == setting.category, row.name == setting.name)
            query = select(row.resource_uuid, row.value).where(*mine).limit(_MOST_KEPT + 1)
            found = (await session.execute(query)).all()
            return None if len(found) > _MOST_KEPT else {one[0]: one[1] for one in found}

        return await self._db.remember((ResourceConfigModel, setting.category, setting.name), load)

    async def set(self, setting: Setting[T], value: T | str) -> None:
        """Change the value, on every node; `INVALID_ARGUMENT` when the setting does not allow it."""
        text = setting.text(value)
        setting.parse(text)
        row = GlobalConfigModel
        old: str | None = None
        try:
            async with self._db.transaction() as tx:
                here = (row.category == setting.category, row.name == setting.name)
                old = await tx.scalar(select(row.value).where(*here))
                await update_where(tx, row, {"value": text}, *here)
        except CloudError as error:
            if "ambiguous" not in error.facts or (await self._stored(setting)).get(setting) != text:
                raise
        # Told first: what follows may fail, or be cancelled.
        self._bus.publish(
            GlobalConfigUpdated(
                category=setting.category, name=setting.name, node_uuid=self._node_uuid,
                old_value=old or setting.default_text, new_value=text,
            )
        )  # fmt: skip
        await self._refresh(setting)

    async def set_for(self, setting: Setting[T], resource_uuid: str, resource_type: str, value: T | str | None) -> None:
        """Override the value for a resource; None removes the override."""
        async with self._db.transaction() as tx:
            old = (await overrides(tx, setting, [resource_uuid])).get(resource_uuid)
            if value is None:
                await drop_overrides(tx, resource_uuid, setting)
            else:
                await override(tx, setting, resource_uuid, resource_type, value)
        event = ResourceConfigUpdated(
            category=setting.category, name=setting.name, node_uuid=self._node_uuid, resource_uuid=resource_uuid,
            old_value=old, new_value=None if value is None else setting.text(value),
        )  # fmt: skip
        self._bus.publish(event)

    def on_change(self, setting: Setting[T], callback: Callable[[T], Awaitable[None] | None]) -> None:
        """Call `callback` with the new value after each change, on every node."""
        self._callbacks.setdefault((setting.category, setting.name), []).append(callback)

    async def _changed(self, event: GlobalConfigUpdated) -> None:
        one = _declared.get((event.category, event.name))
        if one is not None:
            await self._refresh(one)

    async def _refresh(self, setting: Setting[Any] | None = None) -> None:
        """Take what the table holds now, of one setting or of all, and tell those who follow what changed.

        One reading after the other, so that what was read later is never replaced by what was read before.
        """
        changed = []
        async with self._reading:
            for one, text in (await self._stored(setting)).items():
                key, value = (one.category, one.name), _value_of(one, text)
                if key not in self._values or self._values[key] != value:
                    self._values[key] = value
                    changed.append(one)
        for one in changed:
            await self._tell(one)

    async def _stored(self, setting: Setting[Any] | None) -> dict[Setting[Any], str]:
        """The values in the table: without it nobody knows what is true."""
        row = GlobalConfigModel
        query = select(row.category, row.name, row.value)
        if setting is not None:
            query = query.where(row.category == setting.category, row.name == setting.name)

        async def load(session: AsyncSession) -> Sequence[Any]:
            return (await session.execute(query)).all()

        found = await self._db.read_surely(load)
        return {_declared[one[0], one[1]]: one[2] for one in found if (one[0], one[1]) in _declared}

    async def _tell(self, setting: Setting[Any]) -> None:
        """Call those who follow a setting with its value. In turns, so that the newest is what they hear last."""
        key = (setting.category, setting.name)
        async with self._telling[setting]:
            for callback in self._callbacks.get(key, []):
                try:
                    result = callback(self._values[key])
                    if inspect.isawaitable(result):
                        await result
                except Exception:
                    log.exception("whoever follows setting %r failed on its new value", setting)


def _value_of(setting: Setting[T], text: str) -> T:
    """A stored value; the default where a newer version no longer allows what is stored."""
    try:
        return setting.parse(text)
    except CloudError:
        return setting.default


async def overrides(session: AsyncSession, setting: Setting[Any], resource_uuids: Iterable[str]) -> dict[str, str]:
    """The overrides of a setting, as text by resource UUID."""
    row = ResourceConfigModel
    query = select(row.resource_uuid, row.value).where(
        row.category == setting.category, row.name == setting.name, row.resource_uuid.in_(list(resource_uuids))
    )
    return {one.resource_uuid: one.value for one in await session.execute(query)}


async def override(
    tx: AsyncSession, setting: Setting[T], resource_uuid: str, resource_type: str, value: T | str
) -> ResourceConfigModel:
    """Override a setting for a resource in the caller's transaction."""
    text, row = setting.text(value), ResourceConfigModel
    setting.parse(text)
    if resource_type not in setting.bindable:
        allowed = ", ".join(setting.bindable) or "no resource type"
        raise CloudError(INVALID_ARGUMENT, f"setting {setting!r} can be bound to {allowed}, not to {resource_type}")
    here = (row.resource_uuid == resource_uuid, row.category == setting.category, row.name == setting.name)
    known = await tx.scalar(select(row).where(*here))
    if known is None:
        known = row(
            uuid=new_uuid(), resource_uuid=resource_uuid, resource_type=resource_type, category=setting.category,
            name=setting.name, description=setting.description, value=text,
        )  # fmt: skip
        tx.add(known)
    known.value = text
    return known


async def drop_overrides(tx: AsyncSession, resource_uuid: str, setting: Setting[Any] | None = None) -> None:
    """Remove a resource's overrides, all or one setting's; called when the resource is deleted."""
    row = ResourceConfigModel
    statement = delete(row).where(row.resource_uuid == resource_uuid)
    if setting is not None:
        statement = statement.where(row.category == setting.category, row.name == setting.name)
    await tx.execute(statement)
