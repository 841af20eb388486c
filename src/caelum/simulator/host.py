"""One simulated host: the agent's HTTPS connections, its tasks, callbacks and reports.

Invariant: seen from the network it is an agent. It serves only management nodes, answers in the response whoever waits
long enough there and acknowledges the others, delivers an answer until it is taken, and dies like a process:
connections break, nothing in flight is finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter, deque
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from caelum.agent import protocol as p
from caelum.agent.news import Report, VmStateReport
from caelum.kernel import pki
from caelum.kernel.ids import new_uuid
from caelum.simulator.certificates import Certificates
from caelum.simulator.door import turn_away
from caelum.simulator.faults import Behaviour, Fault
from caelum.simulator.journal import Journal, Task
from caelum.simulator.world import CommandError, World

VERSION = "simulated"
_DELIVERY_PAUSES = (0.1, 0.3, 1, 3, 10)
_POST_TIMEOUT = aiohttp.ClientTimeout(total=15)
_DYING = 0.05
"""Seconds that a dying agent gives its requests; zero would mean for ever."""
_ANSWERS_IN_RESPONSE = 3
"""The protocol since which agents know the header `wait`; older ones may be simulated too."""
_WITH_SERIES = 3
"""The protocol since which agents take several commands at once."""
_JSON = {"Content-Type": "application/json"}
_encode = msgspec.json.Encoder().encode
_commands = p.commands()


class SimulatedHost:
    """A host with its own address and certificate."""

    def __init__(
        self,
        *,
        uuid: str,
        ip: str,
        certificates: Certificates,
        world: World,
        behaviour: Behaviour,
        http: aiohttp.ClientSession,
    ) -> None:
        self.uuid, self.ip, self.world = uuid, ip, world
        self.port = 0
        self.agent_uuid = new_uuid()
        self.version = VERSION
        self.protocol = p.PROTOCOL_VERSION
        self.alive = False
        self.arrived: Counter[str] = Counter()
        """How many commands came, by path."""
        self.done: Counter[str] = Counter()
        """How many had an effect, by path."""
        self.journal = Journal()
        self._certificates, self._behaviour, self._http = certificates, behaviour, http
        self._client_tls: ssl.SSLContext | None = None
        self._server_tls: ssl.SSLContext | None = None
        self._server: web.Server | None = None
        self._work: set[asyncio.Task[None]] = set()
        self._reports: deque[Report] = deque()
        self._report_number = 0
        self._reporting = False

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self, port: int) -> None:
        """Start the agent; its connections come to `admit`. `port` is where they are accepted."""
        self.port, self.alive = port, True
        for task in self.journal.interrupt():
            self._spawn(self._deliver(task))

    async def admit(self, connection: socket.socket) -> None:
        """Serve a connection that came to this host's address."""
        if not self.alive:
            turn_away(connection)
            return
        if self._server_tls is None:
            self._server_tls = self._certificates.server_context(self.uuid)
        server = self._serving()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(server, connection, ssl=self._server_tls)
        if server is not self._server:  # the agent died during the handshake
            transport.abort()

    def _serving(self) -> web.Server:
        if self._server is None:
            self._server = web.Server(self._handle, access_log=None)
        return self._server

    async def die(self) -> None:
        """The agent's process is killed; guests, files and networks stay."""
        server, self._server, self.alive = self._server, None, False
        current = asyncio.current_task()
        for work in self._work - {current}:
            work.cancel()
        self._reports.clear()
        self._reporting = False
        if server is not None:
            for connection in server.connections:
                if connection.transport is not None:
                    connection.transport.abort()
            await server.shutdown(_DYING)

    def drop_cut(self) -> None:
        """Break the connections of management nodes that do not reach the hosts any more."""
        for connection in self._server.connections if self._server is not None else []:
            transport = connection.transport
            identity = None if transport is None else pki.peer_identity(transport)
            if transport is not None and identity is not None and self._behaviour.is_cut_from(identity.uuid):
                transport.abort()

    async def revive(self) -> None:
        """The agent starts again; it does not remember whose it was."""
        if not self.alive:
            self.agent_uuid, self._report_number = new_uuid(), 0
            self.world.host_uuid = self.world.report_url = None
            self.start(self.port)

    async def power_off(self) -> None:
        """The machine lost power: the agent and every guest are gone."""
        await self.die()
        self.world.power_off()

    def guest_changes(self, vm_uuid: str, state: str, reason: str = "by itself") -> None:
        """A guest changed its state without being told, and the agent reports it."""
        if state == "Stopped":
            self.world.vms.pop(vm_uuid, None)
        else:
            self.world.vms[vm_uuid].state = state
        self.report("vm-state", VmStateReport(vm_uuid=vm_uuid, state=state, reason=reason))

    # --- requests ---------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        identity = pki.peer_identity(request.transport)
        if identity is None or identity.kind != "server":
            return web.Response(status=403, text="only a management node may command a host")
        if self._behaviour.is_cut_from(identity.uuid):
            _break(request)
        if request.path.startswith("/task/"):
            return _json(200, self._look_up(request.method, request.path.removeprefix("/task/")))
        cls = _commands.get(request.path)
        if cls is p.Series and self.protocol < _WITH_SERIES:
            cls = None
        if cls is None or request.method != "POST":
            return _refusal(404, p.INVALID, f"no command {request.path}")
        try:
            command = msgspec.json.decode(await request.read() or b"{}", type=cls)
        except msgspec.DecodeError as error:
            return _refusal(400, p.INVALID, f"{request.path}: {error}")
        paths = _paths(command)
        self.arrived.update(paths)
        found = (self._behaviour.fault_for(self.uuid, path) for path in paths)
        fault = next((one for one in found if one is not None), None)
        if fault is not None and fault.kind == "refuse":
            return _refusal(503, p.BUSY, "refused on demand", transient=True)
        if fault is not None and fault.kind == "die":
            await self.die()
            raise ConnectionResetError
        return await (self._synchronous if cls.sync else self._accept)(request, command, fault)

    def _look_up(self, method: str, task_uuid: str) -> p.TaskStatus:
        if method == "DELETE":
            for work in self._work:
                if work.get_name() == task_uuid:
                    work.cancel()
        return self.journal.status(task_uuid)

    async def _synchronous(
        self, request: web.BaseRequest, command: p.Command[Any], fault: Fault | None
    ) -> web.StreamResponse:
        await self._take_time(command, fault)
        answer = self._perform(command, fault)
        if fault is not None and fault.kind in ("lose_reply", "lose_ack"):
            _break(request)
        return _json(200, answer)

    async def _accept(
        self, request: web.BaseRequest, command: p.Command[Any], fault: Fault | None
    ) -> web.StreamResponse:
        if self.journal.overtaken(request.headers.get("attempt")):
            return _refusal(409, p.STALE_ATTEMPT, f"attempt {request.headers['attempt']} was taken over")
        task_uuid = request.headers.get("taskuuid")
        if not task_uuid:
            return _refusal(400, p.INVALID, "header taskuuid is missing")
        task, new = self.journal.accept(task_uuid, command.path, request.headers.get("callbackurl"))
        wait = float(request.headers.get("wait") or 0) if self.protocol >= _ANSWERS_IN_RESPONSE else 0
        if new:
            self._spawn(self._run(task, command, fault, request.headers.get("attempt")), task_uuid)
        elif task.answer is not None and not wait:
            self._spawn(self._deliver(task))
        if new and fault is not None and fault.kind == "lose_ack":
            _break(request)
        if not await task.over_within(wait):
            return web.Response(status=202, body=b"{}", headers=_JSON)
        if new and fault is not None and fault.kind == "lose_reply":
            _break(request)
        return self._answered(request, task)

    def _answered(self, request: web.BaseRequest, task: Task) -> web.Response:
        if request.transport is None or request.transport.is_closing():
            self._tell_changes(task)
            self._spawn(self._deliver(task))
        else:
            task.delivered = True
        return _json(200, task.answer)

    # --- work -------------------------------------------------------------------------------------------------------

    async def _run(self, task: Task, command: p.Command[Any], fault: Fault | None, attempt: str | None) -> None:
        try:
            await self._take_time(command, fault)
            if self.journal.overtaken(attempt):
                answer = _failure(p.STALE_ATTEMPT, f"attempt {attempt} was taken over")
            else:
                before = self.world.states()
                answer = self._perform(command, fault)
                task.changed = _changed(before, self.world.states())
        except asyncio.CancelledError:
            if not self.alive:
                return
            answer = _failure(p.CANCELED, f"{command.path} was canceled")
        kind = None if fault is None else fault.kind
        if kind == "die_after":
            task.answer = answer
            await self.die()
            return
        heard = task.end(answer)
        if answer.error is not None or not heard:
            self._tell_changes(task)
        if kind == "double_reply" or (not heard and kind != "lose_reply"):
            await self._deliver(task)
        if kind == "double_reply" and not heard:
            await self._deliver(task)

    async def _take_time(self, command: p.Command[Any], fault: Fault | None) -> None:
        seconds = sum(map(self._behaviour.delay_for, _paths(command))) + (fault.delay if fault is not None else 0)
        if fault is not None and fault.kind == "hang":
            seconds = 1e6
        if seconds > 0:
            await asyncio.sleep(seconds)

    def _perform(self, command: p.Command[Any], fault: Fault | None) -> p.TaskAnswer:
        if fault is not None and fault.kind == "error" and fault.hits(command.path):
            error = p.AgentError(code=fault.code, details=fault.details, transient=fault.transient)
            return p.TaskAnswer(error=error)
        if isinstance(command, p.Series):
            return self._perform_all(command, fault)
        try:
            answer = p.TaskAnswer(result=self._own(command) or self.world.apply(command))
        except CommandError as error:
            return p.TaskAnswer(error=error.error)
        self.done[command.path] += 1
        return answer

    def _perform_all(self, series: p.Series, fault: Fault | None) -> p.TaskAnswer:
        try:
            commands = [msgspec.convert(one.body, _commands[one.path]) for one in series.orders]
        except (KeyError, msgspec.ValidationError) as error:
            return _failure(p.INVALID, f"{series.path}: {error}")
        results = []
        for command in commands:
            answer = self._perform(command, fault)
            if answer.error is not None:
                answer.error.facts = {"order": command.path, **answer.error.facts}
                return answer
            results.append(answer.result)
        self.done[series.path] += 1
        return p.TaskAnswer(result={"results": results})

    def _own(self, command: p.Command[Any]) -> dict[str, Any] | None:
        """Commands about the agent rather than the host."""
        answer: msgspec.Struct
        match command:
            case p.ConnectHost():
                self.world.host_uuid, self.world.report_url = command.host_uuid, command.report_url
                answer = p.ConnectHostAnswer(
                    agent_uuid=self.agent_uuid, version=self.version, protocol=self.protocol, facts=self.world.facts,
                    vm_states=self.world.states(), unknown_domains=[],
                )  # fmt: skip
            case p.Ping():
                answer = p.PingAnswer(
                    host_uuid=self.world.host_uuid, agent_uuid=self.agent_uuid, version=self.version,
                    vm_states=self.world.states(),
                )  # fmt: skip
            case p.Echo():
                return {"": None}
            case p.UpdateAgent():
                # It starts anew in no time.
                self.version, self.agent_uuid, self._report_number = command.version, new_uuid(), 0
                return {"": None}
            case _:
                return None
        return msgspec.to_builtins(answer)  # type: ignore[no-any-return]

    async def _deliver(self, task: Task) -> None:
        if task.callback is not None:
            headers = {"taskuuid": task.uuid, **_JSON}
            await self._post_until_taken(task.callback, _encode(task.answer), headers)
        task.delivered = True

    # --- reports ----------------------------------------------------------------------------------------------------

    def _tell_changes(self, task: Task) -> None:
        """Report what a task did that its answer tells nobody."""
        changed, task.changed = task.changed, []
        for uuid in changed:
            vm = self.world.vms.get(uuid)
            state = "Stopped" if vm is None else vm.state
            self.report("vm-state", VmStateReport(vm_uuid=uuid, state=state, reason="told"))

    def report(self, kind: Any, body: msgspec.Struct | dict[str, Any]) -> None:
        """Number a report and send it in order, if the server has said where to."""
        if self.world.report_url is None or self.world.host_uuid is None:
            return
        self._report_number += 1
        report = Report(
            agent_uuid=self.agent_uuid, host_uuid=self.world.host_uuid, number=self._report_number, kind=kind,
            body=msgspec.to_builtins(body),
        )  # fmt: skip
        self._reports.append(report)
        if not self._reporting:
            self._reporting = True
            self._spawn(self._send_reports())

    async def _send_reports(self) -> None:
        try:
            while self._reports and self.world.report_url is not None:
                await self._post_until_taken(self.world.report_url, _encode(self._reports[0]), _JSON)
                self._reports.popleft()
        finally:
            self._reporting = False

    async def _post_until_taken(self, url: str, body: bytes, headers: dict[str, str]) -> None:
        tls, tries = self.outgoing_tls(), 0
        while not await self._post(url, body, headers, tls):
            await asyncio.sleep(_DELIVERY_PAUSES[min(tries, len(_DELIVERY_PAUSES) - 1)])
            tries += 1

    async def _post(self, url: str, body: bytes, headers: dict[str, str], tls: ssl.SSLContext) -> bool:
        if self._behaviour.cannot_post(url):
            return False
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with self._http.post(
                url, data=body, headers=headers, ssl=tls, server_hostname=pki.SERVER_NAME, timeout=_POST_TIMEOUT
            ) as response:
                return response.status in (200, 400, 403, 404)
        return False

    def outgoing_tls(self) -> ssl.SSLContext:
        """What this host shows when it calls a management node."""
        if self._client_tls is None:
            self._client_tls = self._certificates.client_context(self.uuid)
        return self._client_tls

    def _spawn(self, work: Any, name: str | None = None) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._work.add(task)
        task.add_done_callback(self._work.discard)


def _changed(before: dict[str, str], now: dict[str, str]) -> list[str]:
    return [uuid for uuid in before | now if before.get(uuid) != now.get(uuid)]


def _paths(command: p.Command[Any]) -> list[str]:
    """What a command is, and what it consists of."""
    return [command.path, *(one.path for one in command.orders)] if isinstance(command, p.Series) else [command.path]


def _break(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()
    raise ConnectionResetError


def _failure(code: str, details: str, transient: bool = False) -> p.TaskAnswer:
    return p.TaskAnswer(error=p.AgentError(code=code, details=details, transient=transient))


def _refusal(status: int, code: str, details: str, transient: bool = False) -> web.Response:
    return _json(status, _failure(code, details, transient))


def _json(status: int, body: Any) -> web.Response:
    return web.Response(status=status, body=_encode(body), headers=_JSON)
