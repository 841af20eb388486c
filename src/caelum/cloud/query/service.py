"""The query service: one handler for every query of every resource type.

Invariant: a page costs a constant number of statements (how much the account and the conditions leave, unless that was
asked lately, the rows, one per relationship shown, and the count when it is asked for), and a result is never cut short
silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.identity.errors import PERMISSION_DENIED
from caelum.cloud.query.api import ZQLQuery, ZqlResult
from caelum.cloud.query.compile import Found, Query, compile_query, compile_tree
from caelum.cloud.query.zql import Statement, parse
from caelum.kernel import context
from caelum.kernel.context import Actor
from caelum.kernel.errors import CloudError, invalid
from caelum.kernel.message import ApiQuery, Inventory, QueryReply, apis, reply_type
from caelum.kernel.service import Service, handles
from caelum.kernel.views import to_builtins, views

if TYPE_CHECKING:
    from caelum.kernel.bus import BusBase
    from caelum.kernel.node import Node

MAX_PAGE = 10_000
"""Most inventories that one answer holds. A query that matches more must page."""


class QueryService(Service):
    """Answers queries."""

    name = "query"

    def __init__(self, node: Node) -> None:
        super().__init__(node)

    async def start(self) -> None:
        """Take every declared query that no service of its own answers."""
        bus: BusBase = self.node.bus
        bus.register(_handler(self, [meta.cls for meta in apis() if meta.kind == "query" and not bus.serves(meta.cls)]))

    async def query(self, msg: ApiQuery[Any]) -> QueryReply:
        """The page that the message asks for, the number of all matches, or both."""
        _check_window(msg)
        query = compile_query(msg, context.current().actor)
        async with self.node.db.read() as session:
            known = await _found(session, query)
            if msg.count:
                return QueryReply(total=await _total(session, query, known))
            found = await _page(session, query, msg.start, msg.limit, known)
            total = await _total(session, query, known) if msg.reply_with_count else None
        fields = query.plan.fields
        return QueryReply(inventories=found if fields is None else _projected(found, fields), total=total)

    @handles(ZQLQuery)
    async def zql(self, msg: ZQLQuery) -> list[ZqlResult]:
        """What each statement finds, all at one moment."""
        actor = context.current().actor
        planned = []
        for one in parse(msg.zql or ""):
            inventory = _entity(one.entity, actor)
            planned.append((one, compile_tree(inventory, one.where, one.order, one.fields, actor)))
        async with self.node.db.read() as session:
            return [await _result(session, one, plan) for one, plan in planned]


async def _result(session: AsyncSession, statement: Statement, query: Query) -> ZqlResult:
    known = await _found(session, query)
    counts = statement.with_total or statement.kind == "count"
    total = await _total(session, query, known) if counts else None
    if statement.kind == "count":
        return ZqlResult(total=total, name=statement.name)
    limit = MAX_PAGE + 1 if statement.limit is None else statement.limit
    found, fields = await _page(session, query, statement.offset, limit, known), query.plan.fields
    rows = to_builtins(found) if fields is None else _projected(found, fields)
    return ZqlResult(inventories=rows, total=total, name=statement.name)


def _entity(name: str, actor: Actor) -> type[Inventory]:
    """The inventory that ZQL calls so (`vminstance`), if the actor may query it."""
    by_name = {_zql_name(reply_type(meta.cls)): meta for meta in apis() if meta.kind == "query"}
    meta = by_name.get(name.lower())
    if meta is None:
        raise invalid("zql", f"no entity is called {name[:64]!r}; there are {', '.join(sorted(by_name))}")
    if meta.admin_only and not actor.is_admin:
        raise CloudError(PERMISSION_DENIED, f"operation[API:{meta.name}] is allowed to administrators only")
    found: type[Inventory] = reply_type(meta.cls)
    return found


def _zql_name(inventory: type[Any]) -> str:
    return inventory.__name__.lower().removesuffix("inventory")


def _handler(service: QueryService, queries: list[Any]) -> object:
    """An object that the bus can register: its one method handles all these message classes."""

    async def query(_self: object, msg: ApiQuery[Any]) -> QueryReply:
        return await service.query(msg)

    for cls in queries:
        handles(cls)(query)
    return type("Queries", (), {"query": query})()


def _check_window(msg: ApiQuery[Any]) -> None:
    for name, value in (("limit", msg.limit), ("start", msg.start)):
        if value < 0:
            raise invalid(name, f"must not be negative, but {value} found")
    if msg.filter_name is not None:
        raise invalid("filterName", f"no filter[{msg.filter_name[:255]}] is known; there are none")


async def _found(session: AsyncSession, query: Query) -> Found:
    if query.plan.ask is None:
        return Found(few=False, rare=None)
    known = query.plan.known(query.values)
    if known is None:
        ((few, rare),) = await query.plan.prepared(query.plan.ask).rows(session, **query.values)
        query.plan.learn(query.values, known := Found(few=bool(few), rare=rare))
    return known


async def _total(session: AsyncSession, query: Query, known: Found) -> int:
    ((total,),) = await query.plan.prepared(query.plan.total(known)).rows(session, **query.values)
    return int(total)


async def _page(session: AsyncSession, query: Query, start: int, limit: int, known: Found) -> Sequence[Any]:
    # One row more than may be answered tells whether something would be left out.
    limit = min(limit, MAX_PAGE + 1)
    if limit == 0:
        return []
    plan, values = query.plan, {**query.values, "start": start, "limit": limit}
    statement = plan.page(known)
    found: Sequence[Any]
    if plan.sheet is not None:
        found = await plan.sheet.read(session, plan.prepared(statement), values)
    else:
        found = views(await session.scalars(statement, values))
    if len(found) > MAX_PAGE:
        raise invalid("limit", f"more than {MAX_PAGE} rows match; ask for pages with start and limit", maximum=MAX_PAGE)
    return found


def _projected(found: Sequence[Any], fields: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{name: one[name] for name in fields if name in one} for one in to_builtins(found)]
