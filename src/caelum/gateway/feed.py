"""The live feed, `/ws`: jobs' progress and outcome, and canonical events, pushed as they happen.

A client says who it is with the header `Authorization: OAuth <session>` or, from a browser, with its first message
`{"session": "<uuid>"}`, and is answered `{"type": "ready"}`. Then it gets
`{"type": "job", "uuid", "api", "state", "percent", "text", "success", "error"}` and
`{"type": "event", "path", "content", "managementNodeId"}`.

Invariant: an account gets its own jobs and the events of resources that it may use; administrators get everything. A
slow client loses messages, and is told how many; it never slows anybody else down.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import WSMsgType, web

from caelum.cloud.identity.messages import CheckAccess, CheckSession
from caelum.gateway.answer import error_body
from caelum.gateway.refusal import Refusal
from caelum.kernel import context
from caelum.kernel.context import Actor
from caelum.kernel.errors import CloudError
from caelum.kernel.events import CanonicalEvent, to_wire
from caelum.kernel.ids import is_uuid
from caelum.kernel.job_events import JobNews
from caelum.kernel.views import encode, to_builtins

if TYPE_CHECKING:
    from caelum.kernel.jobs import Job
    from caelum.kernel.node import Node

log = logging.getLogger(__name__)

LOGIN_SECONDS = 10.0
HEARTBEAT_SECONDS = 30.0
CHECK_SECONDS = 60.0
"""How often a connected session is looked at again."""
MOST_CLIENTS = 2000
_MOST_WAITING = 1000
_MOST_MESSAGE = 4096


class _Socket(web.WebSocketResponse):
    """A WebSocket that sends encoded JSON."""

    async def push(self, message: bytes) -> None:
        await self.send_str(message.decode())


class _Client:
    """One connected client and what waits to be sent to it."""

    def __init__(self, actor: Actor, socket: _Socket) -> None:
        self.actor = actor
        self.socket = socket
        self._waiting: deque[bytes] = deque()
        self._lost = 0
        self._wake = asyncio.Event()

    def put(self, message: bytes) -> None:
        """Queue a message; the oldest gives way when too many wait."""
        if len(self._waiting) >= _MOST_WAITING:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(message)
        self._wake.set()

    async def send(self) -> None:
        """Send what waits, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                if self._lost:
                    lost, self._lost = self._lost, 0
                    await self.socket.push(encode({"type": "lost", "count": lost}))
                await self.socket.push(self._waiting.popleft())


class Feed:
    """The clients of the live feed on this node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._clients: set[_Client] = set()
        node.jobs.on_news(self._job, lambda: bool(self._clients))
        node.bus.subscribe(CanonicalEvent, self._event, self._is_for_clients)

    @property
    def clients(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    async def stop(self) -> None:
        """Say good-bye to every client."""
        closing = [one.socket.close(code=1001, message=b"the server stops") for one in self._clients]
        await asyncio.gather(*closing, return_exceptions=True)

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """One client, from its greeting to its end."""
        socket = _Socket(heartbeat=HEARTBEAT_SECONDS, max_msg_size=_MOST_MESSAGE, receive_timeout=None)
        if not socket.can_prepare(request).ok:
            raise Refusal(426, "this is a WebSocket", {"Upgrade": "websocket"})
        if len(self._clients) >= MOST_CLIENTS:
            raise Refusal(503, f"{MOST_CLIENTS} clients are connected already")
        await socket.prepare(request)
        try:
            session = await self._session(request, socket)
            actor = await self._node.bus.call(CheckSession(session_uuid=session))
        except (CloudError, TimeoutError) as error:
            await socket.send_str(encode(error_body(error)).decode())
            await socket.close(code=4001, message=b"no session")
            return socket
        await self._serve(_Client(actor, socket), session)
        return socket

    async def _session(self, request: web.BaseRequest, socket: _Socket) -> str | None:
        header = request.headers.get("Authorization", "")
        session: str | None = header.removeprefix("OAuth ").strip() or None
        if session is None:
            async with asyncio.timeout(LOGIN_SECONDS):
                session = _session_in(await socket.receive())
        return session

    async def _serve(self, client: _Client, session: str | None) -> None:
        self._clients.add(client)
        client.put(encode({"type": "ready", "accountUuid": client.actor.account_uuid}))
        tasks = [asyncio.create_task(one) for one in (client.send(), self._listen(client), self._watch(session))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._clients.discard(client)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await client.socket.close()

    async def _listen(self, client: _Client) -> None:
        async for _ in client.socket:
            continue  # clients have nothing more to say; reading notices their end

    async def _watch(self, session: str | None) -> None:
        """End with the session."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self._node.bus.call(CheckSession(session_uuid=session))
            except CloudError:
                return

    # --- what is pushed -----------------------------------------------------------------------------------------------

    def _job(self, job: Job) -> None:
        owner = job.actor.account_uuid
        wanted = [one for one in self._clients if one.actor.is_admin or (owner and one.actor.account_uuid == owner)]
        if wanted:
            message = encode({"type": "job", **_job_news(job)})
            for client in wanted:
                client.put(message)

    def _is_for_clients(self, event: CanonicalEvent) -> bool:
        return bool(self._clients) and not isinstance(event, JobNews)

    async def _event(self, event: CanonicalEvent) -> None:
        message = encode({"type": "event", **to_builtins(to_wire(event, self._node.uuid))})
        accounts = {one.actor.account_uuid for one in self._clients if not one.actor.is_admin}
        allowed = {one for one in accounts if await self._concerns(event, one)}
        for client in self._clients:
            if client.actor.is_admin or client.actor.account_uuid in allowed:
                client.put(message)

    async def _concerns(self, event: CanonicalEvent, account_uuid: str) -> bool:
        """Whether the event is about something that the account owns or has shared with it."""
        fields = msgspec.structs.asdict(event)
        named = {name: value for name, value in fields.items() if isinstance(value, str) and is_uuid(value)}
        if "account_uuid" in named:
            return bool(named["account_uuid"] == account_uuid)
        inventory = getattr(event, "inventory", None)
        subject = getattr(inventory, "uuid", None) or next(iter(named.values()), None)
        if subject is None:
            return False
        with context.use(context.TaskContext(api=event.path)):
            try:
                access = await self._node.bus.call(
                    CheckAccess(account_uuid=account_uuid, resource_uuids=[subject], unowned_too=True)
                )
            except CloudError:
                return False
        return not access.hidden


def _session_in(message: Any) -> str | None:
    if message.type is not WSMsgType.TEXT:
        return None
    try:
        found = msgspec.json.decode(message.data, type=dict[str, Any]).get("session")
    except msgspec.DecodeError:
        return None
    return found if isinstance(found, str) else None


def _job_news(job: Job) -> dict[str, Any]:
    news: dict[str, Any] = {
        "uuid": job.uuid,
        "api": job.api,
        "state": job.state,
        "percent": job.percent,
        "text": job.text,
    }
    if job.done:
        news["success"] = job.error is None
        news |= error_body(job.error) if job.error is not None else {}
    return news
