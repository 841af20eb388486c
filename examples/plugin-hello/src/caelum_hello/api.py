"""Greetings, as clients see them. The operations' service is this folder's name, `caelum_hello`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from caelum.kernel.message import (
    ApiMessage,
    ApiQuery,
    CreateMessage,
    DeleteMessage,
    Expand,
    Inventory,
    Param,
    Reply,
    inventory,
    rest,
)

_PACKAGE = "org.example.hello"
GREETING = "HelloGreetingVO"


@inventory(
    _PACKAGE,
    vo=GREETING,
    expands=(Expand(field="host", inventory="HostInventory", foreign_key="hostUuid"),),
)
class GreetingInventory(Inventory, kw_only=True):
    """A greeting."""

    uuid: str
    name: str
    host_uuid: str
    text: str
    create_date: datetime
    last_op_date: datetime


@rest("POST /hello/greetings", package=_PACKAGE, tags_for=GREETING)
class CreateGreeting(CreateMessage[GreetingInventory], kw_only=True):
    """Greet a host."""

    name: Annotated[str, Param(max_length=255)]
    host_uuid: Annotated[str, Param(resource="HostVO")]


@rest("DELETE /hello/greetings/{uuid}", package=_PACKAGE)
class DeleteGreeting(DeleteMessage[None], kw_only=True):
    """Take a greeting back."""

    uuid: Annotated[str, Param(resource=GREETING, success_if_missing=True, check_account=True, target=True)]


@rest("GET /hello/greetings", package=_PACKAGE, also=("/hello/greetings/{uuid}",))
class QueryGreeting(ApiQuery[GreetingInventory], kw_only=True):
    """Query greetings."""


class TranslationReply(Reply):
    """A greeting in another language."""

    text: str
    served_by: str


@rest("GET /hello/translations", package=_PACKAGE, sync=True, service="hello")
class TranslateGreeting(ApiMessage[TranslationReply], kw_only=True):
    """Say a greeting in another language.

    Nothing in Python serves it: the service `hello` is a process on the bus of a cluster (examples/service-node).
    """

    name: Annotated[str, Param(max_length=255)]
    language: Annotated[str, Param(max_length=32)]
