"""Declare once: a message class is the single declaration of an operation.

Gateway, OpenAPI, CLI, SDK, permissions and the conformance test all read the registry that the decorators
here fill. Inside, names are snake_case; on the wire they are the original's camelCase.

    @rest("POST /zones", package="org.zstack.header.zone", admin_only=True)
    class CreateZone(ApiMessage[ZoneInventory]):
        \"\"\"Create a zone.\"\"\"

        name: Annotated[str, Param(max_length=255)]
        description: Annotated[str | None, Param(max_length=2048)] = None

The wire name of an API message is `API<ClassName>Msg`; its Java class is `<package>.API<ClassName>Msg`.
The type argument is the reply: an `Inventory` travels as `{"inventory": ...}`, a list of them as
`{"inventories": [...]}`, a `Reply` struct as its own fields, `None` as `{}`.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import msgspec

R = TypeVar("R")
M = TypeVar("M", bound="Message[Any]")

DEFAULT_API_TIMEOUT = 1800.0
"""Seconds that an API operation may take; the original's default of 30 minutes."""
SYNC_API_TIMEOUT = 300.0
"""Seconds that a synchronous API call may take; the original's 5 minutes."""


class Param(msgspec.Struct, frozen=True, kw_only=True):
    """Constraints of one API parameter, checked in the original's order (`required` first).

    `resource` names the resource type ("ZoneVO") that a UUID (or each of a list) must exist as; `check_account`
    demands that the caller owns it or has it shared. `minimum`/`maximum` bound numbers, both inclusive.
    """

    max_length: int | None = None
    min_length: int | None = None
    valid_values: tuple[str, ...] | None = None
    regex: str | None = None
    nonempty: bool = False
    empty_string: bool = True
    null_elements: bool = False
    minimum: int | None = None
    maximum: int | None = None
    no_trim: bool = False
    resource: str | None = None
    check_account: bool = False
    no_owner_check: bool = False
    success_if_missing: bool = False
    target: bool = False
    """The operation is about this resource (the original's operationTarget)."""
    secret: bool = False
    """Never logged, never echoed."""


class Inventory(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """The public view of a resource. Optional fields default to None and are then absent on the wire."""


class Reply(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """A reply whose fields are the keys of the answer's body."""


class WholeReply(Reply):
    """A reply that travels whole, with the `success` that the original sends where all of a reply's fields are sent."""

    # A factory, because `omit_defaults` would leave a plain default out.
    success: bool = msgspec.field(default_factory=lambda: True)


class Message(msgspec.Struct, Generic[R], rename="camel", kw_only=True):
    """A request to a service. `R` is the type of its answer."""

    __meta__: ClassVar[MessageMeta]


class ApiMessage(Message[R], Generic[R], kw_only=True):
    """A public operation. Session, job and deadline travel in the task context, not in the message."""

    system_tags: Annotated[list[str] | None, Param()] = None
    user_tags: Annotated[list[str] | None, Param()] = None

    __api__: ClassVar[ApiMeta]


class CreateMessage(ApiMessage[R], Generic[R], kw_only=True):
    """A public operation that makes a resource, whose UUID the client may choose."""

    resource_uuid: Annotated[str | None, Param()] = None
    tag_uuids: Annotated[list[str] | None, Param(resource="TagPatternVO", check_account=True)] = None


class DeleteMessage(ApiMessage[R], Generic[R], kw_only=True):
    """A public operation that deletes. Permissive stops at the first objection; Enforcing goes through."""

    delete_mode: Annotated[str | None, Param(valid_values=("Permissive", "Enforcing"))] = "Permissive"


class QueryCondition(msgspec.Struct, frozen=True):
    """One condition of a query: field path, operator (`=`, `!=`, `in`, `like`, `is null` ...), value text."""

    name: str
    op: str
    value: str | None = None


class ApiQuery(ApiMessage[R], Generic[R], kw_only=True):
    """A query. `R` is the inventory type; the answer is `QueryReply`."""

    conditions: list[QueryCondition] = []
    limit: int = 1000
    start: int = 0
    count: bool = False
    reply_with_count: bool = False
    sort_by: str | None = None
    sort_direction: str = "asc"
    fields: list[str] | None = None
    group_by: str | None = None
    filter_name: str | None = None


class QueryReply(Reply):
    """What a query answers: plain dictionaries when `fields` was given, and `total` when asked for."""

    inventories: Sequence[Any] | None = None
    total: int | None = None


class MessageMeta(msgspec.Struct, frozen=True):
    """Where a message goes: the service, and the field whose UUID decides the node (None: the local node)."""

    name: str
    service: str
    route_by: str | None
    reply: Any
    timeout: float


class ApiMeta(msgspec.Struct, frozen=True):
    """How an operation appears to clients."""

    cls: type[ApiMessage[Any]]
    name: str
    java_class: str
    method: str
    path: str
    also: tuple[str, ...]
    body_key: str | None
    action: str | None
    kind: str
    reply_key: str | None
    admin_only: bool
    login: bool
    timeout: float
    tags_for: str | None
    category: str
    doc: str
    secret: bool = False
    """The answer holds a secret: it is sealed in the database."""


class ParamMeta(msgspec.Struct, frozen=True):
    """One parameter of an operation, as the registry's readers see it."""

    name: str
    wire: str
    type: Any
    required: bool
    default: Any
    param: Param
    location: str


_messages: dict[str, type[Message[Any]]] = {}
_apis: dict[str, ApiMeta] = {}
_inventories: dict[str, type[Inventory]] = {}


def messages() -> Iterable[type[Message[Any]]]:
    """Every declared message class, internal and public."""
    return _messages.values()


def apis() -> Iterable[ApiMeta]:
    """Every declared public operation."""
    return _apis.values()


def api(name: str) -> ApiMeta | None:
    """The operation with this wire name (`APICreateZoneMsg`) or Java class name, or None."""
    return _apis.get(name.rsplit(".", 1)[-1])


def message_class(name: str) -> type[Message[Any]]:
    """The message class with this wire name. Raises KeyError."""
    return _messages[name]


def inventories() -> Iterable[type[Inventory]]:
    """Every declared inventory class."""
    return _inventories.values()


def camel(name: str) -> str:
    """`vm_instance_uuid` -> `vmInstanceUuid`."""
    head, *rest = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)


class Expand(msgspec.Struct, frozen=True, kw_only=True):
    """A join that queries may follow: `field` leads to `inventory` where its `key` equals our `foreign_key`."""

    field: str
    inventory: str
    foreign_key: str
    key: str = "uuid"
    hidden: bool = False


class InventoryMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What the query service and the clients' schema need to know of an inventory."""

    java_class: str
    vo: str
    parent: str | None
    type_value: str | None
    expands: tuple[Expand, ...]
    aliases: tuple[tuple[str, str], ...]
    """Short names for join paths, ("eip", "vmNics.eip")."""


def inventory(
    package: str,
    *,
    vo: str,
    parent: str | None = None,
    type_value: str | None = None,
    expands: tuple[Expand, ...] = (),
    aliases: tuple[tuple[str, str], ...] = (),
) -> Callable[[type[Inventory]], type[Inventory]]:
    """Declare an inventory: its Java package, the resource type behind it ("ZoneVO"), and its joins.

    `parent` and `type_value` make it a child inventory: the view of those rows of the parent's whose type field
    has that value (KVMHostInventory of HostInventory).
    """

    def declare(cls: type[Inventory]) -> type[Inventory]:
        cls.__inventory__ = InventoryMeta(  # type: ignore[attr-defined]
            java_class=f"{package}.{cls.__name__}",
            vo=vo,
            parent=parent,
            type_value=type_value,
            expands=expands,
            aliases=aliases,
        )
        _inventories[cls.__name__] = cls
        return cls

    return declare


def inventory_meta(cls: type[Inventory]) -> InventoryMeta:
    """The declaration of an inventory class."""
    meta: InventoryMeta = cls.__inventory__  # type: ignore[attr-defined]
    return meta


def inventory_class(name: str) -> type[Inventory]:
    """The inventory class with this name ("ZoneInventory"). Raises KeyError."""
    return _inventories[name]


def reply_type(cls: type[Message[Any]]) -> Any:
    """The `R` that a message class was declared with."""
    for base in types.get_original_bases(cls) if sys.version_info >= (3, 12) else cls.__orig_bases__:  # type: ignore[attr-defined]
        arguments = typing.get_args(base)
        if arguments and not isinstance(arguments[0], TypeVar):
            return None if arguments[0] is type(None) else arguments[0]
    raise TypeError(f"{cls.__name__} does not name its reply: derive from Message[...] with an argument")


def _service_of(cls: type) -> str:
    """`caelum.cloud.zone.api` -> `zone`: the folder is the service, also for drivers and plugins."""
    return cls.__module__.split(".")[-2:][0]


def message(
    *, service: str | None = None, route_by: str | None = None, timeout: float = DEFAULT_API_TIMEOUT
) -> Callable[[type[M]], type[M]]:
    """Declare an internal message to `service` (default: the folder that declares it).

    `route_by` names the field whose UUID decides the node; None keeps the message on the sender's node.
    """

    def declare(cls: type[M]) -> type[M]:
        _register(cls, cls.__name__, service or _service_of(cls), route_by, timeout)
        return cls

    return declare


def _register(cls: type[Message[Any]], name: str, service: str, route_by: str | None, timeout: float) -> None:
    if route_by is not None and route_by not in cls.__struct_fields__:
        raise TypeError(f"{cls.__name__} is routed by {route_by}, which it does not have")
    if name in _messages and _messages[name].__module__ != cls.__module__:
        raise TypeError(f"message {name} is declared by {_messages[name].__module__} and {cls.__module__}")
    cls.__meta__ = MessageMeta(name, service, route_by, reply_type(cls), timeout)
    _messages[name] = cls


def rest(
    route: str,
    *,
    package: str,
    also: tuple[str, ...] = (),
    sync: bool = False,
    admin_only: bool = False,
    login: bool = True,
    body_key: str | None = None,
    reply_key: str | None = None,
    timeout: float | None = None,
    service: str | None = None,
    route_by: str | None = None,
    tags_for: str | None = None,
    secret: bool = False,
) -> Callable[[type[M]], type[M]]:
    """Declare a public operation at `route`, for example "PUT /zones/{uuid}/actions".

    PUT is an action unless `body_key` is given: its body key is the class name with a small first letter. POST
    takes `params`. `reply_key` overrides the key under which the reply travels. `route_by` defaults to the field
    that is the operation's target, else `uuid`, else the local node. `tags_for` is the resource type that the
    operation's systemTags must be declared for ("ZoneVO"). `secret` says that the answer holds one (a token, a key).
    """
    method, path = route.split(" ", 1)

    def declare(cls: type[M]) -> type[M]:
        name = f"API{cls.__name__}Msg"
        is_query = issubclass(cls, ApiQuery)
        kind = "query" if is_query else "sync" if sync or method == "GET" else "async"
        limit = timeout or (DEFAULT_API_TIMEOUT if kind == "async" else SYNC_API_TIMEOUT)
        owner = "query" if is_query else service or _service_of(cls)
        _register(cls, name, owner, None if is_query else route_by or _default_route(cls), limit)
        action = cls.__name__[0].lower() + cls.__name__[1:] if method == "PUT" and body_key is None else None
        key = body_key if body_key is not None else action or ("params" if method == "POST" else None)
        if not cls.__doc__:
            raise TypeError(f"{cls.__name__} has no docstring: it is the operation's documentation")
        meta = ApiMeta(
            cls=cls,  # type: ignore[arg-type]
            name=name,
            java_class=f"{package}.{name}",
            method=method,
            path=path,
            also=also,
            body_key=key,
            action=action,
            kind=kind,
            reply_key=reply_key or _default_reply_key(cls),
            admin_only=admin_only,
            login=login,
            timeout=limit,
            tags_for=tags_for,
            category=_service_of(cls),
            doc=cls.__doc__,
            secret=secret,
        )
        cls.__api__ = meta  # type: ignore[attr-defined]
        _apis[name] = meta
        return cls

    return declare


def _default_route(cls: type[Message[Any]]) -> str | None:
    targets = [field for field, param in _params_of(cls).items() if param.target]
    if targets:
        return targets[0]
    return "uuid" if "uuid" in cls.__struct_fields__ else None


def _default_reply_key(cls: type[Message[Any]]) -> str | None:
    reply = reply_type(cls)
    if reply is None or issubclass(cls, ApiQuery):
        return None
    if typing.get_origin(reply) is list:
        return "inventories"
    return None if isinstance(reply, type) and issubclass(reply, Reply) else "inventory"


def _params_of(cls: type[Message[Any]]) -> dict[str, Param]:
    found = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if name in cls.__struct_fields__:
            extras = getattr(hint, "__metadata__", ())
            found[name] = next((one for one in extras if isinstance(one, Param)), Param())
    return found


def secret_fields(cls: type[Message[Any]]) -> frozenset[str]:
    """The fields that are declared `Param(secret=True)`."""
    return frozenset(name for name, param in _params_of(cls).items() if param.secret)


def parameters(cls: type[ApiMessage[Any]]) -> list[ParamMeta]:
    """The parameters of an operation in declaration order."""
    params, meta = _params_of(cls), cls.__api__
    hints = typing.get_type_hints(cls)
    result = []
    for field in msgspec.structs.fields(cls):
        if "{" + field.encode_name + "}" in meta.path:
            location = "url"
        elif meta.method in ("GET", "DELETE"):
            location = "query"
        else:
            location = "body"
        default = None if field.default is msgspec.NODEFAULT else field.default
        result.append(
            ParamMeta(
                field.name, field.encode_name, hints[field.name], field.required, default, params[field.name], location
            )
        )
    return result
