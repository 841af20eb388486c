"""One fault as a trial: calm, the fault, its end, recovery, and the verdict; measured, and written into the table.

`ROUNDS` (1) says how often each fault is tried; from 10 on, or with `FULL=1`, pauses and partitions last as long as in
real life. A round that fails is told with its cause, and the next ones are tried all the same.
"""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections.abc import Awaitable, Callable

from fault_cluster import FaultCluster
from fault_judge import Judge, summary
from fault_load import Load
from fault_report import row

ROUNDS = int(os.environ.get("ROUNDS", "1"))
FULL = ROUNDS >= 10 or os.environ.get("FULL") == "1"
CALM = 3.0
"""Seconds of undisturbed work before a fault."""
RESTORED = 0.6
"""The share of its former work that the cloud must do again after a fault."""
PATIENCE = 30.0
"""Seconds after recovery in which it must: hosts may still connect again, and other programs take their turns."""
ROUND_LIMIT = 900
"""Seconds that one round may take at most, the start of the cluster included: what takes longer hangs."""
MOST_FAILED = max(5, ROUNDS // 10)
"""So many rounds of a fault may fail before no more are tried."""
SLACK = 1.0 if FULL else 3.0
"""Brief rounds run beside other work: there a limit on time only finds what hangs."""
Fault = Callable[[], Awaitable[None]]


class Trial:
    """Tries faults on a cluster under load."""

    def __init__(self, cluster: FaultCluster, judge: Judge, clients: int = 4) -> None:
        self._cluster, self._judge, self._clients = cluster, judge, clients

    async def of(
        self,
        name: str,
        fault: Fault,
        *,
        downtime: float,
        recovery: float,
        errors: float = 0.1,
        rounds: int = ROUNDS,
    ) -> None:
        """Break and mend by `fault()`. Fails when clients waited longer than `downtime` seconds for any address to take
        a request, interrupted work took longer than `recovery`, more than this share of operations failed, or the cloud
        does not get as much done afterwards as before."""
        failed: list[str] = []
        for number in range(1, rounds + 1):
            try:
                async with asyncio.timeout(ROUND_LIMIT):
                    await self._round(name, fault, downtime, recovery, errors)
            except Exception as error:
                failed.append(f"round {number}: {error!r}")
                print(f"{time.strftime('%X')} round {number} of {name} failed:\n{traceback.format_exc()}", flush=True)
                if rounds == 1:
                    raise
                await self._mended()
            if len(failed) >= MOST_FAILED:
                break
        assert not failed, f"{len(failed)} of {number} rounds failed:\n" + "\n".join(failed)

    async def _mended(self) -> None:
        """The cluster, whole again for the next round."""
        await asyncio.to_thread(self._cluster.mend)
        await asyncio.to_thread(self._cluster.wait_met)

    async def _round(self, name: str, fault: Fault, downtime: float, recovery: float, errors: float) -> None:
        layout = self._cluster.layout
        async with Load(
            layout.apis, self._cluster.client.session or "", self._cluster.resources, self._clients
        ) as load:
            before = await self._work_done(load)
            interrupted, begun = await self._judge.open(), time.monotonic()
            broken = asyncio.create_task(fault())
            try:
                while not broken.done():
                    await load.run(0.1)
                await broken
            finally:
                broken.cancel()
            over = time.monotonic()
            settled = await self._judge.settled(interrupted, over, recovery * SLACK) + over - begun
            await load.succeeds(count=self._clients)
            await asyncio.to_thread(self._cluster.wait_met)
            restored = await self._restored(load, before)
            await self._judge.verdict(load)
        record = load.record
        failed, ended = record.errors(begun), [one for one in record.done if one.ended > begun]
        measured = row(name)
        measured.add(record.downtime(begun), settled, restored, len(ended), len(failed))
        load_average = os.getloadavg()[0]
        print(f"{time.strftime('%X')} {measured}, load {load_average:.1f}\n{summary(failed)}", flush=True)
        assert record.downtime(begun) <= downtime * SLACK, record.worst(begun)
        assert settled <= recovery * SLACK, measured
        assert len(failed) <= errors * len(ended) + 1, summary(failed)
        assert restored >= RESTORED, measured

    async def _work_done(self, load: Load) -> float:
        """Operations that succeed a second while nothing is broken."""
        await load.succeeds(count=self._clients)  # every client is at work
        begun = time.monotonic()
        await load.run(CALM)
        return load.record.rate(begun, time.monotonic())

    async def _restored(self, load: Load, before: float) -> float:
        """The share of the former work that the cloud does again: the first that is enough, or the last."""
        deadline = time.monotonic() + PATIENCE
        while True:
            begun = time.monotonic()
            await load.run(CALM)
            share = load.record.rate(begun, time.monotonic()) / max(before, 1 / CALM)
            if share >= RESTORED or time.monotonic() > deadline:
                return share
