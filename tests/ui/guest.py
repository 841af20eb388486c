"""A guest that is only its two lines: a serial login prompt, and a screen that speaks RFB and shows one colour."""

from __future__ import annotations

import struct

from aiohttp import WSMsgType, web
from tests.service.console_lab import FakeAgent

PROMPT = "caelum-guest login: "
WIDTH, HEIGHT = 64, 48
BLUE = (32, 64, 224)

_SIZES = {0: 20, 2: 4, 3: 10, 4: 8, 5: 6}
"""How long an RFB client's message of each type is, the encodings' list and pasted text aside."""


class Screen:
    """An RFB 3.8 server without authentication; it draws the whole screen whenever it is asked."""

    def __init__(self, viewer: web.WebSocketResponse) -> None:
        self._viewer = viewer
        self._got = b""
        self.keys: list[int] = []

    async def run(self) -> None:
        """Serve until the viewer leaves."""
        try:
            await self._greet()
            while True:
                await self._answer((await self._read(1))[0])
        except EOFError:
            pass

    async def _greet(self) -> None:
        await self._viewer.send_bytes(b"RFB 003.008\n")
        assert await self._read(12) == b"RFB 003.008\n"
        await self._viewer.send_bytes(bytes([1, 1]))
        assert await self._read(1) == b"\x01"
        await self._viewer.send_bytes(bytes(4))
        await self._read(1)
        pixels = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
        await self._viewer.send_bytes(struct.pack(">HH", WIDTH, HEIGHT) + pixels + struct.pack(">I", 5) + b"guest")

    async def _answer(self, kind: int) -> None:
        body = await self._read(_SIZES[kind] - 1)
        if kind == 2:
            await self._read(4 * struct.unpack(">xH", body)[0])
        elif kind == 3 and not body[0]:
            await self._draw()
        elif kind == 4 and body[0]:
            self.keys.append(struct.unpack(">B2xI", body)[1])

    async def _draw(self) -> None:
        head = struct.pack(">BxHHHHHi", 0, 1, 0, 0, WIDTH, HEIGHT, 0)
        red, green, blue = BLUE
        # noVNC asks for 32 bits with red in the lowest byte.
        await self._viewer.send_bytes(head + bytes([red, green, blue, 255]) * (WIDTH * HEIGHT))

    async def _read(self, count: int) -> bytes:
        while len(self._got) < count:
            message = await self._viewer.receive()
            if message.type is not WSMsgType.BINARY:
                raise EOFError
            self._got += message.data
        found, self._got = self._got[:count], self._got[count:]
        return found


class Guest(FakeAgent):
    """The agent of a host with one such guest."""

    def __init__(self) -> None:
        super().__init__()
        self.typed = b""
        self.screen: Screen | None = None

    async def serve(self, line: str, viewer: web.WebSocketResponse) -> None:
        if line == "vnc":
            self.screen = Screen(viewer)
            await self.screen.run()
            return
        await viewer.send_bytes(b"\r\n" + PROMPT.encode())
        async for message in viewer:
            self.typed += message.data
            echo = message.data.replace(b"\r", b"\r\nPassword: ")
            await viewer.send_bytes(echo)
