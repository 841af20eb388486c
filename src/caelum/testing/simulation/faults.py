"""What goes wrong in a run: kinds, times and victims come from the seed.

Invariant: every fault ends, at the latest by `heal`, so that what is not in order afterwards is the program's fault.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from caelum.simulator.faults import Fault
from caelum.testing.simulation.broker import IP
from caelum.testing.simulation.cluster import Cluster
from caelum.testing.simulation.loop import Machine

_COMMAND_FAULTS = ("refuse", "error", "hang", "lose_reply", "double_reply", "die", "die_after", "slow", "lose_ack")
_JUMP = 3600.0


class Nemesis:
    """Breaks things."""

    def __init__(self, cluster: Cluster, chance: random.Random) -> None:
        self.cluster, self.chance = cluster, chance
        self.changed_by_themselves: dict[str, float] = {}
        """VMs whose state nobody asked for, and when that was last so."""
        self._tasks: list[asyncio.Task[None]] = []
        self._over = False

    async def play(self, seconds: float, count: int) -> None:
        """Let so many faults begin within the time."""
        loop = self.cluster.loop
        for moment in sorted(self.chance.uniform(0, seconds) for _ in range(count)):
            await asyncio.sleep(max(0.0, moment - loop.time()))
            kinds = _FAULTS if len(self.cluster.processes) == 1 else _FAULTS + _CLUSTER_FAULTS
            fault = self.chance.choices([one for one, _ in kinds], [weight for _, weight in kinds])[0]
            self._tasks.append(loop.create_task(fault(self)))

    async def heal(self) -> None:
        """End everything that is still wrong: what was stopped goes on, what is dead is started."""
        self._over = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        cluster = self.cluster
        cluster.history.add("everything is mended")
        cluster.weather.heal_all()
        cluster.hosts.heal()
        cluster.broker.down = False
        for process in cluster.processes:
            if process is not None:
                process.machine.fuse = None
                cluster.resume(process)
                outage = cluster.database.outage(process.machine)
                outage.away, outage.break_at_commit, outage.conflicts = False, None, 0
        for host in cluster.hosts.hosts:
            await cluster.loop.run_on(_machine(host), host.revive())

    # --- single faults ------------------------------------------------------------------------------------------------

    def _node(self) -> int:
        return self.chance.randrange(len(self.cluster.processes))

    def _host(self) -> Any:
        return self.chance.choice(self.cluster.hosts.hosts)

    async def kill(self) -> None:
        """A node dies between two steps of its program, and is started again some time later."""
        index = self._node()
        process = self.cluster.processes[index]
        if process is None:
            return
        died = asyncio.Event()

        def die() -> None:
            self.cluster.kill(index)
            died.set()

        process.machine.on_fuse = die
        process.machine.fuse = self.chance.randrange(1, 400)
        await died.wait()
        await asyncio.sleep(self.chance.uniform(0.1, 40))
        if self.cluster.processes[index] is None:
            self.cluster.boot(index)

    async def pause(self) -> None:
        """A node is stopped for a while, and then goes on as if nothing had been."""
        process = self.cluster.pause(self._node())
        if process is not None:
            await asyncio.sleep(self.chance.choice((0.5, 5.0, 60.0)) * self.chance.uniform(0.5, 1.5))
            self.cluster.resume(process)

    async def cut_host(self) -> None:
        """A node and a host do not hear each other."""
        await self._cut(self.cluster.ip(self._node()), self._host().ip)

    async def _cut(self, one: str, other: str) -> None:
        self.cluster.history.add(f"{one} and {other} are cut off from each other")
        self.cluster.weather.cut(one, other)
        await asyncio.sleep(self.chance.choice((2.0, 20.0, 90.0)) * self.chance.uniform(0.5, 1.5))
        self.cluster.weather.heal(one, other)
        self.cluster.history.add(f"{one} and {other} hear each other")

    async def slow_network(self) -> None:
        """Everything on the network takes longer."""
        self.cluster.weather.slow = self.chance.choice((5.0, 50.0))
        self.cluster.history.add("the network is slow")
        await asyncio.sleep(self.chance.uniform(5, 40))
        self.cluster.weather.slow = 1.0
        self.cluster.history.add("the network is as fast as before")

    async def database_away(self) -> None:
        """A node does not reach the database."""
        process = self.cluster.processes[self._node()]
        if process is None:
            return
        outage = self.cluster.database.outage(process.machine)
        outage.away = True
        self.cluster.history.add("the database is away", process.machine.name)
        await asyncio.sleep(self.chance.uniform(0.5, 25))
        outage.away = False
        self.cluster.history.add("the database is back", process.machine.name)

    async def ambiguous_commit(self) -> None:
        """A node loses the database while it commits, and cannot know whether it did."""
        process = self.cluster.processes[self._node()]
        if process is not None:
            self.cluster.database.outage(process.machine).break_at_commit = self.chance.choice(("done", "lost"))

    async def conflicts(self) -> None:
        """Transactions of a node end in conflicts with others."""
        process = self.cluster.processes[self._node()]
        if process is not None:
            self.cluster.database.outage(process.machine).conflicts += self.chance.randrange(1, 4)

    async def broker_crashes(self) -> None:
        """The broker loses everything, and is away for a while."""
        self.cluster.history.add("the broker crashes")
        self.cluster.broker.crash()
        await asyncio.sleep(self.chance.choice((0.1, 10.0, 50.0)) * self.chance.uniform(0.5, 1.5))
        self.cluster.broker.down = False
        self.cluster.history.add("the broker is back")

    async def cut_broker(self) -> None:
        """A node and the broker do not hear each other."""
        await self._cut(self.cluster.ip(self._node()), IP)

    async def command_fault(self) -> None:
        """Something goes wrong with some commands to a host."""
        kind: Any = self.chance.choice(_COMMAND_FAULTS)
        path = self.chance.choice(("*", "/vm/*", "/storage/*", "/vm/start", "/host/*"))
        fault = Fault(kind=kind, path=path, count=self.chance.randrange(1, 4), delay=self.chance.uniform(0, 20))
        if kind != "slow":
            fault.delay = 0.0
        if kind == "error":
            fault.transient = self.chance.random() < 0.5
        self.cluster.history.add(f"commands {path} will {kind}, {fault.count} times")
        self.cluster.hosts.behaviour.add(fault)
        await asyncio.sleep(self.chance.uniform(10, 60))
        fault.count = 0
        await self._revive_dead()

    async def _revive_dead(self) -> None:
        for host in self.cluster.hosts.hosts:
            await self.cluster.loop.run_on(_machine(host), host.revive())

    async def agent_dies(self) -> None:
        """A host's agent dies and is started again; its guests run on."""
        host = self._host()
        self.cluster.history.add("the agent dies", _machine(host).name)
        await self.cluster.loop.run_on(_machine(host), host.die())
        await asyncio.sleep(self.chance.uniform(0.1, 30))
        self.cluster.history.add("the agent is back", _machine(host).name)
        await self.cluster.loop.run_on(_machine(host), host.revive())

    async def host_dies(self) -> None:
        """A host loses power, and comes back without its guests."""
        host = self._host()
        self._note(list(host.world.vms))
        self.cluster.history.add("the host loses power", _machine(host).name)
        await self.cluster.loop.run_on(_machine(host), host.power_off())
        await asyncio.sleep(self.chance.uniform(1, 240))
        self.cluster.history.add("the host is back", _machine(host).name)
        await self.cluster.loop.run_on(_machine(host), host.revive())

    async def guest_stops(self) -> None:
        """Somebody shuts a guest down from inside."""
        host = self._host()
        if host.world.vms and host.alive:
            vm_uuid = self.chance.choice(sorted(host.world.vms))
            self._note([vm_uuid])
            self.cluster.history.add(f"guest {vm_uuid} shuts itself down", _machine(host).name)
            await self.cluster.loop.run_on(_machine(host), _guest_stops(host, vm_uuid))

    async def clock_jumps(self) -> None:
        """A node's wall clock is set to another hour."""
        process = self.cluster.processes[self._node()]
        if process is not None:
            process.machine.clock_offset += self.chance.choice((-_JUMP, _JUMP))
            self.cluster.history.add(f"the clock jumps to {process.machine.clock_offset:+.0f} s", process.machine.name)

    def _note(self, vm_uuids: list[str]) -> None:
        for one in vm_uuids:
            self.changed_by_themselves[one] = self.cluster.loop.time()


def _machine(host: Any) -> Machine:
    machine: Machine = host.machine
    return machine


async def _guest_stops(host: Any, vm_uuid: str) -> None:
    host.guest_changes(vm_uuid, "Stopped")


_FAULTS: list[tuple[Callable[[Nemesis], Coroutine[Any, Any, None]], float]] = [
    (Nemesis.kill, 5),
    (Nemesis.pause, 2),
    (Nemesis.cut_host, 2),
    (Nemesis.slow_network, 1),
    (Nemesis.command_fault, 4),
    (Nemesis.agent_dies, 2),
    (Nemesis.host_dies, 1),
    (Nemesis.guest_stops, 1),
    (Nemesis.clock_jumps, 1),
]
_CLUSTER_FAULTS: list[tuple[Callable[[Nemesis], Coroutine[Any, Any, None]], float]] = [
    (Nemesis.kill, 3),
    (Nemesis.pause, 3),
    (Nemesis.database_away, 2),
    (Nemesis.ambiguous_commit, 3),
    (Nemesis.conflicts, 2),
    (Nemesis.broker_crashes, 1),
    (Nemesis.cut_broker, 2),
]
"""What is more in a cloud of several nodes: SQLite is a file of the only node, and is never away."""
