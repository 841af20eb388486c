"""Clusters of bakeries: the kernel's test service on several nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cluster.conftest import FAST
from tests.unit.kernel.bakery import BakeryService, CakeModel, FlourModel, Oven, oven_of

from caelum.kernel.context import SYSTEM
from caelum.kernel.ids import new_uuid
from caelum.kernel.jobs import Job
from caelum.kernel.journal import JournalModel
from caelum.kernel.node import Node
from caelum.testing.cloud import EmbeddedCloud
from caelum.testing.clusters import Cluster

__all__ = ["Bakeries", "CakeModel", "FlourModel", "JournalModel", "new_uuid"]


class Bakeries(Cluster):
    """Nodes with the bakery, and the oven that all of them use."""

    def __init__(self, directory: Path, count: int = 3, **config: Any) -> None:
        super().__init__(directory, count, [BakeryService], **{**FAST, **config})

    @property
    def oven(self) -> Oven:
        """The oven."""
        return oven_of(self.nodes[0])

    async def row(self, model: Any, key: str, node: Node | None = None) -> Any:
        """A row as it is now."""
        async with (node or self.nodes[0]).db.read() as session:
            return await session.get(model, key)

    async def job(self, cloud: EmbeddedCloud, uuid: str) -> None:
        """Record an API job at a node."""
        await cloud.node.jobs.create(uuid, "BakeCake", SYSTEM)

    async def answered(self, uuid: str, seconds: float = 30.0) -> Job:
        """The job's answer."""

        async def done() -> Job | None:
            job = await self.nodes[0].jobs.get(uuid)
            return job if job is not None and job.done else None

        job: Job = await self.until(done, seconds)
        return job
