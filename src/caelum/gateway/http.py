"""HTTP below the API: the listening server, bodies with limits, answers.

Invariant: a client that sends slowly, or nothing, holds a connection only for a bounded time; no body larger than the
limit is ever kept. Thousands of requests that come at once begin in as many turns of the event loop as they need.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import msgspec
from aiohttp import web

from caelum.gateway.intake import Intake
from caelum.gateway.refusal import Refusal

HEADER_SECONDS = 20.0
"""Until the head of a connection's first request must be complete."""
BODY_SECONDS = 60.0
"""Until a request's body must be complete."""
KEEPALIVE_SECONDS = 75.0
LARGE_BODY = 16 * 1024
"""From this size on, in bytes, a body costs: it is read as JSON in a thread, and few are taken at a time."""

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
SECURITY_HEADERS = {
    "Server": "Caelum",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


_AT_ONCE = (b"GET /healthz ", b"GET /readyz ")
"""What a load balancer asks: a node that has much to do is not a sick one."""
_HELD_BYTES = 64 * 1024
"""What a connection may send before its request begins; it is not read from until then."""


class _Connection(web.RequestHandler):
    """A connection that is closed when its first request does not come in time, and whose requests begin when the
    intake says so."""

    __slots__ = ("_first", "_held", "_intake")

    def __init__(self, server: Server, intake: Intake) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEPALIVE_SECONDS,
            access_log=None,  # type: ignore[arg-type]  # None is taken: it means no log of accesses
            max_line_size=16384,
        )
        self._intake = intake
        self._held: bytearray | None = None
        """What came of a request that has not begun."""
        self._first: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._await_first()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.request_came()
        self._held = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not data or (self._held is None and (self._at_work or data.startswith(_AT_ONCE) or self._intake.admits())):
            super().data_received(data)
        elif self._held is not None:
            self._hold(data)
        else:
            self._held = bytearray()
            self._hold(data)
            self._intake.wait(self._begin)

    @property
    def _at_work(self) -> bool:
        """Whether what comes belongs to a request that has begun, or to a socket that it was made."""
        return self._request_in_progress or bool(self._messages) or self._upgraded

    def _hold(self, data: bytes) -> None:
        held = cast("bytearray", self._held)
        held += data
        if len(held) >= _HELD_BYTES:
            self._pause_transport_reading()

    def _begin(self) -> bool:
        """The request's turn has come. False: the client has left."""
        held, self._held = self._held, None
        if held is None:
            return False
        super().data_received(bytes(held))
        if len(held) >= _HELD_BYTES and not (self._reading_paused or self._buffer_paused):
            self._resume_transport_reading()
        return True

    def _process_keepalive(self) -> None:
        """See `aiohttp.web.RequestHandler`: the connection was idle for long, unless a request is for us to begin."""
        if self._held is None:
            super()._process_keepalive()
        else:
            self._keepalive_handle = None  # the next is set after the request

    def _await_first(self) -> None:
        self._first = asyncio.get_running_loop().call_later(HEADER_SECONDS, self._first_missing)

    def _first_missing(self) -> None:
        """Nothing, or half a head, came in time, unless it is for us to read it."""
        if self._held is None:
            self.force_close()
        else:
            self._await_first()

    def request_came(self) -> None:
        """The head of a request is complete."""
        if self._first is not None:
            self._first.cancel()
            self._first = None


class Server(web.Server):
    """A protocol factory for `loop.create_server`."""

    def __init__(self, handler: Handler) -> None:
        async def first(request: web.BaseRequest) -> web.StreamResponse:
            if isinstance(request.protocol, _Connection):
                request.protocol.request_came()
            return await handler(request)

        super().__init__(first, request_factory=None)
        self.intake = Intake()

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self.intake)


async def read_body(request: web.BaseRequest, limit: int, on_large: Callable[[], Awaitable[None]]) -> bytes:
    """The whole body, at most `limit` bytes of it; nothing of a method that has none.

    `on_large` is waited for once more has come than is small.
    """
    if request.method not in ("POST", "PUT") or not request.body_exists:
        return b""
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    parts, size, large = [], 0, False
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.content.iter_any():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                if size > LARGE_BODY and not large:
                    large = True
                    await on_large()
                parts.append(part)
    except TimeoutError:
        raise Refusal(408, f"the body did not come within {BODY_SECONDS:.0f} s", {"Connection": "close"}) from None
    except web.RequestPayloadError as error:
        raise Refusal(400, f"the body cannot be read: {error}") from None
    return b"".join(parts)


def _too_large(limit: int) -> Refusal:
    # The rest of the body is not read, so the connection cannot be used again.
    return Refusal(413, f"the body is larger than {limit} bytes", {"Connection": "close"})


def json_answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer in JSON."""
    return raw_json(msgspec.json.encode(body), status, headers)


def raw_json(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer in JSON that is encoded already."""
    return web.Response(
        body=body,
        status=status,
        headers={"Content-Type": "application/json; charset=utf-8", **SECURITY_HEADERS, **(headers or {})},
    )


def refusal_answer(refusal: Refusal) -> web.Response:
    """An error of the HTTP layer: plain text."""
    return web.Response(
        text=refusal.text,
        status=refusal.status,
        headers={"Content-Type": "text/plain; charset=utf-8", **SECURITY_HEADERS, **refusal.headers},
    )


def client_of(request: web.BaseRequest) -> str:
    """The address that the request came from."""
    return request.remote or "unknown"


@functools.lru_cache(maxsize=256)
def _valid_host(host: str) -> bool:
    return bool(host) and all(one.isalnum() or one in ".-_:[]" for one in host)


def base_url(request: web.BaseRequest) -> str:
    """Scheme, host and port under which this client reaches us."""
    host = request.headers.get("Host", "")
    if not _valid_host(host):
        raise Refusal(400, "the header Host is missing or malformed")
    return f"{request.scheme}://{host}"


def oauth_session(request: web.BaseRequest) -> str:
    """The session that the header Authorization carries."""
    header = request.headers.get("Authorization")
    if header is None:
        raise Refusal(400, "missing header 'Authorization'")
    scheme, _, session = header.partition(" ")
    if scheme != "OAuth":
        raise Refusal(400, "Authorization type must be 'OAuth'")
    return session.strip()


def to_text(body: Any) -> str:
    """JSON as text."""
    return json.dumps(body, ensure_ascii=False)
