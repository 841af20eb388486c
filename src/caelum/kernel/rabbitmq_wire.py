"""The wire form of the bus: messages, replies, errors and events as JSON. docs/bus.md is its public description.

Invariant: what was encoded on one node is restored on another as an equal object of the same classes, fields of
subclasses included; what cannot be read is refused with an error that names the message and the field.

The body is an object with one key, the name of what it is. What the transport needs (who answers whom, until when, on
whose behalf) travels beside it, in the AMQP properties; in a bundle, beside each body.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Union

import msgspec

from caelum.kernel import events
from caelum.kernel.context import TaskContext
from caelum.kernel.errors import INTERNAL, INVALID_ARGUMENT, UNDELIVERABLE, CloudError, ErrorCode, to_wire
from caelum.kernel.message import Message, message_class

Kind = Literal["request", "reply", "cancel", "event", "bundle"]
REPLY = "MessageReply"
EVENT = "CanonicalEvent"
MOST_BYTES = 64 * 1024 * 1024
"""The largest body; a broker takes twice as much, and closes the channel on whoever sends more."""
Schema = dict[str, str]


class Envelope(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """One message on its way. `timeout` is in seconds from the moment of sending; `body` is the JSON object.

    `turns` names the turns in work queues that the sender holds, so that a message which comes back to one of them is
    refused instead of waiting for ever.
    """

    kind: Kind
    id: str
    reply_to: str | None = None
    timeout: float | None = None
    context: TaskContext | None = None
    turns: list[str] = []
    body: msgspec.Raw = msgspec.Raw(b"{}")


class Answer(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """The content of a reply: `result` when it was a success, else `error`.

    `schema` names, by JSON pointer into `result`, each object whose class is a subclass of the declared one.
    """

    success: bool
    result: Any = None
    error: ErrorCode | None = None
    schema: Schema | None = None


class _RawAnswer(msgspec.Struct, rename="camel", kw_only=True):
    success: bool = True
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: ErrorCode | None = None
    schema: Schema | None = None


class News(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """The content of an event: its path, the path's template as it is declared, and the event's fields."""

    path: str
    management_node_id: str
    content: Any = None
    template: str | None = None
    schema: Schema | None = None


class _RawNews(msgspec.Struct, rename="camel", kw_only=True):
    path: str
    management_node_id: str | None = None
    content: msgspec.Raw = msgspec.Raw(b"{}")
    template: str | None = None
    schema: Schema | None = None


_named = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raw_answer = msgspec.json.Decoder(_RawAnswer)
_raw_news = msgspec.json.Decoder(_RawNews)
_bundle = msgspec.json.Decoder(list[Envelope])


def _plain(value: Any) -> list[Any]:
    """A sequence of a class of its own (a page of a query) is a list on the wire."""
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


_encoder = msgspec.json.Encoder(enc_hook=_plain)


@functools.cache
def _decoder(hint: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(hint)


# --- bundles ----------------------------------------------------------------------------------------------------------


def encode_bundle(envelopes: list[Envelope]) -> bytes:
    """Several messages to one queue as one."""
    return _encoder.encode(envelopes)


def decode_bundle(body: bytes) -> list[Envelope]:
    """The messages of a bundle. Raises msgspec.DecodeError."""
    return _bundle.decode(body)


def _bounded(body: bytes) -> bytes:
    if len(body) > MOST_BYTES:
        raise ValueError(f"it has {len(body)} bytes, more than {MOST_BYTES}")
    return body


# --- messages ---------------------------------------------------------------------------------------------------------


def name_of(cls: type[Message[Any]]) -> str:
    """The key of a message's body: the Java class of a public operation, else the class's name."""
    meta = getattr(cls, "__api__", None)
    return str(meta.java_class) if meta is not None else cls.__meta__.name


def encode_message(msg: Message[Any]) -> bytes:
    """The body of a request. Raises INTERNAL when a field holds what JSON has no form for."""
    cls = type(msg)
    try:
        return _bounded(_encoder.encode({name_of(cls): msg}))
    except (TypeError, ValueError, UnicodeEncodeError) as error:
        raise CloudError(INTERNAL, f"message {cls.__meta__.name} cannot be sent to another node: {error}") from error


def decode_message(body: msgspec.Raw | bytes) -> Message[Any]:
    """The message of a request's body. UNDELIVERABLE when nobody declares it, INVALID_ARGUMENT when it is malformed."""
    name, fields = _only(body)
    try:
        cls = message_class(name.rsplit(".", 1)[-1])
    except KeyError:
        raise CloudError(UNDELIVERABLE, f"no message is called {name[:255]}", message=name[:255]) from None
    try:
        msg: Message[Any] = _decoder(cls).decode(fields)
    except msgspec.DecodeError as error:
        raise CloudError(INVALID_ARGUMENT, f"message {name} is malformed: {error}", message=name) from None
    return msg


def _only(body: msgspec.Raw | bytes) -> tuple[str, msgspec.Raw]:
    try:
        found = _named.decode(body)
    except msgspec.DecodeError as error:
        raise CloudError(INVALID_ARGUMENT, f"the body of a message is malformed: {error}") from None
    if len(found) != 1:
        raise CloudError(INVALID_ARGUMENT, f"the body of a message must have one key, its name; it has {len(found)}")
    return next(iter(found.items()))


# --- replies ----------------------------------------------------------------------------------------------------------


def encode_reply(declared: Any, reply: Any) -> bytes:
    """The body of a successful reply; `declared` is the message's reply type."""
    try:
        answer = Answer(success=True, result=reply, schema=schema_of(declared, reply))
        return _bounded(_encoder.encode({REPLY: answer}))
    except (TypeError, ValueError, UnicodeEncodeError) as error:
        what = f"the reply, a {type(reply).__name__}, cannot be sent to another node: {error}"
        return encode_error(CloudError(INTERNAL, what))


def encode_error(error: BaseException) -> bytes:
    """The body of a reply that is an error."""
    wire = to_wire(error)
    try:
        return _encoder.encode({REPLY: Answer(success=False, error=wire)})
    except (TypeError, ValueError, UnicodeEncodeError):
        # Facts that have no JSON form are for programs only; the error itself must arrive.
        plain = msgspec.structs.replace(wire, opaque=None, cause=None, causes=None)
        return _encoder.encode({REPLY: Answer(success=False, error=plain)})


def decode_reply(body: msgspec.Raw | bytes, declared: Any) -> Any:
    """The reply that a body holds. Raises the error that it holds, or INTERNAL when it is malformed."""
    try:
        _, content = _only(body)
        answer = _raw_answer.decode(content)
        if answer.success and answer.error is None:
            return decode_value(answer.result, declared, answer.schema)
    except (CloudError, msgspec.DecodeError) as error:
        raise CloudError(INTERNAL, f"the reply is malformed: {error}") from None
    if answer.error is None:
        raise CloudError(INTERNAL, "the reply is neither a success nor does it say what went wrong")
    raise CloudError.from_wire(answer.error)


# --- events -----------------------------------------------------------------------------------------------------------


def encode_event(event: events.CanonicalEvent, node: str) -> bytes:
    """The body of an event. Raises TypeError when it has no JSON form."""
    cls = type(event)
    schema = schema_of(cls, event)
    news = News(path=event.path, management_node_id=node, content=event, template=cls.__path__, schema=schema)
    return _encoder.encode({EVENT: news})


def decode_event(body: msgspec.Raw | bytes) -> tuple[str | None, events.CanonicalEvent | None]:
    """The node that tells the event, and the event; None when no class of this process declares it.

    Raises CloudError or msgspec.DecodeError when it is malformed.
    """
    _, content = _only(body)
    news = _raw_news.decode(content)
    cls = events.events().get(news.template or "")
    if cls is not None:
        return news.management_node_id, decode_value(news.content, cls, news.schema)
    return news.management_node_id, events.from_wire(news.path, msgspec.json.decode(news.content))


# --- values whose class is a subclass of the declared one -------------------------------------------------------------


def decode_value(raw: msgspec.Raw, declared: Any, schema: Schema | None = None) -> Any:
    """A value of a declared type. Raises msgspec.DecodeError."""
    value = _decoder(declared).decode(raw)
    if not schema:
        return value
    plain = msgspec.json.decode(raw)
    # Outer objects first: what is inside of them is made anew with them.
    for pointer in sorted(schema, key=len):
        value = _restore(value, plain, _steps(pointer), schema[pointer])
    return value


def schema_of(declared: Any, value: Any) -> Schema | None:
    """The classes of the objects in `value` that are more than declared, by JSON pointer; None when there are none."""
    if not _open(declared):
        return None
    return {"".join(f"/{step}" for step in path): name for path, name in _more(declared, value, ())} or None


@functools.cache
def _open(declared: Any) -> bool:
    """Whether a value of this type may hold an object of a subclass of what is declared."""
    return any(cls.__subclasses__() for cls in _structs(declared, set()))


def _structs(hint: Any, seen: set[Any]) -> Iterator[type[msgspec.Struct]]:
    if hint in seen:
        return
    seen.add(hint)
    for inner in typing.get_args(hint):
        yield from _structs(inner, seen)
    if _is_struct(hint):
        yield hint
        for inner in _hints(hint).values():
            yield from _structs(inner, seen)


def _is_struct(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


@functools.cache
def _hints(cls: type[msgspec.Struct]) -> dict[str, Any]:
    return {one.name: one.type for one in msgspec.structs.fields(cls)}


def _more(hint: Any, value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, msgspec.Struct):
        declared = _declared_of(hint, type(value))
        if declared is not None and declared is not type(value):
            yield path, type(value).__name__
        for one in msgspec.structs.fields(type(value)):
            yield from _more(one.type, getattr(value, one.name), (*path, one.encode_name))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for index, one in enumerate(value):
            yield from _more(_inner(hint, Sequence), one, (*path, str(index)))
    elif isinstance(value, dict):
        for key, one in value.items():
            name = str(key).replace("~", "~0").replace("/", "~1")
            yield from _more(_inner(hint, dict), one, (*path, name))


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is typing.Annotated:
        return _alternatives(typing.get_args(hint)[0])
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _declared_of(hint: Any, cls: type[msgspec.Struct]) -> type[msgspec.Struct] | None:
    """Which of the declared structs an object of `cls` stands for."""
    return next((one for one in _alternatives(hint) if _is_struct(one) and issubclass(cls, one)), None)


def _inner(hint: Any, container: Any) -> Any:
    """What a sequence or dictionary of this type holds."""
    for one in _alternatives(hint):
        origin, arguments = typing.get_origin(one), typing.get_args(one)
        if isinstance(origin, type) and issubclass(origin, container) and arguments:
            return arguments[1] if origin is dict else arguments[0]
    return Any


def _steps(pointer: str) -> list[str]:
    return [one.replace("~1", "/").replace("~0", "~") for one in pointer.split("/")[1:]]


def _restore(value: Any, plain: Any, steps: list[str], name: str) -> Any:
    """`value` with the object at `steps` made anew as the subclass `name`; `plain` is the same as plain JSON."""
    if not steps:
        cls = _subclass(type(value), name)
        return value if cls is None else msgspec.convert(plain, cls)
    step, rest = steps[0], steps[1:]
    if isinstance(value, msgspec.Struct):
        field = next((one.name for one in msgspec.structs.fields(type(value)) if one.encode_name == step), None)
        if field is not None:
            inner = _restore(getattr(value, field), plain[step], rest, name)
            msgspec.structs.force_setattr(value, field, inner)
    elif isinstance(value, list) and int(step) < len(value):
        value[int(step)] = _restore(value[int(step)], plain[int(step)], rest, name)
    elif isinstance(value, dict) and step in value:
        value[step] = _restore(value[step], plain[step], rest, name)
    return value


def _subclass(cls: type[Any], name: str) -> type[Any] | None:
    if cls.__name__ == name:
        return cls
    for one in cls.__subclasses__():
        found = _subclass(one, name)
        if found is not None:
            return found
    return None
