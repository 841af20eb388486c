"""Make the manifest: `python -m caelum.sdk.generate` writes `operations.json` from the message declarations.

A test compares the file with the declarations.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from caelum.builtin import import_declarations
from caelum.kernel.message import ApiQuery, apis, parameters
from caelum.kernel.resources import types
from caelum.sdk.manifest import FILE, Operation, Parameter


def generate() -> bytes:
    """The manifest's text, from the declarations of all installed services and drivers."""
    import_declarations()
    return _text(meta for meta in apis() if _is_ours(meta))


def generate_foreign() -> bytes:
    """The same of what other packages have declared in this process: what the kept manifest cannot know."""
    return _text(meta for meta in apis() if not _is_ours(meta))


def _is_ours(meta: Any) -> bool:
    return bool(meta.cls.__module__.startswith("caelum."))


def _text(metas: Iterable[Any]) -> bytes:
    operations = sorted((_operation(meta) for meta in metas), key=lambda one: one.name)
    rows = [msgspec.json.encode(one).decode() for one in operations]
    return ("[\n" + ",\n".join(rows) + "\n]\n").encode()


def _operation(meta: Any) -> Operation:
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
        job=meta.kind == "async",
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
