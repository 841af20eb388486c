"""From a query message to SQL: one statement selects a page, one counts.

Invariant: each condition becomes one boolean expression over the target's row; joins and tags become EXISTS, so a
row is found once however many of its joined rows match. What a query may cost is bounded before it runs.
Statements hold no values, and are built once for all queries that differ in nothing else.

A condition that an index answers (a state, a network, the address of a NIC) may leave few rows or nearly all. So it is
asked first which one leaves few, and only that one's index is used. Where all leave many, they are checked while going
through in the wanted order, which finds a page sooner than sorting them. The answer is remembered for the pages after.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, cast

import msgspec
from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    and_,
    bindparam,
    case,
    exists,
    false,
    func,
    inspect,
    null,
    or_,
    select,
    true,
)
from sqlalchemy.orm import ColumnProperty, aliased, selectinload, with_polymorphic
from sqlalchemy.orm.interfaces import ORMOption

from caelum.cloud.query.indexes import finds_many, finds_one, is_indexed, unindexed
from caelum.cloud.query.rows import MAX_RELATION_DEPTH, sheet, shown
from caelum.cloud.query.schema import SPECIAL, Target, child, snake, target, type_field
from caelum.cloud.query.tags import may_be_masked, tag_condition, tagged_with
from caelum.cloud.query.values import Places, compare
from caelum.cloud.query.visibility import ACCOUNT, has_few, is_few, leads_to_few, listed, visible
from caelum.kernel.context import Actor
from caelum.kernel.errors import invalid
from caelum.kernel.message import ApiQuery, Inventory, QueryCondition, reply_type
from caelum.kernel.prepared import Prepared

MAX_CONDITIONS = 100
MAX_JOIN_DEPTH = 4
MAX_JOINS = 32
"""Joins of all conditions of one query together."""
SYNONYMS = {"?=": "in", "!?=": "not in", "~=": "like", "!~=": "not like", "not null": "is not null"}

_START = bindparam("start", type_=Integer(), required=True)
_LIMIT = bindparam("limit", type_=Integer(), required=True)
_LOOKS_UP = ("=", "in")
"""What an index answers by looking values up."""
_MOST_PLANS = 1_000
_FRESH = 30.0
"""Seconds for which it is taken for true what a plan's `ask` was answered."""
_MOST_KNOWN = 64
"""Such answers of one plan."""
_plans: dict[Any, Plan] = {}


class Junction(msgspec.Struct, frozen=True):
    """Conditions of which all, or one, must be met."""

    op: Literal["and", "or"]
    parts: tuple[Tree, ...]


Tree = QueryCondition | Junction


class Found(NamedTuple):
    """What is known before a page is looked for."""

    few: bool
    """The account sees so little that it is listed first."""
    rare: int | None
    """Which of the doubtful conditions leaves so little that its index is worth it."""


class Doubtful(NamedTuple):
    """A condition that all matches meet, and that an index answers, which may find few rows or nearly all."""

    indexed: ColumnElement[bool]
    plain: ColumnElement[bool]
    """The same without that index."""
    few: ColumnElement[bool]
    """Whether the index finds few."""


class Where(NamedTuple):
    """The conditions of a query."""

    clear: ColumnElement[bool]
    """Those of which it is known how they are best answered."""
    doubtful: list[Doubtful]

    def by(self, rare: int | None) -> list[ColumnElement[bool]]:
        """All conditions, with the index of one doubtful condition and without those of the others."""
        numbered = enumerate(self.doubtful)
        return [self.clear, *(one.indexed if number == rare else one.plain for number, one in numbered)]


class Plan:
    """How queries of one shape are answered. Values, account, start and limit have places in its statements."""

    def __init__(
        self,
        target: Target,
        where: Where,
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
        self.ask = self._asked()
        """Asks whether the account sees few, and which condition leaves few; None: that would not help."""
        self.sheet = sheet(target.model, fields)
        self._statements: dict[tuple[str, Found], Select[Any]] = {}
        self._prepared: dict[Select[Any], Prepared] = {}
        self._known: dict[bytes, tuple[float, Found]] = {}

    def _asked(self) -> Select[Any] | None:
        numbered = [(one.few, number) for number, one in enumerate(self._where.doubtful)]
        if self._seen is None and not numbered:
            return None
        few = false() if self._seen is None else is_few(self._seen)
        rare = case(*numbered) if numbered else null()
        return cast("Select[Any]", select(few.label("few"), rare.label("rare")))

    def page(self, found: Found) -> Select[Any]:
        """The statement that selects one page: rows of the sheet or, without one, entities with all that is shown."""
        return self._kept("page", found, self._page)

    def total(self, found: Found) -> Select[Any]:
        """The statement that counts all that match."""
        return self._kept("total", found, select(func.count()).select_from(self.target.model).where)

    def _kept(self, what: str, found: Found, make: Callable[..., Select[Any]]) -> Select[Any]:
        if (what, found) not in self._statements:
            self._statements[what, found] = make(*self._conditions(found))
        return self._statements[what, found]

    def known(self, values: dict[str, Any]) -> Found | None:
        """What was lately known of a query with these values."""
        at, found = self._known.get(_key(values), (-_FRESH, None))
        return found if time.monotonic() - at < _FRESH else None

    def learn(self, values: dict[str, Any], found: Found) -> None:
        """Know this for a while: when it is true no more, a page takes longer, and is the same."""
        self._known.pop(key := _key(values), None)
        self._known[key] = time.monotonic(), found
        if len(self._known) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]

    def prepared(self, statement: Select[Any]) -> Prepared:
        """One of this plan's statements, prepared for the driver; for those that do not select entities."""
        if statement not in self._prepared:
            self._prepared[statement] = Prepared(statement)
        return self._prepared[statement]

    def _page(self, *conditions: ColumnElement[bool]) -> Select[Any]:
        model, mapper = self.target.model, inspect(self.target.model)
        if self.sheet is not None:
            statement = select(*self.sheet.columns)
        else:
            whole = with_polymorphic(model, "*") if mapper.polymorphic_on is not None else model
            wanted = None if self.fields is None else frozenset(self.fields)
            statement = select(whole).options(*_loads(whole, self.target, wanted))
        return statement.where(*conditions).order_by(*self._order).limit(_LIMIT).offset(_START)

    def _conditions(self, found: Found) -> list[ColumnElement[bool]]:
        where = self._where.by(found.rare)
        if self._visible is None:
            return where
        if found.few and self._seen is not None:
            return [self.target.model.uuid.in_(self._seen), *where]
        return [*where, self._visible]


def _key(values: dict[str, Any]) -> bytes:
    """What stands for values, which may be large. Were it the same for others, a page of theirs would take longer."""
    return blake2b(repr(list(values.values())).encode(errors="backslashreplace"), digest_size=16).digest()


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
    where = _where(found, whole, places, restricted=restricted)
    sorting = _order(found, order, restricted=restricted)
    return Plan(found, where, sorting, _fields(found, fields), places, restricted=restricted)


def _where(found: Target, whole: Junction, places: Places, *, restricted: bool) -> Where:
    compiler = _Compiler(places, restricted=restricted)
    where = Where(compiler.tree(found, whole), compiler.doubtful)
    return Where(and_(*where.by(None)), []) if compiler.certain else where


def _shape(tree: Tree) -> Any:
    """What of the conditions decides the statement: everything but the values."""
    if isinstance(tree, QueryCondition):
        return tree.name, tree.op, tree.value is None, tree.name in SPECIAL and may_be_masked(tree)
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
        self.certain = False
        """Whether a condition names one row, or one of few."""
        self.doubtful: list[Doubtful] = []

    def tree(self, at: Target, tree: Tree, *, sure: bool = True) -> ColumnElement[bool]:
        """The conditions without the doubtful; `sure` that every match meets all of them."""
        if isinstance(tree, QueryCondition):
            return self.condition(at, tree, tree.name.split("."), sure=sure)
        sure = sure and (tree.op == "and" or len(tree.parts) == 1)
        parts = [self.tree(at, one, sure=sure) for one in tree.parts]
        return and_(True, *parts) if tree.op == "and" else or_(False, *parts)

    def condition(self, at: Target, one: QueryCondition, path: list[str], *, sure: bool) -> ColumnElement[bool]:
        name, rest = path[0], path[1:]
        if name in SPECIAL and not rest:
            self._pay(one)
            return self._tagged(at, one, sure=sure)
        if name in at.aliases and rest:
            path = [*at.aliases[name].split("."), *rest]
            name, rest = path[0], path[1:]
        if not rest and name in at.lists:
            return at.some_of(name, lambda value: compare(value, one, self._places))
        if not rest:
            return self._own(at, at.column(name, restricted=self._restricted), one, sure=sure)
        if len(path) - 1 > MAX_JOIN_DEPTH:
            raise invalid(one.name, f"the path has {len(path) - 1} joins, at most {MAX_JOIN_DEPTH} may be")
        return self._join(at, one, name, rest, sure=sure)

    def _own(self, at: Target, column: Any, one: QueryCondition, *, sure: bool) -> ColumnElement[bool]:
        """A condition on a column of the target itself."""
        looked_up = sure and _is_looked_up(column, one)
        self.certain = self.certain or (looked_up and finds_one(column))
        if not looked_up or not finds_many(column):
            return compare(column, one, self._places)
        plain = compare(unindexed(column), one, self._places.again())
        indexed = compare(column, one, self._places)
        self.doubtful.append(Doubtful(indexed, plain, has_few(at.model, indexed)))
        return true()

    def _tagged(self, at: Target, one: QueryCondition, *, sure: bool) -> ColumnElement[bool]:
        """A condition on the target's tags."""
        looked_up = sure and one.op in _LOOKS_UP and "uuid" in at.columns
        keys = tagged_with(one, self._places.again(), restricted=self._restricted) if looked_up else None
        plain = tag_condition(at, one, self._places, restricted=self._restricted)
        if keys is None:
            return plain
        self.doubtful.append(Doubtful(at.attribute("uuid").in_(keys), plain, is_few(keys)))
        return true()

    def _join(self, at: Target, one: QueryCondition, name: str, rest: list[str], *, sure: bool) -> ColumnElement[bool]:
        self._pay(one)
        here, there, key = _joined(at, name)
        seen = [visible(there.model)] if self._restricted else []
        looked_up = sure and is_indexed(here)
        keys = self._keys(there, one, rest, key, restricted=self._restricted) if looked_up else None
        # Also what the account does not see is counted: how many rows are looked at to find what it sees?
        counted = self._keys(there, one, rest, key, restricted=False) if looked_up else None
        plain = exists().where(key == here, self._beyond(there, one, rest, key), *seen).correlate(at.model)
        if keys is None or counted is None:
            return plain
        self.doubtful.append(Doubtful(here.in_(keys), plain, leads_to_few(counted, at.model, here)))
        return true()

    def _keys(
        self, there: Target, one: QueryCondition, rest: list[str], key: Any, *, restricted: bool
    ) -> Select[Any] | None:
        """The keys of the joined rows that meet a condition, where they are found without going through what they are
        joined with; `restricted` to what the account sees."""
        name, beyond = rest[0], rest[1:]
        seen = [visible(there.model)] if restricted else []
        if not beyond:
            if name not in there.columns:
                return None
            column = there.column(name, restricted=self._restricted)
            return select(key).where(compare(column, one, self._places.again()), *seen)
        if name in there.aliases or beyond[0] in SPECIAL:
            return None
        here, further, inner = _joined(there, name)
        keys = self._keys(further, one, beyond, inner, restricted=restricted)
        return None if keys is None else select(key).where(here.in_(keys), *seen)

    def _beyond(self, there: Target, one: QueryCondition, rest: list[str], key: Any) -> ColumnElement[bool]:
        """A condition on what is joined. The rows that belong to one row are few: no index is better than theirs."""
        name = rest[0]
        if len(rest) > 1 or name in SPECIAL or name in there.lists or not is_indexed(key):
            return self.condition(there, one, rest, sure=False)
        column = there.column(name, restricted=self._restricted)
        return compare(unindexed(column) if is_indexed(column) else column, one, self._places)

    def _pay(self, one: QueryCondition) -> None:
        self.joins += 1
        if self.joins > MAX_JOINS:
            raise invalid(one.name, f"the query has more than {MAX_JOINS} joins")


def _joined(at: Target, name: str) -> tuple[Any, Target, Any]:
    """The column that leads to a join, what it leads to, and the column there that equals it."""
    expand, leads_to = at.follow(name)
    # An alias of its own per join: a path may come back to a table that it started from.
    there = msgspec.structs.replace(leads_to, model=aliased(leads_to.model))
    return at.attribute(snake(expand.foreign_key)), there, there.attribute(snake(expand.key))


def _is_looked_up(column: Any, one: QueryCondition) -> bool:
    """Whether an index answers a condition on this column."""
    return one.op in _LOOKS_UP and is_indexed(column)


def _order(found: Target, wanted: Sequence[tuple[str, str]], *, restricted: bool) -> tuple[Any, ...]:
    """The asked order, then the primary key, so that pages neither overlap nor leave gaps."""
    order = []
    for field, direction in wanted:
        column = found.column(field, restricted=restricted)
        if direction not in ("asc", "desc"):
            raise invalid("sortDirection", f"must be asc or desc, but {direction[:64]} found")
        order.append(_ordered(column, direction, may_be_null=not _is_filled(found, column)))
    return (*order, *inspect(found.model).primary_key)


def _ordered(column: Any, direction: str, *, may_be_null: bool) -> Any:
    """Nothing comes before everything, on every database. Where that cannot be, PostgreSQL is not told of it: its
    indexes are in another order."""
    if direction == "desc":
        return column.desc().nulls_last() if may_be_null else column.desc()
    return column.asc().nulls_first() if may_be_null else column.asc()


def _is_filled(found: Target, column: Any) -> bool:
    """Whether every row has a value in this column."""
    kept = getattr(column, "property", None)
    if not isinstance(kept, ColumnProperty):
        return False
    (first, *_) = kept.columns
    return first.table is inspect(found.model).local_table and not first.nullable


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
