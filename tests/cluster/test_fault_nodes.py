"""Nodes that die, sleep, come and go while clients work."""

from __future__ import annotations

import asyncio
import random
import signal
import time

import pytest
from fault_cluster import FaultCluster
from fault_trial import FULL, ROUNDS, Trial

ASLEEP = 60.0 if FULL else 12.0
"""Longer than a node's eviction takes."""
CHURN = 600.0 if FULL else 15.0


# A node that is back at once is easier on its clients, and harder on those who must tell its two lives apart.
@pytest.mark.parametrize("away", [0.0, 10.0] if FULL else [10.0])
async def test_kill_a_node(cluster: FaultCluster, trial: Trial, away: float) -> None:
    victims = random.sample(range(3), 3)

    async def kill() -> None:
        victim = victims[0]
        victims.append(victims.pop(0))
        await asyncio.sleep(random.random())
        await asyncio.to_thread(cluster.hold, victim)
        await asyncio.sleep(away)
        cluster.release(victim)

    name = "kill -9 of one of three nodes" + ("" if away else ", back at once")
    await trial.of(name, kill, downtime=3.0, recovery=30.0)


async def test_put_a_node_to_sleep(cluster: FaultCluster, trial: Trial) -> None:
    async def sleep() -> None:
        victim = random.randrange(3)
        await asyncio.to_thread(cluster.pause, victim)
        await asyncio.sleep(ASLEEP)
        await asyncio.to_thread(cluster.resume, victim)

    # A node that sleeps takes requests and does not answer: a client turns to another after 4 s.
    await trial.of(f"SIGSTOP of a node for {ASLEEP:.0f} s, SIGCONT", sleep, downtime=8.0, recovery=ASLEEP + 30.0)


async def test_nodes_come_and_go(cluster: FaultCluster, trial: Trial) -> None:
    async def churn() -> None:
        until = time.monotonic() + CHURN
        while time.monotonic() < until:
            victim = random.randrange(3)
            await asyncio.to_thread(cluster.hold, victim, signal.SIGTERM)
            await asyncio.sleep(2.5)
            cluster.release(victim)
            await asyncio.to_thread(cluster.wait_ready, victim)
            await asyncio.sleep(2.5)

    name = f"a node leaves and joins every 5 s for {CHURN:.0f} s"
    # Each of the long rounds has as many departures as a hundred brief ones of another fault.
    await trial.of(name, churn, downtime=3.0, recovery=CHURN + 30.0, rounds=max(1, ROUNDS // 100))
