"""A node that is cut from the database, the broker, or the hosts, and joined again."""

from __future__ import annotations

import asyncio
import random

import pytest
from fault_cluster import FaultCluster
from fault_trial import FULL, Trial

APART = 60.0 if FULL else 8.0


# Lost packets are the harder case: a refused connection is noticed at once.
@pytest.mark.parametrize("how", ["cut", "stall"] if FULL else ["stall"])
@pytest.mark.parametrize("what", ["database", "broker"])
async def test_partition_between_a_node_and_what_all_share(
    cluster: FaultCluster, trial: Trial, what: str, how: str
) -> None:
    async def partition() -> None:
        victim = random.randrange(3)
        await asyncio.to_thread(getattr(cluster, how), what, victim)
        await asyncio.sleep(APART)
        await asyncio.to_thread(cluster.heal, what, victim)

    way = "refused" if how == "cut" else "lost"
    await trial.of(
        f"node and {what} apart for {APART:.0f} s, packets {way}", partition, downtime=8.0, recovery=APART + 30.0
    )


async def test_partition_between_a_node_and_the_hosts(cluster: FaultCluster, trial: Trial) -> None:
    async def partition() -> None:
        await asyncio.to_thread(cluster.cut_hosts, random.randrange(3))
        await asyncio.sleep(APART)
        await asyncio.to_thread(cluster.cut_hosts)

    # Nobody can do what that node should: its operations fail, truly, until it reaches the hosts again.
    await trial.of(
        f"node and all hosts apart for {APART:.0f} s", partition, downtime=3.0, recovery=APART + 60.0, errors=0.9
    )
