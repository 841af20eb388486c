"""Consoles: WebSockets that lead to a guest's screen (VNC) and to its serial line.

Invariant: the agent is only a pipe. Everything that a guest says on its serial line is in its log, which is kept short;
each viewer reads that log at its own pace, from shortly before its end, so none can hold up another or the guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import termios
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from aiohttp import WSMsgType, web

from caelum.agent.core import Agent
from caelum.agent.protocol import NOT_FOUND
from caelum.agent.registry import AgentFailure
from caelum.agent.vm import domains
from caelum.agent.vm.commands import vm_directory
from caelum.agent.vm.libvirtd import Libvirt

log = logging.getLogger(__name__)

CHUNK = 64 << 10
HISTORY = 8 << 10
"""Bytes of the serial log that a new viewer gets."""
LOOK_SECONDS = 0.25
"""How often a serial log is looked at without a sign of news."""
LOG_DELAY = 0.02
"""QEMU writes to the terminal first and to the log a moment later."""
HEARTBEAT = 30.0
CONNECT_TIMEOUT = 5.0
MAX_LOG = 4 << 20
KEPT_LOG = 64 << 10
LOG_CHECK_SECONDS = 60.0


class Consoles:
    """The consoles of all guests."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._lines: dict[str, SerialLine] = {}
        self._sockets: set[web.WebSocketResponse] = set()
        agent.hooks.started.append(self._start)

    def routes(self) -> list[web.RouteDef]:
        """The WebSocket routes."""
        return [web.get("/console/vnc/{vm}", self.vnc), web.get("/console/serial/{vm}", self.serial)]

    async def close(self, _agent: Agent) -> None:
        """Send all viewers away."""
        for socket in list(self._sockets):
            await socket.close()

    async def vnc(self, request: web.Request) -> web.WebSocketResponse:
        """Bridge a WebSocket (subprotocol `binary`) to the guest's VNC server."""
        port = await self._ask(domains.vnc_port, request.match_info["vm"])
        try:
            connect = asyncio.open_connection("127.0.0.1", port)
            reader, writer = await asyncio.wait_for(connect, CONNECT_TIMEOUT)
        except OSError as error:  # TimeoutError too
            raise web.HTTPBadGateway(text=f"the guest's VNC server on port {port}: {error}") from error
        try:
            socket = await self._accept(request)
            await _race(_to_socket(reader, socket), _to_writer(socket, writer))
        finally:
            writer.close()
        return await self._finish(socket)

    async def serial(self, request: web.Request) -> web.WebSocketResponse:
        """Join a guest's serial line: first the end of its log, then what comes."""
        vm_uuid = request.match_info["vm"]
        path = await self._ask(_pty_path, vm_uuid)
        line = self._lines.get(vm_uuid)
        if line is None or line.closed:
            line = self._lines[vm_uuid] = SerialLine(path)
        seen = LogReader(vm_directory(self._agent, vm_uuid) / "serial.log")
        with line.viewed() as news:
            socket = await self._accept(request)
            await _race(self._show(line, seen, news, socket), line.type_from(socket))
        await self._agent.run_blocking(seen.close)
        return await self._finish(socket)

    async def _show(
        self, line: SerialLine, seen: LogReader, news: asyncio.Event, socket: web.WebSocketResponse
    ) -> None:
        while True:
            news.clear()
            while chunk := await self._agent.run_blocking(seen.read):
                await socket.send_bytes(chunk)
            if line.closed:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), LOOK_SECONDS)
                await asyncio.sleep(LOG_DELAY)

    async def _accept(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("binary",), heartbeat=HEARTBEAT)
        await socket.prepare(request)
        self._sockets.add(socket)
        return socket

    async def _finish(self, socket: web.WebSocketResponse) -> web.WebSocketResponse:
        self._sockets.discard(socket)
        await socket.close()
        return socket

    async def _ask(self, question: Any, vm_uuid: str) -> Any:
        """Ask a running domain; a guest that does not run has no console."""
        try:
            return await self._agent.part(Libvirt).call(lambda conn: question(domains.running(conn, vm_uuid)))
        except AgentFailure as failure:
            raise web.HTTPNotFound(text=failure.details) from failure

    async def _start(self, agent: Agent) -> None:
        agent.spawn(self._keep_logs_short(), "serial logs")

    async def _keep_logs_short(self) -> None:
        while True:
            await asyncio.sleep(LOG_CHECK_SECONDS)
            await self._agent.run_blocking(shorten_logs, self._agent.state_dir / "vm")


class SerialLine:
    """The way into a guest's serial line, shared by its viewers and open as long as there are any.

    What the guest says is read here too, lest it blocks, but only as a sign that there is news in the log: QEMU takes a
    second to notice that a terminal was opened, and what it says until then is in the log alone.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        tty.setraw(self._fd, termios.TCSANOW)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._readable)
        self._typing = asyncio.Lock()
        self._viewers: set[asyncio.Event] = set()
        self.closed = False

    @contextlib.contextmanager
    def viewed(self) -> Iterator[asyncio.Event]:
        """Hold the line open; the event tells of news. The last one to leave closes it."""
        news = asyncio.Event()
        self._viewers.add(news)
        try:
            yield news
        finally:
            self._viewers.discard(news)
            if not self._viewers:
                self._close()

    async def type_from(self, socket: web.WebSocketResponse) -> None:
        """Type what comes from a viewer, until it leaves."""
        async for message in socket:
            if message.type in (WSMsgType.BINARY, WSMsgType.TEXT):
                data = message.data
                await self._type(data.encode() if isinstance(data, str) else data)

    def _readable(self) -> None:
        try:
            ended = not os.read(self._fd, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            ended = True  # the other side is closed
        if ended:
            self._close()
        for news in self._viewers:
            news.set()

    def _close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            os.close(self._fd)

    async def _type(self, data: bytes) -> None:
        async with self._typing:
            while data and not self.closed:
                try:
                    data = data[os.write(self._fd, data) :]
                except BlockingIOError:
                    # The guest does not read its line; look again, and give up with the viewer.
                    await asyncio.sleep(LOOK_SECONDS)


class LogReader:
    """Reads a growing log from shortly before its end on; survives that it is cut or replaced. Blocking."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def read(self) -> bytes:
        """What is new; empty when nothing is."""
        try:
            if self._file is None:
                self._file = self._path.open("rb", buffering=0)
                self._file.seek(max(0, self._file.seek(0, os.SEEK_END) - HISTORY))
            return self._file.read(CHUNK) or self._read_anew(self._file)
        except OSError:
            return b""

    def _read_anew(self, file: IO[bytes]) -> bytes:
        now = self._path.stat()
        if now.st_ino != os.fstat(file.fileno()).st_ino:
            file.close()
            self._file = self._path.open("rb", buffering=0)
        elif now.st_size < file.tell():
            file.seek(0)
        else:
            return b""
        return self._file.read(CHUNK) if self._file else b""

    def close(self) -> None:
        """Close the log."""
        if self._file is not None:
            self._file.close()


async def _race(*ways: Any) -> None:
    """Run both directions; the end of one ends the other."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.debug("a console ended: %r", outcome)


async def _to_socket(reader: asyncio.StreamReader, socket: web.WebSocketResponse) -> None:
    while chunk := await reader.read(CHUNK):
        await socket.send_bytes(chunk)


async def _to_writer(socket: web.WebSocketResponse, writer: asyncio.StreamWriter) -> None:
    async for message in socket:
        if message.type == WSMsgType.BINARY:
            writer.write(message.data)
            await writer.drain()


def _pty_path(domain: Any) -> str:
    source = domains.live_xml(domain).find("./devices/serial[@type='pty']/source")
    if source is None:
        raise AgentFailure(NOT_FOUND, f"the guest {domain.name()} has no serial line")
    return source.get("path", "")


def shorten_logs(directory: Path) -> None:
    """Cut serial logs that grew too long down to their end. QEMU appends, so it goes on writing after what is kept."""
    for path in directory.glob("*/serial.log"):
        with contextlib.suppress(OSError):
            if path.stat().st_size > MAX_LOG:
                with path.open("r+b") as file:
                    file.seek(-KEPT_LOG, os.SEEK_END)
                    end = file.read()
                    file.truncate(0)
                    file.seek(0)
                    file.write(end)
