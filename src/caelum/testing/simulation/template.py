"""The cloud in which every run begins: one directory and the contents of the hosts, made once in a simulation.

Invariant: two templates are equal up to keys of certificates: they come from a seed of their own.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any, cast

import msgspec

from caelum.kernel import context
from caelum.kernel.node import Node
from caelum.kernel.pki import CertificateAuthority
from caelum.sdk import manifest
from caelum.testing.simcloud import SimulatedCloud
from caelum.testing.simulation.cluster import Cluster
from caelum.testing.simulation.seams import unreal

_SEED = "template"


class Template(msgspec.Struct):
    """A furnished cloud whose nodes are down. Names are the UUIDs of what is there."""

    directory: Path
    hosts: list[dict[str, Any]]
    names: dict[str, str]

    def copy_to(self, directory: Path) -> None:
        """Give a run its own files. Images stay where they are: nobody writes them."""
        for name in ("caelum.db", "pki", "hosts"):
            source = self.directory / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, directory / name)


class _Furnisher:
    """What `SimulatedCloud` needs of a stage: a node, and a way to ask it."""

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    def cloud(self) -> _Furnisher:
        return self

    async def api(self, msg: Any, **_more: Any) -> Any:
        """As the administrator."""
        with context.use(context.TaskContext(actor=context.SYSTEM, api=msg.__meta__.name)):
            for check in self.node.interceptors_of(type(msg)):
                await check(msg)
            return await self.node.bus.call(msg, 60.0)


def make(directory: Path, hosts: int) -> Template:
    """Make a cloud in an empty directory."""
    CertificateAuthority.open(directory / "pki")
    manifest.load()  # once for all runs
    cluster = Cluster(_SEED, directory, nodes=1, hosts=hosts)
    with unreal(cluster.loop, cluster.database, cluster.broker, _SEED):
        asyncio.set_event_loop(cluster.loop)
        try:
            return cluster.loop.run_until_complete(_furnish(cluster))
        finally:
            asyncio.set_event_loop(None)


async def _furnish(cluster: Cluster) -> Template:
    await cluster.hosts.start()
    await cluster.boot_all()
    process = cluster.processes[0]
    assert process is not None  # noqa: S101 - it was started
    assert process.node is not None  # noqa: S101
    cloud = SimulatedCloud(cast(Any, _Furnisher(process.node)), cluster.hosts, cluster.directory)
    await cluster.on(process, cloud.furnish(), 600)
    other_l3 = await cluster.on(process, cloud.add_l3(2), 600)
    await cluster.on(process, process.stop(), 60)
    await cluster.hosts.stop()
    names = {name: value for name, value in vars(cloud).items() if isinstance(value, str)}
    names["other_l3"] = other_l3
    return Template(cluster.directory, cluster.hosts.kept(), names)
