"""Operations that clients send by AMQP are spread over all nodes."""

from __future__ import annotations

import asyncio
import re
import urllib.request

from fault_cluster import FaultCluster
from tests.cluster.clouds import AmqpClient

CALLS = 3000
AT_ONCE = 60
VERSION = "org.zstack.header.managementnode.APIGetVersionMsg"
_COUNT = re.compile(r'^caelum_\w*_count\{[^}]*message="APIGetVersionMsg"[^}]*\} (\S+)', re.MULTILINE)


async def test_each_of_three_nodes_takes_about_a_third(cluster: FaultCluster) -> None:
    before = await asyncio.to_thread(served, cluster)
    async with AmqpClient(cluster.layout.bus_url) as client:
        gate = asyncio.Semaphore(AT_ONCE)

        async def ask() -> None:
            async with gate:
                answer = await client.ask(VERSION)
                assert answer["success"], answer

        await asyncio.gather(*(ask() for _ in range(CALLS)))
    shares = [(now - then) / CALLS for now, then in zip(await asyncio.to_thread(served, cluster), before, strict=True)]
    print(f"shares of {CALLS} calls: {shares}")
    assert sum(shares) == 1
    assert all(0.28 <= share <= 0.39 for share in shares), shares


def served(cluster: FaultCluster) -> list[int]:
    """How many of these calls each node has handled in its life."""
    counts = []
    for api in cluster.layout.apis:
        with urllib.request.urlopen(f"{api}/metrics", timeout=10) as answer:
            found = _COUNT.search(answer.read().decode())
            counts.append(int(float(found[1])) if found else 0)
    return counts
