"""Seeds of the simulation: clouds of one to three nodes under faults, on a virtual clock. See
docs/development/simulation.md.

    SEEDS=1000 pytest tests/cluster/test_simulation.py       the nightly run
    SEED=17 pytest -s tests/cluster/test_simulation.py       one seed, with its history
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from sqlalchemy import text

from caelum.kernel import sqlite
from caelum.kernel.database import Database, after_commit
from caelum.kernel.errors import CloudError
from caelum.kernel.membership import EVICTED, Membership
from caelum.kernel.postgresql import DATABASE_UNAVAILABLE
from caelum.kernel.workflow import Workflows
from caelum.testing.simulation import template
from caelum.testing.simulation.cluster import Cluster
from caelum.testing.simulation.loop import Machine, StuckError
from caelum.testing.simulation.network import NetworkLoop, Weather
from caelum.testing.simulation.pool import run_all
from caelum.testing.simulation.postgres import URL
from caelum.testing.simulation.run import run
from caelum.testing.simulation.seams import unreal
from caelum.testing.simulation.sqlite import Outage

SEEDS = 50
_SECONDS_PER_SEED = 60
_HISTORY = re.compile(r"^seed (\d+): .*history (\w+)", re.MULTILINE)


@pytest.fixture(autouse=True)
def _postgresql_is_there() -> None:
    """Nothing is needed: the simulation brings its own."""


def simulate(**wanted: object) -> subprocess.CompletedProcess[str]:
    """Run the simulation in processes of its own."""
    environment = {**os.environ, **{name: str(value) for name, value in wanted.items()}}
    seconds = 120 + _SECONDS_PER_SEED * int(environment.get("SEEDS", "1"))
    return subprocess.run(
        [sys.executable, "-m", "caelum.testing.simulation"],
        env=environment, capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip


@pytest.mark.timeout(0)
def test_every_seed_ends_in_order() -> None:
    done = simulate(SEEDS=os.environ.get("SEEDS", SEEDS))
    if "SEED" in os.environ:
        print(done.stdout)
    assert done.returncode == 0, done.stdout[-60_000:] + done.stderr[-5_000:]
    assert len(_HISTORY.findall(done.stdout)) == (1 if "SEED" in os.environ else int(os.environ.get("SEEDS", SEEDS)))


@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", [3])
def test_a_seed_makes_one_history(seed: int) -> None:
    first, second = (simulate(SEED=seed, WORKERS=1).stdout for _ in range(2))
    assert _HISTORY.findall(first)
    assert first.splitlines()[:-2] == second.splitlines()[:-2]
    assert _HISTORY.findall(first) == _HISTORY.findall(second)


async def recovers_nothing(_self: Workflows, _dead: object = None) -> int:
    """A planted bug: nobody takes up what a dead node left."""
    return 0


def planted(directory: Path) -> list[str]:
    """What the judge finds in the first run that shows the planted bug."""
    gc.disable()
    made = template.make(directory, 2)
    with mock.patch.object(Workflows, "recover", recovers_nothing):
        for outcome in run_all(lambda seed: run(made, seed, nodes=1), range(1, 21), 1):
            if outcome.problems:
                return outcome.problems
    return []


@pytest.mark.timeout(0)
def test_a_planted_bug_is_found(tmp_path: Path) -> None:
    script = "import sys, pathlib, tests.cluster.test_simulation as t; print(t.planted(pathlib.Path(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": "0"}, capture_output=True, text=True, timeout=1200, check=True,
    )  # fmt: skip
    assert "was never answered" in done.stdout or "is Running" in done.stdout, done.stdout + done.stderr[-2000:]


# --- the database server ----------------------------------------------------------------------------------------------


def served(directory: Path, scene: Callable[[Database, Outage], Coroutine[Any, Any, Any]]) -> Any:
    """Run a scene with a node's database on the simulated server."""
    with mock.patch.object(sqlite, "LOCK_TIMEOUT", 0.0):  # which the simulation never sets back
        cluster, machine = Cluster("1", directory, nodes=1, hosts=0), Machine("node", "10.0.0.1")

        async def play() -> Any:
            db = Database(f"{URL}/{directory / 'caelum.db'}")
            async with db.engine.begin() as connection:
                await connection.exec_driver_sql("CREATE TABLE management_node (uuid TEXT)")
            answer = await scene(db, cluster.database.outage(machine))
            await db.close()
            return answer

        with unreal(cluster.loop, cluster.database, cluster.broker, "1"):
            return cluster.loop.run_until_complete(cluster.loop.run_on(machine, play()))


async def enter(db: Database, uuid: str, told: list[str] | None = None) -> str:
    """Write a row; what became of that, as far as the node knows."""
    try:
        async with db.transaction() as tx:
            await tx.execute(text("INSERT INTO management_node VALUES (:uuid)"), {"uuid": uuid})
            if told is not None:
                after_commit(tx, lambda: told.append("news"))
    except CloudError as error:
        return "ambiguous" if "ambiguous" in error.facts else error.code
    return "done"


async def rows(db: Database) -> int:
    """How many there are."""
    async with db.read() as session:
        return int(await session.scalar(text("SELECT count(*) FROM management_node")) or 0)


@pytest.mark.parametrize(
    ("how", "news", "known", "told", "left"),
    [
        ("done", True, "done", ["news"], 1),
        ("lost", True, DATABASE_UNAVAILABLE.code, [], 0),
        ("done", False, "ambiguous", [], 1),
        ("lost", False, "ambiguous", [], 0),
    ],
)
def test_a_lost_commit_is_looked_up_where_news_of_it_are_waited_for(
    tmp_path: Path, how: str, news: bool, known: str, told: list[str], left: int
) -> None:
    async def scene(db: Database, outage: Outage) -> tuple[str, list[str], int]:
        outage.break_at_commit, heard = how, list[str]()
        return await enter(db, "one", heard if news else None), heard, await rows(db)

    assert served(tmp_path, scene) == (known, told, left)


@pytest.mark.parametrize("member", [True, False])
def test_only_a_member_commits(tmp_path: Path, member: bool) -> None:
    async def scene(db: Database, _outage: Outage) -> tuple[str, int]:
        if member:
            await enter(db, "mine")
        fence = mock.Mock(spec=Membership, _node=mock.Mock(uuid="mine"), _lost=False)
        fence.guard = lambda: Membership.guard(fence)
        fence.broken = lambda: CloudError(EVICTED, "it has no row")
        db.fence = fence
        return await enter(db, "one"), await rows(db)

    assert served(tmp_path, scene) == (("done", 2) if member else (EVICTED.code, 0))


# --- the loop, the network ------------------------------------------------------------------------------------------


def played(scene: Callable[[NetworkLoop], Coroutine[Any, Any, Any]]) -> Any:
    """Run a scene on a loop of its own."""
    loop = NetworkLoop(random.Random(1), Weather(random.Random(1)))
    try:
        return loop.run_until_complete(scene(loop))
    finally:
        loop.close()


def test_an_hour_takes_no_time() -> None:
    async def scene(loop: NetworkLoop) -> float:
        await asyncio.sleep(3600)
        return loop.time()

    assert played(scene) == 3600


def test_what_waits_for_nothing_is_an_error() -> None:
    async def scene(loop: NetworkLoop) -> None:
        await loop.create_future()

    with pytest.raises(StuckError):
        played(scene)


def test_a_killed_machine_runs_nothing_more() -> None:
    done = []

    async def work() -> None:
        try:
            await asyncio.sleep(5)
        finally:
            done.append("finally")

    async def scene(loop: NetworkLoop) -> None:
        machine = Machine("victim", "10.0.0.1")
        loop.run_on(machine, work())
        await asyncio.sleep(1)
        machine.alive = False
        await asyncio.sleep(10)

    played(scene)
    assert not done


def test_a_paused_machine_goes_on_where_it_was() -> None:
    async def scene(loop: NetworkLoop) -> float:
        async def work() -> float:
            await asyncio.sleep(5)
            return loop.time()

        machine = Machine("sleeper", "10.0.0.1")
        task = loop.run_on(machine, work())
        await asyncio.sleep(1)
        machine.paused = True
        await asyncio.sleep(60)
        assert not task.done()
        loop.resume(machine)
        return await task

    assert played(scene) == 61


def test_a_fuse_ends_a_machine_between_two_callbacks() -> None:
    steps: list[int] = []

    async def work() -> None:
        while True:
            steps.append(len(steps))
            await asyncio.sleep(0)

    async def scene(loop: NetworkLoop) -> None:
        machine = Machine("victim", "10.0.0.1")

        def die() -> None:
            machine.alive = False

        machine.fuse, machine.on_fuse = 7, die
        loop.run_on(machine, work())
        await asyncio.sleep(1)

    played(scene)
    assert len(steps) == 6


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say everything again."""
    while data := await reader.read(100):
        writer.write(data)
    writer.close()


def test_a_partition_holds_up_what_was_sent() -> None:
    async def scene(loop: NetworkLoop) -> float:
        server = Machine("server", "10.0.0.1")
        await loop.run_on(server, asyncio.start_server(echo, "10.0.0.1", 80))

        async def ask() -> float:
            reader, writer = await asyncio.open_connection("10.0.0.1", 80)
            loop.network.weather.cut("10.0.0.2", "10.0.0.1")
            loop.call_later(20, loop.network.weather.heal, "10.0.0.2", "10.0.0.1")
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            return loop.time()

        return await loop.run_on(Machine("client", "10.0.0.2"), ask())

    assert 20 < played(scene) < 22


def test_a_dead_peer_is_noticed() -> None:
    async def scene(loop: NetworkLoop) -> bytes:
        server = Machine("server", "10.0.0.1")
        await loop.run_on(server, asyncio.start_server(echo, "10.0.0.1", 80))

        async def ask() -> bytes:
            reader, _ = await asyncio.open_connection("10.0.0.1", 80)
            server.alive = False
            loop.network.vanish(server)
            return await reader.read()

        return await loop.run_on(Machine("client", "10.0.0.2"), ask())

    with pytest.raises(ConnectionResetError):
        played(scene)
