"""Several management nodes in one process, on one PostgreSQL database: what tests of a cluster start and kill.

Invariant: nothing outlives the block. The nodes share the database and nothing else; each has a directory of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from caelum.kernel.node import Node, PartSpec
from caelum.testing import databases
from caelum.testing.cloud import EmbeddedCloud
from caelum.testing.harness import kill
from caelum.testing.linked_bus import Link


class Cluster:
    """`async with Cluster(tmp_path, 3, [Service]) as cluster:`: `cluster.nodes` are up and one ring."""

    def __init__(
        self,
        directory: Path,
        count: int,
        services: Sequence[PartSpec] | None = None,
        drivers: Sequence[PartSpec] | None = None,
        **config: Any,
    ) -> None:
        self.directory, self._count = directory, count
        self._parts = (services, drivers)
        self._config = {"database_pool": 5, "database_pool_extra": 10, "database_idle_seconds": 8.0, **config}
        self._stack = contextlib.AsyncExitStack()
        self._started = 0
        self.link = Link()
        self.clouds: list[EmbeddedCloud] = []
        self.lost: list[str] = []
        """Why nodes ended by themselves."""

    async def __aenter__(self) -> Cluster:
        for _ in range(self._count):
            await self.add()
        return self

    async def __aexit__(self, *_error: object) -> None:
        clouds, self.clouds = self.clouds, []
        await asyncio.gather(*(one.__aexit__(None, None, None) for one in clouds), return_exceptions=True)
        await self._stack.aclose()

    @property
    def nodes(self) -> list[Node]:
        """The nodes that are up."""
        return [one.node for one in self.clouds]

    def prepare(self) -> EmbeddedCloud:
        """A further node that is not started."""
        self._started += 1
        url = databases.of_cluster(self.directory)
        cloud = EmbeddedCloud(
            self.directory / f"node{self._started}", *self._parts, bus=self.link.bus,
            **{"database_url": url, **self._config},
        )  # fmt: skip
        cloud.node.on_lost = self.lost.append
        return cloud

    async def add(self) -> EmbeddedCloud:
        """Start a further node and wait until all are one ring."""
        cloud = self.prepare()
        await cloud.__aenter__()
        self.clouds.append(cloud)
        await self.agreed()
        return cloud

    async def remove(self, cloud: EmbeddedCloud) -> None:
        """Stop a node in order."""
        self.clouds.remove(cloud)
        await cloud.__aexit__(None, None, None)

    async def kill(self, cloud: EmbeddedCloud) -> None:
        """Let a node die as by `kill -9`."""
        self.clouds.remove(cloud)
        self.link.cut(cloud.node.uuid)
        await kill(cloud.node)

    async def agreed(self, seconds: float = 20.0) -> None:
        """Wait until the ring of every node that is up has just these."""
        await self.until(
            lambda: all(one.ring.members == {two.uuid for two in self.nodes} for one in self.nodes), seconds
        )

    async def until(self, condition: Callable[[], Any], seconds: float = 20.0) -> Any:
        """See `EmbeddedCloud.until`."""
        return await self.clouds[0].until(condition, seconds)

    def owner(self, uuid: str) -> EmbeddedCloud:
        """The node to which the ring gives a resource."""
        owner = self.nodes[0].ring.owner(uuid)
        return next(one for one in self.clouds if one.node.uuid == owner)

    def owned_by(self, cloud: EmbeddedCloud, uuids: Callable[[], str]) -> str:
        """A UUID, of those that `uuids()` makes, that the ring gives to this node."""
        while not cloud.node.ring.owns(uuid := uuids()):
            pass
        return uuid
