"""The hosts of the simulation: the simulator's agents, each a machine of its own on the simulated network.

Invariant: every effect on a host is in the history, and no guest is ever on two hosts.
"""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from typing import Any

import aiohttp

from caelum.agent import protocol as p
from caelum.kernel.ids import derived_uuid
from caelum.kernel.pki import CertificateAuthority
from caelum.simulator.certificates import Certificates
from caelum.simulator.faults import Behaviour, Fault
from caelum.simulator.host import SimulatedHost
from caelum.simulator.hosts import GIB, SimulatedHosts
from caelum.simulator.world import World, facts_of
from caelum.testing.simulation.history import History
from caelum.testing.simulation.loop import Machine
from caelum.testing.simulation.network import NetworkLoop

AGENT_PORT = 7070
_CPUS, _MEMORY, _DISK = 16, 64 * GIB, 1024 * GIB


class _TurnedAway(asyncio.Protocol):
    """What answers where no agent runs."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """End it."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of a stream
        transport.abort()


class WatchedHost(SimulatedHost):
    """A simulated host that tells what is done to it."""

    machine: Machine
    hosts: Hosts

    async def listen(self) -> None:
        """Have the agent's port on the simulated network, where no socket comes to a door."""
        tls = self._certificates.server_context(self.uuid)
        await asyncio.get_running_loop().create_server(self._answering, self.ip, AGENT_PORT, ssl=tls)

    def _answering(self) -> asyncio.BaseProtocol:
        return self._serving()() if self.alive else _TurnedAway()

    def _perform(self, command: p.Command[Any], fault: Fault | None) -> p.TaskAnswer:
        answer = super()._perform(command, fault)
        if not isinstance(command, p.Ping):
            code = answer.error.code if answer.error is not None else "done"
            self.hosts.told(self, command, code)
        return answer


class Hosts(SimulatedHosts):
    """All hosts. `start` needs a running loop; what they hold can be kept and given to those of another run."""

    def __init__(self, count: int, loop: NetworkLoop, history: History, seed: str, directory: Path) -> None:
        super().__init__(count, directory=directory / "pki", first_ip="10.1.0.1", port=AGENT_PORT)
        self.behaviour = Behaviour(0)
        self.behaviour._random.seed(f"{seed}/hosts")
        self.doubles: list[str] = []
        """Guests that were seen on two hosts."""
        self.done: dict[str, list[float]] = {}
        """By VM, when hosts did something to it."""
        self.watched: list[WatchedHost] = []
        self._loop, self._history, self._files = loop, history, directory / "hosts"

    def told(self, host: SimulatedHost, command: p.Command[Any], code: str) -> None:
        """A host did a command."""
        about = [str(one) for one in _subjects(command)]
        self._history.add(f"{command.path} {' '.join(about)}: {code}")
        if command.path.startswith("/vm/") and code == "done":
            for one in about:
                self.done.setdefault(one, []).append(self._loop.time())
        for vm_uuid, vm in host.world.vms.items():
            others = [one.ip for one in self.hosts if one is not host and vm_uuid in one.world.vms]
            if others and vm.state != "Stopped":
                self.doubles.append(f"guest {vm_uuid} is on {host.ip} and on {others}")

    async def start(self) -> None:
        """Start all agents."""
        self._files.mkdir(exist_ok=True)
        certificates = Certificates(CertificateAuthority.open(self.directory), self._files)
        for index in range(self.count):
            host = self._made(index, certificates)
            self.hosts.append(host)
            self.watched.append(host)
            await self._loop.run_on(host.machine, self._boot(host))

    async def stop(self) -> None:
        """Stop all agents."""
        for host in self.watched:
            await self._loop.run_on(host.machine, host.die())
            await self._loop.run_on(host.machine, host._http.close())

    def _made(self, index: int, certificates: Certificates) -> WatchedHost:
        ip = f"10.1.0.{index + 1}"
        host = WatchedHost(
            uuid=derived_uuid("simulated host", ip), ip=ip, certificates=certificates,
            world=World(facts_of(index, ip, _CPUS, _MEMORY), _DISK), behaviour=self.behaviour, http=None,  # type: ignore[arg-type]
        )  # fmt: skip
        host.machine, host.hosts = Machine(f"host{index}", ip), self
        return host

    async def _boot(self, host: WatchedHost) -> None:
        # Each host has connections of its own; they must not be shared, as the machine that opens one is its owner.
        host._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60))
        host.start(AGENT_PORT)
        await host.listen()

    def kept(self) -> list[dict[str, Any]]:
        """What the hosts hold, for `take`."""
        return [copy.deepcopy(vars(host.world)) for host in self.hosts]

    def take(self, kept: list[dict[str, Any]]) -> None:
        """Hold what those of another run held."""
        for host, values in zip(self.hosts, kept, strict=True):
            vars(host.world).update(copy.deepcopy(values))


def _subjects(command: p.Command[Any]) -> list[Any]:
    names = ("vm_uuid", "volume_uuid", "install_path", "nic_uuid", "l3_uuid", "bridge", "macs", "ips")
    found = [getattr(command, name) for name in names if getattr(command, name, None)]
    for name in ("definition", "disk", "nic"):
        inner = getattr(command, name, None)
        if inner is not None:
            found += _subjects(inner)
    return found
