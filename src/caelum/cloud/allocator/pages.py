"""The hosts that pass the rules of a request, a page at a time in a strategy's order.

Invariant: a page costs what its hosts cost, not what all hosts do: capacities are gone through in the order of an index
until there are enough. So it is by chance, too: it goes on from a place that is drawn, round to where it began, and
shuffles what it finds there. Statements are made once for all requests of a shape.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any, cast

from sqlalchemy import Integer, Select, String, Table, bindparam

from caelum.cloud.allocator.extension import HostAllocatorStrategy
from caelum.cloud.allocator.model import CONNECTED, CONNECTING, HostCapacityModel
from caelum.cloud.allocator.rules import HostRow, Request, Shape, hosts, rules
from caelum.cloud.allocator.strategies import STRATEGIES
from caelum.kernel.database import Database
from caelum.kernel.ids import new_uuid
from caelum.kernel.prepared import Prepared

_uuid = cast("Table", HostCapacityModel.__table__).c.uuid
_WINDOW = 32
"""Hosts of which chance chooses: all of so few. Of more, the drawn place is likelier in a larger gap between UUIDs;
among so many that evens out.
"""


class Pages:
    """The candidates of one request."""

    def __init__(self, db: Database, asked: Request, strategy: HostAllocatorStrategy) -> None:
        self.strategy = strategy
        self._db, self._asked = db, asked
        self._seen: list[str] = []
        terms = strategy.order(asked.ask)
        self._by_chance = not terms
        self._drawn = new_uuid()
        self._ways = list(_drawn(asked.shape)) if self._by_chance else [_ordered(asked.shape, strategy, terms)]
        """The statements to ask, one after another, each until it finds nothing more."""

    async def only(self, host_uuid: str) -> list[HostRow]:
        """This host, if it passes; it is in no page then."""
        found = await self._rows(_one(self._asked.shape), one=host_uuid)
        self._seen += [row.uuid for row in found]
        return found

    async def next(self, size: int) -> list[HostRow]:
        """At most so many that were in no page before; none, when there are no more."""
        found = await self._some(max(size, _WINDOW) if self._by_chance else size)
        if self._by_chance:
            random.shuffle(found)  # it spreads load, and keeps no secret
        page = found[:size]
        self._seen += [row.uuid for row in page]
        return page

    async def _some(self, limit: int) -> list[HostRow]:
        """At most so many of the next. By what was seen, not by an offset: loads change, and with them the order."""
        found: list[HostRow] = []
        for way in list(self._ways):
            if len(found) < limit:
                more = await self._rows(way, seen=self._seen, size=limit - len(found), drawn=self._drawn)
                found += more
                if not more:
                    self._ways.remove(way)
        return found

    async def missed(self) -> bool:
        """Whether a host that was in no page passes by now, or will once it is connected."""
        return bool(await self._rows(_soon(self._asked.shape), seen=self._seen, size=1))

    async def _rows(self, statement: Prepared, **values: Any) -> list[HostRow]:
        async with self._db.read(single=True) as session:
            return [HostRow(*row) for row in await statement.rows(session, **self._asked.values, **values)]


def _passing(shape: Shape, *statuses: str) -> Select[Any]:
    return hosts().where(*(rule.condition for rule in rules(shape, statuses or (CONNECTED,))))


def _unseen(shape: Shape, *statuses: str) -> Select[Any]:
    unseen = _uuid.not_in(bindparam("seen", expanding=True))
    return _passing(shape, *statuses).where(unseen).limit(bindparam("size", type_=Integer))


@lru_cache(maxsize=256)
def _soon(shape: Shape) -> Prepared:
    return Prepared(_unseen(shape, CONNECTED, CONNECTING))


@lru_cache(maxsize=256)
def _one(shape: Shape) -> Prepared:
    return Prepared(_passing(shape).where(_uuid == bindparam("one")))


@lru_cache(maxsize=256)
def _drawn(shape: Shape) -> tuple[Prepared, Prepared]:
    """From the drawn place to the end, and from the beginning to there."""
    every, place = _unseen(shape).order_by(_uuid), bindparam("drawn", type_=String)
    return Prepared(every.where(_uuid >= place)), Prepared(every.where(_uuid < place))


def _ordered(shape: Shape, strategy: HostAllocatorStrategy, terms: list[Any]) -> Prepared:
    """In the order of these terms, which a strategy of somebody else may make of the request."""
    name = next((name for name, one in STRATEGIES.items() if one is strategy), None)
    return Prepared(_unseen(shape).order_by(*terms)) if name is None else _by_strategy(shape, name)


@lru_cache(maxsize=256)
def _by_strategy(shape: Shape, name: str) -> Prepared:
    return Prepared(_unseen(shape).order_by(*STRATEGIES[name].terms))
