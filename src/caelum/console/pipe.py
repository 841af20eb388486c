"""One open console: bytes both ways between a viewer and a guest.

Invariant: at most a few messages wait in either direction: the next one is read only when the last one was taken by the
other side, so a slow viewer slows its guest's stream and nothing else. The pipe ends with either side, after a time
without any byte, or when it is told to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import ClientWebSocketResponse, WSCloseCode, WSMsgType, web

_IDLE_CHECK = 30.0
_CLOSE_TIMEOUT = 3.0

Socket = web.WebSocketResponse | ClientWebSocketResponse


class Pipe:
    """Connects a viewer with a guest until one of them leaves."""

    def __init__(self, viewer: web.WebSocketResponse, guest: ClientWebSocketResponse) -> None:
        self._viewer, self._guest = viewer, guest
        self._loop = asyncio.get_running_loop()
        self._active = self._loop.time()
        self._ended: asyncio.Future[tuple[int, str]] = self._loop.create_future()
        self.typed = self.shown = 0
        """Bytes to the guest and from it."""

    def end(self, code: int, reason: str) -> None:
        """End it from outside; the viewer is told why."""
        if not self._ended.done():
            self._ended.set_result((code, reason))

    async def run(self, idle_seconds: Callable[[], float]) -> str:
        """Carry bytes until the end, and tell why it ended."""
        tasks = [
            self._loop.create_task(self._from_viewer()),
            self._loop.create_task(self._from_guest()),
            self._loop.create_task(self._watch_idle(idle_seconds)),
        ]
        try:
            await asyncio.wait([self._ended])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        code, reason = self._ended.result()
        await self._close_viewer(code, reason)
        return reason

    async def _from_viewer(self) -> None:
        try:
            while data := await self._read(self._viewer):
                await self._guest.send_bytes(data)
                self.typed += len(data)
        finally:
            self.end(WSCloseCode.OK, "the viewer left")

    async def _from_guest(self) -> None:
        try:
            while data := await self._read(self._guest):
                # Waits while the viewer's buffer is full; meanwhile nothing is read from the guest.
                await self._viewer.send_bytes(data)
                self.shown += len(data)
        finally:
            self.end(WSCloseCode.OK, "the guest's console ended")

    async def _read(self, source: Socket) -> bytes:
        """The next bytes; none at the end."""
        while True:
            message = await source.receive()
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                return b""
            self._active = self._loop.time()
            data: bytes = message.data.encode() if message.type is WSMsgType.TEXT else message.data
            if data:
                return data

    async def _watch_idle(self, idle_seconds: Callable[[], float]) -> None:
        while (left := self._active + idle_seconds() - self._loop.time()) > 0:  # noqa: ASYNC110
            # An event would be set by every byte; the end may come a little late instead.
            await asyncio.sleep(min(left, _IDLE_CHECK))
        self.end(WSCloseCode.POLICY_VIOLATION, f"nothing happened for {idle_seconds():.0f} s")

    async def _close_viewer(self, code: int, reason: str) -> None:
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._viewer.close(code=code, message=reason.encode())
        except (TimeoutError, ConnectionError):
            pass  # a viewer that takes nothing any more; the handler's end drops its connection
