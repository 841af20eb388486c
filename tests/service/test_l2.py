"""L2 networks on simulated hosts: attached, realised at connect, detached, deleted, with hosts that fail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.service.network_clouds import HostSite, host_site

from caelum.agent import protocol as p
from caelum.cloud.cluster.api import CreateCluster, DeleteCluster
from caelum.cloud.l2.api import (
    AttachL2NetworkToCluster,
    CreateL2NoVlanNetwork,
    DeleteL2Network,
    DetachL2NetworkFromCluster,
    GetCandidateClustersForAttachingL2Network,
    GetCandidateL2NetworksForAttachingCluster,
    GetL2NetworkTypes,
    GetVSwitchTypes,
    L2NetworkInventory,
    QueryL2Network,
    UpdateL2Network,
)
from caelum.cloud.l2.extension import short_name
from caelum.cloud.l2.messages import GetL2, RealiseL2
from caelum.cloud.l3.api import QueryL3Network
from caelum.cloud.zone.api import DeleteZone
from caelum.kernel.errors import CloudError
from caelum.kernel.message import QueryCondition


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[HostSite]:
    async with host_site(tmp_path) as found:
        yield found


async def attach(here: HostSite, l2: L2NetworkInventory) -> L2NetworkInventory:
    return await here.api(AttachL2NetworkToCluster(l2_network_uuid=l2.uuid, cluster_uuid=here.cluster.uuid))


async def detach(here: HostSite, l2: L2NetworkInventory) -> L2NetworkInventory:
    return await here.api(DetachL2NetworkFromCluster(l2_network_uuid=l2.uuid, cluster_uuid=here.cluster.uuid))


async def names(here: HostSite) -> list[str]:
    return [one.name for one in (await here.api(QueryL2Network())).inventories or []]


def bridges(here: HostSite, index: int = 0) -> dict[str, str | None]:
    return {name: one.interface for name, one in here.world(index).bridges.items()}


async def test_attaching_realises_the_network_on_every_host_and_detaching_removes_it(here: HostSite) -> None:
    for index in range(2):
        await here.add_host(index)
    l2 = await here.l2("eth0")
    assert l2.attached_cluster_uuids == []
    assert (await attach(here, l2)).attached_cluster_uuids == [here.cluster.uuid]
    assert bridges(here, 0) == bridges(here, 1) == {"br_eth0": "eth0"}
    assert (await detach(here, l2)).attached_cluster_uuids == []
    assert bridges(here, 0) == bridges(here, 1) == {}


async def test_a_private_network_has_no_uplink(here: HostSite) -> None:
    await here.add_host()
    l2 = await here.l2("private0")
    await attach(here, l2)
    assert bridges(here) == {"br_private0": None}
    facts = await here.node.bus.call(GetL2(l2_network_uuid=l2.uuid))
    assert (facts.private, facts.bridge, facts.mtu) == (True, "br_private0", 1500)


async def test_a_host_that_is_added_later_gets_the_networks_of_its_cluster(here: HostSite) -> None:
    await attach(here, await here.l2("eth0"))
    await attach(here, await here.l2("eth1"))
    await here.l2("private0")
    await here.add_host()
    assert bridges(here) == {"br_eth0": "eth0", "br_eth1": "eth1"}


async def test_a_host_without_the_interface_stops_the_attachment_and_nothing_is_left(here: HostSite) -> None:
    for index in range(2):
        await here.add_host(index)
    here.world(1).interfaces.discard("eth0")
    l2 = await here.l2("eth0")
    with pytest.raises(CloudError, match="there is no interface eth0") as caught:
        await attach(here, l2)
    assert (caught.value.code, caught.value.facts["failed"], caught.value.facts["hosts"]) == ("L2.1000", 1, 2)
    assert bridges(here, 0) == bridges(here, 1) == {}
    here.world(1).interfaces.add("eth0")
    assert (await attach(here, l2)).attached_cluster_uuids == [here.cluster.uuid]


async def test_a_host_that_fails_to_realise_it_makes_the_others_take_it_back(here: HostSite) -> None:
    hosts = [await here.add_host(index) for index in range(2)]
    here.sim.fault("error", p.CreateBridge.path, host=here.sim[1].uuid, code=p.NETWORK)
    l2 = await here.l2("eth0")
    with pytest.raises(CloudError) as caught:
        await attach(here, l2)
    assert caught.value.code == "L2.1000"
    assert bridges(here, 0) == {}
    assert len(hosts) == 2
    here.sim.heal()
    await attach(here, l2)
    assert bridges(here, 1) == {"br_eth0": "eth0"}


async def test_a_cluster_has_one_network_per_interface(here: HostSite) -> None:
    one, two = await here.l2("eth0"), await here.l2("eth0", name="two")
    await attach(here, one)
    with pytest.raises(CloudError, match="that has physical interface"):
        await attach(here, two)
    with pytest.raises(CloudError, match="can't attach again"):
        await attach(here, one)


async def test_detaching_what_is_not_attached_is_refused(here: HostSite) -> None:
    with pytest.raises(CloudError, match="is not attached to cluster"):
        await detach(here, await here.l2("eth0"))


async def test_a_host_that_is_away_loses_the_bridge_when_it_comes_back(here: HostSite) -> None:
    host = await here.add_host()
    l2 = await here.l2("eth0")
    await attach(here, l2)
    await here.sim[0].die()
    await here.until_status(host.uuid, "Disconnected")
    await detach(here, l2)
    assert bridges(here) == {"br_eth0": "eth0"}
    assert await here.node.gc.open_jobs() == [f"l2.remove-from-host-{l2.uuid}-{host.uuid}"]
    here.sim[0].start(here.sim.port)
    await here.cloud.until(lambda: bridges(here) == {}, 20)


async def test_a_late_removal_leaves_a_bridge_that_is_wanted_again(here: HostSite) -> None:
    host = await here.add_host()
    l2 = await here.l2("eth0")
    await attach(here, l2)
    await here.sim[0].die()
    await here.until_status(host.uuid, "Disconnected")
    await detach(here, l2)
    await attach(here, l2)
    here.sim[0].start(here.sim.port)

    async def done() -> bool:
        return not await here.node.gc.open_jobs()

    await here.cloud.until(done, 20)
    assert bridges(here) == {"br_eth0": "eth0"}


async def test_a_host_that_refuses_stops_a_permissive_deletion_and_not_an_enforced_one(here: HostSite) -> None:
    await here.add_host()
    l2 = await here.l2("eth0")
    await attach(here, l2)
    here.sim.fault("error", p.DeleteBridge.path, code=p.NETWORK)
    with pytest.raises(CloudError, match="a simulated failure"):
        await here.api(DeleteL2Network(uuid=l2.uuid))
    assert await names(here) == ["l2-eth0"]
    found = (await here.api(QueryL2Network())).inventories or []
    assert found[0].attached_cluster_uuids == [here.cluster.uuid]
    await here.api(DeleteL2Network(uuid=l2.uuid, delete_mode="Enforcing"))
    assert await names(here) == []
    assert len(await here.node.gc.open_jobs()) == 1
    here.sim.heal()
    await here.node.gc.trigger_all()
    await here.cloud.until(lambda: bridges(here) == {}, 20)


async def test_deleting_a_network_takes_its_l3_networks(here: HostSite) -> None:
    await here.add_host()
    l2 = await here.l2("eth0")
    await attach(here, l2)
    await here.l3(l2)
    await here.api(DeleteL2Network(uuid=l2.uuid))
    assert (await here.api(QueryL3Network())).inventories == []
    assert bridges(here) == {}


async def test_deleting_a_cluster_detaches_its_networks(here: HostSite) -> None:
    await here.add_host()
    l2 = await here.l2("eth0")
    await attach(here, l2)
    await here.api(DeleteCluster(uuid=here.cluster.uuid))
    found = (await here.api(QueryL2Network())).inventories or []
    assert found[0].attached_cluster_uuids == []


async def test_deleting_a_zone_deletes_everything_in_it(here: HostSite) -> None:
    await here.add_host()
    l2 = await here.l2("eth0")
    await attach(here, l2)
    await here.l3(l2)
    await here.api(DeleteZone(uuid=here.zone.uuid))
    assert await names(here) == []
    async with here.node.db.read() as session:
        types = "ZoneVO ClusterVO HostVO L2NetworkVO L2NetworkClusterRefVO L3NetworkVO SystemTagVO"
        for vo in types.split():
            model = here.node.resources.model(vo)
            assert (await session.execute(model.__table__.select())).all() == [], vo


async def test_candidates_are_of_the_zone_and_have_the_interface_free(here: HostSite) -> None:
    one, two = await here.l2("eth0"), await here.l2("eth1")
    other = await here.api(CreateCluster(name="other", zone_uuid=here.zone.uuid, hypervisor_type="KVM"))
    await attach(here, one)
    clusters = await here.api(GetCandidateClustersForAttachingL2Network(l2_network_uuid=one.uuid))
    assert [cluster.uuid for cluster in clusters.inventories] == [other.uuid]
    networks = await here.api(GetCandidateL2NetworksForAttachingCluster(cluster_uuid=here.cluster.uuid))
    assert [(l2.uuid, l2.type) for l2 in networks.inventories] == [(two.uuid, "L2NoVlanNetwork")]


async def test_types_come_from_the_drivers(here: HostSite) -> None:
    assert (await here.api(GetL2NetworkTypes())).types == ["L2NoVlanNetwork"]
    assert (await here.api(GetVSwitchTypes())).types == ["LinuxBridge"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"physical_interface": "eth0; reboot"}, "is no name of an interface"),
        ({"physical_interface": "-x"}, "is no name of an interface"),
        ({"physical_interface": "eth0", "v_switch_type": "OvsDpdk"}, "no driver makes networks of OvsDpdk"),
        ({"physical_interface": "eth0", "isolated": True}, "is not supported"),
    ],
)
async def test_what_no_driver_can_make_is_refused(here: HostSite, fields: dict[str, str], named: str) -> None:
    with pytest.raises(CloudError, match=named) as caught:
        await here.api(CreateL2NoVlanNetwork(name="l2", zone_uuid=here.zone.uuid, **fields))  # type: ignore[arg-type]
    assert caught.value.code == "SYS.1007"


async def test_two_interfaces_never_share_a_bridge_name(here: HostSite) -> None:
    first = await here.l2("enp0s31f6np000a")
    taken = (await here.node.bus.call(GetL2(l2_network_uuid=first.uuid))).bridge
    assert taken == short_name("br_", "enp0s31f6np000a")
    clash = await here.l2(taken.removeprefix("br_"))
    other = (await here.node.bus.call(GetL2(l2_network_uuid=clash.uuid))).bridge
    assert other == f"l2_{clash.uuid[:12]}"


async def test_updates_and_queries(here: HostSite) -> None:
    l2 = await here.l2("eth0")
    await here.api(UpdateL2Network(uuid=l2.uuid, name="renamed"))
    await attach(here, l2)
    for name, value in (
        ("name", "renamed"), ("cluster.name", "cluster"), ("attachedClusterUuids", here.cluster.uuid),
        ("zone.uuid", here.zone.uuid),
    ):  # fmt: skip
        found = await here.api(QueryL2Network(conditions=[QueryCondition(name, "=", value)]))
        assert [one.uuid for one in found.inventories or []] == [l2.uuid], name


async def test_realising_twice_changes_nothing(here: HostSite) -> None:
    host = await here.add_host()
    l2 = await here.l2("eth0")
    for _ in range(2):
        done = await here.node.bus.call(RealiseL2(l2_network_uuid=l2.uuid, host_uuid=host.uuid))
        assert done.bridge == "br_eth0"
    assert bridges(here) == {"br_eth0": "eth0"}
