"""What a hostile or broken client meets."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

import pytest

from caelum.gateway import http as http_module
from caelum.gateway import limits
from caelum.gateway import server as gateway_server
from caelum.gateway.intake import Intake
from caelum.gateway.rest import Rest
from caelum.gateway.settings import BURST, MAX_BODY, MAX_CONCURRENT, RATE
from gateway.conftest import Client

V1 = "/zstack/v1"
CREATE = f"{V1}/lamps"


async def raw(client: Client, data: bytes, *, whole: bool = False) -> bytes:
    """What the server answers to these bytes: what comes first of it, or all until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.gateway.port)
    writer.write(data)
    await writer.drain()
    try:
        return await asyncio.wait_for(reader.read(-1 if whole else 65536), 5)
    finally:
        writer.close()


class TestBodies:
    @pytest.mark.parametrize(
        "body",
        [
            b"{",
            b"[]",
            b'"x"',
            b'{"a": NaN}',
            b'{"a": Infinity}',
            b'{"a": 1e999}',
            b'{"a": "\xff"}',
            b'{"a": "\\ud800"}',
            b'{"a": "\\u0000"}',
            b'{"a": 1, "a": 2}',
            b'{"params": {"name": "ok", "watts": %s}}' % (b"9" * 30),
            b'{"params": {"name": "ok", "watts": "%s"}}' % (b"9" * 30),
            b'{"a": %s}' % (b"9" * 5000),
            b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}",
            b'{"a": ' + b"[" * 100_000,
            b'{"a":' * 100_000,
        ],
    )
    async def test_malformed_json_is_400_in_plain_text(self, admin: Client, body: bytes) -> None:
        refused = await admin.send("POST", CREATE, data=body)
        assert refused.status == 400
        assert refused.headers["Content-Type"].startswith("text/plain")
        assert len(refused.text) < 500

    async def test_large_bodies_are_413_whether_announced_or_not(self, admin: Client) -> None:
        await admin.cloud.node.settings.set(MAX_BODY, "2K")

        async def chunks() -> object:
            for _ in range(100):
                yield b"x" * 1000

        for data in (b" " * 3000, chunks()):
            refused = await admin.send("POST", CREATE, data=data)
            assert refused.status == 413

    async def test_a_compressed_bomb_stays_small(self, admin: Client) -> None:
        import zlib

        bomb = zlib.compress(b" " * 50_000_000)
        refused = await admin.send("POST", CREATE, data=bomb, headers={"Content-Encoding": "deflate"})
        assert refused.status == 413

    async def test_broken_http_is_refused_without_a_trace(self, admin: Client) -> None:
        for data in (b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n"):
            answer = await raw(admin, data)
            assert b" 400 " in answer.split(b"\r\n")[0]
            assert b"Traceback" not in answer


class TestSlowness:
    async def test_a_connection_without_a_request_is_closed(
        self, admin: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(http_module, "HEADER_SECONDS", 0.2)
        started = time.monotonic()
        assert await raw(admin, b"GET /healthz HTTP/1.1\r\nHost: ") == b""
        assert time.monotonic() - started < 3

    async def test_a_body_that_does_not_come_is_408(self, admin: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http_module, "BODY_SECONDS", 0.2)
        head = f"POST {CREATE} HTTP/1.1\r\nHost: x\r\nAuthorization: OAuth x\r\nContent-Length: 100\r\n\r\n{{"
        assert b" 408 " in (await raw(admin, head.encode())).split(b"\r\n")[0]

    async def test_the_loop_does_not_stall_under_hostile_bodies(self, admin: Client) -> None:
        async def ticks() -> float:
            worst = 0.0
            for _ in range(60):
                before = time.monotonic()
                await asyncio.sleep(0.01)
                worst = max(worst, time.monotonic() - before - 0.01)
            return worst

        watch = asyncio.create_task(ticks())
        hostile = [b'{"a":[' + b"1," * 400_000 + b"1]}", b"[" * 900_000, b'{"a":"' + b"\\u0041" * 150_000 + b'"}']
        await asyncio.gather(*(admin.send("POST", CREATE, data=one) for one in hostile))
        assert await watch < 0.5


class TestRates:
    async def test_a_client_that_sends_too_much_is_told_when_to_come_back(self, admin: Client) -> None:
        settings = admin.cloud.node.settings
        await settings.set(RATE, 5)
        await settings.set(BURST, 3)
        answers = [await admin.send("GET", f"{V1}/lamps/echo") for _ in range(8)]
        assert answers[0].status == 200
        refused = [one for one in answers if one.status == 429]
        assert refused
        assert int(refused[0].headers["Retry-After"]) >= 1
        assert (await admin.send("GET", "/healthz")).status == 200
        await asyncio.sleep(0.5)
        assert (await admin.send("GET", f"{V1}/lamps/echo")).status == 200

    async def waiting_lamp(self, admin: Client, seconds: int) -> str:
        """Where the job of an operation is that takes so long."""
        body = {"waitForLamp": {"seconds": seconds}}
        return str((await admin.send("PUT", f"{V1}/lamps/x/waiting/actions", body)).json["location"])

    async def test_too_many_requests_at_a_time_are_429(self, admin: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "_LINE_SECONDS", 0.1)
        await admin.cloud.node.settings.set(MAX_CONCURRENT, 1)
        async with admin.gateway._concurrency.one():
            assert (await admin.send("GET", f"{V1}/lamps/echo")).status == 429
        assert (await admin.send("GET", f"{V1}/lamps/echo")).status == 200

    async def test_a_poll_that_waits_takes_nobodys_place(self, admin: Client) -> None:
        location = await self.waiting_lamp(admin, 1)
        await admin.cloud.node.settings.set(MAX_CONCURRENT, 1)
        wait = asyncio.create_task(admin.send("GET", location, headers={"Prefer": "wait=5"}))
        await asyncio.sleep(0.2)
        assert (admin.gateway.running, admin.gateway.idle) == (0, 1)
        assert (await admin.send("GET", f"{V1}/lamps/echo")).status == 200
        assert (await wait).status == 200
        assert (admin.gateway.running, admin.gateway.idle) == (0, 0)

    async def test_when_too_many_polls_wait_the_next_is_answered_at_once(
        self, admin: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "_MOST_IDLE", 0)
        location = await self.waiting_lamp(admin, 1)
        started = time.monotonic()
        assert (await admin.send("GET", location, headers={"Prefer": "wait=5"})).status == 202
        assert time.monotonic() - started < 0.9

    async def test_requests_that_come_in_the_same_moment_are_all_answered(self, admin: Client) -> None:
        """Each on a connection of its own, all sent in the same moment, split within the head and within the body."""
        count, body = 300, b'{"params": {"name": "lamp", "wrong": 1}}'
        head = f"POST {CREATE} HTTP/1.1\r\nHost: x\r\nAuthorization: OAuth x\r\nContent-Length: {len(body)}\r\n\r\n"
        parts = [head[:20].encode(), head[20:].encode() + body[:5], body[5:]]
        streams = [await asyncio.open_connection("127.0.0.1", admin.gateway.port) for _ in range(count)]
        for part in parts:
            for _, writer in streams:
                writer.write(part)
            await asyncio.sleep(0)
        answers = await asyncio.gather(*(asyncio.wait_for(reader.readline(), 60) for reader, _ in streams))
        for _, writer in streams:
            writer.close()
        assert {one.split()[1] for one in answers} == {b"202"}
        assert (admin.gateway.waiting, admin.gateway.running) == (0, 0)

    async def test_a_client_that_leaves_before_its_request_begins_leaves_nothing(self, admin: Client) -> None:
        request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        streams = [await asyncio.open_connection("127.0.0.1", admin.gateway.port) for _ in range(100)]
        for _, writer in streams:
            writer.write(request)
            writer.transport.abort()
        for _ in range(50):
            await asyncio.sleep(0.01)
        assert admin.gateway.waiting == 0
        assert (await admin.send("GET", "/healthz")).status == 200

    async def test_bodies_that_do_not_come_take_nobodys_place(self, admin: Client) -> None:
        await admin.cloud.node.settings.set(MAX_CONCURRENT, 1)
        head = f"POST {CREATE} HTTP/1.1\r\nHost: x\r\nAuthorization: OAuth x\r\nContent-Length: 100\r\n\r\n{{"
        streams = [await asyncio.open_connection("127.0.0.1", admin.gateway.port) for _ in range(20)]
        for _, writer in streams:
            writer.write(head.encode())
        await asyncio.sleep(0.1)
        assert (await admin.send("GET", f"{V1}/lamps/echo")).status == 200
        for _, writer in streams:
            writer.close()

    async def test_large_bodies_are_taken_a_few_at_a_time(self, admin: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gateway_server, "_LARGE_BODIES", 1)
        monkeypatch.setattr(limits, "_LINE_SECONDS", 0.1)
        body = b'{"params": {"name": "%s"}}' % (b"x" * http_module.LARGE_BODY)
        async with admin.gateway._large.one():
            assert (await admin.send("POST", CREATE, data=body)).status == 429
            assert (await admin.send("POST", CREATE, data=b"{")).status == 400
        assert (await admin.send("POST", CREATE, data=body)).status != 429

    async def test_nothing_is_done_for_who_leaves_the_line(
        self, admin: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await admin.cloud.node.settings.set(MAX_CONCURRENT, 1)
        handled: list[object] = []
        monkeypatch.setattr(Rest, "handle", lambda *asked: handled.append(asked))
        async with admin.gateway._concurrency.one():
            _, writer = await asyncio.open_connection("127.0.0.1", admin.gateway.port)
            writer.write(f"DELETE {V1}/lamps/x HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await asyncio.sleep(0.1)
            assert admin.gateway.waiting == 1
            writer.transport.abort()
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.1)
        assert not handled
        assert (admin.gateway.waiting, admin.gateway.running) == (0, 0)

    async def test_who_stands_in_line_when_the_node_stops_is_told(
        self, admin: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await admin.cloud.node.settings.set(MAX_CONCURRENT, 1)
        async with admin.gateway._concurrency.one():
            waits = asyncio.create_task(admin.send("GET", f"{V1}/lamps/echo"))
            await asyncio.sleep(0.1)
            monkeypatch.setattr(admin.gateway, "_stopping", True)
        assert (await waits).status == 503

    async def test_health_is_told_past_all_that_wait(self, admin: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Intake, "admits", lambda _: False)
        monkeypatch.setattr(Intake, "wait", lambda _, _begin: None)
        for path in ("/healthz", "/readyz"):
            answer = await raw(admin, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 200")

    async def test_a_connection_stays_open_while_its_next_request_waits_to_begin(
        self, admin: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(http_module, "KEEPALIVE_SECONDS", 0.2)
        request = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", admin.gateway.port)
        writer.write(request)
        assert b" 404 " in await asyncio.wait_for(reader.readline(), 5)
        held: list[Callable[[], bool]] = []
        monkeypatch.setattr(Intake, "admits", lambda _: False)
        monkeypatch.setattr(Intake, "wait", lambda _, begin: held.append(begin))
        writer.write(request)
        await asyncio.sleep(0.5)
        assert held[0]()
        answers = await asyncio.wait_for(reader.read(), 5)  # closes when the next does not come
        assert answers.count(b" 404 ") == 1
        writer.close()

    async def test_requests_that_come_together_on_one_connection_are_answered_in_order(self, admin: Client) -> None:
        paths = ["/healthz", "/nowhere", "/readyz", "/nowhere"] * 10
        requests = [f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths]
        last = "GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answers = await raw(admin, "".join([*requests, last]).encode(), whole=True)
        assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"404"] * 20 + [b"404"]

    async def test_guessing_passwords_gets_slower_and_slower(self, admin: Client) -> None:
        body = {"logInByAccount": {"accountName": "nobody", "password": "x"}}
        statuses = []
        for n in range(12):
            body["logInByAccount"]["accountName"] = f"nobody{n}"
            statuses.append((await admin.send("PUT", f"{V1}/accounts/login", body)).status)
        assert statuses == [503] * 10 + [429, 429]
        assert (await admin.send("GET", f"{V1}/lamps/echo")).status == 200
