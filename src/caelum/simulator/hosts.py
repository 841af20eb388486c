"""Many simulated hosts in one process, each at an address of its own on the loopback network.

Invariant: the n-th host has the same UUID, address, facts and disks in every run with the same first address. A
host that nobody speaks to costs a few kilobytes; what it needs for TLS is made with its first connection.
"""

from __future__ import annotations

import asyncio
import copy
import ipaddress
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from caelum.kernel.ids import derived_uuid
from caelum.kernel.pki import CertificateAuthority
from caelum.simulator.certificates import Certificates
from caelum.simulator.door import Door
from caelum.simulator.faults import Behaviour, Fault, Latency
from caelum.simulator.host import SimulatedHost
from caelum.simulator.world import World, facts_of

GIB = 1 << 30
_KEEP_ALIVE = 15
"""Seconds that a host keeps its connection to a management node: many hosts share one process's sockets."""


class SimulatedHosts:
    """`count` hosts with certificates of the authority in `directory` (the server's `data_dir`/pki).

    All listen at the same port, each at its own address; port 0 takes one that is free.
    """

    def __init__(
        self,
        count: int,
        *,
        directory: Path,
        first_ip: str = "127.1.0.1",
        port: int = 0,
        cpu_num: int = 16,
        memory: int = 64 * GIB,
        disk: int = 1024 * GIB,
        seed: int = 0,
    ) -> None:
        self.count, self.directory, self.port = count, directory, port
        self.behaviour = Behaviour(seed)
        self.hosts: list[SimulatedHost] = []
        self._first = ipaddress.ip_address(first_ip)
        self._size = (cpu_num, memory, disk)
        self._by_uuid: dict[str, SimulatedHost] = {}
        self._door: Door | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> SimulatedHosts:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def __getitem__(self, index: int) -> SimulatedHost:
        return self.hosts[index]

    def by_uuid(self, uuid: str) -> SimulatedHost:
        """The host of this UUID. Raises KeyError."""
        return self._by_uuid[uuid]

    async def start(self) -> None:
        """Start all agents."""
        self._scratch = tempfile.TemporaryDirectory(prefix="caelum-simulator-")
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE))
        authority = await asyncio.to_thread(CertificateAuthority.open, self.directory)
        certificates = Certificates(authority, Path(self._scratch.name))
        self.hosts = [self._make(index, certificates, self._http) for index in range(self.count)]
        self._by_uuid = {host.uuid: host for host in self.hosts}
        self._door = Door({host.ip: host.admit for host in self.hosts})
        self.port = self._door.open(self.port)
        for host in self.hosts:
            host.start(self.port)

    async def stop(self) -> None:
        """Stop all agents."""
        if self._door is not None:
            await self._door.close()
        await asyncio.gather(*(host.die() for host in self.hosts))
        if self._http is not None:
            await self._http.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def _make(self, index: int, certificates: Certificates, http: aiohttp.ClientSession) -> SimulatedHost:
        ip = str(self._first + index)
        cpu_num, memory, disk = self._size
        return SimulatedHost(
            uuid=derived_uuid("simulated host", ip), ip=ip, certificates=certificates,
            world=World(facts_of(index, ip, cpu_num, memory), disk), behaviour=self.behaviour, http=http,
        )  # fmt: skip

    # --- what tests ask for -----------------------------------------------------------------------------------------

    def fault(self, kind: Any, path: str = "*", **more: Any) -> Fault:
        """Put a fault in force."""
        fault = Fault(kind=kind, path=path, **more)
        self.behaviour.add(fault)
        return fault

    def heal(self) -> None:
        """End all faults."""
        self.behaviour.clear()

    def latency(self, *latencies: Latency) -> None:
        """How long commands take from now on."""
        self.behaviour.latencies = list(latencies)

    def keep(self) -> Callable[[], None]:
        """Remember what all hosts hold; calling the answer puts it back."""
        kept = {host.uuid: copy.deepcopy(vars(host.world)) for host in self.hosts}

        def put_back() -> None:
            for host in self.hosts:
                vars(host.world).update(copy.deepcopy(kept[host.uuid]))

        return put_back

    def dump(self) -> dict[str, Any]:
        """What all hosts hold, by host UUID; equal for equal states."""
        return {host.uuid: host.world.dump() for host in sorted(self.hosts, key=lambda one: one.uuid)}

    def dump_text(self) -> str:
        """The same as text, for a diff."""
        return json.dumps(self.dump(), indent=1, sort_keys=True)
