"""The manifest: every public operation as plain data, so that client and command line need not load the services.

It is generated from the message declarations (`python -m caelum.sdk.manifest`) and kept in `operations.json`; a test
compares the file with the declarations.
"""

from __future__ import annotations

import json
import re
import typing
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

FILE = "operations.json"


class Parameter(msgspec.Struct, omit_defaults=True):
    """A parameter: `kind` is string, integer, boolean, list, map or object; `location` url, query or body."""

    name: str
    kind: str
    location: str
    required: bool = False
    values: list[str] = []
    resource: str | None = None
    secret: bool = False


class Operation(msgspec.Struct, omit_defaults=True):
    """An operation as a client needs it; `reply_key` is where its result is in the answer's body."""

    name: str
    method: str
    path: str
    category: str
    doc: str
    parameters: list[Parameter]
    body_key: str | None = None
    reply_key: str | None = None
    query: bool = False
    login: bool = True


@cache
def load() -> dict[str, Operation]:
    """All operations by name (`CreateZone`)."""
    text = resources.files("caelum.sdk").joinpath(FILE).read_bytes()
    return {one.name: one for one in msgspec.json.decode(text, type=list[Operation])}


def generate() -> bytes:
    """The manifest's text, from the declarations of all installed services and drivers."""
    from caelum.builtin import import_declarations
    from caelum.kernel.message import apis

    import_declarations()
    ours = (meta for meta in apis() if meta.cls.__module__.startswith("caelum."))
    operations = sorted((_operation(meta) for meta in ours), key=lambda one: one.name)
    rows = [msgspec.json.encode(one).decode() for one in operations]
    return ("[\n" + ",\n".join(rows) + "\n]\n").encode()


def _operation(meta: Any) -> Operation:
    from caelum.kernel.message import ApiQuery, parameters

    is_query = issubclass(meta.cls, ApiQuery)
    hidden = (
        set(ApiQuery.__struct_fields__) if is_query else {"system_tags", "user_tags"} if meta.method == "GET" else set()
    )
    return Operation(
        name=meta.cls.__name__,
        method=meta.method,
        path=meta.path,
        category=meta.category,
        doc=" ".join(meta.doc.split()),
        parameters=[_parameter(meta, one) for one in parameters(meta.cls) if one.name not in hidden],
        body_key=meta.body_key,
        reply_key="inventories" if is_query else meta.reply_key,
        query=is_query,
        login=meta.login,
    )


def _parameter(meta: Any, param: Any) -> Parameter:
    return Parameter(
        name=param.wire,
        kind=_kind(param.type),
        location=param.location,
        required=param.required,
        values=list(param.param.valid_values or ()),
        resource=param.param.resource or _own_resource(meta, param),
        secret=param.param.secret,
    )


def _own_resource(meta: Any, param: Any) -> str | None:
    """The type in an operation's name where its `uuid` names none (the original's DeleteHost): people give names."""
    from caelum.kernel.resources import types

    vo = re.sub(r"^[A-Z][a-z]+", "", meta.cls.__name__) + "VO"
    return vo if (param.name, param.location) == ("uuid", "url") and vo in types() else None


def _kind(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Union or str(origin) == "<class 'types.UnionType'>":
        return _kind(next(one for one in typing.get_args(hint) if one is not type(None)))
    if origin is not None:
        return {list: "list", tuple: "list", dict: "map"}.get(origin, "object")
    return {str: "string", int: "integer", bool: "boolean", float: "number"}.get(hint, "object")


def main() -> None:
    """Write `operations.json` beside this module."""
    target = Path(__file__).with_name(FILE)
    target.write_bytes(generate())
    print(f"{target}: {len(json.loads(target.read_bytes()))} operations")


if __name__ == "__main__":
    main()
