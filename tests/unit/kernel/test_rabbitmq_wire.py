"""Every message, reply and event crosses the wire unharmed: each declared class is sent, with random values."""

from __future__ import annotations

import importlib
import json
import pkgutil
import types
import typing
from collections.abc import Callable, Sequence
from datetime import datetime
from random import Random
from typing import Any, Literal, Union

import msgspec
import pytest

import caelum
from caelum.kernel.context import Actor, TaskContext
from caelum.kernel.errors import (
    INTERNAL,
    INVALID_ARGUMENT,
    OPERATION_ERROR,
    TIMEOUT,
    UNDELIVERABLE,
    CloudError,
)
from caelum.kernel.events import CanonicalEvent, events
from caelum.kernel.message import Inventory, Message, Reply, message, messages
from caelum.kernel.rabbitmq_wire import (
    Envelope,
    decode_bundle,
    decode_event,
    decode_message,
    decode_reply,
    encode_bundle,
    encode_error,
    encode_event,
    encode_message,
    encode_reply,
    name_of,
)

_ROOMS = ("caelum.cloud", "caelum.drivers", "caelum.kernel", "caelum.gateway", "caelum.console")
_DECLARING = ("api", "attach_api", "messages", "events", "spec", "settings", "node")


def load() -> None:
    """Import everything that declares messages or events."""
    for found in pkgutil.walk_packages(caelum.__path__, "caelum."):
        if found.name.startswith(_ROOMS) and found.name.rsplit(".", 1)[-1] in _DECLARING:
            importlib.import_module(found.name)


load()
MESSAGES = sorted(
    (one for one in messages() if one.__module__.startswith("caelum.")), key=lambda one: one.__meta__.name
)
EVENTS = sorted(
    (one for one in events().values() if one.__module__.startswith("caelum.")), key=lambda one: one.__name__
)

ROUNDS = 8
_TEXTS = ("", "a", "ü€😀", '"\\', "2026-11-22", "null", " x ", "0")
_PLAIN: dict[Any, Callable[[Random], Any]] = {
    str: lambda dice: dice.choice(_TEXTS),
    int: lambda dice: dice.choice((0, -1, 7, 2**63 - 1, -(2**63))),
    float: lambda dice: dice.choice((0.0, -1.5, 1e300, 0.1)),
    bool: lambda dice: dice.random() < 0.5,
    datetime: lambda dice: datetime(2026, 11, 22, 19, 15, 56, dice.choice((0, 1, 123456))),
    type(None): lambda dice: None,
    Any: lambda dice: dice.choice((None, True, 7, 0.5, "x", [1, "a"], {"k": {"deep": [None]}})),
}


def value(hint: Any, dice: Random, depth: int = 0) -> Any:
    """Some value of a declared type; of a subclass, too, where there are any."""
    if hint in _PLAIN:
        return _PLAIN[hint](dice)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return value(arguments[0], dice, depth)
    if origin in (Union, types.UnionType):
        return value(dice.choice(arguments), dice, depth)
    if origin is Literal:
        return dice.choice(arguments)
    count = dice.choice((0, 1, 2)) if depth < 4 else 0
    if origin in (list, tuple) or hint is list:
        return (origin or list)(value((*arguments, Any)[0], dice, depth + 1) for _ in range(count))
    if origin is dict or hint is dict:
        key, item = arguments or (str, Any)
        return {value(key, dice, depth + 1): value(item, dice, depth + 1) for _ in range(count)}
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return struct(dice.choice(_family(hint)), dice, depth)
    raise AssertionError(f"no JSON has a form for {hint}: declare something else")


def _family(cls: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    return [cls, *(found for one in cls.__subclasses__() for found in _family(one))]


def struct(cls: type[msgspec.Struct], dice: Random, depth: int = 0) -> Any:
    """An object of exactly this class."""
    return cls(**{one.name: value(one.type, dice, depth + 1) for one in msgspec.structs.fields(cls)})


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same classes all through."""
    return bool(one == other) and repr(one) == repr(other)


def test_everything_was_found() -> None:
    assert len(MESSAGES) > 250
    assert len(EVENTS) > 10


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__meta__.name)
def test_a_message_and_its_reply_cross_the_wire(cls: type[Message[Any]]) -> None:
    dice, declared = Random(cls.__name__), cls.__meta__.reply
    for _ in range(ROUNDS):
        msg = struct(cls, dice)
        body = encode_message(msg)
        assert list(json.loads(body)) == [name_of(cls)]
        assert same(decode_message(body), msg)
        reply = None if declared is None else value(declared, dice)
        assert same(decode_reply(encode_reply(declared, reply), declared), reply)


@pytest.mark.parametrize("cls", EVENTS, ids=lambda cls: cls.__name__)
def test_an_event_crosses_the_wire(cls: type[CanonicalEvent]) -> None:
    dice = Random(cls.__name__)
    for _ in range(ROUNDS):
        event = struct(cls, dice)
        node, restored = decode_event(encode_event(event, "node-a"))
        assert node == "node-a"
        assert same(restored, event)


class Animal(Inventory, kw_only=True):
    name: str
    friend: Animal | None = None


class Bird(Animal, kw_only=True):
    wings: int = 2


class Flock(Reply):
    by_place: dict[str, list[Animal]]


@message(service="zoo-wire")
class CountBirds(Message[Flock], kw_only=True):
    """A message whose reply holds objects of subclasses."""

    animals: list[str] = []


def test_objects_of_subclasses_stay_what_they_are() -> None:
    flock = Flock(
        by_place={"a/b~c": [Animal(name="cow", friend=Bird(name="egret")), Bird(name="owl", friend=Bird(name="crow"))]}
    )
    body = encode_reply(Flock, flock)
    assert json.loads(body)["MessageReply"]["schema"] == {
        "/byPlace/a~1b~0c/0/friend": "Bird",
        "/byPlace/a~1b~0c/1": "Bird",
        "/byPlace/a~1b~0c/1/friend": "Bird",
    }
    assert same(decode_reply(body, Flock), flock)


class Rows(Sequence[Any]):
    """A page as a query answers it: no list, but a sequence."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, at: Any) -> Any:
        return (Animal(name="cow"), Bird(name="owl"))[at]


class Page(Reply, rename="camel", kw_only=True):
    animals: Sequence[Animal]


def test_a_sequence_that_is_no_list_crosses_as_one() -> None:
    page = decode_reply(encode_reply(Page, Page(animals=Rows())), Page)
    assert [same(one, other) for one, other in zip(page.animals, Rows(), strict=True)] == [True, True]


def test_a_class_that_this_node_does_not_have_is_read_as_the_declared_one() -> None:
    body = b'{"MessageReply":{"success":true,"result":{"name":"x","fins":3},"schema":{"":"Fish"}}}'
    assert same(decode_reply(body, Animal), Animal(name="x"))


def test_an_error_crosses_with_causes_facts_and_type() -> None:
    deep = CloudError(TIMEOUT, "deep", seconds=3)
    sent = CloudError(OPERATION_ERROR, "top", cause=CloudError(INTERNAL, "middle", cause=deep), causes=[deep], size=7)
    with pytest.raises(CloudError) as caught:
        decode_reply(encode_error(sent), None)
    assert caught.value.kind is OPERATION_ERROR
    assert caught.value.facts == {"size": 7}
    assert caught.value.to_wire() == sent.to_wire()


def test_an_error_with_facts_that_no_json_holds_still_arrives() -> None:
    with pytest.raises(CloudError, match="top") as caught:
        decode_reply(encode_error(CloudError(OPERATION_ERROR, "top", thing=object())), None)
    assert caught.value.facts == {}


def test_an_error_of_a_foreign_service_may_use_any_names() -> None:
    error = {"code": "HELLO.1", "description": "d", "details": "x", "opaque": {"cause": 1, "details": 2, "mine": 3}}
    body = json.dumps({"MessageReply": {"success": False, "error": error}}).encode()
    with pytest.raises(CloudError) as caught:
        decode_reply(body, None)
    assert (caught.value.code, caught.value.facts) == ("HELLO.1", {"mine": 3})


def test_a_reply_that_no_json_holds_is_an_error_for_the_caller() -> None:
    with pytest.raises(CloudError, match="cannot be sent") as caught:
        decode_reply(encode_reply(Any, object()), Any)
    assert caught.value.kind is INTERNAL


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (b"nonsense", INVALID_ARGUMENT, "malformed"),
        (b"[]", INVALID_ARGUMENT, "malformed"),
        (b"{}", INVALID_ARGUMENT, "one key"),
        (b'{"a":{},"b":{}}', INVALID_ARGUMENT, "one key"),
        (b'{"org.example.NoSuchMsg":{}}', UNDELIVERABLE, "no message is called org.example.NoSuchMsg"),
        (b'{"CountBirds":{"animals":"many"}}', INVALID_ARGUMENT, r"\$\.animals"),
        (b'{"CountBirds":7}', INVALID_ARGUMENT, "CountBirds is malformed"),
    ],
)
def test_a_message_that_cannot_be_read_is_refused_with_a_reason(body: bytes, kind: Any, text: str) -> None:
    with pytest.raises(CloudError, match=text) as caught:
        decode_message(body)
    assert caught.value.kind is kind


@pytest.mark.parametrize(
    "body", [b"x", b"{}", b'{"MessageReply":{"success":false}}', b'{"MessageReply":{"success":true,"result":"seven"}}']
)
def test_a_reply_that_cannot_be_read_is_an_error_for_the_caller(body: bytes) -> None:
    with pytest.raises(CloudError, match=r"malformed|neither"):
        decode_reply(body, int)


def test_an_event_that_nobody_here_declares_is_nothing() -> None:
    body = b'{"CanonicalEvent":{"path":"/no/such","managementNodeId":"n","content":{}}}'
    assert decode_event(body) == ("n", None)


def test_a_bundle_keeps_each_message_with_what_belongs_to_it() -> None:
    task = TaskContext(actor=Actor("a", "u", "s", False), job_uuid="j", trace="t", step_key="k", fence="f:1")
    sent = [
        Envelope(kind="request", id="1", reply_to="q", timeout=1.5, context=task, body=msgspec.Raw(b'{"A":{}}')),
        Envelope(kind="cancel", id="2"),
    ]
    restored = decode_bundle(encode_bundle(sent))
    assert [(one.kind, one.id, one.reply_to, one.timeout, bytes(one.body)) for one in restored] == [
        ("request", "1", "q", 1.5, b'{"A":{}}'),
        ("cancel", "2", None, None, b"{}"),
    ]
    assert restored[0].context == task
