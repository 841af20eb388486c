"""The message API of older clients."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from gateway.conftest import PASSWORD, Client

LAMP = "org.zstack.header.lamp"


async def call(client: Client, message: str, session: str | None = None, **fields: Any) -> dict[str, Any]:
    """Send a message and poll to its end; the decoded result."""
    sent = {**fields, "session": {"uuid": session} if session else {}, "timeout": 1800000, "sessionUuid": "x"}
    answer = await client.fresh().send("POST", "/zstack/api/", {message: sent}, headers={"User-Agent": "cli"})
    assert answer.status == 200
    body = answer.json
    while body["state"] != "Done":
        await asyncio.sleep(0.02)
        body = (await client.fresh().send("GET", f"/zstack/api/result/{body['uuid']}")).json
    assert {"createdDate", "finishedDate"} <= set(body)
    result: dict[str, Any] = json.loads(body["result"])
    assert len(result) == 1
    return result


async def test_log_in_make_and_query(admin: Client) -> None:
    reply = await call(admin, "org.zstack.header.identity.APILogInByAccountMsg", accountName="admin", password=PASSWORD)
    value = reply["org.zstack.header.identity.APILogInByAccountReply"]
    assert value["success"] is True
    session = value["inventory"]["uuid"]
    made = await call(admin, f"{LAMP}.APICreateLampMsg", session, name="desk", watts="7")
    assert made[f"{LAMP}.APICreateLampEvent"]["inventory"]["watts"] == 7
    conditions = [{"name": "name", "op": "like", "value": "de%"}, {"name": "watts", "op": "in", "value": "7,8"}]
    found = await call(
        admin, f"{LAMP}.APIQueryLampMsg", session, conditions=conditions, limit="2", replyWithCount="true"
    )
    reply_value = found[f"{LAMP}.APIQueryLampReply"]
    assert reply_value["total"] == 1
    assert reply_value["inventories"][0]["name"] == "desk"


async def test_failures_are_200_and_tell_the_error(admin: Client) -> None:
    failed = await call(admin, f"{LAMP}.APICreateLampMsg", admin.session, name="bomb")
    value = failed[f"{LAMP}.APICreateLampEvent"]
    assert (value["success"], value["error"]["code"]) == (False, "SYS.1007")
    nobody = await call(admin, f"{LAMP}.APIQueryLampMsg", None, conditions=[])
    assert nobody[f"{LAMP}.APIQueryLampReply"]["error"]["code"] == "ID.1001"


async def test_what_cannot_be_read_is_text(admin: Client) -> None:
    for body in ({"org.zstack.APINoSuchMsg": {}}, {}, {"a": {}, "b": {}}):
        answer = await admin.send("POST", "/zstack/api/", body)
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain")
    assert (await admin.send("GET", "/zstack/api/result/x")).status == 404
