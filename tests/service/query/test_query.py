"""Queries against a toy zoo: compared with filtering by hand, and their limits, joins, tags and errors."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from caelum.cloud.identity.service import IdentityService
from caelum.cloud.ownership import SharedResourceModel, own
from caelum.cloud.query import compile as query_compile
from caelum.cloud.query import service as query_service
from caelum.cloud.query import visibility
from caelum.cloud.query.api import ZQLQuery, ZqlResult
from caelum.cloud.query.service import QueryService
from caelum.kernel.context import Actor
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import derived_uuid, new_uuid
from caelum.kernel.message import QueryCondition
from caelum.kernel.tag import SystemTagModel, UserTagModel
from caelum.testing.cloud import EmbeddedCloud
from query.toys import (
    DogInventory,
    DogModel,
    KeeperModel,
    PetModel,
    QueryKeeper,
    QueryPet,
    QueryToy,
    ToyModel,
    ToyService,
)

NAMES = ["ant", "Bee", "bee", "cat%", "d_g", "élan", "", "a,b"]
BORN = [dt.datetime(2020, 1, 1), dt.datetime(2021, 6, 5, 13, 30), dt.datetime(2026, 11, 22, 19, 15, 56)]
FRANK, EVE = new_uuid(), new_uuid()


def uuid(*parts: object) -> str:
    return derived_uuid("zoo", *(str(one) for one in parts))


class Zoo:
    """A cloud with some keepers, pets and toys, and the same as plain dictionaries."""

    def __init__(self, cloud: EmbeddedCloud) -> None:
        self.cloud = cloud
        self.rows: list[dict[str, Any]] = []

    async def fill(self) -> None:
        dice = random.Random(7)
        async with self.cloud.node.db.transaction() as tx:
            for n in range(4):
                tx.add(KeeperModel(uuid=uuid("keeper", n), name=f"keeper{n}"))
            for n in range(40):
                tx.add(self._pet(n, dice))
            await tx.flush()
            for row in self.rows:
                for n, name in enumerate(row["toyNames"]):
                    tx.add(ToyModel(uuid=uuid("toy", row["uuid"], n), name=name, pet_uuid=row["uuid"]))
                for text in row["tags"]:
                    tx.add(UserTagModel(uuid=new_uuid(), resource_uuid=row["uuid"], resource_type="PetVO", tag=text))
                if row["owner"]:
                    await own(tx, row["owner"], row["uuid"], "PetVO")

    def _pet(self, n: int, dice: random.Random) -> PetModel:
        kind = dice.choice(["pet", "dog"])
        keeper = dice.choice([None, 0, 1, 2])
        values: dict[str, Any] = {
            "uuid": uuid("pet", n),
            "name": dice.choice(NAMES),
            "age": dice.choice([None, 0, 1, 2, 3, 10]),
            "weight": dice.choice([1, 5, 2**40]),
            "tame": dice.choice([True, False]),
            "keeper_uuid": None if keeper is None else uuid("keeper", keeper),
            "born": dice.choice([None, *BORN]),
        }
        barks = dice.choice([None, 1, 2])
        self.rows.append(
            {
                **values,
                "kind": kind,
                "keeperUuid": values["keeper_uuid"],
                "keeper.name": [] if keeper is None else [f"keeper{keeper}"],
                "toyNames": dice.sample(["ball", "bone", "Ball"], dice.randint(0, 3)),
                "tags": dice.sample(["red", "blue"], dice.randint(0, 2)),
                "owner": dice.choice([None, FRANK, EVE]),
                "barks": barks,
            }
        )
        return DogModel(**values, barks=barks) if kind == "dog" else PetModel(**values)

    async def ask(self, *conditions: QueryCondition, actor: Actor | None = None, **more: Any) -> list[str]:
        reply = await self.cloud.api(QueryPet(conditions=list(conditions), **more), actor)
        return [one.uuid for one in reply.inventories or []]


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zoo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Zoo]:
    async with EmbeddedCloud(tmp_path_factory.mktemp("zoo"), [IdentityService, QueryService, ToyService]) as cloud:
        made = Zoo(cloud)
        await made.fill()
        yield made


def like(value: str, pattern: str) -> bool:
    """SQL's LIKE without case, written again as simply as possible."""
    if not pattern:
        return not value
    head, rest = pattern[0], pattern[1:]
    if head == "%":
        return any(like(value[n:], rest) for n in range(len(value) + 1))
    return bool(value) and (head == "_" or head.lower() == value[0].lower()) and like(value[1:], rest)


COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
}


def holds(row: dict[str, Any], condition: QueryCondition) -> bool:
    """Whether a row meets a condition, with SQL's idea of NULL: it meets nothing but `is null`."""
    name, op, value = condition.name, condition.op, condition.value
    if name == "toys.name":
        return any(compare(one, op, value, str) for one in row["toyNames"])
    if name == "keeper.name":
        return any(compare(one, op, value, str) for one in row["keeper.name"])
    if name == "__userTag__":
        positive = {"!=": "=", "not in": "in", "not like": "like", "is null": "is not null"}.get(op)
        return any(compare(one, positive or op, value, str) for one in row["tags"]) is (positive is None)
    kinds = {"age": int, "weight": int, "tame": lambda text: text == "true", "born": dt.datetime.fromisoformat}
    return compare(row[name], op, value, kinds.get(name, str))


def compare(actual: Any, op: str, value: str | None, kind: Callable[[str], Any]) -> bool:
    if op in ("is null", "is not null"):
        return (actual is None) == (op == "is null")
    if actual is None or value is None:
        return False
    if op in ("in", "not in"):
        return (actual in [kind(one) for one in value.split(",")]) == (op == "in")
    if op in ("like", "not like"):
        return like(actual, value) == (op == "like")
    return COMPARE[op](actual, kind(value))


TEXTS = st.sampled_from([*NAMES[:-2], "be%", "%", "%e%", "_ee", "ball", "bone", "red", "blue", "keeper1", "keeper%"])
TEXT_OPS = st.sampled_from(["=", "!=", "like", "not like", "in", "not in", "is null", "is not null", ">", "<="])
NUMBER_OPS = st.sampled_from([*COMPARE, "in", "not in", "is null", "is not null"])
TEXT_FIELDS = st.sampled_from(["name", "kind", "toys.name", "keeper.name", "__userTag__", "keeperUuid"])
CONDITIONS = st.one_of(
    st.builds(QueryCondition, TEXT_FIELDS, TEXT_OPS, TEXTS),
    st.builds(QueryCondition, st.sampled_from(["age", "weight"]), NUMBER_OPS, st.sampled_from(["0", "1", "2", "5"])),
    st.builds(QueryCondition, st.just("born"), NUMBER_OPS, st.sampled_from([one.isoformat() for one in BORN])),
    st.builds(QueryCondition, st.just("tame"), st.sampled_from(["=", "!="]), st.sampled_from(["true", "false"])),
)


class TestAgainstBruteForce:
    async def test_any_conditions_find_what_filtering_by_hand_finds(self, zoo: Zoo) -> None:
        loop = asyncio.get_running_loop()

        @given(st.lists(CONDITIONS, max_size=4), st.sampled_from([None, FRANK]), st.sampled_from(["name", "age", None]))
        @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
        def check(conditions: list[QueryCondition], account: str | None, sort: str | None) -> None:
            asyncio.run_coroutine_threadsafe(compare_both(conditions, account, sort), loop).result(20)

        async def compare_both(conditions: list[QueryCondition], account: str | None, sort: str | None) -> None:
            actor = None if account is None else Actor(account, account)
            expected = [
                row["uuid"]
                for row in zoo.rows
                if all(holds(row, one) for one in conditions) and (account is None or row["owner"] in (None, account))
            ]
            found = await zoo.ask(*conditions, actor=actor, sort_by=sort)
            assert sorted(found) == sorted(expected)
            assert await paged(conditions, actor, sort) == found
            counted = await zoo.cloud.api(QueryPet(conditions=conditions, count=True), actor)
            assert counted.total == len(expected)
            assert counted.inventories is None

        async def paged(conditions: list[QueryCondition], actor: Actor | None, sort: str | None) -> list[str]:
            pages = []
            for start in range(0, 40, 7):
                pages += await zoo.ask(*conditions, actor=actor, sort_by=sort, start=start, limit=7)
            return pages

        await asyncio.to_thread(check)


class TestShape:
    async def test_a_page_costs_a_constant_number_of_statements(
        self, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fewer when it is remembered how much the conditions leave."""
        monkeypatch.setattr(query_compile, "_plans", {})
        db = zoo.cloud.node.db
        toys = ",".join(uuid("toy", row["uuid"], 0) for row in zoo.rows)
        looked_up = [QueryCondition("toys.uuid", "in", toys)]
        for conditions, costs in ((looked_up, (4, 3)), ([], (3, 3))):
            for limit, cost in zip((1, 40), costs, strict=True):
                before = db.statements
                reply = await zoo.cloud.api(QueryPet(conditions=conditions, limit=limit, reply_with_count=True))
                assert db.statements - before == cost
        assert reply.total == 40
        with_toys = next(one for one in reply.inventories or [] if one.toys)
        assert {toy.pet_uuid for toy in with_toys.toys} == {with_toys.uuid}
        assert with_toys.secret_free == f"{with_toys.name}!"

    async def test_fields_are_all_that_is_answered(self, zoo: Zoo) -> None:
        reply = await zoo.cloud.api(QueryPet(fields=["uuid", "age"], limit=3))
        assert all(set(one) <= {"uuid", "age"} for one in reply.inventories or [])

    async def test_the_type_field_leads_to_the_child_inventory_and_its_fields(self, zoo: Zoo) -> None:
        dog = QueryCondition("kind", "=", "dog")
        reply = await zoo.cloud.api(QueryPet(conditions=[dog, QueryCondition("barks", ">=", "1")]))
        expected = [row for row in zoo.rows if row["kind"] == "dog" and (row["barks"] or 0) >= 1]
        assert len(reply.inventories or []) == len(expected) > 0
        assert all(isinstance(one, DogInventory) for one in reply.inventories or [])
        with pytest.raises(CloudError, match=r"no queryable field\[barks\]"):
            await zoo.ask(QueryCondition("barks", "=", "1"))

    async def test_sorting_goes_both_ways(self, zoo: Zoo) -> None:
        up = await zoo.cloud.api(QueryPet(sort_by="weight"))
        down = await zoo.cloud.api(QueryPet(sort_by="weight", sort_direction="desc"))
        weights = [one.weight for one in up.inventories or []]
        assert weights == sorted(weights)
        assert [one.weight for one in down.inventories or []] == sorted(weights, reverse=True)

    async def test_a_result_is_never_cut_silently(self, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(query_service, "MAX_PAGE", 10)
        assert len(await zoo.ask(limit=10)) == 10
        with pytest.raises(CloudError, match="more than 10 rows match"):
            await zoo.ask(limit=1000)


class TestJoins:
    async def test_three_hops_and_an_alias(self, zoo: Zoo) -> None:
        expected = {row["keeperUuid"] for row in zoo.rows if "bone" in row["toyNames"]} - {None}
        for path in ("pets.toys.name", "toy.name"):
            reply = await zoo.cloud.api(QueryKeeper(conditions=[QueryCondition(path, "=", "bone")]))
            assert {one.uuid for one in reply.inventories or []} == expected
        back = QueryCondition("pet.keeper.pets.name", "=", "ant")
        keepers = {row["keeperUuid"] for row in zoo.rows if row["name"] == "ant"} - {None}
        toys = sum(len(row["toyNames"]) for row in zoo.rows if row["keeperUuid"] in keepers)
        reply = await zoo.cloud.api(QueryToy(conditions=[back], count=True))
        assert reply.total == toys

    async def test_cost_is_limited(self, zoo: Zoo) -> None:
        with pytest.raises(CloudError, match="at most 4"):
            await zoo.ask(QueryCondition("keeper.pets.keeper.pets.keeper.name", "=", "x"))
        with pytest.raises(CloudError, match="more than 32 joins"):
            await zoo.ask(*(QueryCondition("toys.name", "=", str(n)) for n in range(33)))
        with pytest.raises(CloudError, match="at most 100"):
            await zoo.ask(*(QueryCondition("name", "=", str(n)) for n in range(101)))
        with pytest.raises(CloudError, match="at most 1000"):
            await zoo.ask(QueryCondition("name", "in", ",".join(map(str, range(1001)))))

    async def test_a_join_to_something_that_is_not_loaded_says_so(self, zoo: Zoo) -> None:
        with pytest.raises(CloudError, match="NowhereInventory, which is not loaded"):
            await zoo.cloud.api(QueryKeeper(conditions=[QueryCondition("lost.name", "=", "x")]))


class TestRefusals:
    async def test_an_unknown_field_is_named_and_the_known_ones_are_listed(self, zoo: Zoo) -> None:
        with pytest.raises(CloudError) as caught:
            await zoo.ask(QueryCondition("nmae", "=", "x"))
        assert caught.value.code == "SYS.1007"
        assert "field[nmae]" in caught.value.details
        assert {"name", "age", "toys.*", "keeper.*"} <= set(caught.value.facts["known"])

    @pytest.mark.parametrize("name", ["password", "secretFree", "toys", "__class__", "metadata", "uuid; drop table"])
    async def test_only_stored_inventory_fields_can_be_asked_for(self, zoo: Zoo, name: str) -> None:
        with pytest.raises(CloudError, match="no queryable field"):
            await zoo.ask(QueryCondition(name, "=", "x"))
        with pytest.raises(CloudError, match="no queryable field"):
            await zoo.ask(sort_by=name)

    @pytest.mark.parametrize(
        ("name", "op", "value", "wanted"),
        [
            ("age", "=", "old", "whole number"),
            ("age", "=", str(2**63), "64 bits"),
            ("tame", "=", "maybe", "true or false"),
            ("born", ">", "yesterday", "a time"),
            ("name", "~", "x", "operator"),
            ("name", "=", None, "a value for"),
        ],
    )
    async def test_bad_values_are_refused(self, zoo: Zoo, name: str, op: str, value: str | None, wanted: str) -> None:
        with pytest.raises(CloudError, match=wanted) as caught:
            await zoo.ask(QueryCondition(name, op, value))
        assert caught.value.code == "SYS.1007"

    async def test_values_are_values_and_never_sql(self, zoo: Zoo) -> None:
        assert await zoo.ask(QueryCondition("name", "=", "x' OR '1'='1")) == []
        assert await zoo.ask(QueryCondition("name", "like", "\\")) == []
        assert len(await zoo.ask(QueryCondition("name", "like", "cat\\%"))) == sum(
            r["name"] == "cat%" for r in zoo.rows
        )

    async def test_windows_and_filters(self, zoo: Zoo) -> None:
        for bad in ({"limit": -1}, {"start": -1}, {"filter_name": "x:y"}, {"sort_by": "name", "sort_direction": "up"}):
            with pytest.raises(CloudError, match="field"):
                await zoo.ask(**bad)
        assert await zoo.ask(limit=0) == []


class TestVisibility:
    async def test_sharing_opens_what_is_shared_and_nothing_else(self, zoo: Zoo) -> None:
        frank = Actor(FRANK, FRANK)
        before = set(await zoo.ask(actor=frank))
        eves = [row["uuid"] for row in zoo.rows if row["owner"] == EVE]
        assert not before & set(eves)
        async with zoo.cloud.node.db.transaction() as tx:
            to_frank, to_all = eves[:2]
            for one, receiver in ((to_frank, FRANK), (to_all, None)):
                tx.add(
                    SharedResourceModel(
                        owner_account_uuid=EVE,
                        receiver_account_uuid=receiver,
                        to_public=receiver is None,
                        resource_type="PetVO",
                        resource_uuid=one,
                    )
                )
        assert set(await zoo.ask(actor=frank)) == before | {to_frank, to_all}

    async def test_few_and_many_are_found_alike(self, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(visibility, "OWNED", frozenset({"ToyVO"}))
        async with zoo.cloud.node.db.transaction() as tx:
            toys = list(await tx.scalars(select(ToyModel.uuid).order_by(ToyModel.uuid)))
            for toy in toys:
                await own(tx, EVE, toy, "ToyVO")
            await own(tx, FRANK, toys[0], "ToyVO")
            given = {"owner_account_uuid": EVE, "resource_type": "ToyVO"}
            tx.add(SharedResourceModel(**given, receiver_account_uuid=FRANK, to_public=False, resource_uuid=toys[1]))
            tx.add(SharedResourceModel(**given, receiver_account_uuid=None, to_public=True, resource_uuid=toys[2]))
        found = []
        for few in (0, len(toys)):
            monkeypatch.setattr(visibility, "FEW", few)
            monkeypatch.setattr(query_compile, "_plans", {})
            query = QueryToy(sort_by="name", reply_with_count=True)
            found += [await zoo.cloud.api(query, Actor(who, "u")) for who in (FRANK, EVE)]
        assert {one.uuid for one in found[0].inventories or []} == set(toys[:3])
        assert found[1].total == len(toys) - 1
        assert found[2:] == found[:2]

    async def test_tags_follow_their_resource(self, zoo: Zoo) -> None:
        mine = next(row["uuid"] for row in zoo.rows if row["owner"] == FRANK)
        others = [row["uuid"] for row in zoo.rows if row["owner"] == EVE][-1]
        async with zoo.cloud.node.db.transaction() as tx:
            for one in (mine, others):
                tx.add(SystemTagModel(uuid=new_uuid(), resource_uuid=one, resource_type="PetVO", tag="color::red"))
        tagged = QueryCondition("__systemTag__", "like", "color::%")
        assert await zoo.ask(tagged, actor=Actor(FRANK, FRANK)) == [mine]
        assert set(await zoo.ask(tagged)) == {mine, others}

    @pytest.mark.parametrize("few", [0, visibility.FEW])
    async def test_conditions_on_what_is_joined_tell_nothing_of_others(
        self, zoo: Zoo, few: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Keepers are everybody's; whether one keeps a pet of another account is not."""
        monkeypatch.setattr(visibility, "FEW", few)
        monkeypatch.setattr(query_compile, "_plans", {})
        frank = Actor(FRANK, FRANK)
        shown = set(await zoo.ask(actor=frank))

        async def keepers_of(row: dict[str, Any], actor: Actor | None) -> list[str]:
            msg = QueryKeeper(conditions=[QueryCondition("pets.uuid", "=", row["uuid"])])
            return [one.uuid for one in (await zoo.cloud.api(msg, actor)).inventories or []]

        kept = [row for row in zoo.rows if row["keeperUuid"] is not None]
        assert {row["uuid"] in shown for row in kept} == {True, False}
        for row in kept:
            assert await keepers_of(row, None) == [row["keeperUuid"]]
            assert await keepers_of(row, frank) == ([row["keeperUuid"]] if row["uuid"] in shown else [])


def zql_of(tree: Any) -> str:
    """A condition, or an operator with two trees, as ZQL."""
    if isinstance(tree, tuple):
        op, left, right = tree
        return f"({zql_of(left)}) {op} {zql_of(right)}"
    if tree.op in ("is null", "is not null"):
        return f"{tree.name} {tree.op}"
    quoted = "'" + tree.value.replace("'", "''") + "'"
    return f"{tree.name} {tree.op} ({quoted})" if tree.op in ("in", "not in") else f"{tree.name} {tree.op} {quoted}"


def tree_holds(row: dict[str, Any], tree: Any) -> bool:
    if isinstance(tree, tuple):
        op, left, right = tree
        return (all if op == "and" else any)([tree_holds(row, left), tree_holds(row, right)])
    return holds(row, tree)


async def zql(zoo: Zoo, text: str, actor: Actor | None = None) -> list[ZqlResult]:
    return await zoo.cloud.api(ZQLQuery(zql=text), actor)


TREES = st.recursive(CONDITIONS, lambda inner: st.tuples(st.sampled_from(["and", "or"]), inner, inner), max_leaves=6)


class TestZql:
    async def test_any_tree_finds_what_filtering_by_hand_finds(self, zoo: Zoo) -> None:
        loop = asyncio.get_running_loop()

        def run() -> None:
            @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
            @given(TREES)
            def check(tree: Any) -> None:
                work = zql(zoo, f"query pet where {zql_of(tree)} return with (total)")
                (found,) = asyncio.run_coroutine_threadsafe(work, loop).result(30)
                wanted = {row["uuid"] for row in zoo.rows if tree_holds(row, tree)}
                assert {one["uuid"] for one in found.inventories or []} == wanted
                assert found.total == len(wanted)

            check()

        await asyncio.to_thread(run)

    async def test_fields_order_window_count_and_names(self, zoo: Zoo) -> None:
        text = "query pet.name,age where age > 0 order by age desc, name asc limit 5 offset 2 named as 'old';count pet"
        old, count = await zql(zoo, text)
        rows = sorted((row for row in zoo.rows if (row["age"] or 0) > 0), key=lambda row: row["name"])
        rows.sort(key=lambda row: -row["age"])
        assert [one["age"] for one in old.inventories or []] == [row["age"] for row in rows[2:7]]
        assert all(set(one) == {"name", "age"} for one in old.inventories or [])
        assert (old.name, old.total) == ("old", None)
        assert (count.inventories, count.total) == (None, len(zoo.rows))

    async def test_a_certain_type_has_its_own_fields(self, zoo: Zoo) -> None:
        (found,) = await zql(zoo, "query pet where kind = 'dog' and barks is not null")
        assert found.inventories
        with pytest.raises(CloudError, match="barks"):
            await zql(zoo, "query pet where kind = 'dog' or barks is not null")

    async def test_accounts_see_what_they_see_by_queries(self, zoo: Zoo) -> None:
        actor = Actor(FRANK, FRANK)
        (found,) = await zql(zoo, "query pet where name is not null or name is null", actor)
        assert sorted(one["uuid"] for one in found.inventories or []) == sorted(await zoo.ask(actor=actor))
        for refused in ("query nothing", "query pet where secret = 'x'", "query sharedresource", "query pet.secret"):
            with pytest.raises(CloudError) as caught:
                await zql(zoo, refused, actor)
            assert caught.value.code in ("SYS.1007", "ID.1002")
