"""Web hooks: the outcome arrives, is repeated until taken, and never goes where it must not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from caelum.gateway.server import Gateway
from caelum.gateway.settings import WEB_HOOK_DENIED
from caelum.kernel.errors import CloudError
from caelum.testing.cloud import EmbeddedCloud
from caelum.testing.harness import kill
from gateway.conftest import SERVICES, Client


class Hook:
    """A server that takes web hooks after refusing some."""

    def __init__(self) -> None:
        self.refuse = 0
        self.calls: list[tuple[dict[str, str], Any]] = []
        self.paths: list[str] = []
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.calls.append((dict(request.headers), await request.json()))
        self.paths.append(request.path)
        if request.path == "/away":
            raise web.HTTPFound("/hook")
        return web.Response(status=500 if len(self.calls) <= self.refuse else 204)


@pytest.fixture
async def receiver() -> AsyncIterator[Hook]:
    made = Hook()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", made.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield made
    await runner.cleanup()


@pytest.fixture
async def hook(admin: Client, receiver: Hook) -> Hook:
    await allow(admin, pause=0.05)
    return receiver


async def allow(client: Client, pause: float) -> None:
    """Let web hooks reach this machine, with a pause of so many seconds between the tries."""
    await client.cloud.node.settings.set(WEB_HOOK_DENIED, "169.254.0.0/16")
    client.gateway._web_hooks._pause = pause


async def test_the_outcome_is_what_polling_answers(admin: Client, hook: Hook) -> None:
    for name, success in (("desk", "true"), ("bomb", "false")):
        hook.calls.clear()
        headers = {"X-Web-Hook": hook.url}
        polled = await admin.job("POST", "/v1/lamps", {"params": {"name": name}}, headers=headers)
        await admin.cloud.until(lambda: hook.calls)
        sent, body = hook.calls[0]
        assert body == polled.json
        assert sent["X-Job-Success"] == success
        assert len(sent["X-Job-UUID"]) == 32


async def test_it_is_repeated_until_it_is_taken(admin: Client, hook: Hook) -> None:
    hook.refuse = 3
    await admin.job("POST", "/v1/lamps", {"params": {"name": "desk"}}, headers={"X-Web-Hook": hook.url})
    await admin.cloud.until(lambda: len(hook.calls) == 4)
    await admin.cloud.until(lambda: not admin.gateway._web_hooks._tasks)
    assert len(hook.calls) == 4


async def test_one_that_waits_when_the_process_dies_is_sent_after_the_restart(receiver: Hook, tmp_path: Path) -> None:
    receiver.refuse = 1
    async with aiohttp.ClientSession() as http:
        dying = await EmbeddedCloud(tmp_path, SERVICES).__aenter__()
        gateway = Gateway(dying.node)
        await gateway.start()
        client = await Client(dying, gateway, http).log_in()
        await allow(client, pause=60)
        headers = {"X-Web-Hook": receiver.url}
        polled = await client.job("POST", "/v1/lamps", {"params": {"name": "desk"}}, headers=headers)
        await dying.until(lambda: receiver.calls)
        await kill(dying.node)
        await gateway.stop(0)
    cloud = EmbeddedCloud(tmp_path, SERVICES)
    gateway = Gateway(cloud.node)
    await gateway.start()
    async with cloud:
        await cloud.until(lambda: len(receiver.calls) == 2)
        (first, _), (second, body) = receiver.calls
        assert second["X-Job-UUID"] == first["X-Job-UUID"]
        assert body == polled.json
        await cloud.until(lambda: not gateway._web_hooks._tasks)
        await gateway._web_hooks.sweep()
        assert not gateway._web_hooks._tasks  # taken once, it is settled for good
        await gateway.stop(1)


async def test_a_sweep_sends_what_is_under_way_no_second_time(admin: Client, hook: Hook) -> None:
    hook.refuse = 1
    await admin.job("POST", "/v1/lamps", {"params": {"name": "desk"}}, headers={"X-Web-Hook": hook.url})
    while len(hook.calls) < 2:  # noqa: ASYNC110
        await admin.gateway._web_hooks.sweep()
        await asyncio.sleep(0)
    await admin.cloud.until(lambda: not admin.gateway._web_hooks._tasks)
    await admin.gateway._web_hooks.sweep()
    assert len(hook.calls) == 2


async def test_redirects_are_not_followed(admin: Client, hook: Hook) -> None:
    away = hook.url.replace("/hook", "/away")
    await admin.job("POST", "/v1/lamps", {"params": {"name": "desk"}}, headers={"X-Web-Hook": away})
    await admin.cloud.until(lambda: len(hook.calls) == 15)
    assert set(hook.paths) == {"/away"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "127.1"])
async def test_denied_networks_are_not_reached_by_any_name(
    admin: Client, hook: Hook, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    await admin.cloud.node.settings.set(WEB_HOOK_DENIED, WEB_HOOK_DENIED.default_text)
    url = hook.url.replace("127.0.0.1", host)
    await admin.job("POST", "/v1/lamps", {"params": {"name": "desk"}}, headers={"X-Web-Hook": url})
    await admin.cloud.until(lambda: "is not sent" in caplog.text or "was not taken" in caplog.text)
    assert hook.calls == []


async def test_what_is_no_url_or_network_is_refused(admin: Client) -> None:
    for bad in ("file:///etc/passwd", "gopher://x", "http://", "x"):
        refused = await admin.send("POST", "/v1/lamps", {"params": {}}, headers={"X-Web-Hook": bad})
        assert refused.status == 400
    with pytest.raises((CloudError, ValueError)):
        await admin.cloud.node.settings.set(WEB_HOOK_DENIED, "nonsense")
