"""One listening socket for all simulated hosts: the address that a connection came to says which host it is for.

Invariant: a host without an agent answers nobody, and what comes to an address that is no host's is closed. A process
may hold far fewer sockets than a data centre has hosts, and each listener costs memory: so there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

Admit = Callable[[socket.socket], Awaitable[None]]

_BACKLOG = 4096
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that makes closing a reset, as from a machine on which nobody listens."""


class Door:
    """Accepts connections to every address in `hosts`, and hands each to that host."""

    def __init__(self, hosts: dict[str, Admit]) -> None:
        self._hosts = hosts
        self._socket: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, port: int) -> int:
        """Listen; returns the port, a free one for port 0. A single host leaves the port to others elsewhere."""
        ip = next(iter(self._hosts)) if len(self._hosts) == 1 else "0.0.0.0"  # noqa: S104 - for many addresses
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.setblocking(False)
        try:
            listening.bind((ip, port))
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
        self._socket = listening
        self._spawn(self._accept(listening))
        return int(listening.getsockname()[1])

    async def close(self) -> None:
        """Accept nothing more."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:
                log.warning("no connection can be accepted: %s", error)
                await asyncio.sleep(0.1)
                continue
            self._spawn(self._admit(connection))

    async def _admit(self, connection: socket.socket) -> None:
        admit = self._hosts.get(connection.getsockname()[0])
        if admit is None:
            turn_away(connection)
            return
        # A peer that breaks off its handshake is no matter of ours.
        with contextlib.suppress(OSError):
            await admit(connection)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def turn_away(connection: socket.socket) -> None:
    """End a connection without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()
