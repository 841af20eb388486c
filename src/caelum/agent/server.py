"""The agent's HTTPS port: commands in, tasks looked up and cancelled, and the routes that parts add (consoles).

Invariant: a request that is answered with 202 is in the journal, and so is an answer before it leaves; one that is
refused did nothing.
"""

from __future__ import annotations

import importlib
import logging
from types import ModuleType
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from caelum.agent.certificate import keep_fresh
from caelum.agent.core import MODULES, Agent, AgentConfig
from caelum.agent.journal import Fence, Journal
from caelum.agent.protocol import BUSY, INVALID, STALE_ATTEMPT, Command, Empty, TaskAnswer
from caelum.agent.registry import AgentFailure, Handler, handlers, to_wire
from caelum.agent.reports import Reports
from caelum.agent.store import Store
from caelum.agent.tasks import Tasks
from caelum.agent.tls import Tls, only_servers

log = logging.getLogger(__name__)

MAX_BODY = 16 << 20
MAX_TASK_UUID = 64
FAREWELL_SECONDS = 1.5
"""For the last reports to leave, when the agent stops."""
STATUS = {STALE_ATTEMPT: 409, BUSY: 503}
"""HTTP status of a refusal by its code; every other one is 400."""

_encode = msgspec.json.Encoder().encode


def load_modules() -> list[ModuleType]:
    """Import every part of the agent, so that its handlers are registered."""
    return [importlib.import_module(name) for name in MODULES]


class AgentServer:
    """A running agent: composes store, journal, tasks, reports and the parts."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Open the state, let the parts set up, deliver what is left over, and listen."""
        config = self._config
        self._tls = Tls(config.tls_dir)
        config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._store = Store(config.state_dir / "agent.db")
        connector = aiohttp.TCPConnector(ssl=self._tls.client, limit=64)
        self.http = aiohttp.ClientSession(connector=connector)
        self.reports = Reports(self._store)
        self.agent = Agent(config, self.http, self.reports)
        self.tasks = Tasks(self.agent, Journal(self._store))
        for module in load_modules():
            setup = getattr(module, "setup", None)
            if setup is not None:
                setup(self.agent)
        await self.reports.open()
        await self.tasks.open()
        for hook in self.agent.hooks.started:
            await hook(self.agent)
        self.agent.spawn(self.reports.deliver(self.http), "reports")
        self.agent.spawn(self._tls.watch(), "certificate file")
        self.agent.spawn(keep_fresh(self.agent), "certificate")
        await self._listen()

    async def _listen(self) -> None:
        app = web.Application(client_max_size=MAX_BODY, middlewares=[only_servers])
        app.add_routes(self.agent.routes)
        app.add_routes(
            [
                web.get("/task/{uuid}", self._task_status),
                web.delete("/task/{uuid}", self._task_cancel),
                web.post("/{path:.+}", self._command),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
        await self._runner.setup()
        host, _, port = self._config.listen.rpartition(":")
        site = web.TCPSite(
            self._runner,
            host.strip("[]"),
            int(port),
            ssl_context=self._tls.server,
            reuse_address=True,
        )
        await site.start()
        self.addresses = [address[:2] for address in self._runner.addresses]
        log.info("agent %s listens on %s", self.agent.uuid, self.addresses)

    async def stop(self) -> None:
        """Stop listening, settle commands, let the parts close. Guests and networks are left as they are."""
        if self._runner is not None:
            await self._runner.cleanup()
        await self.tasks.close()
        self.agent.report("agent-stopping", {})
        await self.reports.flush(FAREWELL_SECONDS)
        for hook in self.agent.hooks.stopping:
            try:
                await hook(self.agent)
            except Exception:
                log.exception("a part did not close")
        await self.agent.close()
        await self.http.close()
        self._store.close()

    async def _command(self, request: web.Request) -> web.Response:
        handler = handlers().get(request.path.rstrip("/"))
        if handler is None:
            failure = AgentFailure(INVALID, f"no command {request.path}")
            return _json(404, TaskAnswer(error=failure.to_wire()))
        try:
            command = _decode(handler, await request.read())
            deadline = _deadline(request.headers.get("deadline"))
            if handler.command.sync:
                return _json(200, await self.tasks.run_sync(handler, command, deadline))
            task_uuid = _task_uuid(request.headers.get("taskuuid"))
            answer = await self.tasks.submit(
                task_uuid,
                handler,
                command,
                callback=request.headers.get("callbackurl"),
                fence=Fence.parse(request.headers.get("attempt")),
                deadline=deadline,
                wait=_seconds("wait", request.headers.get("wait")) or 0,
            )
        except AgentFailure as error:
            return _json(STATUS.get(error.code, 400), TaskAnswer(error=to_wire(error)))
        return _json(202, Empty()) if answer is None else await self._answered(request, task_uuid, answer)

    async def _answered(self, request: web.Request, task_uuid: str, answer: TaskAnswer) -> web.Response:
        if request.transport is None or request.transport.is_closing():
            await self.tasks.call_back(task_uuid)  # whoever asked here is gone
        else:
            self.tasks.delivered(task_uuid)
        return _json(200, answer)

    async def _task_status(self, request: web.Request) -> web.Response:
        return _json(200, await self.tasks.status(request.match_info["uuid"]))

    async def _task_cancel(self, request: web.Request) -> web.Response:
        return _json(200, await self.tasks.cancel(request.match_info["uuid"]))


def _json(status: int, body: Any) -> web.Response:
    return web.Response(status=status, body=_encode(body), content_type="application/json")


def _decode(handler: Handler, body: bytes) -> Command[Any]:
    try:
        command: Command[Any] = msgspec.json.decode(body or b"{}", type=handler.command)
    except msgspec.DecodeError as error:
        raise AgentFailure(INVALID, f"{handler.command.path}: {error}") from error
    return command


def _seconds(name: str, header: str | None) -> float | None:
    try:
        return float(header) if header else None
    except ValueError:
        raise AgentFailure(INVALID, f"header {name}[{header}] is not a number of seconds") from None


def _deadline(header: str | None) -> float | None:
    seconds = _seconds("deadline", header)
    if seconds is not None and seconds <= 0:
        raise AgentFailure(INVALID, f"header deadline[{header}] has passed")
    return seconds


def _task_uuid(header: str | None) -> str:
    if not header or len(header) > MAX_TASK_UUID:
        raise AgentFailure(INVALID, f"header taskuuid is missing or longer than {MAX_TASK_UUID} characters")
    return header
