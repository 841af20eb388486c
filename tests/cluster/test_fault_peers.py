"""Nodes that cannot reach each other. They talk by database and broker only, so there are two ways to be apart: no
direct way, which nobody needs, and no way through the broker, while all of them reach the database."""

from __future__ import annotations

import asyncio
import random

import pytest
from fault_cluster import FaultCluster, Firewall
from fault_trial import FULL, Trial

APART = 60.0 if FULL else 8.0


async def test_nodes_need_no_direct_way_to_each_other(cluster: FaultCluster, trial: Trial) -> None:
    if not Firewall.works():
        pytest.skip("losing packets needs root and iptables")

    async def part() -> None:
        with cluster.no_way_between_nodes():
            await asyncio.sleep(APART)

    name = f"no node reaches another one directly for {APART:.0f} s"
    await trial.of(name, part, downtime=1.0, recovery=APART + 10.0, errors=0.0)


async def test_two_nodes_cannot_tell_each_other_anything(cluster: FaultCluster, trial: Trial) -> None:
    """Both reach the database, so both stay members, and each keeps what the ring gives it."""

    async def part() -> None:
        apart = random.sample(range(3), 2)
        for one in apart:
            await asyncio.to_thread(cluster.stall, "broker", one)
        await asyncio.sleep(APART)
        for one in apart:
            await asyncio.to_thread(cluster.heal, "broker", one)

    name = f"two nodes apart from each other for {APART:.0f} s, both with the database"
    await trial.of(name, part, downtime=8.0, recovery=APART + 30.0)


@pytest.mark.parametrize("how", ["mute", "deafen"] if FULL else ["deafen"])
async def test_messages_pass_one_way_only(cluster: FaultCluster, trial: Trial, how: str) -> None:
    """A node is heard by the others, but hears nothing; or the other way round."""

    async def part() -> None:
        victim = random.randrange(3)
        await asyncio.to_thread(getattr(cluster, how), "broker", victim)
        await asyncio.sleep(APART)
        await asyncio.to_thread(cluster.heal, "broker", victim)

    what = "hears the others, but is not heard," if how == "mute" else "is heard, but hears nothing,"
    await trial.of(f"a node {what} for {APART:.0f} s", part, downtime=8.0, recovery=APART + 30.0)
