"""The gateway's parts without a server: routes, reading, queries, limits, answers, the OpenAPI document."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from datetime import datetime
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caelum.cloud.l3.api import QueryIpRange
from caelum.cloud.l3.model import IpRangeModel
from caelum.gateway import limits, syntax
from caelum.gateway.answer import error_body, with_schema
from caelum.gateway.intake import Intake
from caelum.gateway.limits import Concurrency, LoginLimit, RateLimit
from caelum.gateway.openapi import document
from caelum.gateway.querying import condition, from_query_string, sort
from caelum.gateway.reading import MAX_DEPTH, api_parameters, from_body, from_query, read_json, read_query, typed
from caelum.gateway.refusal import Refusal
from caelum.gateway.routes import RouteTable
from caelum.kernel.errors import INTERNAL, CloudError, ErrorCode
from caelum.kernel.message import (
    ApiMessage,
    ApiMeta,
    ApiQuery,
    CreateMessage,
    Inventory,
    Param,
    QueryCondition,
    QueryReply,
    Reply,
    inventory,
    rest,
)
from caelum.kernel.views import reply_value

_PACKAGE = "org.zstack.header.box"


@inventory(_PACKAGE, vo="LidVO")
class LidInventory(Inventory, kw_only=True):
    """A lid."""

    colour: str


@inventory(_PACKAGE, vo="BoxVO")
class BoxInventory(Inventory, kw_only=True):
    """A box."""

    uuid: str
    lids: list[LidInventory] | None = None
    made: datetime | None = None


class Part(msgspec.Struct, rename="camel"):
    """A part."""

    part_name: str
    count: int = 1


class WeighReply(Reply, kw_only=True):
    """Weights by box."""

    weights: dict[str, BoxInventory]


@rest("POST /boxes", package=_PACKAGE, service="box")
class CreateBox(CreateMessage[BoxInventory], kw_only=True):
    """Make a box."""

    name: Annotated[str, Param(max_length=5)]
    parts: list[Part] | None = None
    sizes: list[int] | None = None
    notes: dict[str, str] | None = None


@rest("PUT /boxes/{uuid}/actions", package=_PACKAGE, service="box")
class OpenBox(ApiMessage[BoxInventory], kw_only=True):
    """Open a box."""

    uuid: str


@rest("PUT /boxes/{boxUuid}/actions", package=_PACKAGE, service="box")
class ShutBox(ApiMessage[None], kw_only=True):
    """Shut a box."""

    box_uuid: str


@rest("GET /boxes/weights", package=_PACKAGE, service="box")
class WeighBoxes(ApiMessage[WeighReply], kw_only=True):
    """Weigh boxes."""

    uuids: list[str] | None = None


@rest("GET /boxes", also=("/boxes/{uuid}",), package=_PACKAGE)
class QueryBox(ApiQuery[BoxInventory]):
    """Query boxes."""


@rest("DELETE /boxes/{uuid}/lids/{colour}", package=_PACKAGE, service="box")
class DeleteLid(ApiMessage[None], kw_only=True):
    """Delete a lid."""

    uuid: str
    colour: str


OPERATIONS: list[type[ApiMessage[Any]]] = [CreateBox, OpenBox, ShutBox, WeighBoxes, QueryBox, DeleteLid]
METAS: list[ApiMeta] = [one.__api__ for one in OPERATIONS]


class TestRoutes:
    table = RouteTable(METAS)

    def pick(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[type, dict[str, str]]:
        entry, values = self.table.find(path)
        target = entry.pick(method, body or {})
        return target.meta.cls, dict(zip(target.variables, values, strict=True))

    def test_variables_keep_the_names_of_their_operation(self) -> None:
        assert self.pick("PUT", "/boxes/7/actions", {"openBox": None}) == (OpenBox, {"uuid": "7"})
        assert self.pick("PUT", "/boxes/7/actions", {"shutBox": {}}) == (ShutBox, {"boxUuid": "7"})
        assert self.pick("DELETE", "//boxes/7//lids/a%2Fb%20c/") == (DeleteLid, {"uuid": "7", "colour": "a/b c"})

    def test_literals_win(self) -> None:
        assert self.pick("GET", "/boxes/weights") == (WeighBoxes, {})
        assert self.pick("HEAD", "/boxes/weight") == (QueryBox, {"uuid": "weight"})

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/", 404),
            ("GET", "/boxes/1/2", 404),
            ("GET", "/boxes/%ff", 400),
            ("PATCH", "/boxes", 405),
            ("PUT", "/boxes/1/actions", 400),
            ("GET", "/boxes/1/actions", 405),
        ],
    )
    def test_refusals(self, method: str, path: str, status: int) -> None:
        with pytest.raises(Refusal) as caught:
            self.pick(method, path)
        assert caught.value.status == status

    def test_two_operations_cannot_share_a_verb_and_path(self) -> None:
        with pytest.raises(ValueError, match="both claim GET"):
            RouteTable([QueryBox.__api__, QueryBox.__api__])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


class TestJson:
    @given(st.dictionaries(st.text("abc", max_size=3), JSON, max_size=4))
    def test_all_reasonable_json_is_read(self, value: dict[str, Any]) -> None:
        assert read_json(json.dumps(value).encode()) == value

    @given(st.binary(max_size=64))
    def test_anything_else_is_refused_and_nothing_else_happens(self, raw: bytes) -> None:
        with contextlib.suppress(Refusal):
            assert isinstance(read_json(raw), dict)

    def test_depth_is_limited(self) -> None:
        for depth, fits in ((MAX_DEPTH - 2, True), (MAX_DEPTH + 1, False)):
            text = '{"a":' + "[" * depth + "]" * depth + "}"
            if fits:
                read_json(text.encode())
            else:
                with pytest.raises(Refusal, match="nested deeper"):
                    read_json(text.encode())


class TestParameters:
    def test_bodies_are_found_under_their_key_with_the_top_level_tags_winning(self) -> None:
        meta = CreateBox.__api__
        body = {"params": {"name": "a", "systemTags": ["in"]}, "systemTags": ["out"], "userTags": None}
        assert from_body(meta, body) == {"name": "a", "systemTags": ["out"]}
        assert from_body(meta, {}) == {}
        with pytest.raises(Refusal):
            from_body(meta, {"params": [1]})

    def test_values_get_the_declared_types(self) -> None:
        found = {
            "name": True,
            "parts": [{"partName": 3, "count": "4"}],
            "sizes": ["1", 2.0],
            "notes": {"a": 1.5},
            "x": 1,
        }
        assert typed(CreateBox.__api__, found) == {
            "name": "true",
            "parts": [Part("3", 4)],
            "sizes": [1, 2],
            "notes": {"a": "1.5"},
        }

    @pytest.mark.parametrize(
        "found",
        [{"sizes": [1.5]}, {"sizes": 3}, {"sizes": [2**63]}, {"sizes": [str(2**63)]}, {"name": {}}, {"parts": [{}]}],
    )
    def test_what_does_not_fit_is_refused_with_its_name(self, found: dict[str, Any]) -> None:
        with pytest.raises(Refusal, match=f"the parameter {next(iter(found))} has a bad value"):
            typed(CreateBox.__api__, found)

    def test_query_strings(self) -> None:
        query = read_query("uuids=a&uuids=b%20c&uuids.2=e&uuids.1=d&x=+&&y")
        assert query["x"] == [" "]
        assert query["y"] == [""]
        assert from_query(WeighBoxes.__api__, query) == {"uuids": ["a", "b c", "d", "e"]}
        with pytest.raises(Refusal):
            read_query("&".join("a=1" for _ in range(1001)))

    def test_texts_are_trimmed_before_they_are_checked(self) -> None:
        meta = CreateBox.__api__
        values = syntax.trimmed(meta, {"name": " box  "})
        assert values == {"name": "box"}
        syntax.check(meta, api_parameters(meta)["name"], values["name"])
        with pytest.raises(CloudError, match="exceeds max length"):
            syntax.check(meta, api_parameters(meta)["name"], " box  ")


class TestQueryText:
    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("name=x", ("name", "=", "x")),
            (" name = x ", ("name", "=", " x ")),
            ("a.b!=1", ("a.b", "!=", "1")),
            ("a>=1", ("a", ">=", "1")),
            ("a<=1", ("a", "<=", "1")),
            ("a>1", ("a", ">", "1")),
            ("a!?=1,2", ("a", "not in", "1,2")),
            ("a?=1,2", ("a", "in", "1,2")),
            ("a!~=%x", ("a", "not like", "%x")),
            ("a~=%x", ("a", "like", "%x")),
            ("a is null", ("a", "is null", None)),
            ("a not null", ("a", "is not null", None)),
            ("a is not null", ("a", "is not null", None)),
            ("a=b!=c", ("a=b", "!=", "c")),
            ("a=b>c", ("a", "=", "b>c")),
        ],
    )
    def test_the_first_operator_of_the_list_counts(self, text: str, wanted: tuple[str, str, str | None]) -> None:
        assert condition(text) == QueryCondition(*wanted)

    def test_a_uuid_in_the_path_is_the_only_condition(self) -> None:
        found = from_query_string({"uuid": "7"}, {"q": ["nonsense"], "limit": ["x"]})
        assert found == {"conditions": [QueryCondition("uuid", "=", "7")]}

    def test_sorting(self) -> None:
        assert sort("-name") == ("name", "desc")
        assert sort("+name") == sort(" name") == sort("name") == ("name", "asc")


class TestLimits:
    def test_a_bucket_refills(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [100.0]
        monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
        limit = RateLimit(lambda: 2, lambda: 3)
        for _ in range(3):
            limit.take("a")
        with pytest.raises(Refusal) as caught:
            limit.take("a")
        assert caught.value.headers == {"Retry-After": "1"}
        limit.take("b")
        now[0] += 0.5
        limit.take("a")
        with pytest.raises(Refusal):
            limit.take("a")

    def test_what_is_remembered_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "_MOST_CLIENTS", 10)
        limit, logins = RateLimit(lambda: 1, lambda: 1), LoginLimit()
        for n in range(100):
            limit.take(str(n))
            logins.failed(str(n))
        assert len(limit._buckets) == len(logins._failures) == 10

    def test_failed_logins_wait_longer_and_longer_but_not_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [100.0]
        monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
        logins, waits = LoginLimit(), []
        for _ in range(20):
            try:
                logins.check("a")
            except Refusal as refusal:
                waits.append(int(refusal.headers["Retry-After"]))
                now[0] += waits[-1]
                logins.check("a")
            logins.failed("a")
        assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


class TestConcurrency:
    async def test_places_are_given_back(self) -> None:
        places = Concurrency(lambda: 1)
        async with places.one():
            assert places.running == 1
        assert places.running == 0
        async with places.one():
            assert places.running == 1

    async def test_who_comes_too_much_waits_in_line_and_is_served_in_order(self) -> None:
        places, served = Concurrency(lambda: 1), []

        async def request(number: int) -> None:
            async with places.one():
                served.append(number)
                assert places.running == 1
                await asyncio.sleep(0)

        await asyncio.gather(*map(request, range(20)))
        assert served == list(range(20))
        assert (places.running, places.line) == (0, 0)

    async def test_who_waits_too_long_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "_LINE_SECONDS", 0.02)
        places = Concurrency(lambda: 1)
        async with places.one():
            with pytest.raises(Refusal) as refused:
                async with places.one():
                    pass
            assert (refused.value.status, places.running, places.line) == (429, 1, 0)
        assert places.running == 0

    async def test_the_line_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "_LONGEST_LINE", 0)
        places = Concurrency(lambda: 1)
        async with places.one():
            with pytest.raises(Refusal):
                async with places.one():
                    pass

    @pytest.mark.parametrize("handed_over", [False, True])
    async def test_who_leaves_the_line_keeps_no_place(self, handed_over: bool) -> None:
        places, first = Concurrency(lambda: 1), contextlib.AsyncExitStack()
        await first.enter_async_context(places.one())

        async def request() -> None:
            async with places.one():
                await asyncio.Event().wait()

        waiting = asyncio.create_task(request())
        await asyncio.sleep(0)
        if handed_over:
            await first.aclose()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await first.aclose()
        assert (places.running, places.line) == (0, 0)

    async def test_who_only_waits_leaves_the_place_to_others(self) -> None:
        places = Concurrency(lambda: 1)
        async with places.one():
            with places.aside():
                assert (places.running, places.idle) == (0, 1)
                async with places.one():
                    assert places.running == 1
            assert (places.running, places.idle) == (1, 0)
        assert places.running == 0


class TestIntake:
    async def turns(self, count: int, length: float) -> list[int]:
        """How many of so many requests, that came at once, began in each turn of so many seconds."""
        intake, begun = Intake(), 0
        turns = []

        def begin() -> bool:
            nonlocal begun
            begun += 1
            return True

        for _ in range(count):
            if intake.admits():
                begin()
            else:
                intake.wait(begin)
        while begun < count:
            before = begun
            time.sleep(length)  # noqa: ASYNC251 - so long lasts a turn
            await asyncio.sleep(0)
            turns.append(begun - before)
        assert intake.waiting == 0
        return turns

    async def test_those_who_come_at_once_begin_in_many_turns(self) -> None:
        turns = await self.turns(200, 0)
        assert max(turns) <= 16
        assert min(turns[:-1]) > 0

    async def test_fewer_begin_while_turns_are_long_but_some_in_each(self) -> None:
        turns = await self.turns(40, 0.006)
        assert set(turns[1:-1]) == {4}

    async def test_an_error_stops_nobody_else(self) -> None:
        intake = Intake()

        def broken() -> bool:
            raise ValueError("broken")

        errors: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, found: errors.append(found))
        while intake.admits():
            pass
        intake.wait(broken)
        done = asyncio.Event()
        intake.wait(lambda: done.set() is None)
        await done.wait()
        assert len(errors) == 1

    async def test_those_who_have_left_take_nobodys_turn(self) -> None:
        intake, begun = Intake(), 0

        def begin() -> bool:
            nonlocal begun
            begun += 1
            return True

        while intake.admits():
            pass
        for _ in range(100):
            intake.wait(lambda: False)
        for _ in range(4):
            intake.wait(begin)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert begun == 4

    async def test_nothing_is_counted_while_nobody_comes(self) -> None:
        intake = Intake()
        assert intake.admits()
        for _ in range(5):
            await asyncio.sleep(0)
        assert intake._begun is None
        assert intake.admits()


class TestAnswers:
    box = BoxInventory(uuid="7", lids=[LidInventory(colour="red")], made=datetime(2026, 11, 22, 19, 15, 56))

    def test_bodies(self) -> None:
        body = reply_value(OpenBox.__api__, self.box)
        assert body["inventory"]["made"] == "Nov 22, 2026 7:15:56 PM"
        assert reply_value(ShutBox.__api__, None) == {}
        assert reply_value(QueryBox.__api__, QueryReply(total=3)) == {"total": 3}
        assert set(reply_value(WeighBoxes.__api__, WeighReply(weights={"7": self.box}))) == {"weights"}

    def test_schema_names_every_object_by_its_path(self) -> None:
        box, lid = f"{_PACKAGE}.BoxInventory", f"{_PACKAGE}.LidInventory"
        made = with_schema(OpenBox.__api__, reply_value(OpenBox.__api__, self.box))
        assert made["schema"] == {"inventory": box, "inventory.lids[0]": lid}
        queried = with_schema(QueryBox.__api__, reply_value(QueryBox.__api__, QueryReply(inventories=[self.box])))
        assert queried["schema"] == {"inventories[0]": box, "inventories[0].lids[0]": lid}
        weighed = with_schema(WeighBoxes.__api__, reply_value(WeighBoxes.__api__, WeighReply(weights={"7": self.box})))
        assert weighed["schema"] == {"weights.7": box, "weights.7.lids[0]": lid}

    def test_schema_names_the_class_of_a_child_type(self) -> None:
        assert IpRangeModel.__vo__ == "IpRangeVO"  # what tells the types apart is the model's
        made = with_schema(
            QueryIpRange.__api__, {"inventories": [{"uuid": "7"}, {"uuid": "8", "ipRangeType": "AddressPool"}]}
        )
        classes = {path: name.rpartition(".")[2] for path, name in made["schema"].items()}
        assert classes == {"inventories[0]": "IpRangeInventory", "inventories[1]": "AddressPoolInventory"}

    def test_errors_always_have_details_and_stand_alone(self) -> None:
        for error in (CloudError(INTERNAL, ""), ErrorCode(code="X", description="", details=""), ValueError("a\nb")):
            body = error_body(error)
            assert set(body) == {"error"}
            assert body["error"]["details"]
            assert "\nb" not in body["error"]["details"]


class TestOpenApi:
    made = document(METAS)

    def test_every_reference_leads_somewhere(self) -> None:
        def references(value: Any) -> list[str]:
            if isinstance(value, dict):
                own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
                return own + [one for inner in value.values() for one in references(inner)]
            return [one for inner in value for one in references(inner)] if isinstance(value, list) else []

        for ref in references(self.made):
            target: Any = self.made
            for part in ref.removeprefix("#/").split("/"):
                target = target[part]
            assert target

    def test_actions_of_one_path_are_alternatives(self) -> None:
        put = self.made["paths"]["/zstack/v1/boxes/{boxUuid}/actions"]["put"]
        schema = put["requestBody"]["content"]["application/json"]["schema"]
        keys = {"/zstack/v1/boxes/{uuid}/actions", "/zstack/v1/boxes/{boxUuid}/actions"} & set(self.made["paths"])
        assert keys == {"/zstack/v1/boxes/{boxUuid}/actions"}
        assert {next(iter(one["required"])) for one in schema["oneOf"]} == {"openBox", "shutBox"}

    def test_operation_ids_are_unique_and_tell_what_is_asynchronous(self) -> None:
        operations = [one for item in self.made["paths"].values() for one in item.values()]
        ids = [one["operationId"] for one in operations]
        assert len(ids) == len(set(ids))
        assert "202" in self.made["paths"]["/zstack/v1/boxes"]["post"]["responses"]
        assert "200" in self.made["paths"]["/zstack/v1/boxes"]["get"]["responses"]

    def test_times_are_in_this_apis_form(self) -> None:
        made = self.made["components"]["schemas"]["BoxInventory"]["properties"]["made"]
        assert made["type"] == "string"
        assert made["pattern"].startswith("^[A-Z]")
