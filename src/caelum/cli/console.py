"""`caelum vm console`: this terminal on a VM's serial line.

Invariant: the terminal is put back as it was, however the command ends. Ctrl-] leaves. When standard input is no
terminal, what comes from it is typed, and after its end the command waits until the guest has been quiet for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from typing import Any, NamedTuple

import aiohttp

from caelum.sdk.client import Client

LEAVE = b"\x1d"
"""Ctrl-]."""
CONNECT_TIMEOUT = 15.0
CLOSE_TIMEOUT = 2.0
HEARTBEAT = 30.0
QUIET_SECONDS = 3.0
"""After the end of input that is no terminal: how long the guest must say nothing before the command ends."""
_CHUNK = 4096
_UUID = re.compile(r"[0-9a-f]{32}")


def attach(client: Client, name: str) -> int:
    """Attach to the serial console of the VM with this name or UUID. Returns the command's exit code."""
    uuid = _resolve(client, name)
    if uuid is None:
        return 1
    access = client.call("RequestConsoleAccess", vmInstanceUuid=uuid)
    source, interactive = sys.stdin.fileno(), sys.stdin.isatty()
    if interactive:
        print(f"Connected to {name}. Ctrl-] leaves; press Enter for a prompt.", file=sys.stderr, flush=True)
    with raw_terminal(source) if interactive else contextlib.nullcontext():
        end = asyncio.run(Attachment(source, sys.stdout.fileno(), interactive).run(serial_url(access)))
    if interactive or not end.good:
        print(f"\n{end.reason}", file=sys.stderr)
    return 0 if end.good else 1


def _resolve(client: Client, name: str) -> str | None:
    condition = f"uuid={name}" if _UUID.fullmatch(name) else f"name={name}"
    found = client.query("VmInstance", condition, limit=2)
    if len(found) == 1:
        return str(found[0]["uuid"])
    print(
        f"{'Several VMs are' if found else 'No VM is'} named {name!r}" + ("; give a UUID" if found else ""),
        file=sys.stderr,
    )
    return None


def serial_url(access: dict[str, Any]) -> str:
    """The WebSocket of the serial line that console access leads to."""
    scheme = "wss" if access["scheme"] == "https" else "ws"
    host = access["hostname"]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{access['port']}/serial?token={access['token']}"


@contextlib.contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Every key goes to the guest inside the block; the terminal is as before afterwards."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class End(NamedTuple):
    """How an attachment ended."""

    good: bool
    reason: str


class Attachment:
    """Input and output on one WebSocket. `interactive` lets Ctrl-] leave."""

    def __init__(self, source: int, target: int, interactive: bool) -> None:
        self._source, self._target, self._interactive = source, target, interactive
        self._typed: asyncio.Queue[bytes] = asyncio.Queue(4)
        self._heard = 0.0

    async def run(self, url: str) -> End:
        """Carry bytes until one side ends."""
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT)
        closing = aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    socket = await http.ws_connect(url, protocols=("binary",), heartbeat=HEARTBEAT, timeout=closing)
            except (aiohttp.ClientError, OSError) as error:  # TimeoutError too
                return End(False, f"The console cannot be opened: {_without_token(error)}")
            async with socket:
                return await self._carry(socket)

    async def _carry(self, socket: aiohttp.ClientWebSocketResponse) -> End:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(loop,), daemon=True).start()
        tasks = [loop.create_task(self._type(socket)), loop.create_task(self._show(socket))]
        # A hang-up or a kill must not leave the terminal raw.
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, tasks[0].cancel)
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        first = done.pop()
        if first.cancelled():
            return End(False, "Ended by a signal.")
        error = first.exception()
        return first.result() if error is None else End(False, f"The connection broke: {error}")

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own: a read of a terminal or pipe may last for ever. Waits while nobody takes more."""
        while True:
            try:
                data = os.read(self._source, _CHUNK)
                asyncio.run_coroutine_threadsafe(self._typed.put(data), loop).result()
            except (OSError, RuntimeError, asyncio.CancelledError):
                return
            if not data:
                return

    async def _type(self, socket: aiohttp.ClientWebSocketResponse) -> End:
        while data := await self._typed.get():
            before, leave, _ = data.partition(LEAVE) if self._interactive else (data, b"", b"")
            if before:
                await socket.send_bytes(before)
            if leave:
                return End(True, "Left the console.")
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        while (left := self._heard + QUIET_SECONDS - loop.time()) > 0:  # noqa: ASYNC110 - there is no event in silence
            await asyncio.sleep(left)
        return End(True, "The input ended, and the guest is quiet.")

    async def _show(self, socket: aiohttp.ClientWebSocketResponse) -> End:
        while (message := await socket.receive()).type is aiohttp.WSMsgType.BINARY:
            self._heard = asyncio.get_running_loop().time()
            await asyncio.to_thread(_write, self._target, message.data)
        if message.type is aiohttp.WSMsgType.CLOSE:
            return End(message.data == aiohttp.WSCloseCode.OK, f"The console ended: {message.extra or message.data}")
        return End(False, "The connection to the console broke.")


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _without_token(error: Exception) -> str:
    if isinstance(error, aiohttp.WSServerHandshakeError):
        return f"the proxy answered with HTTP {error.status}"
    return type(error).__name__ if isinstance(error, TimeoutError) else str(error)
