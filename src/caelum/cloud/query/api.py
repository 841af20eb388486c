"""ZQL, the query language, as clients see it."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from caelum.kernel.message import ApiMessage, rest

_PACKAGE = "org.zstack.query"


class ZqlResult(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """What one statement found; `name` is what it was `named as`."""

    __java_class__: ClassVar[str] = "org.zstack.zql.ZQLQueryReturn"

    inventories: list[Any] | None = None
    total: int | None = None
    name: str | None = None


@rest("GET /zql", package=_PACKAGE, reply_key="results")
class ZQLQuery(ApiMessage[list[ZqlResult]], kw_only=True):
    """Run statements of ZQL, separated by `;`.

    `query <entity>[.field,..]` or `count <entity>`, then `where` with `and`, `or` and parentheses, `return with
    (total)`, `order by`, `limit`, `offset`, `named as`.
    """

    zql: str | None = None
