"""The scenarios of the host service's workflows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from caelum.cloud.cluster.api import CreateCluster
from caelum.cloud.config.api import UpdateGlobalConfig
from caelum.cloud.zone.api import CreateZone
from caelum.testing.rehearsals import Rehearsal, rehearsal
from caelum.testing.simcloud import simulated_cloud


@rehearsal("host_add")
@asynccontextmanager
async def host_add() -> AsyncIterator[Rehearsal]:
    """The first host of a cluster is added."""
    async with simulated_cloud(hosts=1, furnish=False) as world:
        await world.api(UpdateGlobalConfig(category="kvm", name="agent.port", value=str(world.hosts.port)))
        zone = await world.api(CreateZone(name="zone"))
        cluster = await world.api(CreateCluster(name="cluster", zone_uuid=zone.uuid, hypervisor_type="KVM"))
        world.cluster = cluster.uuid
        # The agents' port differs from run to run, and a node that died is in the list of nodes for a while.
        ignore = frozenset({"global_config", "management_node"})
        yield Rehearsal(world.stage, lambda: world.add_host("host", world.hosts[0].ip), ignore=ignore)
