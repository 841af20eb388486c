"""Web hooks: the outcome arrives, is repeated until taken, and never goes where it must not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from caelum.gateway.settings import WEB_HOOK_DENIED
from caelum.kernel.errors import CloudError
from gateway.conftest import Client


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
async def hook(admin: Client) -> AsyncIterator[Hook]:
    made = Hook()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", made.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    await admin.cloud.node.settings.set(WEB_HOOK_DENIED, "169.254.0.0/16")
    admin.gateway._web_hooks._pause = 0.05
    yield made
    await runner.cleanup()


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
