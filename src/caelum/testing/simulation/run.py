"""One run: a seed becomes a cloud, clients, faults, and a verdict.

Invariant: nothing of a run depends on anything but the template, the seed and the program.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from caelum.testing.simulation.client import Client
from caelum.testing.simulation.cluster import API_PORT, Cluster
from caelum.testing.simulation.faults import Nemesis
from caelum.testing.simulation.judge import Judge
from caelum.testing.simulation.loop import Machine
from caelum.testing.simulation.seams import unreal
from caelum.testing.simulation.template import Template
from caelum.testing.simulation.workload import Workload

CLIENTS = 3
CALLS = (5, 12)
"""How many things each client asks for: at least, at most."""
FAULTS = (0, 8)
TIME_OF_FAULTS = 40.0
"""Seconds within which faults begin."""


class Outcome(msgspec.Struct):
    """What came of a run."""

    seed: int
    digest: str
    problems: list[str]
    lines: list[str]
    calls: int
    succeeded: int
    kills: int
    virtual_seconds: float
    steps: int
    real_seconds: float = 0.0


def run(template: Template, seed: int, *, nodes: int, lines: int = 200) -> Outcome:
    """Run one seed in this process, which is good for nothing else afterwards."""
    begun = time.process_time()
    gc.disable()  # When garbage is found depends on what ran before.
    with tempfile.TemporaryDirectory(prefix="caelum-simulation-") as name:
        directory = Path(name)
        template.copy_to(directory)
        cluster = Cluster(str(seed), directory, nodes=nodes, hosts=len(template.hosts))
        logging.getLogger().handlers = [cluster.history]
        logging.getLogger().setLevel(logging.INFO)
        cluster.history.hide(str(template.directory))
        with unreal(cluster.loop, cluster.database, cluster.broker, str(seed)):
            asyncio.set_event_loop(cluster.loop)
            outcome = cluster.loop.run_until_complete(_play(cluster, template, seed, lines))
    outcome.real_seconds = time.process_time() - begun
    return outcome


async def _play(cluster: Cluster, template: Template, seed: int, lines: int) -> Outcome:
    def chance(what: str) -> random.Random:
        return random.Random(f"{seed}/{what}")  # noqa: S311 - repeatable, not secret

    await cluster.hosts.start()
    cluster.hosts.take(template.hosts)
    workload, nemesis = Workload(chance("workload"), template.names), Nemesis(cluster, chance("faults"))
    problems: list[str] = []
    try:
        await cluster.boot_all()
        await _trouble(cluster, workload, nemesis, chance)
        await nemesis.heal()
        await cluster.boot_all()
        problems = await _judge(cluster, workload, nemesis, chance("judge"))
    except Exception as error:
        logging.getLogger(__name__).exception("the run broke off")
        problems.append(f"the run broke off: {error!r}")
    return Outcome(
        seed=seed, digest=cluster.history.digest(), problems=problems, lines=cluster.history.last(lines),
        calls=len(workload.calls), succeeded=sum(call.succeeded for call in workload.calls),
        kills=sum(cluster.lives) - len(cluster.lives), virtual_seconds=cluster.loop.time(), steps=cluster.loop.steps,
    )  # fmt: skip


async def _trouble(cluster: Cluster, workload: Workload, nemesis: Nemesis, chance: Any) -> None:
    """Clients and faults at the same time; ends when both have, or long after the last fault."""
    playing = [
        cluster.loop.run_on(Machine(f"client{number}", f"10.2.0.{number + 1}"), workload.play(client, count))
        for number in range(CLIENTS)
        for client, count in [(_client(cluster, number, chance), chance(f"count{number}").randint(*CALLS))]
    ]
    trouble = cluster.loop.create_task(nemesis.play(TIME_OF_FAULTS, chance("number").randint(*FAULTS)))
    await asyncio.wait([trouble])
    await asyncio.wait(playing, timeout=TIME_OF_FAULTS)
    if not all(task.done() for task in playing):
        await nemesis.heal()
        await cluster.boot_all()
        await asyncio.wait(playing)
    for task in playing:
        task.result()


def _client(cluster: Cluster, number: int, chance: Any) -> Client:
    addresses = [f"http://{cluster.ip(index)}:{API_PORT}" for index in range(len(cluster.processes))]
    return Client(f"client{number}", addresses, chance(f"client{number}"), cluster.history)


async def _judge(cluster: Cluster, workload: Workload, nemesis: Nemesis, chance: random.Random) -> list[str]:
    client = _client(cluster, CLIENTS, lambda _what: chance)
    await client.open()
    try:
        return await Judge(cluster, workload, nemesis).problems(client)
    finally:
        await client.close()
