"""Many simulated hosts in one process, each at an address of its own on the loopback network.

Invariant: the n-th host has the same UUID, address, facts and disks in every run with the same first address.
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

from caelum.kernel import pki
from caelum.kernel.ids import derived_uuid
from caelum.kernel.pki import CertificateAuthority, Identity
from caelum.simulator.faults import Behaviour, Fault, Latency
from caelum.simulator.host import SimulatedHost
from caelum.simulator.world import World, facts_of

GIB = 1 << 30


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
        found = next((host for host in self.hosts if host.uuid == uuid), None)
        if found is None:
            raise KeyError(uuid)
        return found

    async def start(self) -> None:
        """Make the certificates and start all agents."""
        self._scratch = tempfile.TemporaryDirectory(prefix="caelum-simulator-")
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60))
        authority = await asyncio.to_thread(CertificateAuthority.open, self.directory)
        for index in range(self.count):
            host = await asyncio.to_thread(self._make, index, authority)
            self.port = await host.start(self.port)
            self.hosts.append(host)

    async def stop(self) -> None:
        """Stop all agents."""
        await asyncio.gather(*(host.die() for host in self.hosts))
        if self._http is not None:
            await self._http.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def _make(self, index: int, authority: CertificateAuthority) -> SimulatedHost:
        assert self._scratch is not None  # noqa: S101 - `start` made it
        assert self._http is not None  # noqa: S101
        ip = str(self._first + index)
        uuid = derived_uuid("simulated host", ip)
        directory, cpu_memory_disk = Path(self._scratch.name), self._size
        files = pki.Files(directory / f"{uuid}.pem", directory / f"{uuid}.key", directory / "ca.pem")
        files.authority.write_bytes(authority.certificate_pem)
        pki.store(files, authority.issue(Identity("host", uuid), [ip]))
        cpu_num, memory, disk = cpu_memory_disk
        world = World(facts_of(index, ip, cpu_num, memory), disk)
        return SimulatedHost(uuid=uuid, ip=ip, files=files, world=world, behaviour=self.behaviour, http=self._http)

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
