"""The network of the simulation: TCP between machines, in memory, with seeded delays and faults.

Invariant: what one side wrote arrives at the other once and in order, or the connection breaks; a partition holds
everything back, like the real one, until it heals or the connection's patience is over. TLS is not done, but who is at
the other end is as its certificates say.
"""

from __future__ import annotations

import asyncio
import errno
import random
import ssl
from collections.abc import Callable
from contextvars import Context
from typing import Any

from caelum.testing.simulation.loop import Machine, VirtualLoop

SHORTEST_DELAY, LONGEST_DELAY = 0.0002, 0.004
RETRANSMISSION = 0.4
"""Seconds between attempts to get through a partition."""
LAST_RETRANSMISSION = 60.0
"""A connection that got nothing through for so long breaks."""
_FIRST_PORT = 20000

Address = tuple[str, int]


class Credential(ssl.SSLContext):
    """What a TLS context becomes: whom its certificate names."""

    urn = ""
    names: frozenset[str] = frozenset()

    def load_cert_chain(self, *_files: Any, **_more: Any) -> None:
        """The certificate was read when the context was made."""


class Peer:
    """What a connection tells of the other end's certificate."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    def getpeercert(self, binary_form: bool = False) -> Any:
        """As `ssl.SSLObject`."""
        return b"" if binary_form else {"subjectAltName": (("URI", self._credential.urn),)}

    def read(self, _size: int = 1024) -> bytes:
        """As `ssl.SSLObject`: what came was delivered already."""
        raise ssl.SSLWantReadError


class Weather:
    """Which machines hear each other, and how soon. Pairs are of addresses."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.slow = 1.0
        self._cut: set[frozenset[str]] = set()

    def cut(self, one: str, other: str) -> None:
        """Nothing gets from one to the other, nor back."""
        self._cut.add(frozenset((one, other)))

    def heal(self, one: str, other: str) -> None:
        """They hear each other again."""
        self._cut.discard(frozenset((one, other)))

    def heal_all(self) -> None:
        """Everybody hears everybody, and soon."""
        self._cut.clear()
        self.slow = 1.0

    def is_cut(self, one: str, other: str) -> bool:
        """Whether nothing gets through."""
        return frozenset((one, other)) in self._cut

    def delay(self) -> float:
        """Seconds that something takes on its way; now and then much longer."""
        seconds = self.chance.uniform(SHORTEST_DELAY, LONGEST_DELAY)
        if self.chance.random() < 0.005:
            seconds += self.chance.uniform(0.05, 0.5)
        return seconds * self.slow


class Pipe(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, network: Network, machine: Machine, protocol: Any, here: Address, there: Address) -> None:
        super().__init__({"sockname": here, "peername": there})
        self.machine, self.protocol, self.here, self.there = machine, protocol, here, there
        self.peer: Pipe
        self.broken = False
        self._network = network
        self._closing = False
        self._read_paused = False
        self._unread: list[tuple[Callable[..., None], Any]] = []
        self._outbox: list[tuple[float, Callable[..., None], Any]] = []
        self._sending = False

    # --- the program's side -------------------------------------------------------------------------------------------

    def get_protocol(self) -> Any:
        """See asyncio."""
        return self.protocol

    def set_protocol(self, protocol: Any) -> None:
        """See asyncio."""
        self.protocol = protocol

    def is_closing(self) -> bool:
        """See asyncio."""
        return self._closing

    def write(self, data: Any) -> None:
        """See asyncio."""
        if not self._closing and not self.broken and data:
            self._send(self.peer.receive, bytes(data))

    def can_write_eof(self) -> bool:
        """See asyncio; as with TLS."""
        return False

    def get_write_buffer_size(self) -> int:
        """Nothing waits here."""
        return 0

    def is_reading(self) -> bool:
        """See asyncio."""
        return not self._read_paused and not self._closing

    def pause_reading(self) -> None:
        """See asyncio."""
        self._read_paused = True

    def resume_reading(self) -> None:
        """See asyncio."""
        self._read_paused = False
        unread, self._unread = self._unread, []
        for deliver, data in unread:
            self._network.loop.call_soon(deliver, data)

    def close(self) -> None:
        """See asyncio."""
        if not self._closing and not self.broken:
            self._closing = True
            self._send(self.peer.receive_end, None)
            self._network.loop.call_soon(self._lose, None)

    def abort(self) -> None:
        """See asyncio."""
        if not self.broken:
            self._closing = True
            self._send(self.peer.break_off, ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
            self._network.loop.call_soon(self._lose, None)

    # --- the wire -----------------------------------------------------------------------------------------------------

    def _send(self, deliver: Callable[..., None], data: Any) -> None:
        self._outbox.append((self._network.loop.time(), deliver, data))
        if not self._sending:
            self._next()

    def _next(self) -> None:
        self._sending = bool(self._outbox)
        if self._sending:
            loop = self._network.loop
            # It is on the wire: neither end's process can hold it up any longer.
            loop.call_at_for(loop.director, loop.time() + self._network.weather.delay(), self._arrive)

    def _arrive(self) -> None:
        since, deliver, data = self._outbox[0]
        loop = self._network.loop
        if self._network.weather.is_cut(self.here[0], self.there[0]):
            if loop.time() - since > LAST_RETRANSMISSION:
                self._network.breaks(self)
            else:
                loop.call_at_for(loop.director, loop.time() + RETRANSMISSION, self._arrive)
            return
        self._outbox.pop(0)
        loop.call_at_for(self.peer.machine, loop.time(), deliver, data)
        self._next()

    def receive(self, data: bytes) -> None:
        """Something arrived."""
        if self.broken or self._closing:
            return
        if self._read_paused:
            self._unread.append((self.receive, data))
        else:
            self.protocol.data_received(data)

    def receive_end(self, _data: None) -> None:
        """The other end says that nothing more comes."""
        if self.broken or self._closing:
            return
        if self._read_paused:
            self._unread.append((self.receive_end, None))
        elif not self.protocol.eof_received():
            self.close()

    def break_off(self, error: BaseException) -> None:
        """The connection is gone."""
        if not self.broken:
            self._closing = True
            self._lose(error)

    def _lose(self, error: BaseException | None) -> None:
        if not self.broken:
            self.broken = True
            self._network.pipes.pop(self, None)
            self.protocol.connection_lost(error)


class Listener:
    """A listening port. Also what `loop.create_server` returns."""

    def __init__(self, network: Network, machine: Machine, factory: Any, address: Address, tls: Any) -> None:
        self.machine, self.factory, self.address, self.tls = machine, factory, address, tls
        self._network = network

    @property
    def sockets(self) -> tuple[Listener, ...]:
        """As `asyncio.Server`: something that has `getsockname`."""
        return (self,)

    def getsockname(self) -> Address:
        """As a socket."""
        return self.address

    def is_serving(self) -> bool:
        """As `asyncio.Server`."""
        return self._network.listeners.get(self.address) is self

    def close(self) -> None:
        """Stop listening."""
        if self.is_serving():
            del self._network.listeners[self.address]

    async def start_serving(self) -> None:
        """It does."""

    async def wait_closed(self) -> None:
        """It is."""


class Network:
    """All listeners and connections."""

    def __init__(self, loop: NetworkLoop, weather: Weather) -> None:
        self.loop, self.weather = loop, weather
        self.listeners: dict[Address, Listener] = {}
        self.pipes: dict[Pipe, None] = {}
        self._ports = _FIRST_PORT

    def free_port(self) -> int:
        """A port that nobody has."""
        self._ports += 1
        return self._ports

    def listen(self, factory: Any, address: Address, tls: Any) -> Listener:
        """Open a port of the machine that runs now. Raises OSError."""
        ip, port = address
        machine = self.loop.machine
        address = (machine.ip if ip == "0.0.0.0" else ip, port or self.free_port())  # noqa: S104
        if address in self.listeners:
            raise OSError(errno.EADDRINUSE, f"{address} is in use")
        self.listeners[address] = Listener(self, machine, factory, address, tls)
        return self.listeners[address]

    async def reach(self, address: Address) -> Listener:
        """The listener at an address, once its machine has answered. Raises OSError."""
        here = self.loop.machine.ip
        for attempt in range(8):
            await asyncio.sleep(self.weather.delay() + self.weather.delay())
            if not self.weather.is_cut(here, address[0]):
                break
            await asyncio.sleep(2**attempt)
        else:
            raise TimeoutError(errno.ETIMEDOUT, f"no way to {address}")
        found = self.listeners.get(address)
        if found is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nothing listens at {address}")
        return found

    async def connect(self, factory: Any, address: Address, tls: Any, name: str | None) -> tuple[Pipe, Any]:
        """Open a connection. Raises OSError."""
        listener = await self.reach(address)
        machine = self.loop.machine
        check_credentials(listener.tls, tls, name)
        protocol = factory()
        here = (machine.ip, self.free_port())
        mine = Pipe(self, machine, protocol, here, address)
        theirs = Pipe(self, listener.machine, None, address, here)
        mine.peer, theirs.peer = theirs, mine
        for pipe, own, other in ((mine, tls, listener.tls), (theirs, listener.tls, tls)):
            self.pipes[pipe] = None
            if isinstance(other, Credential):
                pipe._extra.update(ssl_object=Peer(other), sslcontext=own)  # type: ignore[attr-defined]
        # Another process knows nothing of the caller's task.
        self.loop.call_at_for(listener.machine, self.loop.time(), _accept, listener, theirs, context=Context())
        protocol.connection_made(mine)
        return mine, protocol

    def breaks(self, pipe: Pipe) -> None:
        """A connection got nothing through for too long: both ends are told."""
        for end in (pipe, pipe.peer):
            error = ConnectionResetError(errno.ETIMEDOUT, "Connection timed out")
            self.loop.call_at_for(end.machine, self.loop.time(), end.break_off, error)

    def vanish(self, machine: Machine) -> None:
        """A process is gone: its ports are closed, and whoever was connected finds that out."""
        for address in [one for one, listener in self.listeners.items() if listener.machine is machine]:
            del self.listeners[address]
        for pipe in [one for one in self.pipes if one.machine is machine]:
            pipe.broken = True
            del self.pipes[pipe]
            reset = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
            self.loop.call_at_for(
                pipe.peer.machine, self.loop.time() + self.weather.delay(), pipe.peer.break_off, reset
            )


def _accept(listener: Listener, pipe: Pipe) -> None:
    if not listener.is_serving():
        pipe.abort()
        return
    pipe.protocol = listener.factory()
    pipe.protocol.connection_made(pipe)


def check_credentials(server: Any, client: Any, name: str | None) -> None:
    """What a TLS handshake would check. Raises OSError."""
    if (server is None) != (client is None):
        raise ConnectionResetError(errno.ECONNRESET, "one end speaks TLS, the other does not")
    if isinstance(client, Credential) and client.check_hostname and name not in server.names:
        raise ssl.SSLCertVerificationError(f"the certificate is for {sorted(server.names)}, not for {name}")


class NetworkLoop(VirtualLoop):
    """The loop whose connections go through the simulated network."""

    def __init__(self, chance: random.Random, weather: Weather) -> None:
        super().__init__(chance)
        self.network = Network(self, weather)
        self._targets: dict[int, Address] = {}

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Any, host: str = "0.0.0.0", port: int = 0, *, ssl: Any = None, **_more: Any  # noqa: S104
    ) -> Listener:  # fmt: skip
        """See asyncio."""
        return self.network.listen(protocol_factory, (host, port), ssl)

    async def sock_connect(self, sock: Any, address: Any) -> None:
        """Remember where the socket leads; nothing is done with it."""
        await self.network.reach(address[:2])
        self._targets[sock.fileno()] = address[:2]

    async def create_connection(
        self,
        protocol_factory: Any,
        host: str | None = None,
        port: int | None = None,
        *,
        ssl: Any = None,
        sock: Any = None,
        server_hostname: str | None = None,
        **_more: Any,
    ) -> tuple[Any, Any]:
        """See asyncio."""
        if sock is not None:
            address = self._targets.pop(sock.fileno())
            sock.close()
        else:
            assert host is not None  # noqa: S101 - one of both is given
            assert port is not None  # noqa: S101
            address = (host, port)
        return await self.network.connect(protocol_factory, address, ssl, server_hostname or host)
