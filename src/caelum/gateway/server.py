"""The way in: one HTTP server with the API, its documentation, health, metrics and the live feed.

Invariant: it listens before the node is ready, so that clients get an answer that says so; it knows no operation by
name. Whatever goes wrong inside, a client gets one of the documented error forms and never a stack trace.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from aiohttp import web

from caelum.cloud.management.errors import NOT_READY
from caelum.gateway.amqp import AmqpPortal
from caelum.gateway.answer import error_body
from caelum.gateway.feed import Feed
from caelum.gateway.http import Server, client_of, json_answer, read_body, refusal_answer
from caelum.gateway.legacy import Legacy
from caelum.gateway.limits import Concurrency, RateLimit
from caelum.gateway.operations import Operations
from caelum.gateway.pages import Pages
from caelum.gateway.refusal import Refusal
from caelum.gateway.rest import JOBS, Rest
from caelum.gateway.routes import RouteTable
from caelum.gateway.runner import Runner
from caelum.gateway.settings import BURST, MAX_BODY, MAX_CONCURRENT, RATE
from caelum.gateway.webhook import WebHooks
from caelum.kernel.errors import CloudError, to_wire
from caelum.kernel.log import MASK
from caelum.kernel.membership import is_of_cluster
from caelum.kernel.message import apis

if TYPE_CHECKING:
    from caelum.kernel.node import Node

log = logging.getLogger(__name__)

_SESSION = re.compile("(?<=/sessions/)[^/]+")
"""What a path tells that no log may: who ends a session names it."""
_API_PREFIXES = (("zstack", "v1"), ("v1",))
_LEGACY_PREFIXES = (("zstack", "api"), ("api",))
_BACKLOG = 4096
"""Connections that may wait until they are taken, as many as Linux allows by default: thousands of clients may come at
once, and whom there is no room for is cut off later, in the middle of its request."""


_LARGE_BODIES = 64
"""Requests with large bodies that are read or worked on at a time."""


class Gateway:
    """The HTTP server of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.runner = Runner(node)
        self.feed = Feed(node)
        self._web_hooks = WebHooks(node)
        self._amqp = AmqpPortal(node, self.runner)
        self._operations = Operations(node)
        self._pages = Pages()
        self._legacy = Legacy(node, self.runner)
        self._rate = RateLimit(lambda: node.settings.get(RATE), lambda: node.settings.get(BURST))
        self._concurrency = Concurrency(lambda: node.settings.get(MAX_CONCURRENT))
        self._large = Concurrency(lambda: _LARGE_BODIES)
        self._stopping = False
        self._rest: Rest | None = None
        self._server: Server | None = None
        self._listener: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        if self._listener is None:
            raise RuntimeError("the gateway does not listen")
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    @property
    def running(self) -> int:
        """How many requests are being worked on."""
        return self._concurrency.running

    @property
    def waiting(self) -> int:
        """How many requests came that nobody works on yet."""
        return self._concurrency.line + (0 if self._server is None else self._server.intake.waiting)

    @property
    def idle(self) -> int:
        """How many requests wait for their jobs."""
        return self._concurrency.idle

    async def start(self) -> None:
        """Listen. May be called before the node starts; until that is ready, clients are told to wait."""
        config = self._node.config
        self._web_hooks.start()
        self._amqp.start()
        self._operations.observe(self)
        self._server = Server(self._answer)
        self._listener = await asyncio.get_running_loop().create_server(
            self._server, config.api_host, config.api_port, ssl=config.api_tls(), backlog=_BACKLOG
        )
        log.info("the API is at %s:%d", config.api_host, self.port)

    async def stop(self, seconds: float = 5.0) -> None:
        """Take no more requests, end the running ones, and close every connection. Call it before the node stops."""
        self._stopping = True
        if self._listener is not None:
            self._listener.close()
        await self.feed.stop()
        await self._amqp.close()
        if self._server is not None:
            self._server.pre_shutdown()  # idle connections go at once
            await self._server.shutdown(seconds)
        await self.runner.stop(seconds)
        await self._amqp.stop()
        await self._web_hooks.stop()

    # --- one request --------------------------------------------------------------------------------------------------

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._dispatch(request)
        except Refusal as refusal:
            return refusal_answer(refusal)
        except CloudError as error:
            return json_answer(error_body(error), 503)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception as error:
            log.exception("the request %s %s failed", request.method, _SESSION.sub(MASK, request.path))
            return refusal_answer(Refusal(500, f"internal error: {to_wire(error).details}"))

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        segments = [one for one in request.rel_url.raw_path.split("/") if one]
        for prefix in _API_PREFIXES:
            if tuple(segments[: len(prefix)]) == prefix:
                return await self._api(request, prefix, segments)
        for prefix in _LEGACY_PREFIXES:
            if tuple(segments[: len(prefix)]) == prefix:
                async with self._admitted(request) as body:
                    return await self._legacy.handle(request, body, segments[len(prefix) :])
        if segments == ["ws"]:
            self._check_ready()
            return await self.feed.serve(request)
        if answer := await self._operations.serve(request, segments):
            return answer
        return await self._pages.serve(request, segments)

    async def _api(self, request: web.BaseRequest, prefix: tuple[str, ...], segments: list[str]) -> web.StreamResponse:
        rest = segments[len(prefix) :]
        try:
            async with self._admitted(request) as body:
                return await self._routed().handle(request, body, "/" + "/".join(prefix), "/" + "/".join(rest))
        except CloudError as error:
            if rest[:1] == [JOBS] and (error.kind is NOT_READY or is_of_cluster(error)):
                # Our own trouble must not look like the outcome of the job, which nobody here knows now.
                return json_answer({}, 202, {"Retry-After": "1"})
            raise

    @contextlib.asynccontextmanager
    async def _admitted(self, request: web.BaseRequest) -> AsyncIterator[bytes]:
        """A place among the running requests, and the body. Who sends slowly has none; nor has who has left in line."""
        self._rate.take(client_of(request))
        self._check_ready()
        limit = self._node.settings.get(MAX_BODY)
        async with contextlib.AsyncExitStack() as places:
            body = await read_body(request, limit, lambda: places.enter_async_context(self._large.one()))
            await places.enter_async_context(self._concurrency.one())
            self._check_ready()
            if request.transport is None:
                raise ConnectionResetError("the client has left")
            yield body

    def _check_ready(self) -> None:
        if self._stopping:
            raise CloudError(NOT_READY, "this management node stops")
        if not self._node.serves:
            waits = f": it waits for {self._node.waiting_for}" if self._node.waiting_for else ""
            raise CloudError(NOT_READY, f"this management node is not ready{waits}")

    def _routed(self) -> Rest:
        # Made at the first request: the operations are known once the node has loaded its services.
        if self._rest is None:
            self._rest = Rest(self._node, self.runner, RouteTable(apis()), self._concurrency)
        return self._rest
