"""The live feed while a node dies: nobody who stays connected misses the end of a job, and who was at the dead node
reconnects elsewhere and misses nothing from then on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from fault_cluster import FaultCluster
from fault_judge import Judge
from fault_load import Done, Load

HEARD_WITHIN = 20.0
"""Seconds until news arrive that only the death of their node made late."""


@dataclass
class Listener:
    """A client of the feed that goes to the next address when its own is gone."""

    addresses: list[str]
    session: str
    ready: list[float] = field(default_factory=list)
    """When it was connected, each time."""
    lost: list[float] = field(default_factory=list)
    heard: dict[str, bool] = field(default_factory=dict)
    """Jobs that ended, and whether with success."""

    async def listen(self, http: aiohttp.ClientSession) -> None:
        """Until cancelled."""
        turn = 0
        while True:
            try:
                await self._once(http, self.addresses[turn % len(self.addresses)])
            except (aiohttp.ClientError, OSError):
                await asyncio.sleep(0.05)
            turn += 1

    async def _once(self, http: aiohttp.ClientSession, address: str) -> None:
        headers = {"Authorization": f"OAuth {self.session}"}
        async with http.ws_connect(f"{address}/ws", headers=headers, timeout=aiohttp.ClientWSTimeout(2)) as socket:
            async for message in socket:
                news = message.json()
                if news["type"] == "ready":
                    self.ready.append(time.monotonic())
                if news["type"] == "job" and news["state"] == "Done":
                    self.heard[news["uuid"]] = news["success"]
        if len(self.lost) < len(self.ready):
            self.lost.append(time.monotonic())


@asynccontextmanager
async def listening(*listeners: Listener) -> AsyncIterator[None]:
    """All of them are connected."""
    async with aiohttp.ClientSession() as http:
        tasks = [asyncio.create_task(one.listen(http)) for one in listeners]
        try:
            async with asyncio.timeout(20):
                while not all(one.ready for one in listeners):  # noqa: ASYNC110 - they are plain data
                    await asyncio.sleep(0.05)
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_feed_tells_of_every_job_though_a_node_dies(cluster: FaultCluster, judge: Judge) -> None:
    apis, session = cluster.layout.apis, cluster.client.session or ""
    stays, moves = Listener(apis[1:], session), Listener(apis, session)
    async with listening(stays, moves), Load(apis, session, cluster.resources, 4) as load:
        await load.run(3)
        killed = time.monotonic()
        await asyncio.to_thread(cluster.hold, 0)
        await load.run(6)
        cluster.release(0)
        await load.succeeds(count=4)
        await judge.verdict(load)
        done = load.record.done
        assert [moves.lost[0] < killed + 2, moves.ready[1] < killed + 3, stays.lost] == [True, True, []]
        theirs = [one for one in done if one.ended < killed - 1 or one.begun > moves.ready[1]]
        assert len(theirs) > 10
        await heard(stays, done)
        await heard(moves, theirs)


async def heard(listener: Listener, done: list[Done]) -> None:
    """Wait until it heard of all of them, and as they were."""
    until = time.monotonic() + HEARD_WITHIN
    while missing := [one for one in done if one.job not in listener.heard]:
        assert time.monotonic() < until, f"{len(missing)} of {len(done)} were not told: {missing[:3]}"
        await asyncio.sleep(0.1)
    assert {one.job: listener.heard[one.job] for one in done} == {one.job: one.error is None for one in done}
