"""Consoles through the proxy: tokens are good once, and only for whom, for what and for as long as they should be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import WSMsgType
from console_lab import CHUNK, ConsoleLab, console_lab, vm_inventory
from sqlalchemy import select

from caelum.cloud.config.api import UpdateGlobalConfig
from caelum.cloud.console.api import QueryConsoleProxyAgent, ReconnectConsoleProxyAgent, UpdateConsoleProxyAgent
from caelum.cloud.console.model import ConsoleTokenModel
from caelum.kernel import pki
from caelum.kernel.context import Actor
from caelum.kernel.database import update_where, utcnow
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[ConsoleLab]:
    async with console_lab(tmp_path / "cloud") as lab:
        yield lab


async def tokens(lab: ConsoleLab) -> list[ConsoleTokenModel]:
    async with lab.cloud.node.db.read() as session:
        return list(await session.scalars(select(ConsoleTokenModel)))


async def configure(lab: ConsoleLab, name: str, value: object) -> None:
    await lab.cloud.api(UpdateGlobalConfig(category="console", name=name, value=str(value)))


@pytest.mark.parametrize("line", ["vnc", "serial"])
async def test_bytes_pass_both_ways(lab: ConsoleLab, line: str) -> None:
    access = await lab.request()
    assert (access.scheme, access.hostname, access.port) == ("http", "127.0.0.1", lab.cloud.node.config.console_port)
    assert timedelta(seconds=1790) < access.expired_date - utcnow() <= timedelta(seconds=1800)
    async with lab.connect(access.token, line) as socket:
        assert socket.protocol == "binary"
        await socket.send_bytes(b"hello")
        assert await socket.receive_bytes(timeout=5) == b"echo hello"
        await socket.send_str("text")
        assert await socket.receive_bytes(timeout=5) == b"echo text"
    assert lab.agent.paths == [f"/console/{line}/{lab.vm.uuid}"]
    assert lab.agent.peers[0] is not None
    assert lab.agent.peers[0].kind == "server"
    await lab.cloud.until(lambda: not lab.agent.open and not len(lab.proxy.sessions))


async def test_a_token_is_good_once_and_kept_as_its_hash_only(lab: ConsoleLab) -> None:
    token = (await lab.request()).token
    assert len(token) >= 43  # 256 bits
    (row,) = await tokens(lab)
    assert token not in (row.digest, row.line)
    assert row.host_uuid == lab.vm.host_uuid
    assert await lab.status(token) == 101
    assert await tokens(lab) == []
    assert await lab.status(token) == 401
    assert await lab.status(token, "serial") == 401
    assert await lab.status("") == 401
    assert await lab.status("guess") == 401


async def test_of_many_that_come_at_once_with_a_token_one_gets_in(lab: ConsoleLab) -> None:
    token = (await lab.request()).token
    answers = await asyncio.gather(*(lab.status(token) for _ in range(8)))
    assert sorted(answers) == [101] + [401] * 7


async def test_an_expired_token_is_refused_and_purged(lab: ConsoleLab) -> None:
    token = (await lab.request()).token
    past = utcnow() - timedelta(seconds=1)
    async with lab.cloud.node.db.transaction() as tx:
        await update_where(tx, ConsoleTokenModel, {"expire_date": past}, ConsoleTokenModel.line == "any")
    assert await lab.status(token) == 401
    await lab.cloud.node.services["console"]._purge()
    assert await tokens(lab) == []


async def test_the_stop_of_the_vm_ends_its_consoles_and_its_tokens(lab: ConsoleLab) -> None:
    unused, used = (await lab.request()).token, (await lab.request()).token
    async with lab.connect(used) as socket:
        await lab.become("Stopped")
        message = await socket.receive(timeout=5)
        assert message.type is WSMsgType.CLOSE
        assert "Stopped" in message.extra
    assert await lab.status(unused) == 401
    with pytest.raises(CloudError, match=r"Stopped; its console is there when it is Running or Paused") as caught:
        await lab.request()
    assert caught.value.code == "VM.1010"
    await lab.become("Running")
    assert await lab.status(unused) == 401  # the VM's next run is another one


async def test_a_token_meets_a_vm_whose_stop_nobody_told(lab: ConsoleLab) -> None:
    token = (await lab.request()).token
    lab.vm.state = "Stopped"
    assert await lab.status(token) == 409
    lab.vm.state = "Paused"
    assert await lab.status(token) == 101


async def test_a_vm_that_changed_hands_is_refused(lab: ConsoleLab) -> None:
    actor = Actor(new_uuid(), new_uuid())
    token, admins = (await lab.request(actor=actor)).token, (await lab.request()).token
    lab.identity.hidden.append(lab.vm.uuid)
    assert await lab.status(token) == 401
    assert await lab.status(admins) == 101


async def test_each_token_leads_to_its_own_vm(lab: ConsoleLab) -> None:
    other = vm_inventory(host_uuid=lab.vm.host_uuid)
    lab.vms.vms[other.uuid] = other
    tokens_of = {one.uuid: (await lab.request(one)).token for one in (lab.vm, other)}
    assert await lab.status(tokens_of[other.uuid]) == 101
    assert await lab.status(tokens_of[lab.vm.uuid]) == 101
    assert lab.agent.paths == [f"/console/vnc/{other.uuid}", f"/console/vnc/{lab.vm.uuid}"]


async def test_an_exchanged_token_is_good_for_its_line_and_the_chain_goes_on(lab: ConsoleLab) -> None:
    async def exchange(token: str, line: str, status: int = 200) -> dict[str, str]:
        async with lab.http.post(f"{lab.url}/tokens", json={"token": token, "line": line}) as answer:
            assert answer.status == status, await answer.text()
            return await answer.json()

    first = (await lab.request()).token
    screen = await exchange(first, "vnc")
    assert screen["vm"] == {"uuid": lab.vm.uuid, "name": "vm"}
    serial = await exchange(screen["next"], "serial")
    for used in (first, screen["next"]):
        assert (await exchange(used, "vnc", 401))["error"]["code"] == "CONSOLE.1001"
    assert await lab.status(serial["token"], "vnc") == 401
    assert await lab.status(serial["token"], "serial") == 101
    assert await lab.status(screen["token"], "vnc") == 101
    await exchange(screen["token"], "vnc", 401)
    await exchange("x", "sound", 400)
    (left,) = await tokens(lab)
    assert left.line == "any"


async def test_pages_of_strangers_are_refused_and_cost_no_token(lab: ConsoleLab) -> None:
    token = (await lab.request()).token
    for theirs in ("http://evil.example", "null", f"http://127.0.0.1:{lab.cloud.node.config.console_port + 1}"):
        assert await lab.status(token, headers={"Origin": theirs}) == 403
        async with lab.http.post(
            f"{lab.url}/tokens", json={"token": token, "line": "vnc"}, headers={"Origin": theirs}
        ) as answer:
            assert answer.status == 403
    await configure(lab, "proxy.allowedOrigins", "https://portal.example, https://other.example")
    assert await lab.status(token, headers={"Origin": "https://other.example"}) == 101
    assert await lab.status((await lab.request()).token, headers={"Origin": lab.url}) == 101


async def test_a_host_that_is_not_the_vms_gets_nothing_and_the_token_stays(lab: ConsoleLab) -> None:
    token, right = (await lab.request()).token, lab.vm.host_uuid
    lab.vm.host_uuid = new_uuid()  # at that address is a host with another UUID
    assert await lab.status(token) == 502
    assert lab.agent.paths == []
    lab.vm.host_uuid = right
    assert await lab.status(token) == 101


async def test_the_certificate_may_be_renewed(lab: ConsoleLab) -> None:
    assert await lab.status((await lab.request()).token) == 101
    directory = lab.cloud.node.config.data_dir / "pki"
    again = pki.CertificateAuthority.open(directory).issue(pki.Identity("server", "f" * 32))
    pki.store(pki.Files.in_directory(directory, "server"), again)
    assert await lab.status((await lab.request()).token) == 101
    assert [one.uuid for one in lab.agent.peers if one is not None][1] == "f" * 32


async def test_a_slow_viewer_slows_its_guest_only(lab: ConsoleLab) -> None:
    lab.agent.flood = 2000  # 125 MiB
    token = (await lab.request()).token
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.cloud.node.config.console_port, limit=1024)
    writer.write(
        f"GET /vnc?token={token} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    await lab.cloud.until(lambda: lab.agent.sent > 0)
    seen = -1
    while seen != lab.agent.sent:
        seen = lab.agent.sent
        await asyncio.sleep(0.3)
    # What is under way sits in the kernel's socket buffers, 20 MiB at most, and a few messages in the proxy.
    assert seen * len(CHUNK) < 40 << 20
    lab.agent.flood = 0
    assert await lab.status((await lab.request()).token) == 101
    writer.transport.abort()
    await lab.cloud.until(lambda: not len(lab.proxy.sessions))


async def test_a_viewer_gets_everything(lab: ConsoleLab) -> None:
    lab.agent.flood = 300
    async with lab.connect((await lab.request()).token) as socket:
        got = 0
        while got < 300 * len(CHUNK):
            got += len(await socket.receive_bytes(timeout=5))


async def test_the_end_of_the_guests_side_ends_the_viewers(lab: ConsoleLab) -> None:
    async with lab.connect((await lab.request()).token, "serial") as socket:
        await lab.cloud.until(lambda: lab.agent.open)
        await next(iter(lab.agent.open)).close()
        message = await socket.receive(timeout=5)
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1000)
        assert message.extra == "the guest's console ended"


async def test_an_idle_console_is_closed(lab: ConsoleLab) -> None:
    await configure(lab, "session.idleTimeout", 1)
    async with lab.connect((await lab.request()).token) as socket:
        await asyncio.sleep(0.6)
        await socket.send_bytes(b"still here")
        assert await socket.receive_bytes(timeout=5)
        started = asyncio.get_running_loop().time()
        message = await socket.receive(timeout=5)
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1008)
        assert asyncio.get_running_loop().time() - started > 0.8


async def test_a_viewer_that_is_dead_is_noticed(lab: ConsoleLab) -> None:
    await configure(lab, "proxy.idleTimeout", 1)
    async with lab.connect((await lab.request()).token, autoping=False):
        await lab.cloud.until(lambda: len(lab.proxy.sessions))
        await lab.cloud.until(lambda: not len(lab.proxy.sessions), 5)


async def test_limits(lab: ConsoleLab) -> None:
    await configure(lab, "vm.maxSessions", 2)
    waiting = (await lab.request()).token
    async with lab.connect((await lab.request()).token), lab.connect((await lab.request()).token):
        assert await lab.status(waiting) == 429
    await lab.cloud.until(lambda: not len(lab.proxy.sessions))
    assert await lab.status(waiting) == 101
    await configure(lab, "proxy.maxSessions", 1)
    async with lab.connect((await lab.request()).token):
        assert await lab.status((await lab.request()).token) == 429


async def test_the_page_and_what_it_needs(lab: ConsoleLab) -> None:
    async with lab.http.get(f"{lab.url}/?token=x") as answer:
        text = await answer.text()
        assert answer.status == 200
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        policy = answer.headers["Content-Security-Policy"]
        assert "script-src 'self';" in policy
        assert policy.rpartition("frame-ancestors ")[2].startswith("'self'")
    assert "static/console.js" in text
    for path in ("console.js", "vendor/novnc/core/rfb.js", "vendor/xterm/xterm.mjs"):
        async with lab.http.get(f"{lab.url}/static/{path}") as answer:
            assert answer.status == 200
            assert "javascript" in answer.headers["Content-Type"]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
    async with lab.http.get(f"{lab.url}/static/../proxy.py") as answer:
        assert answer.status == 404
    async with lab.http.get(f"{lab.url}/vnc?token=x") as answer:
        assert answer.status == 426


@pytest.mark.parametrize("path", ["", "/websockify"])
async def test_clients_of_the_original_find_the_screen(lab: ConsoleLab, path: str) -> None:
    token = (await lab.request()).token
    async with lab.http.ws_connect(f"{lab.url}{path}?token={token}") as socket:
        await socket.send_bytes(b"RFB")
        assert await socket.receive_bytes(timeout=5) == b"echo RFB"


async def test_proxies_are_listed_renamed_and_pinged(lab: ConsoleLab) -> None:
    (agent,) = (await lab.cloud.api(QueryConsoleProxyAgent())).inventories or []
    port = lab.cloud.node.config.console_port
    assert (agent.management_ip, agent.console_proxy_port, agent.status) == ("127.0.0.1", port, "Connected")
    assert await lab.cloud.api(ReconnectConsoleProxyAgent()) == {agent.uuid: True}
    renamed = await lab.cloud.api(
        UpdateConsoleProxyAgent(uuid=agent.uuid, console_proxy_overridden_ip="cloud.example", console_proxy_port=443)
    )
    assert renamed.console_proxy_overridden_ip == "cloud.example"
    access = await lab.request()
    assert (access.hostname, access.port) == ("cloud.example", 443)
    await lab.proxy.stop()
    answer = await lab.cloud.api(ReconnectConsoleProxyAgent(agent_uuids=[agent.uuid]))
    assert answer[agent.uuid]["code"] == "CONSOLE.1004"
    with pytest.raises(CloudError, match="0 console proxies are connected"):
        await lab.request()


async def test_a_stopping_node_sends_viewers_away_and_keeps_the_proxys_name(tmp_path: Path) -> None:
    directory = tmp_path / "cloud"
    async with console_lab(directory) as lab:
        port = lab.cloud.node.config.console_port
        (agent,) = (await lab.cloud.api(QueryConsoleProxyAgent())).inventories or []
        await lab.cloud.api(UpdateConsoleProxyAgent(uuid=agent.uuid, console_proxy_overridden_ip="10.0.0.1"))
        socket = await lab.connect((await lab.request()).token)
        stopping = asyncio.create_task(lab.cloud.node.stop())
        message = await socket.receive(timeout=5)
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1001)
        await socket.close()
        await stopping
    again = console_lab(directory)
    async with again as lab:
        agents = (await lab.cloud.api(QueryConsoleProxyAgent())).inventories or []
        old = next(one for one in agents if one.uuid == agent.uuid)
        assert (old.console_proxy_overridden_ip, old.console_proxy_port) == ("10.0.0.1", port)


async def test_port_0_means_no_proxy(tmp_path: Path) -> None:
    from caelum.console.embedded import EmbeddedProxy
    from caelum.testing.cloud import EmbeddedCloud

    async with EmbeddedCloud(tmp_path, ["caelum.cloud.console.service:ConsoleService", EmbeddedProxy]) as cloud:
        assert not cloud.node.broken
        part = next(one for one in cloud.node._parts if isinstance(one, EmbeddedProxy))
        assert part.proxy is None


async def test_a_broken_handshake_costs_no_token(lab: ConsoleLab) -> None:
    token = (await lab.request()).token
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "7"}
    async with lab.http.get(f"{lab.url}/vnc", params={"token": token}, headers=headers) as answer:
        assert answer.status == 426
    assert await lab.status(token) == 101
