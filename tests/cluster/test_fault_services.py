"""Broker and database restarted, and the broker with nothing left, while clients work."""

from __future__ import annotations

import asyncio
import time

import pytest
from fault_cluster import FaultCluster
from fault_judge import Judge
from fault_trial import FULL, Trial


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
