"""Real processes: one that is stopped and goes on later finds that it is no longer part of the cloud."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url, select
from tests.cluster.bakeries import Bakeries
from tests.cluster.conftest import FAST

from caelum.cli.server import EVICTED
from caelum.kernel import node
from caelum.kernel.membership import ManagementNodeModel
from caelum.testing import databases


@contextlib.asynccontextmanager
async def _starting(directory: Path, database: str, **more: object) -> AsyncIterator[asyncio.subprocess.Process]:
    config = {
        **FAST, "data_dir": directory, "database_url": database, "api_host": "127.0.0.1", "api_port": 0,
        "agent_listen_host": "127.0.0.1", "agent_listen_port": 0, "console_port": 0, "advertised_host": "127.0.0.1",
        **more,
    }  # fmt: skip
    environment = {**os.environ, **{f"CAELUM_{name.upper()}": str(value) for name, value in config.items()}}
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "caelum.cli.main", "server", stdout=asyncio.subprocess.PIPE, env=environment
    )
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.kill()
        await server.wait()


@contextlib.asynccontextmanager
async def _server(directory: Path, database: str) -> AsyncIterator[asyncio.subprocess.Process]:
    async with _starting(directory, database) as server:
        assert server.stdout is not None
        async with asyncio.timeout(90):
            assert b"caelum is ready" in await server.stdout.readline()
        yield server


async def _logged(directory: Path, text: str) -> None:
    """Wait until a server's log says this."""
    log = directory / "log" / "server.log"
    async with asyncio.timeout(90):
        while not (log.exists() and text in log.read_text()):  # noqa: ASYNC110, ASYNC240 - another process writes it
            await asyncio.sleep(0.1)


async def test_a_stopped_process_is_evicted_and_ends_when_it_goes_on(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 1) as cluster, _server(tmp_path / "server", databases.of_cluster(tmp_path)) as server:
        here = cluster.nodes[0]
        await cluster.until(lambda: len(here.ring.members) == 2)
        server.send_signal(signal.SIGSTOP)
        await cluster.until(lambda: here.ring.members == {here.uuid})
        async with here.db.read() as session:
            assert list(await session.scalars(select(ManagementNodeModel.uuid))) == [here.uuid]
        server.send_signal(signal.SIGCONT)
        assert await asyncio.wait_for(server.wait(), 30) == EVICTED
        log = (tmp_path / "server" / "log" / "server.log").read_text()
        assert "no longer part of the cloud" in log


async def test_a_process_that_is_told_to_end_leaves_in_order(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 1) as cluster, _server(tmp_path / "server", databases.of_cluster(tmp_path)) as server:
        here = cluster.nodes[0]
        await cluster.until(lambda: len(here.ring.members) == 2)
        server.terminate()
        assert await asyncio.wait_for(server.wait(), 60) == 0
        await cluster.until(lambda: here.ring.members == {here.uuid}, 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_start_that_waits_for_the_broker_ends_at_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    nobody = "amqp://guest:guest@127.0.0.1:9/"
    async with _starting(tmp_path / "server", databases.of_cluster(tmp_path), bus_url=nobody) as server:
        await _logged(tmp_path / "server", "RabbitMQ at 127.0.0.1:9 cannot be reached")
        server.send_signal(number)
        assert await asyncio.wait_for(server.wait(), 10) == 0


async def test_a_start_that_waits_for_its_turn_in_the_database_ends_at_a_signal(tmp_path: Path) -> None:
    database = databases.of_cluster(tmp_path)
    other = await asyncpg.connect(make_url(database).set(drivername="postgresql").render_as_string(False))
    try:
        await other.execute(f"SELECT pg_advisory_lock({node._START_TURN})")
        async with _starting(tmp_path / "server", database) as server:
            await _logged(tmp_path / "server", "for its turn")
            server.terminate()
            assert await asyncio.wait_for(server.wait(), 10) == 0
    finally:
        await other.close()
