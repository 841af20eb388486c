"""Zones and clusters: their rows, states and tags, and what goes with a zone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.service.network_clouds import Site, site

from caelum.cloud.cluster.api import (
    ChangeClusterState,
    CreateCluster,
    DeleteCluster,
    QueryCluster,
    UpdateCluster,
)
from caelum.cloud.cluster.messages import GetCluster, ListClusters
from caelum.cloud.zone.api import ChangeZoneState, CreateZone, DeleteZone, GetZone, QueryZone, UpdateZone
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import QueryCondition


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path) as found:
        yield found


async def test_a_zone_is_what_was_asked_for(here: Site) -> None:
    uuid = new_uuid()
    made = await here.api(CreateZone(name="z", description="d", resource_uuid=uuid))
    assert (made.uuid, made.name, made.description) == (uuid, "z", "d")
    assert (made.state, made.type, made.is_default) == ("Enabled", "zstack", False)
    assert await here.api(GetZone(uuid=uuid)) == [made]
    assert {one.name for one in await here.api(GetZone())} == {"zone", "z"}


async def test_there_is_one_default_zone(here: Site) -> None:
    first = await here.api(CreateZone(name="a", is_default=True))
    second = await here.api(CreateZone(name="b", is_default=True))

    async def defaults() -> list[str]:
        found = await here.api(QueryZone(conditions=[QueryCondition("isDefault", "=", "true")]))
        return [one.uuid for one in found.inventories or []]

    assert await defaults() == [second.uuid]
    await here.api(UpdateZone(uuid=first.uuid, is_default=True))
    assert await defaults() == [first.uuid]


async def test_zones_are_changed_enabled_and_disabled(here: Site) -> None:
    uuid = here.zone.uuid
    changed = await here.api(UpdateZone(uuid=uuid, name="new", description=""))
    assert (changed.name, changed.description) == ("new", "")
    for event, state in (("disable", "Disabled"), ("disable", "Disabled"), ("enable", "Enabled")):
        assert (await here.api(ChangeZoneState(uuid=uuid, state_event=event))).state == state
    with pytest.raises(CloudError, match="no Zone"):
        await here.api(UpdateZone(uuid=new_uuid(), name="x"))


async def test_a_cluster_is_what_was_asked_for(here: Site) -> None:
    made = await here.api(
        CreateCluster(zone_uuid=here.zone.uuid, name="c", hypervisor_type="KVM", architecture="x86_64")
    )
    assert (made.zone_uuid, made.hypervisor_type, made.architecture) == (here.zone.uuid, "KVM", "x86_64")
    assert (made.state, made.type) == ("Enabled", "zstack")
    assert await here.node.bus.call(GetCluster(cluster_uuid=made.uuid)) == made
    assert len((await here.node.bus.call(ListClusters(zone_uuid=here.zone.uuid))).clusters) == 2
    found = await here.api(QueryCluster(conditions=[QueryCondition("zone.name", "=", "zone")], sort_by="name"))
    assert [one.name for one in found.inventories or []] == ["c", "cluster"]


async def test_clusters_are_changed_and_deleted(here: Site) -> None:
    uuid = here.cluster.uuid
    assert (await here.api(UpdateCluster(uuid=uuid, name="new"))).name == "new"
    assert (await here.api(ChangeClusterState(uuid=uuid, state_event="disable"))).state == "Disabled"
    for _ in range(2):
        await here.api(DeleteCluster(uuid=uuid))
    with pytest.raises(CloudError, match="no Cluster"):
        await here.node.bus.call(GetCluster(cluster_uuid=uuid))


async def test_a_plan_tells_what_deleting_a_zone_takes_along(here: Site) -> None:
    l2 = await here.l2()
    l3 = await here.l3(l2)
    one = await here.range(l3, "10.0.0.10", "10.0.0.11")
    plan = await here.node.cascade.plan("ZoneVO", [here.zone.uuid])
    order = [step.resource for step in plan.steps]
    assert plan.uuids("L3NetworkVO") == [l3.uuid]
    assert plan.uuids("IpRangeVO") == [one.uuid]
    assert plan.uuids("ClusterVO") == [here.cluster.uuid]
    assert order.index("IpRangeVO") < order.index("L3NetworkVO") < order.index("L2NetworkVO") < order.index("ZoneVO")
    await here.api(DeleteZone(uuid=here.zone.uuid))
    for query in (QueryZone(), QueryCluster()):
        assert (await here.api(query)).inventories == []
    assert (await here.node.cascade.plan("ZoneVO", [here.zone.uuid])).uuids("ClusterVO") == []
