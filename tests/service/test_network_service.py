"""Providers of network services, and which of them serves what on which L3 network."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import pytest
from tests.service.network_clouds import DRIVERS, Machines, Site, site

from caelum.cloud.l2.api import DeleteL2Network
from caelum.cloud.l3.api import L3NetworkInventory
from caelum.cloud.network_service.api import (
    AttachNetworkServiceToL3Network,
    DetachNetworkServiceFromL3Network,
    GetNetworkServiceTypes,
    QueryNetworkServiceL3NetworkRef,
    QueryNetworkServiceProvider,
)
from caelum.cloud.network_service.extension import NetworkServiceDriver
from caelum.kernel.errors import OPERATION_ERROR, CloudError
from caelum.kernel.message import QueryCondition
from caelum.kernel.node import Node


class Toy(NetworkServiceDriver):
    """A second provider of DHCP."""

    display_name = "Toy"
    description = "a toy"
    services = ("DHCP", "LoadBalancer")
    refuses: ClassVar[bool] = False

    def __init__(self, node: Node) -> None:
        node.drivers.add(NetworkServiceDriver, "Toy", self)
        self.seen: list[str] = []
        type(self).last = self  # type: ignore[attr-defined]

    async def attached(self, l3: L3NetworkInventory, services: list[str]) -> None:
        self.seen.append("attached " + ",".join(services))
        if self.refuses:
            raise CloudError(OPERATION_ERROR, "the toy is broken")

    async def detached(self, l3: L3NetworkInventory, services: list[str]) -> None:
        self.seen.append("detached " + ",".join(services))


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path, Machines, drivers=[*DRIVERS, Toy]) as found:
        yield found


async def attach(here: Site, l3: L3NetworkInventory, services: dict[str, list[str]]) -> list[str]:
    request = AttachNetworkServiceToL3Network(l3_network_uuid=l3.uuid, network_services=services)
    return [one.network_service_type for one in (await here.api(request)).network_services]


async def test_each_driver_has_its_provider_row_with_its_services(here: Site) -> None:
    found = (await here.api(QueryNetworkServiceProvider(sort_by="type"))).inventories or []
    assert [(one.type, one.name) for one in found] == [("Flat", "Flat Network Service Provider"), ("Toy", "Toy")]
    assert found[0].network_service_types == ["DHCP", "Userdata", "Eip", "DNS", "HostRoute", "SNAT"]
    types = (await here.api(GetNetworkServiceTypes())).types
    assert (types["DHCP"], types["SNAT"], types["LoadBalancer"]) == (["Flat", "Toy"], ["Flat"], ["Toy"])


async def test_a_restart_keeps_the_providers_uuids(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        async with site(tmp_path, Machines) as here:
            found = (await here.api(QueryNetworkServiceProvider())).inventories or []
            seen.append([one.uuid for one in found])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 1


async def test_a_service_has_one_provider_per_network(here: Site) -> None:
    l3 = await here.l3()
    assert await attach(here, l3, {"Flat": ["DHCP", "DNS"]}) == ["DHCP", "DNS"]
    with pytest.raises(CloudError, match="a service has one provider") as caught:
        await attach(here, l3, {"Toy": ["DHCP"]})
    assert caught.value.facts["service"] == "DHCP"
    assert await attach(here, l3, {"Flat": ["DHCP"], "Toy": ["LoadBalancer"]}) == ["DHCP", "DNS", "LoadBalancer"]
    other = await here.l3(name="other")
    assert await attach(here, other, {"Toy": ["DHCP"]}) == ["DHCP"]


async def test_a_provider_is_named_by_uuid_or_type_and_offers_what_it_offers(here: Site) -> None:
    l3 = await here.l3()
    provider = (
        (await here.api(QueryNetworkServiceProvider(conditions=[QueryCondition("type", "=", "Toy")]))).inventories or []
    )[0]
    assert await attach(here, l3, {provider.uuid: ["LoadBalancer"]}) == ["LoadBalancer"]
    for services, named in (
        ({"Toy": ["DNS"]}, "offers"),
        ({"Nobody": ["DHCP"]}, "no NetworkServiceProvider"),
        ({"Toy": []}, "nothing"),
    ):
        with pytest.raises(CloudError, match=named):
            await attach(here, l3, services)
    now = (
        (
            await here.api(QueryNetworkServiceProvider(conditions=[QueryCondition("uuid", "=", provider.uuid)]))
        ).inventories
        or []
    )[0]
    assert now.attached_l2_network_uuids == [l3.l2_network_uuid]


async def test_a_driver_that_refuses_leaves_nothing_attached(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    l3 = await here.l3()
    monkeypatch.setattr(Toy, "refuses", True)
    with pytest.raises(CloudError, match="the toy is broken"):
        await attach(here, l3, {"Toy": ["DHCP"]})
    assert (await here.api(QueryNetworkServiceL3NetworkRef())).inventories == []
    assert Toy.last.seen == ["attached DHCP", "detached DHCP"]  # type: ignore[attr-defined]


async def test_detaching_one_service_some_or_all(here: Site) -> None:
    l3 = await here.l3()
    await attach(here, l3, {"Flat": ["DHCP", "DNS", "HostRoute"], "Toy": ["LoadBalancer"]})
    one = await here.api(DetachNetworkServiceFromL3Network(l3_network_uuid=l3.uuid, service="DNS"))
    assert [ref.network_service_type for ref in one.network_services] == ["DHCP", "HostRoute", "LoadBalancer"]
    some = await here.api(
        DetachNetworkServiceFromL3Network(l3_network_uuid=l3.uuid, network_services={"Flat": ["HostRoute"]})
    )
    assert [ref.network_service_type for ref in some.network_services] == ["DHCP", "LoadBalancer"]
    with pytest.raises(CloudError, match="has no service"):
        await here.api(DetachNetworkServiceFromL3Network(l3_network_uuid=l3.uuid, service="DNS"))
    left = await here.api(DetachNetworkServiceFromL3Network(l3_network_uuid=l3.uuid))
    assert left.network_services == []


async def test_networks_are_found_by_their_provider(here: Site) -> None:
    l3 = await here.l3()
    await attach(here, l3, {"Flat": ["DHCP"]})
    refs = await here.api(
        QueryNetworkServiceL3NetworkRef(conditions=[QueryCondition("serviceProvider.type", "=", "Flat")])
    )
    assert [one.l3_network_uuid for one in refs.inventories or []] == [l3.uuid]


async def test_a_provider_forgets_networks_that_are_deleted(here: Site) -> None:
    l3 = await here.l3()
    await attach(here, l3, {"Flat": ["DHCP"], "Toy": ["LoadBalancer"]})
    await here.api(DeleteL2Network(uuid=l3.l2_network_uuid))
    found = (await here.api(QueryNetworkServiceProvider())).inventories or []
    assert [one.attached_l2_network_uuids for one in found] == [[], []]
