"""A complete cloud on simulated hosts, managed by several nodes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.cluster.conftest import FAST

from caelum.cloud.host.messages import ListHosts
from caelum.simulator import SimulatedHosts
from caelum.testing.cloud import EmbeddedCloud
from caelum.testing.clusters import Cluster
from caelum.testing.simcloud import SimulatedCloud


class ClusterCloud(SimulatedCloud):
    """A furnished cloud; requests go to its first node."""

    def __init__(self, members: Cluster, hosts: SimulatedHosts, directory: Path) -> None:
        super().__init__(None, hosts, directory)  # type: ignore[arg-type]
        self.members = members

    @property
    def cloud(self) -> EmbeddedCloud:
        """The node that is asked."""
        return self.members.clouds[0]

    async def connected(self) -> None:
        """Wait until all hosts are Connected."""

        async def all_are() -> bool:
            hosts = (await self.cloud.node.bus.call(ListHosts())).hosts
            return bool(hosts) and all(one.status == "Connected" for one in hosts)

        await self.members.until(all_are, 60)


@contextlib.asynccontextmanager
async def cluster_cloud(directory: Path, count: int, *, hosts: int = 2, **config: Any) -> AsyncIterator[ClusterCloud]:
    """Several nodes and simulated hosts that know them."""
    async with (
        SimulatedHosts(hosts, directory=directory / "node1" / "pki") as agents,
        Cluster(directory, count, **{**FAST, **config}) as cluster,
    ):
        cloud = ClusterCloud(cluster, agents, directory)
        await cloud.furnish()
        await cloud.connected()
        yield cloud
