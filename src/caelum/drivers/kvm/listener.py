"""Where agents reach this management node: HTTPS, and only with a host's certificate.

Invariant: a host speaks for itself only. Who asks is what the certificate says; an answer or a report that names
another host is refused with 403 and written to the audit log. Reports of a host are taken one at a time, in the order
of their numbers, each once.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import msgspec
from aiohttp import web

from caelum.agent.news import Report
from caelum.agent.protocol import TaskAnswer
from caelum.drivers.kvm.client import AgentClient
from caelum.drivers.kvm.extension import HOST_KEY
from caelum.kernel import pki

log = logging.getLogger(__name__)
audit = logging.getLogger("caelum.audit")

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ReportHandler = Callable[[Report], Awaitable[None]]
Renewer = Callable[[str, bytes], Awaitable[bytes]]

CALLBACK_PATH = "/agent/callback"
REPORT_PATH = "/agent/report"
CERTIFICATE_PATH = "/agent/certificate"
_MAX_BODY = 16 << 20
_GAP_PATIENCE = 2.0
"""Seconds that a report waits for the one before it."""


class ReportOrder:
    """The reports of one host: which number was taken last, and whose turn it is."""

    def __init__(self) -> None:
        self._turn = asyncio.Condition()
        self._agent_uuid = ""
        self._last = 0

    async def take(self, report: Report, handle: ReportHandler) -> bool:
        """Handle a report in its turn; False for a duplicate. One that fails is not counted: the agent repeats it."""
        async with self._turn:
            if report.agent_uuid == self._agent_uuid and report.number > self._last + 1:
                await self._wait_for_predecessor(report)
            if report.agent_uuid != self._agent_uuid:
                self._agent_uuid, self._last = report.agent_uuid, 0
            if report.number <= self._last:
                return False
            await handle(report)
            self._last = report.number
            self._turn.notify_all()
            return True

    async def _wait_for_predecessor(self, report: Report) -> None:
        # One that was lost for good must not hold up the rest.
        try:
            async with asyncio.timeout(_GAP_PATIENCE):
                await self._turn.wait_for(lambda: self._last + 1 >= report.number)
        except TimeoutError:
            log.warning("reports %d to %d of host %s are missing", self._last + 1, report.number - 1, report.host_uuid)


class KnownHosts:
    """Whether a host is (still) ours, asked at most every few seconds for each."""

    def __init__(self, ask: Callable[[str], Awaitable[bool]], keep: float = 10) -> None:
        self._ask = ask
        self._keep = keep
        self._until: dict[str, float] = {}

    async def knows(self, host_uuid: str) -> bool:
        if self._until.get(host_uuid, 0) > time.monotonic():
            return True
        if not await self._ask(host_uuid):
            self._until.pop(host_uuid, None)
            return False
        self._until[host_uuid] = time.monotonic() + self._keep
        return True


class AgentListener:
    """The agent-facing listener of a node."""

    def __init__(
        self,
        client: AgentClient,
        hosts: KnownHosts,
        on_report: ReportHandler,
        renew: Renewer,
        routes: Iterable[web.RouteDef],
    ) -> None:
        self._client = client
        self._hosts = hosts
        self._on_report = on_report
        self._renew = renew
        self._orders: dict[str, ReportOrder] = {}
        app = web.Application(middlewares=[self._identify], client_max_size=_MAX_BODY)
        app.router.add_post(CALLBACK_PATH, self._callback)
        app.router.add_post(REPORT_PATH, self._report)
        app.router.add_post(CERTIFICATE_PATH, self._certificate)
        app.router.add_routes(list(routes))
        self._runner = web.AppRunner(app, access_log=None, keepalive_timeout=75, shutdown_timeout=2)

    async def start(self, host: str, port: int, tls: ssl.SSLContext) -> int:
        """Listen; returns the port, which is a free one for port 0."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, ssl_context=tls, backlog=1024)
        await site.start()
        listening: int = self._runner.addresses[0][1]
        return listening

    async def stop(self) -> None:
        await self._runner.cleanup()

    @web.middleware
    async def _identify(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        identity = pki.peer_identity(request.transport)
        if identity is None or identity.kind != "host":
            audit.warning("refused %s %s from %s: no host's certificate", request.method, request.path, request.remote)
            raise web.HTTPForbidden(text="a host's certificate is needed")
        # A task's answer needs no look at the database: only the host that was asked can give it.
        if request.path != CALLBACK_PATH and not await self._hosts.knows(identity.uuid):
            audit.warning("refused %s %s from unknown host %s", request.method, request.path, identity.uuid)
            raise web.HTTPNotFound(text=f"host {identity.uuid} is not known")
        request[HOST_KEY] = identity.uuid
        return await handler(request)

    async def _callback(self, request: web.Request) -> web.Response:
        task_uuid, host_uuid = request.headers.get("taskuuid", ""), request[HOST_KEY]
        taken = self._client.take_answer(task_uuid, host_uuid, await _body(request, TaskAnswer))
        if taken is None:
            audit.warning("host %s tried to answer task %s of another host", host_uuid, task_uuid)
            raise web.HTTPForbidden(text="this task is another host's")
        if not taken:
            raise web.HTTPNotFound(text="nobody waits for this task")
        return web.json_response({})

    async def _report(self, request: web.Request) -> web.Response:
        report, host_uuid = await _body(request, Report), request[HOST_KEY]
        if report.host_uuid != host_uuid:
            audit.warning("host %s tried to report for host %s", host_uuid, report.host_uuid)
            raise web.HTTPForbidden(text="a host reports for itself only")
        order = self._orders.setdefault(host_uuid, ReportOrder())
        await order.take(report, self._on_report)
        return web.json_response({})

    async def _certificate(self, request: web.Request) -> web.Response:
        """A fresh certificate for the signing request in the body; the identity stays."""
        try:
            certificate = await self._renew(request[HOST_KEY], await request.read())
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        return web.Response(body=certificate, content_type="application/x-pem-file")


async def _body(request: web.Request, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise web.HTTPBadRequest(text=f"not a {kind.__name__}: {error}") from error
