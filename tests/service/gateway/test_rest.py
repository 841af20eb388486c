"""The REST conventions that real clients rely on."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import pytest

from caelum.kernel.ids import new_uuid
from gateway.conftest import Client

V1 = "/zstack/v1"


async def test_no_log_names_a_session_that_a_path_names(
    admin: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("unexpected")

    monkeypatch.setattr("caelum.gateway.rest.Rest.handle", broken)
    assert (await admin.send("DELETE", f"{V1}/accounts/sessions/{admin.session}")).status == 500
    assert f"DELETE {V1}/accounts/sessions/****** failed" in caplog.text
    assert admin.session is not None
    assert admin.session not in caplog.text


class TestAnswers:
    async def test_an_asynchronous_operation_is_a_job_that_can_be_polled_at_once_without_a_session(
        self, admin: Client
    ) -> None:
        accepted = await admin.send("POST", f"{V1}/lamps", {"params": {"name": "desk", "watts": "40"}})
        assert accepted.status == 202
        assert set(accepted.json) == {"location", "apiTimeout"}
        assert accepted.json["apiTimeout"] == 1_800_000
        assert accepted.json["location"].startswith(f"{admin.base}{V1}/api-jobs/")
        done = await admin.poll(accepted.json["location"], headers={"Authorization": "OAuth null"})
        assert done.status == 200
        assert set(done.json) == {"inventory"}
        lamp = done.json["inventory"]
        assert (lamp["name"], lamp["watts"], lamp["lit"]) == ("desk", 40, False)
        assert re.fullmatch(r"[A-Z][a-z]{2} \d{1,2}, \d{4} \d{1,2}:\d\d:\d\d [AP]M", lamp["createDate"])

    async def test_the_location_names_the_host_that_the_client_used(self, admin: Client) -> None:
        sent = {"Host": "cloud.example:8080"}
        accepted = await admin.send("POST", "/v1/lamps", {"params": {"name": "desk"}}, headers=sent)
        assert accepted.json["location"].startswith("http://cloud.example:8080/v1/api-jobs/")
        bad = await admin.send("POST", "/v1/lamps", {"params": {}}, headers={"Host": 'x"><script>'})
        assert bad.status == 400

    async def test_failures_are_told_by_the_job_with_one_key(self, admin: Client) -> None:
        failed = await admin.job("POST", f"{V1}/lamps", {"params": {"name": "bomb"}})
        assert failed.status == 503
        assert set(failed.json) == {"error"}
        assert failed.json["error"]["code"] == "SYS.1007"
        assert failed.json["error"]["details"] == "field[name]: no bombs"

    async def test_synchronous_failures_are_503_with_details_even_when_there_are_none(self, admin: Client) -> None:
        failed = await admin.send("POST", f"{V1}/lamps/echo", {"params": {"text": "fail"}})
        assert failed.status == 503
        assert set(failed.json) == {"error"}
        assert failed.json["error"]["details"]

    async def test_every_success_is_a_json_object(self, admin: Client) -> None:
        uuid = await admin.lamp()
        deleted = await admin.job("DELETE", f"{V1}/lamps/{uuid}?deleteMode=Permissive")
        assert (deleted.status, deleted.json) == (200, {})
        logged_out = await admin.send("DELETE", f"{V1}/accounts/sessions/{admin.session}?deleteMode=")
        assert (logged_out.status, logged_out.json) == (200, {})

    async def test_what_is_gone_already_is_deleted_successfully(self, admin: Client) -> None:
        assert (await admin.job("DELETE", f"{V1}/lamps/{new_uuid()}")).status == 200

    async def test_an_unexpected_failure_shows_no_inside(self, admin: Client) -> None:
        failed = await admin.job("PUT", f"{V1}/lamps/x/breaking/actions", {"breakLamp": {}})
        assert failed.json["error"]["code"] == "SYS.1000"
        assert "hunter2" not in failed.text
        assert "Traceback" not in failed.text

    async def test_schema_comes_with_queries_always_and_otherwise_when_asked_for(self, admin: Client) -> None:
        uuid = await admin.lamp()
        java = "org.zstack.header.lamp.LampInventory"
        found = await admin.send("GET", f"{V1}/lamps/{uuid}")
        assert found.json["schema"] == {"inventories[0]": java}
        accepted = await admin.send("PUT", f"{V1}/lamps/{uuid}/actions", {"switchLamp": {}})
        plain = await admin.poll(accepted.json["location"])
        assert "schema" not in plain.json
        typed = await admin.poll(accepted.json["location"], headers={"X-JSON-Schema": "true"})
        assert typed.json["schema"] == {"inventory": java}


class TestPaths:
    async def test_both_prefixes_and_double_slashes(self, admin: Client) -> None:
        uuid = await admin.lamp()
        for path in (f"/v1/lamps/{uuid}", f"/zstack/v1//lamps//{uuid}", f"//zstack/v1/lamps/{uuid}/"):
            found = await admin.send("GET", path)
            assert [one["uuid"] for one in found.json["inventories"]] == [uuid]

    async def test_put_is_chosen_by_its_action_key(self, admin: Client) -> None:
        uuid = await admin.lamp()
        lit = await admin.job("PUT", f"{V1}/lamps/{uuid}/actions", {"switchLamp": {"lit": "true"}})
        assert lit.json["inventory"]["lit"] is True
        same = await admin.job("PUT", f"{V1}/lamps/{uuid}/actions", {"lookAtLamp": None})
        assert same.json["inventory"]["lit"] is True
        for body in ({}, {"blowUpLamp": {}}, None):
            refused = await admin.send("PUT", f"{V1}/lamps/{uuid}/actions", body)
            assert refused.status == 400
            assert "action" in refused.text

    async def test_unknown_paths_and_verbs(self, admin: Client) -> None:
        missing = await admin.send("GET", f"{V1}/lampes")
        assert (missing.status, missing.text) == (404, "no api mapping to /lampes")
        wrong = await admin.send("PATCH", f"{V1}/lamps")
        assert wrong.status == 405
        wrong = await admin.send("DELETE", f"{V1}/lamps")
        assert (wrong.status, wrong.headers["Allow"]) == (405, "GET, POST")

    async def test_a_literal_wins_over_a_variable(self, admin: Client) -> None:
        assert "heard" in (await admin.send("GET", f"{V1}/lamps/echo")).json


class TestParameters:
    async def test_lists_and_maps_in_query_strings(self, admin: Client) -> None:
        for query in ("names=a&names=b", "names.1=b&names.0=a"):
            heard = await admin.send(
                "GET", f"{V1}/lamps/echo?{query}&options.k=v&options.k2=&unknown=1&watts=7&lit=true"
            )
            assert heard.json["heard"] == {
                "names": ["a", "b"],
                "options": {"k": "v", "k2": ""},
                "watts": 7,
                "lit": True,
            }

    @pytest.mark.parametrize("query", ["watts=x", "watts=1.5", "watts=1&watts=2", "lit=maybe", "text=%ff", "text=%00"])
    async def test_bad_values_in_query_strings_are_400(self, admin: Client, query: str) -> None:
        refused = await admin.send("GET", f"{V1}/lamps/echo?{query}")
        assert refused.status == 400
        assert refused.headers["Content-Type"].startswith("text/plain")

    async def test_strings_take_numbers_and_structures_are_typed(self, admin: Client) -> None:
        body = {"params": {"text": 5, "bulbs": [{"socket": 1, "maxWatts": "60"}, {"socket": "E14", "new": 1}]}}
        heard = await admin.send("POST", f"{V1}/lamps/echo", body)
        assert heard.json["heard"] == {"text": "5", "bulbs": [60, 40]}
        refused = await admin.send("POST", f"{V1}/lamps/echo", {"params": {"bulbs": [{"maxWatts": 1}]}})
        assert refused.status == 400
        assert "socket" in refused.text

    @pytest.mark.parametrize(
        ("params", "text"),
        [
            ({}, "field[name] of message[APICreateLampMsg] is mandatory, can not be null"),
            ({"name": None}, "is mandatory"),
            ({"name": "x" * 21}, "exceeds max length of string. expected was <= 20, actual was 21"),
            ({"name": " x "}, "less than the min length of string. expected was >= 2, actual was 1"),
            ({"name": "ok", "watts": 0}, "must be in range of [1, 100]"),
            ({"name": "ok", "colour": "{blue}"}, "valid value for field[colour] of message[APICreateLampMsg] are"),
            ({"name": "ok", "serial": "ab1"}, "valid regex value for field[serial]"),
            ({"name": "ok", "labels": []}, "must be a nonempty list"),
            ({"name": "ok", "resourceUuid": "X" * 32}, "field[resourceUuid]"),
            ({"name": "ok", "tagUuids": ["0" * 32]}, "not found"),
        ],
    )
    async def test_each_constraint_names_its_field(self, admin: Client, params: dict[str, object], text: str) -> None:
        failed = await admin.job("POST", f"{V1}/lamps", {"params": params})
        assert failed.status == 503
        assert text in failed.json["error"]["details"]

    async def test_a_chosen_uuid_must_be_nobodys(self, admin: Client) -> None:
        taken = (await admin.job("POST", f"{V1}/lamps", {"params": {"name": "ok"}})).json["inventory"]["uuid"]
        failed = await admin.job("POST", f"{V1}/lamps", {"params": {"name": "ok", "resourceUuid": taken}})
        assert "field[resourceUuid]" in failed.json["error"]["details"]
        assert f"{taken} is that of a resource that exists, of type LampVO" in failed.json["error"]["details"]

    async def test_system_tags_come_top_level_or_inside_and_must_be_declared(self, admin: Client) -> None:
        for body in (
            {"params": {"name": "ok"}, "systemTags": ["glow::red"]},
            {"params": {"name": "ok", "systemTags": ["glow::red"]}},
        ):
            assert (await admin.job("POST", f"{V1}/lamps", body)).status == 200
        tagged = await admin.send("GET", f"{V1}/lamps?q=__systemTag__=glow::red&count=true")
        assert tagged.json["total"] == 2
        failed = await admin.job("POST", f"{V1}/lamps", {"params": {"name": "ok"}, "systemTags": ["shine::red"]})
        assert "no system tag matches shine::red" in failed.json["error"]["details"]

    async def test_a_dry_run_checks_and_does_nothing(self, admin: Client) -> None:
        dry = {"params": {"name": "ghost"}, "systemTags": ["ephemeral::validationOnly"]}
        assert (await admin.job("POST", f"{V1}/lamps", dry)).json == {}
        bomb = {"params": {"name": "bomb"}, "systemTags": ["ephemeral::validationOnly"]}
        assert (await admin.job("POST", f"{V1}/lamps", bomb)).status == 503
        assert (await admin.send("GET", f"{V1}/lamps?count=true")).json["total"] == 0


class TestQueries:
    async def test_conditions_paging_sorting_and_counting(self, admin: Client) -> None:
        for n in range(5):
            await admin.lamp(f"lamp{n}", watts=n + 1)
        ask = "/lamps?q=name~%3Dlamp%25&q=watts%3E%3D2&sort=-watts"
        page = await admin.send("GET", f"{V1}{ask}&limit=2&start=1&replyWithCount=true&fields=name,watts")
        assert page.json["inventories"] == [{"name": "lamp3", "watts": 4}, {"name": "lamp2", "watts": 3}]
        assert page.json["total"] == 4
        count = await admin.send("GET", f"{V1}{ask}&count=true")
        assert (count.json["total"], "inventories" in count.json) == (4, False)
        among = await admin.send("GET", f"{V1}/lamps?q=name?=lamp0,lamp4&sort=+name")
        assert [one["name"] for one in among.json["inventories"]] == ["lamp0", "lamp4"]
        null = await admin.send("GET", f"{V1}/lamps?q=watts+is+null")
        assert null.json["inventories"] == []

    async def test_a_missing_uuid_is_an_empty_list(self, admin: Client) -> None:
        found = await admin.send("GET", f"{V1}/lamps/{new_uuid()}?limit=bad&q=nonsense")
        assert (found.status, found.json["inventories"]) == (200, [])

    @pytest.mark.parametrize("query", ["q=name", "q=name=", "q==x", "limit=x", "start=-1", "count=maybe", "sort=-"])
    async def test_malformed_queries_are_400(self, admin: Client, query: str) -> None:
        assert (await admin.send("GET", f"{V1}/lamps?{query}")).status == 400

    async def test_an_unknown_field_is_503_and_lists_the_known_ones(self, admin: Client) -> None:
        failed = await admin.send("GET", f"{V1}/lamps?q=wats=1")
        assert failed.status == 503
        assert "lit, name, uuid, watts" in failed.json["error"]["details"]


class TestSessions:
    async def test_the_header_is_needed_and_must_be_oauth(self, admin: Client) -> None:
        nobody = admin.fresh()
        missing = await nobody.send("GET", f"{V1}/lamps")
        assert (missing.status, missing.text) == (400, "missing header 'Authorization'")
        other = await nobody.send("GET", f"{V1}/lamps", headers={"Authorization": "Basic x"})
        assert (other.status, other.text) == (400, "Authorization type must be 'OAuth'")

    async def test_a_wrong_session_is_an_error_of_the_operation(self, admin: Client) -> None:
        stranger = admin.fresh()
        stranger.session = new_uuid()
        failed = await stranger.send("GET", f"{V1}/lamps")
        assert (failed.status, failed.json["error"]["code"]) == (503, "ID.1001")
        failed = await stranger.job("POST", f"{V1}/lamps", {"params": {"name": "desk"}})
        assert failed.json["error"]["code"] == "ID.1001"
        assert (await admin.send("GET", f"{V1}/lamps?count=true")).json["total"] == 0

    async def test_some_operations_need_none(self, admin: Client) -> None:
        nobody = admin.fresh()
        version = await nobody.send("PUT", f"{V1}/management-nodes/actions", {"getVersion": {}})
        assert version.json["success"] is True
        assert version.json["version"]
        assert (await nobody.send("GET", f"{V1}/management-nodes/ready")).json == {}
        valid = await nobody.send("GET", f"{V1}/accounts/sessions/{admin.session}/valid")
        assert valid.json == {"valid": True}


class TestPermissions:
    async def test_admin_only_operations_are_refused_to_others(self, admin: Client) -> None:
        frank = await admin.account("frank")
        failed = await frank.send("POST", f"{V1}/lamps/echo", {"params": {}})
        assert (failed.status, failed.json["error"]["code"]) == (503, "ID.1002")
        failed = await frank.job("POST", f"{V1}/accounts", {"params": {"name": "eve", "password": "x"}})
        assert failed.json["error"]["code"] == "ID.1002"

    async def test_other_accounts_resources_do_not_exist(self, admin: Client) -> None:
        frank, eve = await admin.account("frank"), await admin.account("eve")
        lamp, nothing = await frank.lamp(), new_uuid()
        assert [one["uuid"] for one in (await frank.send("GET", f"{V1}/lamps")).json["inventories"]] == [lamp]
        assert (await eve.send("GET", f"{V1}/lamps/{lamp}")).json["inventories"] == []
        answers = [await eve.job("PUT", f"{V1}/lamps/{uuid}/actions", {"switchLamp": {}}) for uuid in (lamp, nothing)]
        assert {one.status for one in answers} == {503}
        assert answers[0].text.replace(lamp, "U") == answers[1].text.replace(nothing, "U")

    async def test_shared_resources_can_be_used_but_not_changed(self, admin: Client) -> None:
        frank, eve = await admin.account("frank"), await admin.account("eve")
        lamp = await frank.lamp()
        shared = {"shareResource": {"resourceUuids": [lamp], "toPublic": True}}
        assert (await admin.job("PUT", f"{V1}/accounts/resources/actions", shared)).status == 200
        assert (await eve.job("PUT", f"{V1}/lamps/{lamp}/actions", {"lookAtLamp": {}})).status == 200
        refused = await eve.job("PUT", f"{V1}/lamps/{lamp}/actions", {"switchLamp": {}})
        assert refused.json["error"]["code"] == "ID.1002"
        revoked = {"revokeResourceSharing": {"resourceUuids": [lamp], "all": True}}
        assert (await admin.job("PUT", f"{V1}/accounts/resources/actions", revoked)).status == 200
        assert (await eve.job("PUT", f"{V1}/lamps/{lamp}/actions", {"lookAtLamp": {}})).status == 503

    async def test_admin_only_tags(self, admin: Client) -> None:
        frank = await admin.account("frank")
        body = {"params": {"name": "desk"}, "systemTags": ["vault::1"]}
        assert (await frank.job("POST", f"{V1}/lamps", body)).status == 503
        assert (await admin.job("POST", f"{V1}/lamps", body)).status == 200


class TestHeaders:
    async def test_the_client_may_choose_the_jobs_uuid_once(self, admin: Client) -> None:
        uuid = new_uuid()
        headers = {"X-Job-UUID": uuid}
        accepted = await admin.send("POST", f"{V1}/lamps", {"params": {"name": "desk"}}, headers=headers)
        assert accepted.json["location"].endswith(uuid)
        again = await admin.send("POST", f"{V1}/lamps", {"params": {"name": "desk"}}, headers=headers)
        assert (again.status, again.text) == (400, f"Duplicate job uuid[{uuid}]")
        short = await admin.send("POST", f"{V1}/lamps", {"params": {}}, headers={"X-Job-UUID": "x"})
        assert short.status == 400

    async def test_the_time_out_can_be_shortened(self, admin: Client) -> None:
        body, headers = {"waitForLamp": {"seconds": 30}}, {"X-API-Timeout": "1"}
        accepted = await admin.send("PUT", f"{V1}/lamps/x/waiting/actions", body, headers=headers)
        assert accepted.json["apiTimeout"] == 1000
        failed = await admin.poll(accepted.json["location"], headers={"Prefer": "wait=5"})
        assert failed.json["error"]["code"] == "SYS.1001"
        for bad in ("x", "0", "-5"):
            refused = await admin.send("POST", f"{V1}/lamps", {}, headers={"X-API-Timeout": bad})
            assert refused.status == 400

    async def test_polling_can_wait(self, admin: Client) -> None:
        body = {"waitForLamp": {"seconds": 0.3}}
        accepted = await admin.send("PUT", f"{V1}/lamps/x/waiting/actions", body)
        answer = await admin.send("GET", accepted.json["location"], headers={"Prefer": "wait=10"})
        assert (answer.status, answer.json) == (200, {})

    async def test_unknown_jobs_and_other_verbs(self, admin: Client) -> None:
        gone = await admin.send("GET", f"{V1}/api-jobs/{new_uuid()}")
        assert (gone.status, gone.text) == (404, "the job has been expired")
        assert (await admin.send("DELETE", f"{V1}/api-jobs/{new_uuid()}")).status == 405


async def test_zql_answers_one_result_for_each_statement(admin: Client) -> None:
    await admin.lamp("desk")
    await admin.lamp("floor", watts=40)
    text = quote("query lamp.name where name='desk' or watts>30 order by name asc; count lamp where watts is null")
    answer = await admin.send("GET", f"/zstack/v1/zql?zql={text}")
    assert answer.json == {"results": [{"inventories": [{"name": "desk"}, {"name": "floor"}]}, {"total": 1}]}
    refused = await admin.send("GET", "/v1/zql?zql=drop")
    assert (refused.status, refused.json["error"]["code"]) == (503, "SYS.1007")
    assert (await admin.fresh().send("GET", "/v1/zql?zql=count%20lamp")).status == 400
