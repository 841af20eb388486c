"""From a query message to SQL: one statement selects a page, one counts.

Invariant: each condition becomes one boolean expression over the target's row; joins and tags become EXISTS, so a
row is found once however many of its joined rows match. What a query may cost is bounded before it runs.
Statements hold no values, and are built once for all queries that differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Integer, Select, and_, bindparam, exists, func, inspect, or_, select
from sqlalchemy.orm import aliased, selectinload, with_polymorphic
from sqlalchemy.orm.interfaces import ORMOption

from caelum.cloud.query.rows import MAX_RELATION_DEPTH, sheet, shown
from caelum.cloud.query.schema import SPECIAL, Target, child, snake, target, type_field
from caelum.cloud.query.tags import tag_condition
from caelum.cloud.query.values import Places, compare
from caelum.cloud.query.visibility import ACCOUNT, is_few, listed, visible
from caelum.kernel.context import Actor
from caelum.kernel.errors import invalid
from caelum.kernel.message import ApiQuery, Inventory, QueryCondition, reply_type

MAX_CONDITIONS = 100
MAX_JOIN_DEPTH = 4
MAX_JOINS = 32
"""Joins of all conditions of one query together."""
SYNONYMS = {"?=": "in", "!?=": "not in", "~=": "like", "!~=": "not like", "not null": "is not null"}

_START = bindparam("start", type_=Integer(), required=True)
_LIMIT = bindparam("limit", type_=Integer(), required=True)
_MOST_PLANS = 1_000
_plans: dict[Any, Plan] = {}


class Junction(msgspec.Struct, frozen=True):
    """Conditions of which all, or one, must be met."""

    op: Literal["and", "or"]
    parts: tuple[Tree, ...]


Tree = QueryCondition | Junction


class Plan:
    """How queries of one shape are answered. Values, account, start and limit have places in its statements."""

    def __init__(
        self,
        target: Target,
        where: ColumnElement[bool],
        order: tuple[Any, ...],
        fields: tuple[str, ...] | None,
        places: Places,
        *,
        restricted: bool,
    ) -> None:
        self.target, self.fields, self.places = target, fields, places
        self._where, self._order = where, order
        self._seen = listed(target.model) if restricted else None
        self._visible = visible(target.model) if restricted else None
        self.few = None if self._seen is None else is_few(self._seen)
        """Asks whether the account sees so little that it is listed first; None: that would not help."""
        self.sheet = sheet(target.model, fields)
        self._statements: dict[tuple[str, bool], Select[Any]] = {}

    def page(self, *, few: bool) -> Select[Any]:
        """The statement that selects one page: rows of the sheet or, without one, entities with all that is shown."""
        return self._kept("page", few, self._page)

    def total(self, *, few: bool) -> Select[Any]:
        """The statement that counts all that match."""
        return self._kept("total", few, select(func.count()).select_from(self.target.model).where)

    def _kept(self, what: str, few: bool, make: Callable[..., Select[Any]]) -> Select[Any]:
        if (what, few) not in self._statements:
            self._statements[what, few] = make(*self._conditions(few=few))
        return self._statements[what, few]

    def _page(self, *conditions: ColumnElement[bool]) -> Select[Any]:
        model, mapper = self.target.model, inspect(self.target.model)
        if self.sheet is not None:
            statement = select(*self.sheet.columns)
        else:
            whole = with_polymorphic(model, "*") if mapper.polymorphic_on is not None else model
            wanted = None if self.fields is None else frozenset(self.fields)
            statement = select(whole).options(*_loads(whole, self.target, wanted))
        return statement.where(*conditions).order_by(*self._order).limit(_LIMIT).offset(_START)

    def _conditions(self, *, few: bool) -> list[ColumnElement[bool]]:
        if self._visible is None:
            return [self._where]
        if few and self._seen is not None:
            return [self.target.model.uuid.in_(self._seen), self._where]
        return [self._where, self._visible]


class Query(NamedTuple):
    """A query as an actor may run it: its plan, and the values in it."""

    plan: Plan
    values: dict[str, Any]


def compile_query(msg: ApiQuery[Any], actor: Actor) -> Query:
    """The query as this actor may run it. Raises SYS.1007 naming the field at fault."""
    conditions = [_normalised(one) for one in dict.fromkeys(msg.conditions)]
    if len(conditions) > MAX_CONDITIONS:
        raise invalid("conditions", f"{len(conditions)} conditions are given, at most {MAX_CONDITIONS} may be")
    order = () if msg.sort_by is None else ((msg.sort_by, msg.sort_direction),)
    return compile_tree(reply_type(type(msg)), Junction("and", tuple(conditions)), order, msg.fields or (), actor)


def compile_tree(
    inventory: type[Inventory], tree: Tree | None, order: Sequence[tuple[str, str]], fields: Sequence[str], actor: Actor
) -> Query:
    """The same for conditions that are joined by `and` and `or`; `order` has fields with asc or desc."""
    whole = Junction("and", () if tree is None else (tree,))
    found = _switched(target(inventory), _certain(whole))
    key = (found.inventory, _shape(whole), tuple(order), tuple(fields), actor.is_admin)
    plan = _plans.get(key)
    if plan is None:
        plan = _planned(found, whole, order, fields, restricted=not actor.is_admin)
    values = plan.places.values(_leaves(whole)) | ({} if actor.is_admin else {ACCOUNT: actor.account_uuid})
    # Only what was answered once is kept, and the oldest goes.
    _plans[key] = _plans.pop(key, plan)
    if len(_plans) > _MOST_PLANS:
        del _plans[next(iter(_plans))]
    return Query(plan, values)


def _planned(
    found: Target, whole: Junction, order: Sequence[tuple[str, str]], fields: Sequence[str], *, restricted: bool
) -> Plan:
    places = Places()
    where = _Compiler(places, restricted=restricted).tree(found, whole)
    sorting = _order(found, order, restricted=restricted)
    return Plan(found, where, sorting, _fields(found, fields), places, restricted=restricted)


def _shape(tree: Tree) -> Any:
    """What of the conditions decides the statement: everything but the values."""
    if isinstance(tree, QueryCondition):
        return tree.name, tree.op, tree.value is None
    return tree.op, *(_shape(one) for one in tree.parts)


def _leaves(tree: Tree) -> list[QueryCondition]:
    """The conditions, in the order in which they are compiled."""
    return [tree] if isinstance(tree, QueryCondition) else [one for part in tree.parts for one in _leaves(part)]


def _certain(tree: Tree) -> list[QueryCondition]:
    """The conditions that every match meets."""
    if isinstance(tree, QueryCondition):
        return [tree]
    return [one for part in tree.parts for one in _certain(part)] if tree.op == "and" else []


def _normalised(one: QueryCondition) -> QueryCondition:
    op = " ".join(one.op.split())
    return QueryCondition(one.name.strip(), SYNONYMS.get(op, op), one.value)


def _switched(found: Target, conditions: list[QueryCondition]) -> Target:
    """A condition that fixes the type field makes the child inventory the target, with its own fields."""
    field = type_field(found)
    for one in conditions:
        if field is not None and one.name == field and one.op == "=" and one.value is not None:
            return child(found, one.value) or found
    return found


class _Compiler:
    """Conditions of one query, with what they have cost so far; `restricted` to what an ordinary account sees.

    A condition on what a row is joined with looks only at rows that the account sees, or it would tell of the others.
    """

    def __init__(self, places: Places, *, restricted: bool) -> None:
        self.joins, self._places, self._restricted = 0, places, restricted

    def tree(self, at: Target, tree: Tree) -> ColumnElement[bool]:
        if isinstance(tree, QueryCondition):
            return self.condition(at, tree, tree.name.split("."))
        parts = [self.tree(at, one) for one in tree.parts]
        return and_(True, *parts) if tree.op == "and" else or_(False, *parts)

    def condition(self, at: Target, one: QueryCondition, path: list[str]) -> ColumnElement[bool]:
        name, rest = path[0], path[1:]
        if name in SPECIAL and not rest:
            self._pay(one)
            return tag_condition(at, name, one, self._places, restricted=self._restricted)
        if name in at.aliases and rest:
            path = [*at.aliases[name].split("."), *rest]
            name, rest = path[0], path[1:]
        if not rest and name in at.lists:
            return at.some_of(name, lambda value: compare(value, one, self._places))
        if not rest:
            return compare(at.column(name, restricted=self._restricted), one, self._places)
        if len(path) - 1 > MAX_JOIN_DEPTH:
            raise invalid(one.name, f"the path has {len(path) - 1} joins, at most {MAX_JOIN_DEPTH} may be")
        return self._join(at, one, name, rest)

    def _join(self, at: Target, one: QueryCondition, name: str, rest: list[str]) -> ColumnElement[bool]:
        self._pay(one)
        expand, leads_to = at.follow(name)
        # An alias of its own per join: a path may come back to a table that it started from.
        there = msgspec.structs.replace(leads_to, model=aliased(leads_to.model))
        here = at.attribute(snake(expand.foreign_key))
        linked = there.attribute(snake(expand.key)) == here
        seen = [visible(there.model)] if self._restricted else []
        return exists().where(linked, self.condition(there, one, rest), *seen).correlate(at.model)

    def _pay(self, one: QueryCondition) -> None:
        self.joins += 1
        if self.joins > MAX_JOINS:
            raise invalid(one.name, f"the query has more than {MAX_JOINS} joins")


def _order(found: Target, wanted: Sequence[tuple[str, str]], *, restricted: bool) -> tuple[Any, ...]:
    """The asked order, then the primary key, so that pages neither overlap nor leave gaps."""
    order = []
    for field, direction in wanted:
        column = found.column(field, restricted=restricted)
        if direction not in ("asc", "desc"):
            raise invalid("sortDirection", f"must be asc or desc, but {direction[:64]} found")
        # Nothing comes before everything, on every database.
        order.append(column.desc().nulls_last() if direction == "desc" else column.asc().nulls_first())
    return (*order, *inspect(found.model).primary_key)


def _fields(found: Target, wanted: Sequence[str] | None) -> tuple[str, ...] | None:
    if not wanted:
        return None
    known = {one.encode_name for one in msgspec.structs.fields(found.inventory)}
    for name in wanted:
        if name not in known:
            found.column(name, restricted=True)  # raises with the list of what there is
    return tuple(dict.fromkeys(wanted))


def _loads(whole: Any, found: Target, wanted: frozenset[str] | None) -> list[ORMOption]:
    """One more statement per relationship, whatever the page's size. `whole` is the entity that is selected."""
    asked = None if wanted is None else {name for wire, name in found.relations.items() if wire in wanted}
    options: list[ORMOption] = []
    seen: set[Any] = set()
    root = inspect(found.model)
    for mapper in root.self_and_descendants:
        entity = whole if mapper is root else getattr(whole, mapper.class_.__name__)
        wanted_here = asked if asked is not None else shown(mapper)
        for relation in mapper.relationships:
            if relation.key in wanted_here and relation not in seen:
                seen.add(relation)
                options.append(_load(getattr(entity, relation.key), relation, MAX_RELATION_DEPTH))
    return options


def _load(attribute: Any, relation: Any, depth: int) -> Any:
    """How to load a relationship, and what its inventories show in turn."""
    load, inner = selectinload(attribute), relation.mapper
    if depth == 1:
        return load
    further = [one for one in inner.relationships if one.key in shown(inner)]
    return load.options(*(_load(getattr(inner.class_, one.key), one, depth - 1) for one in further))
