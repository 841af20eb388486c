"""The scenarios of the network services' workflows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import select

from caelum.cloud.l2.api import (
    AttachL2NetworkToCluster,
    CreateL2NoVlanNetwork,
    DeleteL2Network,
    DetachL2NetworkFromCluster,
)
from caelum.cloud.l3.api import DeleteL3Network
from caelum.cloud.vm.api import DestroyVmInstance, ExpungeVmInstance
from caelum.kernel import resources
from caelum.kernel.node import Node
from caelum.testing.rehearsals import Rehearsal, rehearsal
from caelum.testing.simcloud import SimulatedCloud, simulated_cloud


async def _second_l2(world: SimulatedCloud, *, attached: bool) -> str:
    """An L2 network on an interface of two hosts."""
    l2 = await world.api(CreateL2NoVlanNetwork(name="second", zone_uuid=world.zone, physical_interface="eth1"))
    if attached:
        await world.api(AttachL2NetworkToCluster(l2_network_uuid=l2.uuid, cluster_uuid=world.cluster))
    return str(l2.uuid)


@rehearsal("l2_attach")
@asynccontextmanager
async def l2_attach() -> AsyncIterator[Rehearsal]:
    """A network comes to two hosts."""
    async with simulated_cloud(hosts=2) as world:
        l2 = await _second_l2(world, attached=False)
        msg = AttachL2NetworkToCluster(l2_network_uuid=l2, cluster_uuid=world.cluster)
        yield Rehearsal(world.stage, lambda: world.api(msg))


@rehearsal("l2_detach")
@asynccontextmanager
async def l2_detach() -> AsyncIterator[Rehearsal]:
    """A network that nobody uses leaves two hosts."""
    async with simulated_cloud(hosts=2) as world:
        l2 = await _second_l2(world, attached=True)
        msg = DetachL2NetworkFromCluster(l2_network_uuid=l2, cluster_uuid=world.cluster)
        yield Rehearsal(world.stage, lambda: world.api(msg))


@rehearsal("l2_delete")
@asynccontextmanager
async def l2_delete() -> AsyncIterator[Rehearsal]:
    """A network that nobody uses is deleted, with two hosts that have it."""
    async with simulated_cloud(hosts=2) as world:
        l2 = await _second_l2(world, attached=True)
        yield Rehearsal(world.stage, lambda: world.api(DeleteL2Network(uuid=l2)))


class WithoutIdleServices:
    """A cloud whose hosts' dump leaves out what serves no guest of a network that exists.

    A host gets that with the network's first guest and keeps it; whether it is there says nothing. What is left of a
    network that does not exist is shown.
    """

    def __init__(self, world: SimulatedCloud) -> None:
        self._world = world

    @property
    def node(self) -> Node:
        """The node that runs now."""
        return self._world.stage.node

    async def reboot(self) -> None:
        """A new node with the same hosts."""
        await self._world.stage.reboot()

    async def dump_hosts(self) -> Any:
        """The hosts, without idle services."""
        model: Any = resources.model("L3NetworkVO")
        async with self.node.db.read() as session:
            known = set(await session.scalars(select(model.uuid)))
        hosts = await self._world.stage.dump_hosts()
        return {uuid: _without_idle(host, known) for uuid, host in hosts.items()}


def _without_idle(host: dict[str, Any], known: set[str]) -> dict[str, Any]:
    idle = {l3 for l3, dhcp in host["dhcp"].items() if not dhcp["entries"]} & known
    kinds = ("dhcp", "metadata", "nat")
    return {**host, **{kind: {l3: one for l3, one in host[kind].items() if l3 not in idle} for kind in kinds}}


@rehearsal("l3_delete")
@asynccontextmanager
async def l3_delete() -> AsyncIterator[Rehearsal]:
    """A network is deleted whose last guest is gone; its DHCP server and its translation are still on the host."""
    async with simulated_cloud() as world:
        vm = await world.create_vm()
        await world.api(DestroyVmInstance(uuid=vm.uuid))
        await world.api(ExpungeVmInstance(uuid=vm.uuid))
        yield Rehearsal(WithoutIdleServices(world), lambda: world.api(DeleteL3Network(uuid=world.l3)))
