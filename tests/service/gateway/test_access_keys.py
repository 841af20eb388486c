"""Access keys: requests that are signed as ZStack's clients sign them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from caelum.cloud.identity.access_keys import sign
from caelum.cloud.identity.model import AccessKeyModel
from caelum.kernel.context import ADMIN_ACCOUNT_UUID
from caelum.kernel.ids import new_uuid
from caelum.kernel.jobs import JobModel
from gateway.conftest import Answer, Client

KEYS = "/zstack/v1/accesskeys"


class Signer:
    """A client with an access key and no session."""

    def __init__(self, client: Client, key: dict[str, Any]) -> None:
        self.client, self.id, self.secret = client.fresh(), key["AccessKeyID"], key["AccessKeySecret"]
        self.uuid = key["uuid"]

    def headers(self, method: str, path: str, ago: float = 0, **more: str) -> dict[str, str]:
        date = (datetime.now(UTC) - timedelta(seconds=ago)).strftime("%a, %d %b %Y %H:%M:%S UTC")
        signature = sign(self.secret, f"{method}\n{date}\n/v1{path}")
        return {"Date": date, "Authorization": f"ZStack {self.id}:{signature}", **more}

    async def send(self, method: str, path: str, body: Any = None, *, query: str = "", ago: float = 0) -> Answer:
        headers = self.headers(method, path, ago)
        return await self.client.send(method, f"/zstack/v1{path}{query}", body, headers=headers)


async def make(client: Client, account: str, **params: Any) -> dict[str, Any]:
    answer = await client.job("POST", KEYS, {"params": {"accountUuid": account, "userUuid": account, **params}})
    assert answer.status == 200, answer.text
    key: dict[str, Any] = answer.json["inventory"]
    return key


@pytest.fixture
async def signer(admin: Client) -> Signer:
    return Signer(admin, await make(admin, ADMIN_ACCOUNT_UUID))


async def test_signed_requests_do_what_those_of_a_session_do(admin: Client, signer: Signer) -> None:
    accepted = await signer.send("POST", "/lamps", {"params": {"name": "desk"}})
    assert accepted.status == 202
    made = (await signer.client.poll(accepted.json["location"])).json["inventory"]
    found = await signer.send("GET", "/lamps", query="?q=name=desk&limit=5")
    assert [one["uuid"] for one in found.json["inventories"]] == [made["uuid"]]
    body = {"switchLamp": {"lit": True}}
    switched = await signer.send("PUT", f"/lamps/{made['uuid']}/actions", body)
    assert (await signer.client.poll(switched.json["location"])).json["inventory"]["lit"]
    # Only administrators may: the key has the rights of its account.
    assert (await signer.send("POST", "/lamps/echo", {"params": {"text": "x"}})).status == 200


async def test_the_secret_is_told_once_and_stored_sealed(admin: Client, signer: Signer) -> None:
    assert (len(signer.id), len(signer.secret)) == (20, 40)
    listed = (await admin.send("GET", f"{KEYS}?q=AccessKeyID={signer.id}")).json["inventories"]
    assert [(one["uuid"], one["state"], one.get("AccessKeySecret")) for one in listed] == [
        (signer.uuid, "Enabled", None)
    ]
    async with admin.cloud.node.db.read() as session:
        row = await session.get_one(AccessKeyModel, signer.uuid)
        job = await session.scalar(select(JobModel).where(JobModel.api == "APICreateAccessKeyMsg"))
    assert signer.secret not in row.sealed_secret
    assert job is not None
    assert signer.secret not in (job.result or "")


async def test_what_is_not_signed_rightly_is_refused_and_makes_no_job(admin: Client, signer: Signer) -> None:
    async def refusal(path: str, headers: dict[str, str], method: str = "POST") -> tuple[int, str]:
        body = None if method == "GET" else {"params": {"name": "desk"}}
        answer = await signer.client.send(method, f"/zstack/v1{path}", body, headers=headers)
        return answer.status, answer.text

    good = signer.headers("POST", "/lamps")
    scheme, _, rest = good["Authorization"].partition(" ")
    wrong = (403, "wrong accessKey signature")
    assert await refusal("/lamps", {**good, "Authorization": f"{scheme} {rest[:-4]}AAA="}) == wrong
    assert await refusal("/lamps", signer.headers("GET", "/lamps")) == wrong
    assert await refusal("/lamps", signer.headers("POST", "/zones")) == wrong
    assert await refusal("/lamps", {**good, "Date": signer.headers("POST", "/lamps", 60)["Date"]}) == wrong
    unknown = (403, "access key id: nobody1234 does not existed or disabled")
    assert await refusal("/lamps", {**good, "Authorization": "ZStack nobody1234:AAAA"}) == unknown
    for ago in (16 * 60, -16 * 60):
        assert await refusal("/lamps", signer.headers("POST", "/lamps", ago)) == (403, "requestTimeTooSkewed")
    assert (await refusal("/lamps", {"Authorization": good["Authorization"]}))[0] == 400
    assert (await refusal("/lamps", {**good, "Date": "yesterday"}))[0] == 400
    for bad in ("ZStack", "ZStack x", "ZStack :x", "ZStack x:"):
        assert (await refusal("/lamps", {**good, "Authorization": bad}))[0] == 400
    assert (await signer.send("GET", "/lamps", ago=14 * 60)).json["inventories"] == []
    async with admin.cloud.node.db.read() as session:
        jobs = await session.scalars(select(JobModel.api))
        assert set(jobs) == {"APICreateAccessKeyMsg"}


async def test_a_disabled_or_deleted_key_opens_nothing(admin: Client, signer: Signer) -> None:
    async def state(event: str) -> str:
        body = {"changeAccessKeyState": {"stateEvent": event}}
        answer = await admin.job("PUT", f"{KEYS}/{signer.uuid}/actions", body)
        inventory = answer.json["inventory"]
        assert "AccessKeySecret" not in inventory
        return str(inventory["state"])

    assert await state("disable") == "Disabled"
    assert (await signer.send("GET", "/lamps")).status == 403
    assert await state("enable") == "Enabled"
    assert (await signer.send("GET", "/lamps")).status == 200
    for _ in range(2):
        assert (await admin.job("DELETE", f"{KEYS}/{signer.uuid}")).status == 200
    assert (await signer.send("GET", "/lamps")).status == 403


async def test_keys_belong_to_their_accounts(admin: Client, signer: Signer) -> None:
    frank = await admin.account("frank")
    accounts = (await frank.send("GET", "/v1/accounts")).json["inventories"]
    uuid = next(one["uuid"] for one in accounts if one["name"] == "frank")
    theirs = Signer(admin, await make(frank, uuid, description="laptop"))
    assert [one["name"] for one in (await theirs.send("GET", "/accounts")).json["inventories"]] == ["frank"]
    denied = await theirs.send("POST", "/lamps/echo", {"params": {"text": "x"}})
    assert denied.json["error"]["code"] == "ID.1002"
    assert [one["uuid"] for one in (await frank.send("GET", KEYS)).json["inventories"]] == [theirs.uuid]
    assert (await frank.job("DELETE", f"{KEYS}/{signer.uuid}")).json["error"]["code"] == "SYS.1003"
    other = {"accountUuid": ADMIN_ACCOUNT_UUID, "userUuid": ADMIN_ACCOUNT_UUID}
    assert (await frank.job("POST", KEYS, {"params": other})).json["error"]["code"] == "ID.1002"
    user = {"accountUuid": uuid, "userUuid": new_uuid()}
    assert (await frank.job("POST", KEYS, {"params": user})).json["error"]["code"] == "SYS.1007"
    assert (await admin.job("DELETE", f"/v1/accounts/{uuid}")).status == 200
    assert (await theirs.send("GET", "/lamps")).status == 403
    assert [one["uuid"] for one in (await admin.send("GET", KEYS)).json["inventories"]] == [signer.uuid]


async def test_a_key_may_be_brought_from_elsewhere_once(admin: Client) -> None:
    given = {"AccessKeyID": "A1b2C3d4E5f6G7h8I9j0", "AccessKeySecret": "s" * 40}
    signer = Signer(admin, await make(admin, ADMIN_ACCOUNT_UUID, **given))
    assert (signer.id, signer.secret) == ("A1b2C3d4E5f6G7h8I9j0", "s" * 40)
    assert (await signer.send("GET", "/lamps")).status == 200
    params = {"accountUuid": ADMIN_ACCOUNT_UUID, "userUuid": ADMIN_ACCOUNT_UUID}
    for bad in (given, {"AccessKeyID": "short"}, {"AccessKeyID": "with:colon:in:it"}, {"AccessKeySecret": "short"}):
        assert (await admin.job("POST", KEYS, {"params": {**params, **bad}})).json["error"]["code"] == "SYS.1007"
