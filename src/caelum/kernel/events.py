"""Canonical events: what happened, told to everyone who cares.

Invariant: each subscription sees the events of a node in the order of their publication, one at a time, and a
subscriber that fails or is slow disturbs neither the publisher nor the other subscribers.
"""

from __future__ import annotations

import asyncio
import logging
import re
import string
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

import msgspec

from caelum.kernel import context

log = logging.getLogger(__name__)

E = TypeVar("E", bound="CanonicalEvent")
Handler = Callable[[E], Awaitable[None]]
Wanted = Callable[[E], bool]
Unsubscribe = Callable[[], None]

_BACKLOG_WARNING = 1000
_TOKEN = re.compile(r"\{[^{}/]+\}")


class CanonicalEvent(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True):
    """News of the cloud. Subclasses are declared with `@canonical`; their fields are the wire's `content`."""

    __path__: ClassVar[str]

    @property
    def path(self) -> str:
        """The event's path, with its `{token}` parts filled from the fields of the same snake_case name."""
        return _filler(type(self))(self)


class EventWire(msgspec.Struct, rename="camel", kw_only=True):
    """An event as webhooks, WebSocket clients and AMQP subscribers get it."""

    path: str
    content: Any
    management_node_id: str


_registry: dict[str, type[CanonicalEvent]] = {}


def canonical(path: str) -> Callable[[type[E]], type[E]]:
    """Declare an event at `path`, for example "/vm/state/change" or "/globalConfig/update/{category}/{name}"."""

    def declare(cls: type[E]) -> type[E]:
        for _, token, _, _ in string.Formatter().parse(path):
            if token is not None and _snake(token) not in cls.__struct_fields__:
                raise TypeError(f"{cls.__name__} has no field {_snake(token)}, which its path {path} names")
        known = _registry.get(path)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"event path {path} is declared by {known.__qualname__} and {cls.__qualname__}")
        cls.__path__ = path
        _registry[path] = cls
        return cls

    return declare


def events() -> Mapping[str, type[CanonicalEvent]]:
    """Every declared event by its path template."""
    return _registry


def to_wire(event: CanonicalEvent, node_uuid: str) -> EventWire:
    """The event as it leaves the process; `content` stays typed, so that the wire encoder formats it."""
    return EventWire(path=event.path, content=event, management_node_id=node_uuid)


def from_wire(path: str, content: Mapping[str, Any]) -> CanonicalEvent | None:
    """The event of a declared path with this content, or None when no declared path matches."""
    for template, cls in _registry.items():
        if matches(template, path):
            return msgspec.convert(content, cls, strict=False)
    return None


def matches(pattern: str, path: str) -> bool:
    """Whether `path` fits `pattern`: a `{token}` stands for one part, `*` for any text."""
    return pattern == path or _compiled(pattern).fullmatch(path) is not None


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    text = "".join(
        "[^/]+" if _TOKEN.fullmatch(part) else re.escape(part).replace(r"\*", ".*")
        for part in re.split(r"(\{[^{}/]+\})", pattern)
    )
    return re.compile(text)


@lru_cache(maxsize=1024)
def _filler(cls: type[CanonicalEvent]) -> Callable[[CanonicalEvent], str]:
    template = cls.__path__
    tokens = {token: _snake(token) for _, token, _, _ in string.Formatter().parse(template) if token is not None}
    if not tokens:
        return lambda _event: template
    return lambda event: template.format_map({token: getattr(event, field) for token, field in tokens.items()})


class _Subscription:
    """A subscriber's mailbox, drained by one task while it holds anything."""

    def __init__(self, label: str, handler: Handler[Any], wanted: Wanted[Any] | None = None) -> None:
        self._label = label
        self._handler = handler
        self._wanted = wanted
        self._mail: deque[tuple[CanonicalEvent, str | None]] = deque()
        self._drain: asyncio.Task[None] | None = None

    def put(self, event: CanonicalEvent) -> bool:
        """Have an event delivered; whether the subscriber wants it."""
        if not self._wants(event):
            return False
        self._mail.append((event, context.current().trace))
        if len(self._mail) % _BACKLOG_WARNING == 0:
            log.warning("subscriber %s is %d events behind", self._label, len(self._mail))
        if self._drain is None:
            # An empty context: the publisher's queue turns and open transactions are not the subscriber's.
            self._drain = asyncio.get_running_loop().create_task(
                self._deliver(), name=f"events:{self._label}", context=Context()
            )
        return True

    def _wants(self, event: CanonicalEvent) -> bool:
        try:
            return self._wanted is None or self._wanted(event)
        except Exception:
            log.exception("subscriber %s cannot say whether it wants event %s, and gets it", self._label, event.path)
            return True

    async def _deliver(self) -> None:
        try:
            while self._mail:
                event, trace = self._mail.popleft()
                # Not the publisher's job or deadline: what a subscriber does is its own work.
                with context.use(context.TaskContext(api=event.path, trace=trace)):
                    await self._one(event)
        finally:
            self._drain = None

    async def _one(self, event: CanonicalEvent) -> None:
        try:
            await self._handler(event)
        except Exception:
            log.exception("subscriber %s failed on event %s", self._label, event.path)

    async def close(self) -> None:
        """Drop what is undelivered and end the running delivery."""
        self._mail.clear()
        if self._drain is not None and self._drain is not asyncio.current_task():
            self._drain.cancel()
            await asyncio.gather(self._drain, return_exceptions=True)

    async def idle(self) -> None:
        while self._drain is not None:
            await asyncio.wait([self._drain])


class EventHub:
    """The subscriptions of one node."""

    def __init__(self) -> None:
        self._by_class: dict[type[CanonicalEvent], list[_Subscription]] = {}
        self._by_pattern: list[tuple[str, _Subscription]] = []

    def subscribe(self, cls: type[E], handler: Handler[E], wanted: Wanted[E] | None = None) -> Unsubscribe:
        """Call `handler(event)` for each event of the class for which `wanted(event)` is true when it happens;
        `CanonicalEvent` means all. Returns what ends it."""
        subscription = _Subscription(getattr(handler, "__qualname__", repr(handler)), handler, wanted)
        self._by_class.setdefault(cls, []).append(subscription)
        return lambda: self._by_class[cls].remove(subscription)

    def subscribe_path(self, pattern: str, handler: Handler[CanonicalEvent]) -> Unsubscribe:
        """Call `handler(event)` for each event whose path fits the pattern (see `matches`)."""
        entry = (pattern, _Subscription(f"{pattern} {getattr(handler, '__qualname__', handler)}", handler))
        self._by_pattern.append(entry)
        return lambda: self._by_pattern.remove(entry)

    def deliver(self, event: CanonicalEvent) -> bool:
        """Hand the event to every local subscriber that wants it, and tell whether there is one; never blocks,
        never raises."""
        taken = False
        for cls in type(event).__mro__:
            for subscription in self._by_class.get(cls, ()):
                taken |= subscription.put(event)
        if self._by_pattern:
            path = event.path
            for pattern, subscription in self._by_pattern:
                if matches(pattern, path):
                    taken |= subscription.put(event)
        return taken

    async def idle(self) -> None:
        """Wait until everything published so far was delivered."""
        for subscription in self._all():
            await subscription.idle()

    async def close(self) -> None:
        """End all deliveries."""
        for subscription in self._all():
            await subscription.close()

    def _all(self) -> list[_Subscription]:
        found = [one for group in self._by_class.values() for one in group]
        return found + [subscription for _, subscription in self._by_pattern]
