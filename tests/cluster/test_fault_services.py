"""Broker and database restarted, and the broker with nothing left, while clients work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from fault_cluster import FaultCluster
from fault_judge import Judge
from fault_trial import FULL, Trial

FULL_DISK = 60.0 if FULL else 8.0
SPARE = 256 << 20
"""Bytes that the small disk of the database has left: when the ballast is gone, its log has room in every round."""


@pytest.mark.parametrize("wipe", [False, True] if FULL else [True])
async def test_restart_the_broker(cluster: FaultCluster, trial: Trial, wipe: bool) -> None:
    async def restart() -> None:
        await asyncio.to_thread(cluster.restart_service, "rabbitmq", wipe=wipe)
        await asyncio.to_thread(cluster.wait_service, "rabbitmq")

    name = "RabbitMQ restarted" + (" without its data" if wipe else "")
    await trial.of(name, restart, downtime=3.0, recovery=60.0)


async def test_restart_the_database(cluster: FaultCluster, trial: Trial) -> None:
    async def restart() -> None:
        await asyncio.to_thread(cluster.restart_service, "postgresql", 1.0)
        await asyncio.to_thread(cluster.wait_service, "postgresql")

    await trial.of("PostgreSQL restarted", restart, downtime=10.0, recovery=40.0)


async def test_break_connections_to_the_database_in_the_middle(
    cluster: FaultCluster, trial: Trial, judge: Judge
) -> None:
    async def terminate() -> None:
        until = time.monotonic() + 5
        while time.monotonic() < until:
            await judge.rows(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'caelum' AND (state <> 'idle' OR random() < 0.1)"
            )
            await asyncio.sleep(0.05)

    await trial.of("connections to PostgreSQL broken in transactions for 5 s", terminate, downtime=5.0, recovery=40.0)


@pytest.fixture
def database_disk(cluster: FaultCluster) -> Iterator[Path]:
    """PostgreSQL's directory, on a disk with little left."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    with cluster.small_database_disk(SPARE) as home:
        cluster.wait_met()
        yield home
    cluster.wait_met()


async def test_the_disk_of_the_database_is_full(
    cluster: FaultCluster, trial: Trial, judge: Judge, database_disk: Path
) -> None:
    ballast = database_disk / "ballast"

    async def fill() -> None:
        await asyncio.to_thread(write_until_full, ballast)
        # It has room in what it has begun: a new segment of its log finds none.
        with contextlib.suppress(asyncpg.PostgresError, OSError, asyncpg.InterfaceError):
            for _ in range(8):
                await judge.rows("SELECT pg_switch_wal(), txid_current()")
        await asyncio.sleep(FULL_DISK)
        ballast.unlink()
        await asyncio.to_thread(cluster.wait_service, "postgresql")

    name = f"the disk of the database is full for {FULL_DISK:.0f} s"
    await trial.of(name, fill, downtime=FULL_DISK + 30, recovery=90, errors=0.9)


def write_until_full(path: Path) -> None:
    """Take what a disk has left."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
