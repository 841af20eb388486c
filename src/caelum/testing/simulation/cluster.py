"""The machines of a simulated cloud: management nodes that can be killed, paused and cut off, and the hosts.

Invariant: a node that was killed does nothing more, and what it had not committed is gone; its successor at the same
address is a new process.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from caelum.gateway.server import Gateway
from caelum.kernel.config import Config
from caelum.kernel.node import Node
from caelum.testing.simulation.broker import IP, Broker
from caelum.testing.simulation.history import History
from caelum.testing.simulation.hosts import Hosts
from caelum.testing.simulation.loop import Machine
from caelum.testing.simulation.network import NetworkLoop, Weather
from caelum.testing.simulation.postgres import URL
from caelum.testing.simulation.sqlite import IDLE_TRANSACTION, DatabaseServer

T = TypeVar("T")

API_PORT = 8080
_START_LIMIT = 300.0
_RESTART = 2.0
"""Seconds after which a node is started again whose process ended by itself."""


class Process:
    """One life of a management node."""

    def __init__(self, machine: Machine, config: Config) -> None:
        self.machine, self.config = machine, config
        self.node: Node | None = None
        self.gateway: Gateway | None = None
        self.task: asyncio.Task[None]
        self.on_lost: Callable[[str], None] = lambda _reason: None

    async def run(self) -> None:
        """What the server's main function does."""
        self.node = Node(self.config)
        self.node.on_lost = self.on_lost
        self.gateway = Gateway(self.node)
        await self.gateway.start()
        await self.node.start()

    async def stop(self) -> None:
        """An orderly end."""
        if self.node is not None and self.gateway is not None:
            await self.gateway.stop(2)
            await self.node.stop()

    @property
    def ready(self) -> bool:
        """Whether it serves."""
        return self.machine.alive and self.node is not None and self.node.ready


class Cluster:
    """Everything that is simulated. `chance` decides what happens by itself: delays."""

    def __init__(self, seed: str, directory: Path, *, nodes: int, hosts: int) -> None:
        self.seed, self.directory = seed, directory
        self.weather = Weather(random.Random(f"{seed}/network"))  # noqa: S311 - repeatable, not secret
        self.loop = NetworkLoop(random.Random(f"{seed}/threads"), self.weather)  # noqa: S311
        self.history = History(self.loop, (str(directory),))
        self.database = DatabaseServer(self.loop, random.Random(f"{seed}/database"))  # noqa: S311
        self.database.on_ambiguous = lambda machine, how: self.history.add(
            f"the answer to a commit that is {how} does not arrive", machine.name
        )
        self.broker = Broker(self.loop, random.Random(f"{seed}/broker"))  # noqa: S311
        self.hosts = Hosts(hosts, self.loop, self.history, seed, directory)
        self.lives = [0] * nodes
        self.processes: list[Process | None] = [None] * nodes

    # --- nodes --------------------------------------------------------------------------------------------------------

    def ip(self, index: int) -> str:
        """The address of the n-th node."""
        return f"10.0.0.{index + 1}"

    def boot(self, index: int) -> asyncio.Task[None]:
        """Start the n-th node; the task ends when it is ready."""
        self.lives[index] += 1
        machine = Machine(f"node{index}.{self.lives[index]}", self.ip(index))
        process = Process(machine, self._config(index))
        self.processes[index] = process
        self.history.add("starts", machine.name)
        process.on_lost = lambda reason: self._ended(index, process, reason)
        process.task = self.loop.run_on(machine, process.run())
        process.task.add_done_callback(lambda task: self._started(index, process, task))
        return process.task

    def _started(self, index: int, process: Process, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._ended(index, process, f"it could not start: {error!r}")

    def _ended(self, index: int, process: Process, reason: str) -> None:
        """A process ended by itself; whoever watches over it starts it again."""
        if self.processes[index] is process:
            self.history.add(f"ends: {reason}", process.machine.name)
            self.kill(index)
            self.loop.call_at_for(self.loop.director, self.loop.time() + _RESTART, self._boot_again, index)

    def _boot_again(self, index: int) -> None:
        if self.processes[index] is None:
            self.boot(index)

    async def boot_all(self) -> None:
        """Start every node that is not there, and wait until all are ready."""
        for index, process in enumerate(self.processes):
            if process is None:
                self.boot(index)
        await self.until(lambda: all(one is not None and one.ready for one in self.processes), _START_LIMIT)

    def kill(self, index: int) -> None:
        """The n-th node's process ends at once."""
        process, self.processes[index] = self.processes[index], None
        if process is None:
            return
        process.machine.alive = False
        process.machine.held.clear()
        self.history.add("is killed", process.machine.name)
        self.database.vanish(process.machine)
        self.loop.network.vanish(process.machine)
        self.broker.vanish(process.machine)

    def pause(self, index: int) -> Process | None:
        """The n-th node's process is stopped, as by SIGSTOP; `resume` lets it go on."""
        process = self.processes[index]
        if process is not None and not process.machine.paused:
            process.machine.paused = True
            self.history.add("is paused", process.machine.name)
            self.loop.call_later(IDLE_TRANSACTION, self._end_idle, process.machine)
        return process

    def resume(self, process: Process) -> None:
        """Let a paused process go on."""
        if process.machine.alive and process.machine.paused:
            self.history.add("goes on", process.machine.name)
            self.loop.resume(process.machine)

    def _end_idle(self, machine: Machine) -> None:
        if machine.paused and machine.alive:
            self.database.end_idle_transactions(machine)

    def ready(self) -> list[Process]:
        """The nodes that serve now."""
        return [one for one in self.processes if one is not None and one.ready and not one.machine.paused]

    async def on(self, process: Process, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """Run something on a node. Raises TimeoutError when it does not end, as when the node dies."""
        # A task of a dead machine never ends, not even by being cancelled: so it is looked at and not awaited.
        task = asyncio.ensure_future(self.loop.run_on(process.machine, work))
        end = self.loop.time() + seconds
        while not task.done():
            if not process.machine.alive or self.loop.time() > end:
                raise TimeoutError(f"{process.machine.name} gave no answer")
            await asyncio.wait([task], timeout=1.0)
        return task.result()

    async def until(self, condition: Any, seconds: float) -> None:
        """Wait, by the virtual clock. Raises TimeoutError."""
        end = self.loop.time() + seconds
        while not condition():
            if self.loop.time() > end:
                raise TimeoutError(f"not so within {seconds:.0f} s")
            await asyncio.sleep(0.05)

    def _config(self, index: int) -> Config:
        directory, ip = self.directory / f"node{index}", self.ip(index)
        if not directory.exists():
            directory.mkdir()
            shutil.copytree(self.directory / "pki", directory / "pki")
        file, alone = self.directory / "caelum.db", len(self.processes) == 1
        return Config(
            data_dir=directory,
            database_url=f"sqlite+aiosqlite:///{file}" if alone else f"{URL}/{file}",
            bus_url="memory:" if alone else f"amqp://{IP}/",
            advertised_host=ip,
            api_host=ip, api_port=API_PORT, agent_listen_host=ip, console_port=0, stop_seconds=5.0,
        )  # fmt: skip
