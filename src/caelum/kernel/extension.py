"""Extension points and drivers: how optional behaviour hooks in without the core knowing it.

Invariant: taking an extension, a driver or a plugin away, or finding it broken, leaves the rest working; the core
names interfaces only.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar, cast

import msgspec

from caelum.kernel.errors import CloudError, error_type

log = logging.getLogger(__name__)

P = TypeVar("P", bound="ExtensionPoint")
D = TypeVar("D")

NO_DRIVER = error_type(
    "CAELUM.1003", "No driver serves this type", "Install the driver's package, or use one of the types that are there."
)


class ExtensionPoint:
    """Base of extension points. A service declares a subclass with methods; plugins subclass that.

    `order` sorts the extensions of a point, lowest first, then by registration.
    """

    order: ClassVar[int] = 0

    @property
    def extension_name(self) -> str:
        """The name by which the configuration switches this extension off."""
        return f"{type(self).__module__}:{type(self).__qualname__}"


class Extensions:
    """The extensions of one node. `disabled` names those that must not run: full name or class name."""

    def __init__(self, disabled: Iterable[str] = ()) -> None:
        self._disabled = frozenset(disabled)
        self._by_point: dict[type[ExtensionPoint], list[ExtensionPoint]] = {}

    def add(self, extension: ExtensionPoint) -> None:
        """Enter an extension at every point that it implements, once; a disabled one is left out."""
        if self._disabled & {extension.extension_name, type(extension).__name__}:
            log.info("extension %s is switched off", extension.extension_name)
            return
        for point in type(extension).__mro__:
            if issubclass(point, ExtensionPoint) and point is not ExtensionPoint:
                entered = self._by_point.setdefault(point, [])
                if not any(one is extension for one in entered):
                    entered.append(extension)
                    entered.sort(key=lambda one: one.order)

    def remove(self, extension: ExtensionPoint) -> None:
        """Take an extension out of every point."""
        for entered in self._by_point.values():
            if extension in entered:
                entered.remove(extension)

    def of(self, point: type[P]) -> list[P]:
        """The extensions at a point, in order."""
        return cast(list[P], list(self._by_point.get(point, ())))

    async def each(self, point: type[ExtensionPoint], method: str, *args: Any, **named: Any) -> list[Any]:
        """Call `method` of each extension in order, and return what they return; the first exception vetoes."""
        return [await getattr(one, method)(*args, **named) for one in self.of(point)]

    async def notify(self, point: type[ExtensionPoint], method: str, *args: Any, **named: Any) -> None:
        """Call `method` of each extension in order; an exception is logged and disturbs nobody."""
        for one in self.of(point):
            try:
                await getattr(one, method)(*args, **named)
            except Exception:
                log.exception("extension %s failed in %s", one.extension_name, method)


class Drivers:
    """The drivers of one node, by interface and type name."""

    def __init__(self) -> None:
        self._found: dict[type, dict[str, Any]] = {}

    def add(self, interface: type[D], kind: str, driver: D) -> None:
        """Enter a driver; a second one for the same type is a programming error."""
        drivers = self._found.setdefault(interface, {})
        if kind in drivers:
            raise ValueError(f"{interface.__name__} for {kind} is both {drivers[kind]!r} and {driver!r}")
        drivers[kind] = driver

    def get(self, interface: type[D], kind: str) -> D:
        """The driver of a type. Raises NO_DRIVER, naming those that are there."""
        driver = self._found.get(interface, {}).get(kind)
        if driver is None:
            there = sorted(self._found.get(interface, ()))
            raise CloudError(
                NO_DRIVER, f"no {interface.__name__} for type[{kind}]; there are {there}", type=kind, available=there
            )
        return cast(D, driver)

    def types(self, interface: type) -> list[str]:
        """The type names that have a driver."""
        return sorted(self._found.get(interface, ()))

    def all(self, interface: type[D]) -> dict[str, D]:
        """Every driver of an interface by type."""
        return dict(self._found.get(interface, {}))


class Part(msgspec.Struct, frozen=True):
    """A service, driver or plugin that was found, or the reason why it could not be loaded."""

    name: str
    factory: Callable[[Any], Any] | None = None
    error: str | None = None


def discover(group: str, builtin: Iterable[str]) -> list[Part]:
    """The parts of the built-in list ("module:Class") and of the entry point group, each once; broken ones too."""
    parts = {target: _load(target, target, _import(target)) for target in builtin}
    for entry in entry_points(group=group):
        if entry.value not in parts:
            parts[entry.value] = _load(entry.value, entry.name, entry.load)
    return list(parts.values())


def enabled(parts: Iterable[Part], disabled: Iterable[str]) -> list[Part]:
    """Those parts that the configuration does not switch off, by the name of the service or of its entry."""
    names = set(disabled)
    return [part for part in parts if not names & {part.name, getattr(part.factory, "name", part.name)}]


def _import(target: str) -> Callable[[], Any]:
    module, _, attribute = target.partition(":")
    return lambda: getattr(importlib.import_module(module), attribute)


def _load(target: str, name: str, load: Callable[[], Any]) -> Part:
    try:
        return Part(name, load())
    except Exception as error:
        # Whatever a foreign module does wrong when it is imported must not keep the node from starting.
        log.exception("cannot load %s; the rest starts without it", target)
        return Part(name, None, f"{type(error).__name__}: {error}")
