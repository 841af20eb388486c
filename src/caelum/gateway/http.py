"""HTTP below the API: the listening server, bodies with limits, answers.

Invariant: a client that sends slowly, or nothing, holds a connection only for a bounded time; no body larger than the
limit is ever kept.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from caelum.gateway.refusal import Refusal

HEADER_SECONDS = 20.0
"""Until the head of a connection's first request must be complete."""
BODY_SECONDS = 60.0
"""Until a request's body must be complete."""
KEEPALIVE_SECONDS = 75.0

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
SECURITY_HEADERS = {
    "Server": "Caelum",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


class _Connection(web.RequestHandler):
    """A connection that is closed when its first request does not come in time."""

    __slots__ = ("_first",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._first: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(
            HEADER_SECONDS, self.force_close
        )

    def connection_lost(self, exc: BaseException | None) -> None:
        self.request_came()
        super().connection_lost(exc)

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

    def __call__(self) -> web.RequestHandler:
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEPALIVE_SECONDS,
            access_log=None,  # type: ignore[arg-type]  # None is taken: it means no log of accesses
            max_line_size=16384,
        )


async def read_body(request: web.BaseRequest, limit: int) -> bytes:
    """The whole body, at most `limit` bytes of it."""
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.content.iter_any():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
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
