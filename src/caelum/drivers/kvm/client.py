"""Commands to host agents: posted once with a task's UUID, answered in the response when they are quick, else by
callback, polled when the callback is late.

Invariant: a command has one effect and one answer, whatever the network does. Delivery is repeated under the same
task UUID, which the agent's journal recognises; an answer is taken from the response, the callback or the poll, the
first wins;
an agent that died during the command says so (INTERRUPTED) and the command, being idempotent, is repeated under a new
UUID. Nobody but the host that was asked can answer: the connection is pinned to its UUID, and so is the callback.
A node that lost its lease sends no command: while it slept, the host may have been told by another one what undoes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextvars import Context
from functools import partial
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import aiohttp
import msgspec
from aiohttp.client_proto import ResponseHandler

from caelum.agent import protocol
from caelum.agent.protocol import Command, TaskAnswer, TaskStatus
from caelum.cloud.host.errors import HOST_DISCONNECTED
from caelum.drivers.kvm.errors import AGENT_INTERRUPTED, from_agent
from caelum.drivers.kvm.promptness import Promptness
from caelum.kernel import context, pki
from caelum.kernel.errors import INTERNAL, TIMEOUT, CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.membership import EVICTED
from caelum.kernel.pki import Identity

log = logging.getLogger(__name__)

A = TypeVar("A")

_TASK = "taskuuid"
_SHORTEST_DEADLINE = 0.1
"""Seconds: what the header can say, which has one decimal."""
_NETWORK_ERRORS = (aiohttp.ClientError, OSError, TimeoutError, ssl.SSLError)
_NOT_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""The network errors with which nothing was sent."""


class Address(msgspec.Struct, frozen=True):
    """Where the agent of a host is."""

    host_uuid: str
    ip: str
    port: int

    def url(self, path: str, scheme: str = "https") -> str:
        host = f"[{self.ip}]" if ":" in self.ip else self.ip
        return f"{scheme}://{host}:{self.port}{path}"


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How patient the client is, in seconds."""

    connect: float = 5
    """To open a connection."""
    acknowledge: float = 15
    """For the agent to acknowledge a command, or to answer a poll."""
    prompt: float = 1
    """For the answer to come in the response; see `Promptness`."""
    back_off: tuple[float, ...] = (0.2, 0.5, 1, 2)
    """Pauses between attempts to deliver."""
    first_poll: float = 5
    slowest_poll: float = 30
    lost_after: float = 45
    """An agent that answers no poll for so long is lost."""
    default_timeout: float = 1800


class Pending:
    """A command whose answer is awaited."""

    def __init__(self, address: Address, path: str) -> None:
        self.host_uuid = address.host_uuid
        self.path = path
        self.job_uuid = context.current().job_uuid
        self.answer: asyncio.Future[TaskAnswer] = asyncio.get_running_loop().create_future()
        self._request: asyncio.Timeout | None = None

    @contextlib.asynccontextmanager
    async def requesting(self) -> AsyncIterator[None]:
        """A request in the block is broken off, with TimeoutError, when nobody waits any longer."""
        try:
            async with asyncio.timeout(None) as self._request:
                yield
        finally:
            self._request = None

    def resolve(self, answer: TaskAnswer) -> None:
        """Take the first answer; later ones are the same."""
        if not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: CloudError) -> None:
        """Stop waiting."""
        if not self.answer.done():
            self.answer.set_exception(error)
            if self._request is not None:
                self._request.reschedule(0)


class Member(Protocol):
    """This node as one of its cluster."""

    @property
    def acts(self) -> bool:
        """Whether what it has under way is its own to do, now."""

    async def admit(self) -> None:
        """Return once that is so. Raises CloudError."""


class Alone:
    """A node without a cluster."""

    acts = True

    async def admit(self) -> None:
        """Nobody else does its work."""


class Lines(aiohttp.TCPConnector):
    """The connections to all agents; `latest` is when the connection last used to each host closes.

    A process may hold only so many sockets, and each costs memory, so a host is watched by the connection that its
    pings keep open anyway, and a connection keeps next to nothing while nothing is said on it: no buffer, no parser, no
    certificate, and nothing of whoever happened to open it.
    """

    def __init__(self, tls: ssl.SSLContext, member: Member) -> None:
        self._member = member
        # Idle connections outlive the ping interval: a TLS handshake per ping and host would be most of the work.
        super().__init__(ssl=tls, limit=0, keepalive_timeout=90)
        self.latest: dict[str, asyncio.Future[None]] = {}
        self._watched: WeakSet[asyncio.Future[None]] = WeakSet()
        """Those whose end is noted: commands to a host take turns on its connections, again and again."""

    async def connect(self, req: Any, traces: Any, timeout: aiohttp.ClientTimeout) -> Any:
        """See `aiohttp.BaseConnector.connect`."""
        connection = await super().connect(req, traces, timeout)
        while connection.protocol is not None and connection.protocol.should_close:
            connection.close()  # something came that nobody asked for
            connection = await super().connect(req, traces, timeout)
        host_uuid = req.server_hostname
        if _TASK in req.headers and not self._member.acts:
            # The last moment before the command is written: to open the connection may have taken its time.
            connection.close()
            raise aiohttp.ClientConnectionError("this management node has lost its lease meanwhile")
        closed = None if connection.protocol is None else connection.protocol.closed
        if closed is not None:
            self.latest[host_uuid] = closed
            if closed not in self._watched:
                self._watched.add(closed)
                closed.add_done_callback(partial(self._forget, host_uuid), context=Context())
        return connection

    async def _create_connection(self, req: Any, traces: Any, timeout: aiohttp.ClientTimeout) -> ResponseHandler:
        """See `aiohttp.TCPConnector._create_connection`. In a context of its own, which the connection keeps."""
        opening = super()._create_connection(req, traces, timeout)
        task = asyncio.get_running_loop().create_task(opening, context=Context())
        try:
            protocol = await task
        except asyncio.CancelledError:
            task.add_done_callback(_close_unused)
            raise
        if protocol.transport is not None and (certificate := protocol.transport.get_extra_info("peercert")):
            certificate.clear()  # OpenSSL has checked whose it is
        return protocol

    def _release(self, key: Any, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        """See `aiohttp.BaseConnector._release`: an exchange is over."""
        super()._release(key, protocol, should_close=should_close)
        transport = protocol.transport
        if transport is not None and not transport.is_closing():
            # The next exchange makes a parser of its own.
            protocol._parser = protocol._payload = None
            _drop_read_buffer(transport)

    def _forget(self, host_uuid: str, closed: asyncio.Future[None]) -> None:
        if not closed.cancelled():
            closed.exception()  # seen: a broken connection is reported by whoever used it
        if self.latest.get(host_uuid) is closed:
            del self.latest[host_uuid]


def _close_unused(opening: asyncio.Task[ResponseHandler]) -> None:
    """Close what was opened in the moment in which nobody wanted it any more."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _drop_read_buffer(transport: asyncio.Transport) -> None:
    """Have OpenSSL let go of the 16 KB into which it reads a record, which it takes anew within a microsecond.

    It does so when it is asked for more than there is; uvloop asks only for what there is.
    """
    tls = transport.get_extra_info("ssl_object")
    try:
        unasked = b"" if tls is None else tls.read(1)
    except ssl.SSLError:
        return  # nothing to read, or nothing more to come, which the transport notices by itself
    if unasked:
        transport.abort()  # what comes next could not be understood


class AgentClient:
    """Speaks to all agents. `callback_url` is where this node takes answers."""

    def __init__(
        self, tls: ssl.SSLContext, callback_url: str, pace: Pace | None = None, member: Member | None = None
    ) -> None:
        self.callback_url = callback_url
        self.pending: dict[str, Pending] = {}
        self._pace = pace or Pace()
        self._promptness = Promptness(self._pace.prompt)
        self._errands: set[asyncio.Task[None]] = set()
        self._closing = False
        self._member = member or Alone()
        self._lines = Lines(tls, self._member)
        self._http = aiohttp.ClientSession(connector=self._lines, cookie_jar=aiohttp.DummyCookieJar())

    async def close(self) -> None:
        """End all connections; whoever still waits is told."""
        self._closing = True
        for task in self._errands:
            task.cancel()
        for waiting in list(self.pending.values()):
            waiting.fail(_stopping())
        await self._http.close()

    async def run(self, address: Address, command: Command[A], timeout: float | None = None) -> A:
        """Run a command on a host and return its answer, within `timeout`, the task's deadline and the default."""
        deadline = time.monotonic() + self._patience(timeout)
        answer = await (self._synchronous if command.sync else self._until_settled)(address, command, deadline)
        if answer.error is not None:
            raise from_agent(answer.error, address.host_uuid, command.path)
        try:
            return msgspec.convert(answer.result or {}, protocol.answer_type(type(command)))  # type: ignore[no-any-return]
        except msgspec.ValidationError as error:
            raise _malformed(address, command.path, error) from error

    def take_answer(self, task_uuid: str, host_uuid: str, answer: TaskAnswer) -> bool | None:
        """An answer came by callback: True when it was awaited, False when unknown, None when it is not that host's."""
        waiting = self.pending.get(task_uuid)
        if waiting is None:
            return False
        if waiting.host_uuid != host_uuid:
            return None
        waiting.resolve(answer)
        return True

    def host_lost(self, host_uuid: str, reason: CloudError) -> None:
        """Nobody needs to wait for this host any longer."""
        for waiting in list(self.pending.values()):
            if waiting.host_uuid == host_uuid:
                waiting.fail(CloudError(HOST_DISCONNECTED, f"host {host_uuid} is lost", cause=reason))

    def watch(self, host_uuid: str, gone: Callable[[], None]) -> Callable[[], None]:
        """Call `gone` when the connection last used to a host's agent breaks, which tells of its death at once, or soon
        when there is none. What is returned ends the watch.
        """
        closed = self._lines.latest.get(host_uuid)
        if closed is None:
            return asyncio.get_running_loop().call_soon(gone).cancel

        def broken(_closed: asyncio.Future[None]) -> None:
            if not self._closing:  # else it is this node that ends, not the agent
                gone()

        closed.add_done_callback(broken, context=Context())  # a watch outlives whoever began it

        def end() -> None:
            closed.remove_done_callback(broken)

        return end

    async def first_contact(self, tls: ssl.SSLContext, ip: str, port: int) -> Identity | None:
        """Whom the certificate at an address names; `tls` must not check the name."""
        try:
            async with asyncio.timeout(self._pace.connect):
                _, writer = await asyncio.open_connection(ip, port, ssl=tls)
        except _NETWORK_ERRORS as error:
            raise _unreachable(Address("", ip, port), "first contact", error) from error
        identity = pki.peer_identity(writer)
        writer.transport.abort()
        return identity

    def _patience(self, timeout: float | None) -> float:
        left = context.current().remaining()
        limits = (timeout or self._pace.default_timeout, self._pace.default_timeout if left is None else left)
        return min(limits)

    async def _synchronous(self, address: Address, command: Command[Any], deadline: float) -> TaskAnswer:
        try:
            status, body = await self._request(
                "POST", address, command.path, deadline, body=msgspec.json.encode(command)
            )
        except _NETWORK_ERRORS as error:
            raise _unreachable(address, command.path, error) from error
        if status != 200:
            raise _refused(address, command.path, status, body)
        return _decode(address, command.path, body, TaskAnswer)

    async def _until_settled(self, address: Address, command: Command[Any], deadline: float) -> TaskAnswer:
        """Repeat the command when the agent dies during it: the answer of a whole run settles its effect."""
        for _ in range(3):
            answer = await self._asynchronous(address, command, deadline)
            if answer.error is None or answer.error.code != AGENT_INTERRUPTED.code:
                break
            log.info("agent of host %s died during %s, repeating it", address.host_uuid, command.path)
        return answer

    async def _asynchronous(self, address: Address, command: Command[Any], deadline: float) -> TaskAnswer:
        task_uuid, waiting, begun = new_uuid(), Pending(address, command.path), time.monotonic()
        self.pending[task_uuid] = waiting
        try:
            async with asyncio.timeout_at(_loop_time(deadline)):
                await self._deliver(address, command, task_uuid, waiting, deadline)
                answer = await self._await_answer(address, command, task_uuid, waiting, deadline)
            self._promptness.learn(_kind(command), time.monotonic() - begun)
            return answer
        except TimeoutError:
            self._errand(self._cancel(address, task_uuid))
            raise _too_late(address, command.path, task_uuid) from None
        except asyncio.CancelledError:
            self._errand(self._cancel(address, task_uuid))
            raise
        finally:
            del self.pending[task_uuid]
            waiting.answer.cancel()

    async def _deliver(
        self, address: Address, command: Command[Any], task_uuid: str, waiting: Pending, deadline: float
    ) -> None:
        """Post until acknowledged. The callback may come before the acknowledgement, or instead of a lost one."""
        body = msgspec.json.encode(command)
        pauses = iter(self._pace.back_off)
        perhaps_taken = False
        while not waiting.answer.done():
            if not self._member.acts:
                await self._member.admit()
            with self._promptness.waiting(address.host_uuid, _kind(command)) as wait:
                headers = self._headers(task_uuid, deadline, wait)
                try:
                    async with waiting.requesting():
                        status, text = await self._request(
                            "POST", address, command.path, deadline, body=body, headers=headers, wait=wait
                        )
                except _NETWORK_ERRORS as error:
                    if waiting.answer.done():
                        return
                    _check_time(deadline)
                    failure: CloudError = _unreachable(address, command.path, error)
                    perhaps_taken |= wait > 0 and not isinstance(error, _NOT_CONNECTED)
                else:
                    if status == 200:
                        waiting.resolve(_decode(address, command.path, text, TaskAnswer))
                    if status in (200, 202):
                        return
                    _check_time(deadline)
                    failure = _refused(address, command.path, status, text)
            pause = next(pauses, None)
            if pause is None and perhaps_taken:
                return
            if pause is None or not failure.kind.transient:
                raise failure
            await asyncio.wait([waiting.answer], timeout=pause)

    async def _await_answer(
        self, address: Address, command: Command[Any], task_uuid: str, waiting: Pending, deadline: float
    ) -> TaskAnswer:
        if waiting.answer.done():
            return waiting.answer.result()
        pause, last_heard = self._pace.first_poll, time.monotonic()
        while not (await asyncio.wait([waiting.answer], timeout=pause))[0]:
            pause = min(pause * 1.5, self._pace.slowest_poll)
            try:
                status = await self._task_status(address, task_uuid, deadline)
            except _NETWORK_ERRORS as error:
                _check_time(deadline)
                if time.monotonic() - last_heard > self._pace.lost_after:
                    raise _unreachable(address, command.path, error) from error
                pause = self._pace.first_poll
                continue
            last_heard = time.monotonic()
            if status.answer is not None:
                waiting.resolve(status.answer)
            elif status.state == "Unknown" and not waiting.answer.done():
                await self._deliver(address, command, task_uuid, waiting, deadline)
        return waiting.answer.result()

    async def _task_status(self, address: Address, task_uuid: str, deadline: float) -> TaskStatus:
        status, body = await self._request("GET", address, f"/task/{task_uuid}", deadline)
        if status == 404:
            return TaskStatus(state="Unknown")
        if status != 200:
            raise aiohttp.ClientError(f"HTTP status {status}")
        return _decode(address, "/task", body, TaskStatus)

    async def _cancel(self, address: Address, task_uuid: str) -> None:
        with contextlib.suppress(CloudError, *_NETWORK_ERRORS):
            await self._request("DELETE", address, f"/task/{task_uuid}", time.monotonic() + self._pace.acknowledge)

    def _errand(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    def _headers(self, task_uuid: str, deadline: float, wait: float) -> dict[str, str]:
        # What is over in a moment is for our own limit to end: an agent calls a deadline of zero invalid.
        left = max(_SHORTEST_DEADLINE, deadline - time.monotonic())
        headers = {_TASK: task_uuid, "callbackurl": self.callback_url, "deadline": f"{left:.1f}"}
        if wait:
            headers["wait"] = f"{wait:g}"
        fence = context.current().fence
        if fence is not None:
            headers["attempt"] = fence
        return headers

    async def _request(
        self,
        method: str,
        address: Address,
        path: str,
        deadline: float,
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        wait: float = 0,
    ) -> tuple[int, bytes]:
        if self._closing:
            raise _stopping()
        limit = max(0.001, min(self._pace.acknowledge + wait, deadline - time.monotonic()))
        patience = aiohttp.ClientTimeout(total=limit, sock_connect=self._pace.connect)
        async with self._http.request(
            method,
            address.url(path),
            data=body,
            headers={"Content-Type": "application/json", **(headers or {})},
            server_hostname=address.host_uuid,
            timeout=patience,
            allow_redirects=False,
        ) as response:
            return response.status, await response.read()


def _kind(command: Command[Any]) -> str:
    """What commands take about the same time; of a series, its last command tells."""
    return f"{command.path} {command.orders[-1].path}" if isinstance(command, protocol.Series) else command.path


def _stopping() -> CloudError:
    """Not the host is gone, but this node: whoever asked for the command has it repeated by the next one."""
    return CloudError(EVICTED, "this management node is stopping")


def _loop_time(deadline: float) -> float:
    return asyncio.get_running_loop().time() + deadline - time.monotonic()


def _check_time(deadline: float) -> None:
    """A request's own limit may hide that the whole time is over when both end at once."""
    if time.monotonic() >= deadline:
        raise TimeoutError


def _decode(address: Address, path: str, body: bytes, kind: type[A]) -> A:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(address, path, error) from error


def _malformed(address: Address, path: str, error: Exception) -> CloudError:
    details = f"the agent of host {address.host_uuid} at {address.ip} answered {path} with something else: {error}"
    return CloudError(INTERNAL, details, hostUuid=address.host_uuid, command=path)


def _unreachable(address: Address, path: str, error: BaseException) -> CloudError:
    what = f"{type(error).__name__} {error}".strip()
    details = f"no connection to the agent at {address.ip}:{address.port} for {path}: {what}"
    return CloudError(HOST_DISCONNECTED, details, hostUuid=address.host_uuid, address=address.ip, port=address.port)


def _refused(address: Address, path: str, status: int, body: bytes) -> CloudError:
    """The agent answered with an HTTP error: an error of its own when it says one, else a sign that it is not well."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        error = msgspec.json.decode(body, type=TaskAnswer).error
        if error is not None:
            return from_agent(error, address.host_uuid, path)
    details = f"the agent at {address.ip}:{address.port} answered {path} with HTTP status {status}"
    if status >= 500 or status == 429:
        return CloudError(HOST_DISCONNECTED, details, hostUuid=address.host_uuid, httpStatus=status)
    return CloudError(INTERNAL, details, hostUuid=address.host_uuid, httpStatus=status)


def _too_late(address: Address, path: str, task_uuid: str) -> CloudError:
    details = f"host {address.host_uuid} at {address.ip} did not finish {path} (task {task_uuid}) in time"
    return CloudError(TIMEOUT, details, hostUuid=address.host_uuid, command=path, taskUuid=task_uuid)
