"""The console proxy: a page with screen and serial line, and the WebSockets behind it.

Invariant: each WebSocket costs a token of its own, which is used up after the guest's side is connected and before the
viewer's is accepted; without one, nothing of a guest is seen and nothing reaches it. Tokens stand in no log.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiohttp import WSCloseCode, web

from caelum.cloud.console.errors import NO_LINE, TOKEN_REFUSED, TOO_MANY
from caelum.cloud.console.messages import (
    ConsoleGrant,
    ExchangeConsoleToken,
    Line,
    LookUpConsole,
    TakeConsole,
    digest_of,
    new_token,
)
from caelum.cloud.console.settings import (
    ALLOWED_ORIGINS,
    MOST_SESSIONS,
    MOST_SESSIONS_OF_VM,
    PROXY_IDLE_TIMEOUT,
    SESSION_IDLE_TIMEOUT,
)
from caelum.cloud.vm.api import NOT_IN_CORRECT_STATE
from caelum.console import origin
from caelum.console.pipe import Pipe
from caelum.console.sessions import Place, Sessions
from caelum.console.upstream import CLOSE_TIMEOUT, Upstream
from caelum.kernel import pki
from caelum.kernel.bus import Bus
from caelum.kernel.errors import INVALID_ARGUMENT, RESOURCE_NOT_FOUND, CloudError, as_cloud_error
from caelum.kernel.settings import Setting

log = logging.getLogger(__name__)
audit = logging.getLogger("caelum.audit")

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Settings = Callable[[Setting[Any]], Any]

STATIC = Path(__file__).parent / "static"
_MAX_BODY = 4096
_STATUS = {
    TOKEN_REFUSED.code: 401,
    RESOURCE_NOT_FOUND.code: 404,
    NOT_IN_CORRECT_STATE.code: 409,
    TOO_MANY.code: 429,
    INVALID_ARGUMENT.code: 400,
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; font-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors "
)
_HEADERS = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Exchange(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /tokens`: an access token, and for which line another one is wanted."""

    token: str
    line: Line


class ConsoleProxy:
    """A proxy that asks the console service on the bus. `other_ports` are those of the API's own pages."""

    def __init__(self, bus: Bus, settings: Settings, files: pki.Files, other_ports: Iterable[int] = ()) -> None:
        self._bus, self._settings = bus, settings
        self._other_ports = tuple(other_ports)
        self._upstream = Upstream(files)
        self.sessions = Sessions(lambda: settings(MOST_SESSIONS), lambda: settings(MOST_SESSIONS_OF_VM))
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Listen."""
        app = web.Application(client_max_size=_MAX_BODY, middlewares=[_errors])
        app.on_response_prepare.append(_harden)
        app.add_routes(
            [
                web.get("/", self._page),
                web.post("/tokens", self._exchange),
                web.get("/vnc", self._vnc),
                web.get("/websockify", self._vnc),
                web.get("/serial", self._serial),
                web.static("/static", STATIC),
            ]
        )
        # No access log: it would hold the tokens.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_TIMEOUT, handle_signals=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, ssl_context=tls).start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        if self._runner is None:
            raise RuntimeError("the console proxy does not listen")
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Send all viewers away."""
        self.sessions.end(WSCloseCode.GOING_AWAY, "the console proxy is stopping")
        if self._runner is not None:
            await self._runner.cleanup()
        await self._upstream.close()

    # --- pages --------------------------------------------------------------------------------------------------------

    async def _page(self, request: web.Request) -> web.StreamResponse:
        if "websocket" in request.headers.get("Upgrade", "").lower():
            return await self._vnc(request)  # where clients of the original look for the screen
        framers = origin.framers(request.host, self._other_ports, self._origins())
        return web.FileResponse(STATIC / "index.html", headers={"Content-Security-Policy": _POLICY + framers})

    async def _exchange(self, request: web.Request) -> web.StreamResponse:
        """Give a token for one line and the next access token for an access token, which is used up."""
        self._check_origin(request)
        try:
            wanted = msgspec.json.decode(await request.read(), type=Exchange)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CloudError(INVALID_ARGUMENT, f"the body is not a token and a line: {error}") from error
        token, access = new_token(), new_token()
        grant = await self._bus.call(
            ExchangeConsoleToken(
                digest=digest_of(wanted.token), line=wanted.line,
                line_digest=digest_of(token), access_digest=digest_of(access),
            )
        )  # fmt: skip
        return web.json_response({"token": token, "next": access, "vm": {"uuid": grant.vm_uuid, "name": grant.vm_name}})

    # --- consoles -----------------------------------------------------------------------------------------------------

    async def _vnc(self, request: web.Request) -> web.StreamResponse:
        return await self._open(request, "vnc")

    async def _serial(self, request: web.Request) -> web.StreamResponse:
        return await self._open(request, "serial")

    async def _open(self, request: web.Request, line: Line) -> web.StreamResponse:
        self._check_origin(request)
        viewer = self._viewer()
        if not viewer.can_prepare(request):
            raise web.HTTPUpgradeRequired(text="this is a WebSocket", headers={"Upgrade": "websocket"})
        digest = digest_of(request.query.get("token", ""))
        grant = await self._bus.call(LookUpConsole(digest=digest, line=line))
        with self.sessions.place(grant.vm_uuid) as place:
            async with self._upstream.open(_url(grant, line), grant.target.host_uuid) as guest:
                await self._bus.call(TakeConsole(digest=digest, line=line))
                await viewer.prepare(request)
                place.pipe = Pipe(viewer, guest)
                await self._carry(request, place, place.pipe, grant, line)
        if request.transport is not None:
            request.transport.close()
        return viewer

    def _viewer(self) -> web.WebSocketResponse:
        patience = self._settings(PROXY_IDLE_TIMEOUT)
        # aiohttp waits half a heartbeat for the answer to a ping.
        return web.WebSocketResponse(
            protocols=("binary",), heartbeat=patience / 1.5, timeout=CLOSE_TIMEOUT, compress=False, max_msg_size=1 << 20
        )

    async def _carry(self, request: web.Request, place: Place, pipe: Pipe, grant: ConsoleGrant, line: Line) -> None:
        who = f"{line} console of vm[uuid:{place.vm_uuid}] for account {grant.account_uuid} from {request.remote}"
        audit.info("opened: %s", who)
        reason = "the connection broke"
        try:
            reason = await pipe.run(lambda: float(self._settings(SESSION_IDLE_TIMEOUT)))
        finally:
            audit.info("closed: %s: %s; %d bytes typed, %d shown", who, reason, pipe.typed, pipe.shown)

    def _check_origin(self, request: web.Request) -> None:
        theirs = request.headers.get("Origin")
        if not origin.is_allowed(theirs, request.host, self._other_ports, self._origins()):
            audit.warning("refused: a console for a page of %s from %s", theirs, request.remote)
            raise web.HTTPForbidden(text=f"pages of {theirs} may not open consoles here")

    def _origins(self) -> list[str]:
        return [one.strip() for one in self._settings(ALLOWED_ORIGINS).split(",") if one.strip()]


def _url(grant: ConsoleGrant, line: Line) -> str:
    url = grant.target.url if line == "vnc" else grant.target.serial_url
    if url is None:
        raise CloudError(NO_LINE, f"vm[uuid:{grant.vm_uuid}] has no {line} console that can be reached")
    return url


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except (web.HTTPException, asyncio.CancelledError):
        raise
    except ConnectionError:
        raise web.HTTPBadRequest(text="the connection broke") from None
    except Exception as error:
        failure = as_cloud_error(error)
        if not isinstance(error, CloudError):
            log.exception("the request %s %s failed", request.method, request.path)
        return web.Response(
            status=_STATUS.get(failure.code, 502),
            body=msgspec.json.encode({"error": failure.to_wire()}),
            content_type="application/json",
        )


async def _harden(request: web.Request, response: web.StreamResponse) -> None:
    if response.status != 101:
        response.headers.update(_HEADERS)
        static = request.path.startswith("/static/")
        response.headers.setdefault("Cache-Control", "no-cache" if static else "no-store")
