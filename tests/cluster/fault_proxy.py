"""Networks that can be cut: `python fault_proxy.py CONTROL LISTEN:TARGET...` forwards connections on loopback ports.

It is told what to do by lines on the control port: `cut PORT` (connections break, new ones are refused), `stall PORT`
(bytes stop, connections stay, as when packets are lost), `mute PORT` and `deafen PORT` (the same for bytes to, or from,
the target only), `heal PORT`; each is answered by a line `ok`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

import uvloop

CHUNK = 1 << 16


class Link:
    """One listening port and where it leads."""

    def __init__(self, port: int, target: int) -> None:
        self.port, self.target = port, target
        self._out, self._back = asyncio.Event(), asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def heal(self) -> None:
        """Everything passes."""
        self._out.set()
        self._back.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def cut(self) -> None:
        """Nobody gets through, and everybody is told."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._open):
            task.cancel()

    async def stall(self) -> None:
        """Nothing passes, and nobody is told."""
        self._out.clear()
        self._back.clear()

    async def mute(self) -> None:
        """Nothing passes to the target, and nobody is told."""
        self._out.clear()

    async def deafen(self) -> None:
        """Nothing passes from the target, and nobody is told."""
        self._back.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._out.wait()
            there = await asyncio.open_connection("127.0.0.1", self.target)
            try:
                ways = [self._pump(reader, there[1], self._out), self._pump(there[0], writer, self._back)]
                await asyncio.wait([asyncio.create_task(one) for one in ways], return_when=asyncio.FIRST_COMPLETED)
            finally:
                there[1].transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await flows.wait()
                writer.write(data)
                await writer.drain()


async def serve(control: int, links: dict[int, Link]) -> None:
    """Forward, and do what is told, until killed."""
    for link in links.values():
        await link.heal()

    async def told(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            what, port = line.decode().split()
            await getattr(links[int(port)], what)()
            writer.write(b"ok\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(told, "127.0.0.1", control)
    await server.serve_forever()


def tell(control: int, what: str, port: int) -> None:
    """The other side of the control port."""
    with socket.create_connection(("127.0.0.1", control), 10) as connection, connection.makefile("rw") as lines:
        lines.write(f"{what} {port}\n")
        lines.flush()
        assert lines.readline() == "ok\n"


if __name__ == "__main__":
    pairs = [one.split(":") for one in sys.argv[2:]]
    uvloop.run(serve(int(sys.argv[1]), {int(port): Link(int(port), int(target)) for port, target in pairs}))
