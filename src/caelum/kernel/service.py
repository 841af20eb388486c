"""Services: what handles which message, in which queue; and the checks that run before a message is routed.

Invariant: everything is looked up once, when a service is registered. A call does no reflection.
"""

from __future__ import annotations

import inspect
import string
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec

from caelum.kernel.message import ApiMessage, Message

if TYPE_CHECKING:
    from caelum.kernel.node import Node
    from caelum.kernel.settings import Setting

F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any]])
Handler = Callable[[Any], Awaitable[Any]]
Check = Callable[[Any], Awaitable[None]]
_Part = tuple[str, Callable[[Any], Any] | None]


class Handling(msgspec.Struct, frozen=True):
    """A declared handler: for which message, in which queue (a compiled format string), at which level."""

    cls: type[Message[Any]]
    signature: Callable[[Any], str | None] | None
    level: Any
    reads: bool = False
    repeatable: bool = False


class Intercepting(msgspec.Struct, frozen=True):
    """A declared check: for which message class (and its subclasses), in which order."""

    cls: type[Message[Any]]
    order: int


def handles(
    cls: type[Message[Any]],
    *,
    queue: str | None = None,
    level: int | Setting[int] = 1,
    reads: bool = False,
    repeatable: bool = False,
) -> Callable[[F], F]:
    """Mark an async method as the handler of a message class.

    `queue` is a format string over the message's fields, `"vm-{uuid}"`; a message in which such a field is None is
    about no resource yet and runs outside any queue. `level` may be a setting, read at each message. A handler that
    only `reads`, from memory or the database, runs in its caller's task, and ends with it.

    `repeatable` says of an API message that all it changes is changed by one workflow that answers the job
    (`Workflows.run` with `answers`), which the handler runs, or lets another handler run, after it has only looked. So
    while the job has no run nothing was done, and when the node dies that was to do it another one does it anew.
    """
    if reads and queue is not None:
        raise TypeError(f"who only reads {cls.__name__} from the records waits in no queue")
    if repeatable and not issubclass(cls, ApiMessage):
        raise TypeError(f"{cls.__name__} is no operation of the API, so no job of it is ever done anew")
    handling = Handling(cls, None if queue is None else compile_signature(cls, queue), level, reads, repeatable)

    def mark(function: F) -> F:
        function.__dict__.setdefault("__handles__", []).append(handling)
        return function

    return mark


def intercepts(cls: type[Message[Any]], *, order: int = 0) -> Callable[[F], F]:
    """Mark `async def check(self, msg) -> None` as an API check that runs before the message is routed."""

    def mark(function: F) -> F:
        function.__dict__.setdefault("__intercepts__", []).append(Intercepting(cls, order))
        return function

    return mark


def compile_signature(cls: type[Message[Any]], template: str) -> Callable[[Any], str | None]:
    """A function that fills `template` from a message, or gives None when a field that it names is None."""
    parts = list(string.Formatter().parse(template))
    fields = [field for _, field, _, _ in parts if field is not None]
    for field in fields:
        if field not in cls.__struct_fields__:
            raise TypeError(f"queue {template!r} names field {field}, which {cls.__name__} does not have")
    if not fields:
        return lambda _msg: template
    if len(fields) == 1:
        return _one_field(fields[0], *template.split("{" + fields[0] + "}"))
    getters: list[_Part] = [(text, None if field is None else attrgetter(field)) for text, field, _, _ in parts]
    return lambda msg: _fill(getters, msg)


def _one_field(field: str, head: str, tail: str) -> Callable[[Any], str | None]:
    get = attrgetter(field)

    def signature(msg: Any) -> str | None:
        value = get(msg)
        return None if value is None else f"{head}{value}{tail}"

    return signature


def _fill(getters: list[_Part], msg: Any) -> str | None:
    text = []
    for literal, get in getters:
        text.append(literal)
        if get is not None:
            value = get(msg)
            if value is None:
                return None
            text.append(str(value))
    return "".join(text)


def _marked(owner: object, attribute: str) -> Iterator[tuple[Any, Any]]:
    for name, function in inspect.getmembers(type(owner), inspect.isfunction):
        for mark in getattr(function, attribute, ()):
            yield mark, getattr(owner, name)


def handlings(owner: object) -> Iterator[tuple[Handling, Handler]]:
    """The handlers that an object declares, bound to it."""
    return _marked(owner, "__handles__")


def interceptings(owner: object) -> Iterator[tuple[Intercepting, Check]]:
    """The checks that an object declares, bound to it."""
    return _marked(owner, "__intercepts__")


class Service:
    """Base of all services. `name` is the service id, as messages name it."""

    name: ClassVar[str]

    def __init__(self, node: Node) -> None:
        self.node = node
        self.bus = node.bus
        self.db = node.db

    async def start(self) -> None:
        """Prepare to handle messages; all services are registered, but may not have started."""

    async def serve(self) -> None:
        """Begin work of one's own; all services have started, and unfinished workflows are in their queues."""

    async def stop(self) -> None:
        """Called when the node stops, before the bus closes."""
