"""Broker and database restarted, and the broker with nothing left, while clients work."""

from __future__ import annotations

import asyncio
import time

from fault_cluster import FaultCluster
from fault_judge import Judge
from fault_trial import Trial


async def test_restart_the_broker(cluster: FaultCluster, trial: Trial) -> None:
    async def restart() -> None:
        await asyncio.to_thread(cluster.restart_service, "rabbitmq")
        await asyncio.to_thread(cluster.wait_service, "rabbitmq")

    await trial.of("RabbitMQ restarted", restart, downtime=20.0, recovery=60.0)


async def test_lose_all_data_of_the_broker(cluster: FaultCluster, trial: Trial) -> None:
    async def lose() -> None:
        await asyncio.to_thread(cluster.restart_service, "rabbitmq", wipe=True)
        await asyncio.to_thread(cluster.wait_service, "rabbitmq")

    await trial.of("RabbitMQ restarted without its data", lose, downtime=20.0, recovery=60.0)


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
