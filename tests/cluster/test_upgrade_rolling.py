"""A cluster of real processes goes to a newer version, node after node, while clients work; or half-way and back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import newer_server
import pytest
from fault_cluster import FaultCluster, fault_cluster
from fault_judge import Judge, summary
from fault_load import Load

import caelum
from caelum.kernel import schema

RESTART_SECONDS = 60.0
_TIMEOUT = aiohttp.ClientTimeout(total=5)


class Version:
    """A version after this one: its first revision adds a column, its second one takes it away."""

    name = "99.0"
    expansion, contraction = "more99", "less99"

    def __init__(self, scripts: Path) -> None:
        self.scripts = scripts
        newest = schema.History().newest or ""
        shutil.copytree(schema.SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
        self._write(self.expansion, newest, "expand", "op.add_column('vm_instance', sa.Column('note', sa.Text()))")
        self._write(self.contraction, self.expansion, "contract", "op.drop_column('vm_instance', 'note')")

    def _write(self, name: str, before: str, phase: str, operation: str) -> None:
        (self.scripts / "versions" / f"{name}.py").write_text(
            f"revision = {name!r}\ndown_revision = {before!r}\nphase = {phase!r}\n"
            f"import sqlalchemy as sa\nfrom alembic import op\ndef upgrade():\n    {operation}\n"
        )


class Fleet:
    """The nodes, and which version each of them is to run."""

    def __init__(self, cluster: FaultCluster) -> None:
        self.cluster, self.judge = cluster, Judge(cluster)
        self.newer = Version(cluster.layout.home / "migrations")
        self.away: list[tuple[int, float, float]] = []
        """When which node was not there."""

    async def restart(self, index: int, version: Version | None) -> None:
        """Stop a node in order and start it in a version, None: its own."""
        wrapper, begun = self.cluster.wrapper(index), time.monotonic()
        former = await asyncio.to_thread(self.cluster.node_uuid, index)
        if version is None:
            wrapper.unlink(missing_ok=True)
        else:
            wrapper.write_text(
                f"env CAELUM_UPGRADE_FINISH_SECONDS=2 {sys.executable} {newer_server.__file__}"
                f" {version.scripts} {version.name}\n"
            )
        os.kill(self.cluster.pid(index), signal.SIGTERM)  # its supervisor starts it again
        while await asyncio.to_thread(self._life, index) in (None, former):
            assert time.monotonic() < begun + RESTART_SECONDS, f"node {index} does not come back"
            await asyncio.sleep(0.1)
        await asyncio.to_thread(self.cluster.wait_ready, index)
        self.away.append((index, begun, time.monotonic()))

    def _life(self, index: int) -> str | None:
        """The UUID of a node's present life; None while it is away."""
        try:
            return self.cluster.node_uuid(index)
        except OSError:
            return None

    async def versions(self) -> list[str]:
        """The version of each member, as the table of nodes says."""
        return sorted(row[0] for row in await self.judge.rows("SELECT version FROM management_node"))

    async def schema_is_at(self, revision: str, seconds: float = 20.0) -> None:
        """Wait until the schema is there."""
        until = time.monotonic() + seconds
        while (at := (await self.judge.rows("SELECT version_num FROM alembic_version"))[0][0]) != revision:
            assert time.monotonic() < until, f"the schema stays at {at}"
            await asyncio.sleep(0.1)

    async def has_note(self) -> bool:
        """Whether the column that the newer version adds, and takes away in the end, is there."""
        return bool(await self.judge.rows("SELECT 1 FROM information_schema.columns WHERE column_name = 'note'"))


class Callers:
    """One client for each node, who asks it alone; `failures` are which node failed, when, and how."""

    def __init__(self, cluster: FaultCluster) -> None:
        self._cluster = cluster
        self.failures: list[tuple[int, float, str]] = []
        self.answers = 0

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[Callers]:
        """Ask in the background."""
        headers = {"Authorization": f"OAuth {self._cluster.client.session}"}
        async with aiohttp.ClientSession(headers=headers, timeout=_TIMEOUT) as http:
            tasks = [asyncio.create_task(self._ask(http, index)) for index in range(self._cluster.layout.nodes)]
            try:
                yield self
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, http: aiohttp.ClientSession, index: int) -> None:
        url = f"{self._cluster.layout.api_of(index)}/zstack/v1/vm-instances"
        while True:
            begun = time.monotonic()
            try:
                async with http.get(url) as response:
                    text = await response.text()
                    if response.status == 200:
                        self.answers += 1
                    else:
                        self.failures.append((index, begun, f"HTTP {response.status} {text[:200]}"))
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self.failures.append((index, begun, f"{type(error).__name__} {error}"))
            await asyncio.sleep(0.05)

    def unexplained(self, away: list[tuple[int, float, float]]) -> list[tuple[int, float, str]]:
        """Failures of nodes that were not being restarted then."""
        return [
            one for one in self.failures
            if not any(one[0] == index and begun - _TIMEOUT.total <= one[1] <= ended for index, begun, ended in away)  # type: ignore[operator]
        ]  # fmt: skip


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A cluster of these tests alone: no other test could use its database afterwards."""
    with fault_cluster(tmp_path_factory.mktemp("rolling"), hosts=2) as cluster:
        yield Fleet(cluster)


@contextlib.asynccontextmanager
async def _working(fleet: Fleet) -> AsyncIterator[None]:
    """Clients work during the block, and nothing of theirs fails but what a node that is away does not take."""
    cluster, callers = fleet.cluster, Callers(fleet.cluster)
    cluster.wait_met()
    session = cluster.client.session or ""
    async with Load(cluster.layout.apis, session, cluster.resources, clients=2) as load, callers.asking():
        await load.run(1.0)
        yield
        await load.succeeds()
        await fleet.judge.verdict(load)
    # As when nodes come and go without an upgrade: hosts are connected anew by whoever gets them.
    failed = load.record.errors()
    assert len(failed) <= 1 + len(load.record.done) / 10, summary(failed)
    assert callers.unexplained(fleet.away) == []
    assert callers.answers > 0


async def test_an_upgrade_is_aborted_half_way(fleet: Fleet) -> None:
    newer = fleet.newer
    async with _working(fleet):
        await fleet.restart(0, newer)
        assert await fleet.versions() == sorted([caelum.__version__, caelum.__version__, newer.name])
        await fleet.schema_is_at(newer.expansion)
        # A node of the former version that dies now comes back, too.
        await fleet.restart(1, None)
        await fleet.restart(0, None)
        assert await fleet.versions() == [caelum.__version__] * 3
        assert await fleet.has_note()
        await fleet.schema_is_at(newer.expansion)


async def test_nodes_are_upgraded_one_after_another(fleet: Fleet) -> None:
    newer = fleet.newer
    async with _working(fleet):
        for index in range(3):
            await fleet.restart(index, newer)
            if index < 2:
                await fleet.schema_is_at(newer.expansion)
        assert await fleet.versions() == [newer.name] * 3
        await fleet.schema_is_at(newer.contraction)
        assert not await fleet.has_note()
    dumps = list((fleet.cluster.layout.data_of(0) / "backup").glob("caelum-*.dump"))
    assert dumps, "the first node dumped the database before it changed it"
