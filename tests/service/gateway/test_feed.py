"""The live feed: who gets what, and when it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from caelum.gateway import feed as feed_module
from caelum.kernel.ids import new_uuid
from gateway.conftest import Client
from gateway.lamps import LampLit


class Listener:
    """A client of the feed."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def next(self) -> dict[str, Any]:
        message: dict[str, Any] = await self.socket.receive_json(timeout=5)
        return message

    async def until(self, kind: str, **fields: Any) -> dict[str, Any]:
        while True:
            message = await self.next()
            if message["type"] == kind and all(message.get(name) == value for name, value in fields.items()):
                return message

    async def quiet(self) -> list[dict[str, Any]]:
        """What comes within a moment."""
        found = []
        try:
            while True:
                found.append(await self.socket.receive_json(timeout=0.3))
        except TimeoutError:
            return found


async def listen(client: Client, *, in_message: bool = False) -> Listener:
    headers = {} if in_message else {"Authorization": f"OAuth {client.session}"}
    socket = await client.http.ws_connect(f"{client.base}/ws", headers=headers)
    if in_message:
        await socket.send_json({"session": client.session})
    listener = Listener(socket)
    assert (await listener.next())["type"] == "ready"
    return listener


async def test_jobs_report_progress_and_outcome(admin: Client) -> None:
    listener = await listen(admin)
    uuid = await admin.lamp()
    made = await listener.until("job", api="APICreateLampMsg", state="Done")
    assert (made["success"], made["percent"]) == (True, 100)
    accepted = await admin.send("PUT", f"/v1/lamps/{uuid}/actions", {"switchLamp": {}})
    job = accepted.json["location"].rpartition("/")[2]
    half = await listener.until("job", uuid=job)
    assert (half["state"], half["percent"], half["text"]) == ("Processing", 50, "warming up")
    await listener.until("job", uuid=job, state="Done", success=True)


async def test_failures_carry_the_error(admin: Client) -> None:
    listener = await listen(admin)
    await admin.job("POST", "/v1/lamps", {"params": {"name": "bomb"}})
    failed = await listener.until("job", state="Done")
    assert (failed["success"], failed["error"]["code"]) == (False, "SYS.1007")


async def test_an_account_gets_its_own_and_an_administrator_everything(admin: Client) -> None:
    frank, eve = await admin.account("frank"), await admin.account("eve")
    to_frank, to_eve, to_admin = await listen(frank, in_message=True), await listen(eve), await listen(admin)
    lamp = await frank.lamp()
    await frank.job("PUT", f"/v1/lamps/{lamp}/actions", {"switchLamp": {}})
    for one in (to_frank, to_admin):
        event = await one.until("event", path="/lamp/lit")
        assert event["content"] == {"lampUuid": lamp}
        assert event["managementNodeId"] == admin.cloud.node.uuid
    admin.cloud.node.bus.publish(LampLit(lamp_uuid=new_uuid()))
    assert await to_eve.quiet() == []
    assert {one["type"] for one in await to_frank.quiet()} <= {"job"}


async def test_without_a_session_there_is_an_error_and_an_end(admin: Client) -> None:
    for first in ({"session": new_uuid()}, {"hello": 1}, []):
        socket = await admin.http.ws_connect(f"{admin.base}/ws")
        await socket.send_json(first)
        assert (await socket.receive_json(timeout=5))["error"]["code"] == "ID.1001"
        assert (await socket.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 4001
    assert (await admin.send("GET", "/ws")).status == 426


async def test_the_feed_ends_with_the_session(admin: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "CHECK_SECONDS", 0.1)
    listener = await listen(admin)
    await admin.send("DELETE", f"/v1/accounts/sessions/{admin.session}")
    async with asyncio.timeout(5):
        while (await listener.socket.receive()).type is not aiohttp.WSMsgType.CLOSE:
            pass
    await admin.cloud.until(lambda: admin.gateway.feed.clients == 0)


async def test_a_slow_client_loses_the_oldest_and_is_told(admin: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_MOST_WAITING", 3)
    listener = await listen(admin)
    for _ in range(10):
        admin.gateway.feed._job(job_of(admin))
    first = await listener.next()
    assert first == {"type": "lost", "count": 7}
    assert [(await listener.next())["type"] for _ in range(3)] == ["job"] * 3


def job_of(client: Client) -> Any:
    from caelum.kernel.context import SYSTEM
    from caelum.kernel.database import utcnow
    from caelum.kernel.jobs import Job

    return Job(new_uuid(), "APICreateLampMsg", SYSTEM, "Done", utcnow(), result="{}")
