"""From a query message to SQL: one statement selects a page, one counts.

Invariant: each condition becomes one boolean expression over the target's row; joins and tags become EXISTS, so a
row is found once however many of its joined rows match. What a query may cost is bounded before it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import ColumnElement, Select, and_, exists, func, inspect, or_, select
from sqlalchemy.orm import aliased, selectinload, with_polymorphic
from sqlalchemy.orm.interfaces import ORMOption

from caelum.cloud.query.schema import SPECIAL, Target, child, snake, target, type_field
from caelum.cloud.query.tags import tag_condition
from caelum.cloud.query.values import compare
from caelum.cloud.query.visibility import visible
from caelum.kernel.context import Actor
from caelum.kernel.errors import invalid
from caelum.kernel.message import ApiQuery, Inventory, QueryCondition, reply_type

MAX_CONDITIONS = 100
MAX_JOIN_DEPTH = 4
MAX_JOINS = 32
"""Joins of all conditions of one query together."""
MAX_RELATION_DEPTH = 3
SYNONYMS = {"?=": "in", "!?=": "not in", "~=": "like", "!~=": "not like", "not null": "is not null"}


class Junction(msgspec.Struct, frozen=True):
    """Conditions of which all, or one, must be met."""

    op: Literal["and", "or"]
    parts: tuple[Tree, ...]


Tree = QueryCondition | Junction


class Plan(msgspec.Struct, frozen=True):
    """A compiled query."""

    target: Target
    where: ColumnElement[bool]
    order: tuple[Any, ...]
    fields: tuple[str, ...] | None

    def page(self, start: int, limit: int) -> Select[Any]:
        """The statement that selects one page, with everything that the inventories show."""
        model, mapper = self.target.model, inspect(self.target.model)
        whole = with_polymorphic(model, "*") if mapper.polymorphic_on is not None else model
        statement = select(whole).where(self.where).order_by(*self.order)
        wanted = None if self.fields is None else frozenset(self.fields)
        return statement.offset(start or None).limit(limit).options(*_loads(whole, self.target, wanted))

    def total(self) -> Select[Any]:
        """The statement that counts all that match."""
        return select(func.count()).select_from(self.target.model).where(self.where)


def compile_query(msg: ApiQuery[Any], actor: Actor) -> Plan:
    """The plan of a query as this actor may run it. Raises SYS.1007 naming the field at fault."""
    conditions = [_normalised(one) for one in dict.fromkeys(msg.conditions)]
    if len(conditions) > MAX_CONDITIONS:
        raise invalid("conditions", f"{len(conditions)} conditions are given, at most {MAX_CONDITIONS} may be")
    found = _switched(target(reply_type(type(msg))), conditions)
    where = _where(found, Junction("and", tuple(conditions)), actor)
    order = [] if msg.sort_by is None else [(msg.sort_by, msg.sort_direction)]
    return Plan(found, where, _order(found, order), _fields(found, msg.fields))


def compile_tree(
    inventory: type[Inventory], tree: Tree | None, order: Sequence[tuple[str, str]], fields: Sequence[str], actor: Actor
) -> Plan:
    """The same for conditions that are joined by `and` and `or`; `order` has fields with asc or desc."""
    whole = Junction("and", () if tree is None else (tree,))
    found = _switched(target(inventory), _certain(whole))
    return Plan(found, _where(found, whole, actor), _order(found, order), _fields(found, fields))


def _where(found: Target, tree: Junction, actor: Actor) -> ColumnElement[bool]:
    compiled = _Compiler(actor).tree(found, tree)
    return compiled if actor.is_admin else and_(compiled, visible(found.model, actor.account_uuid))


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
    """Conditions of one query, with what they have cost so far.

    A condition on what a row is joined with looks only at rows that the actor sees, or it would tell of the others.
    """

    def __init__(self, actor: Actor) -> None:
        self.joins, self._actor = 0, actor

    def tree(self, at: Target, tree: Tree) -> ColumnElement[bool]:
        if isinstance(tree, QueryCondition):
            return self.condition(at, tree, tree.name.split("."))
        parts = [self.tree(at, one) for one in tree.parts]
        return and_(True, *parts) if tree.op == "and" else or_(False, *parts)

    def condition(self, at: Target, one: QueryCondition, path: list[str]) -> ColumnElement[bool]:
        name, rest = path[0], path[1:]
        if name in SPECIAL and not rest:
            self._pay(one)
            return tag_condition(at, name, one)
        if name in at.aliases and rest:
            path = [*at.aliases[name].split("."), *rest]
            name, rest = path[0], path[1:]
        if not rest and name in at.lists:
            return at.some_of(name, lambda value: compare(value, one))
        if not rest:
            return compare(at.column(name), one)
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
        seen = [] if self._actor.is_admin else [visible(there.model, self._actor.account_uuid)]
        return exists().where(linked, *seen, self.condition(there, one, rest)).correlate(at.model)

    def _pay(self, one: QueryCondition) -> None:
        self.joins += 1
        if self.joins > MAX_JOINS:
            raise invalid(one.name, f"the query has more than {MAX_JOINS} joins")


def _order(found: Target, wanted: Sequence[tuple[str, str]]) -> tuple[Any, ...]:
    """The asked order, then the primary key, so that pages neither overlap nor leave gaps."""
    order = []
    for field, direction in wanted:
        column = found.column(field)
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
            found.column(name)  # raises with the list of what there is
    return tuple(dict.fromkeys(wanted))


def _loads(whole: Any, found: Target, wanted: frozenset[str] | None) -> list[ORMOption]:
    """One more statement per relationship, whatever the page's size. `whole` is the entity that is selected."""
    asked = None if wanted is None else {name for wire, name in found.relations.items() if wire in wanted}
    options: list[ORMOption] = []
    seen: set[Any] = set()
    root = inspect(found.model)
    for mapper in root.self_and_descendants:
        entity = whole if mapper is root else getattr(whole, mapper.class_.__name__)
        shown = asked if asked is not None else _shown(mapper)
        for relation in mapper.relationships:
            if relation.key in shown and relation not in seen:
                seen.add(relation)
                options.append(_load(getattr(entity, relation.key), relation, MAX_RELATION_DEPTH))
    return options


def _load(attribute: Any, relation: Any, depth: int) -> Any:
    """How to load a relationship, and what its inventories show in turn."""
    load, inner = selectinload(attribute), relation.mapper
    if depth == 1:
        return load
    shown = _shown(inner)
    further = [one for one in inner.relationships if one.key in shown]
    return load.options(*(_load(getattr(inner.class_, one.key), one, depth - 1) for one in further))


def _shown(mapper: Any) -> set[str]:
    inventory = getattr(mapper.class_, "__inventory__", None)
    return set() if inventory is None else set(inventory.__struct_fields__)
