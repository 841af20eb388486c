"""L3 networks: ranges, addresses, and what is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.service.network_clouds import Site, site

from caelum.cloud.l3 import allocation
from caelum.cloud.l3.api import (
    AddDnsToL3Network,
    AddHostRouteToL3Network,
    AddIpRangeByNetworkCidr,
    AddReservedIpRange,
    ChangeL3NetworkState,
    CheckIpAvailability,
    DeleteIpRange,
    DeleteL3Network,
    DeleteReservedIpRange,
    GetFreeIp,
    GetIpAddressCapacity,
    GetL3NetworkMtu,
    QueryIpAddress,
    QueryL3Network,
    RemoveDnsFromL3Network,
    RemoveHostRouteFromL3Network,
    SetL3NetworkMtu,
    UpdateL3Network,
)
from caelum.cloud.l3.extension import AddressRecords
from caelum.cloud.l3.messages import AllocateIp, GetHeldIp, GetL3, ReturnIp
from caelum.cloud.l3.settings import FIRST_AVAILABLE
from caelum.cloud.parts import part
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import QueryCondition


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path) as found:
        yield found


async def take(here: Site, l3_uuid: str, **fields: object) -> str:
    """Take an address for a new NIC."""
    fields = {"vm_nic_uuid": new_uuid(), **fields}
    return (await here.node.bus.call(AllocateIp(l3_network_uuid=l3_uuid, **fields))).ip  # type: ignore[arg-type]


async def refused(awaitable: object) -> CloudError:
    with pytest.raises(CloudError) as caught:
        await awaitable  # type: ignore[misc]
    return caught.value


async def test_a_network_shows_everything_that_belongs_to_it(here: Site) -> None:
    l3 = await here.l3(dns_domain="example.org")
    await here.range(l3, "10.0.0.10", "10.0.0.19")
    await here.api(AddDnsToL3Network(l3_network_uuid=l3.uuid, dns="8.8.8.8"))
    await here.api(AddHostRouteToL3Network(l3_network_uuid=l3.uuid, prefix="192.168.0.0/24", nexthop="10.0.0.2"))
    await here.api(AddReservedIpRange(l3_network_uuid=l3.uuid, start_ip="10.0.0.10", end_ip="10.0.0.12"))
    found = (await here.node.bus.call(GetL3(l3_network_uuids=[l3.uuid]))).networks[0]
    assert (found.state, found.category, found.type) == ("Enabled", "Private", "L3BasicNetwork")
    assert found.enable_ipam
    assert found.zone_uuid == here.zone.uuid
    assert found.dns == ["8.8.8.8"]
    assert [(one.prefix, one.nexthop) for one in found.host_route] == [("192.168.0.0/24", "10.0.0.2")]
    assert [(one.start_ip, one.network_cidr, one.prefix_len) for one in found.ip_ranges] == [
        ("10.0.0.10", "10.0.0.0/16", 16)
    ]
    assert [one.end_ip for one in found.reserved_ip_ranges] == ["10.0.0.12"]


async def test_dns_and_routes_are_unique_and_their_removal_is_idempotent(here: Site) -> None:
    l3 = await here.l3()
    dns = AddDnsToL3Network(l3_network_uuid=l3.uuid, dns="8.8.8.8")
    route = AddHostRouteToL3Network(l3_network_uuid=l3.uuid, prefix="192.168.0.0/24", nexthop="10.0.0.2")
    for request in (dns, route):
        await here.api(request)
        assert "there has been" in (await refused(here.api(request))).details
    for _ in range(2):
        left = await here.api(RemoveDnsFromL3Network(l3_network_uuid=l3.uuid, dns="8.8.8.8"))
        assert left.dns == []
        left = await here.api(RemoveHostRouteFromL3Network(l3_network_uuid=l3.uuid, prefix="192.168.0.0/24"))
        assert left.host_route == []
    assert "field[dns]" in (await refused(here.api(AddDnsToL3Network(l3_network_uuid=l3.uuid, dns="x")))).details


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"start": "10.0.0.20", "end": "10.0.0.10"}, "is behind end ip"),
        ({"start": "10.0.0.1", "end": "10.0.0.10"}, "can not be part of range"),
        ({"start": "10.0.0.10", "end": "10.1.0.10"}, "not both in the network"),
        ({"start": "10.0.0.10", "end": "10.0.0.10", "gateway": "10.1.0.1"}, "is not in the network"),
        ({"start": "10.0.0.10", "end": "10.0.0.10", "gateway": None}, "needs a gateway"),
        ({"start": "10.0.0.10", "end": "10.0.0.10", "netmask": "255.0.255.0"}, "is not a netmask"),
        ({"start": "nonsense", "end": "10.0.0.10"}, "is not an IPv4 address"),
        ({"start": "10.0.255.250", "end": "10.0.255.255"}, "the broadcast address"),
        ({"start": "10.0.0.105", "end": "10.0.0.110"}, "overlaps with ip range"),
        ({"start": "10.0.1.10", "end": "10.0.1.20", "gateway": "10.0.0.2"}, "different from old gateway"),
        ({"start": "10.0.1.10", "end": "10.0.1.20", "netmask": "255.255.254.0"}, "differs from 10.0.0.0/16"),
    ],
)
async def test_a_bad_range_is_refused_with_its_reason(here: Site, fields: dict[str, str], named: str) -> None:
    l3 = await here.l3()
    await here.range(l3, "10.0.0.100", "10.0.0.109")
    error = await refused(here.range(l3, fields.pop("start"), fields.pop("end"), **fields))
    assert error.code == "SYS.1007"
    assert named in error.details


async def test_a_cidr_becomes_one_range_or_two_around_its_gateway(here: Site) -> None:
    one, two = await here.l3(), await here.l3()
    added = await here.api(AddIpRangeByNetworkCidr(name="r", l3_network_uuid=one.uuid, network_cidr="10.0.0.0/24"))
    assert [(r.gateway, r.start_ip, r.end_ip) for r in added.inventories] == [("10.0.0.1", "10.0.0.2", "10.0.0.254")]
    assert added.success
    split = await here.api(
        AddIpRangeByNetworkCidr(name="r", l3_network_uuid=two.uuid, network_cidr="10.0.0.0/24", gateway="10.0.0.100")
    )
    assert [(r.start_ip, r.end_ip) for r in split.inventories] == [
        ("10.0.0.1", "10.0.0.99"),
        ("10.0.0.101", "10.0.0.254"),
    ]


async def test_an_allocation_is_idempotent_and_its_return_frees_the_address(here: Site) -> None:
    l3 = await here.l3()
    await here.range(l3, "10.0.0.10", "10.0.0.19")
    nic = new_uuid()
    first = await here.node.bus.call(AllocateIp(l3_network_uuid=l3.uuid, vm_nic_uuid=nic))
    again = await here.node.bus.call(AllocateIp(l3_network_uuid=l3.uuid, vm_nic_uuid=nic))
    assert first == again
    assert (first.netmask, first.gateway, first.vm_nic_uuid) == ("255.255.0.0", "10.0.0.1", nic)
    for _ in range(2):
        await here.node.bus.call(ReturnIp(vm_nic_uuid=nic))
    assert await take(here, l3.uuid, required_ip=first.ip) == first.ip


async def test_an_address_by_chance_takes_one_statement(here: Site) -> None:
    l3, db = await here.l3(), here.node.db
    await here.range(l3, "10.0.16.0", "10.0.47.255")
    await take(here, l3.uuid)
    before = db.statements
    await take(here, l3.uuid)
    assert db.statements - before == 1 or not db.sqlite


async def test_who_holds_an_address_is_told_so(here: Site) -> None:
    l3 = await here.l3()
    await here.range(l3, "10.0.0.10", "10.0.0.19")
    asked = GetHeldIp(l3_network_uuid=l3.uuid, holder="server")
    assert await here.node.bus.call(asked) is None
    taken = await here.node.bus.call(AllocateIp(l3_network_uuid=l3.uuid, holder="server"))
    assert await here.node.bus.call(asked) == taken
    assert await here.node.bus.call(AllocateIp(l3_network_uuid=l3.uuid, holder="server")) == taken


async def test_a_required_address_is_given_or_refused_with_who_has_it(here: Site) -> None:
    l3 = await here.l3()
    await here.range(l3, "10.0.0.10", "10.0.0.19")
    nic = new_uuid()
    assert await take(here, l3.uuid, required_ip="10.0.0.15", vm_nic_uuid=nic) == "10.0.0.15"
    error = await refused(take(here, l3.uuid, required_ip="10.0.0.15"))
    assert (error.code, error.facts["holder"]) == ("L3.1000", nic)
    outside = await refused(take(here, l3.uuid, required_ip="10.0.0.99"))
    assert "10.0.0.10-10.0.0.19" in outside.details
    other = await refused(take(here, l3.uuid, required_ip="10.0.0.16", vm_nic_uuid=nic))
    assert other.facts["held"] == "10.0.0.15"


async def test_an_exhausted_29_says_so_with_numbers_and_leaks_nothing(here: Site) -> None:
    l3 = await here.l3()
    await here.api(AddIpRangeByNetworkCidr(name="r", l3_network_uuid=l3.uuid, network_cidr="10.0.0.0/29"))
    nics = [new_uuid() for _ in range(5)]
    taken = {await take(here, l3.uuid, vm_nic_uuid=nic) for nic in nics}
    assert taken == {f"10.0.0.{n}" for n in range(2, 7)}
    for _ in range(3):
        error = await refused(take(here, l3.uuid))
        assert error.code == "L3.1000"
        assert (error.facts["total"], error.facts["used"], error.facts["reserved"]) == (5, 5, 0)
    await here.node.bus.call(ReturnIp(vm_nic_uuid=nics[2]))
    assert await take(here, l3.uuid) in taken
    capacity = await here.api(GetIpAddressCapacity(l3_network_uuids=[l3.uuid]))
    assert (capacity.total_capacity, capacity.available_capacity, capacity.used_ip_address_number) == (5, 0, 5)


async def test_a_thousand_takers_at_once_get_a_thousand_addresses(here: Site) -> None:
    l3 = await here.l3()
    await here.range(l3, "10.0.4.0", "10.0.7.231")  # exactly 1,000
    begun = time.monotonic()
    taken = await asyncio.gather(*(take(here, l3.uuid) for _ in range(1000)))
    assert len(set(taken)) == 1000
    assert time.monotonic() - begun < 60
    assert (await refused(take(here, l3.uuid))).facts["used"] == 1000


async def test_the_last_address_of_a_nearly_full_range_is_found_quickly(here: Site) -> None:
    l3 = await here.l3()
    one = await here.range(l3, "10.0.16.0", "10.0.47.255")  # 8,192
    await _fill(here, l3.uuid, one.uuid, 8192, range(4321, 4322))
    begun = time.monotonic()
    assert await take(here, l3.uuid) == "10.0.32.225"
    assert time.monotonic() - begun < 0.5


async def test_who_takes_the_last_addresses_at_once_gets_them(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "ATTEMPTS", 3)
    l3, node = await here.l3(), here.node
    one = await here.range(l3, "10.0.16.0", "10.0.47.255")
    await _fill(here, l3.uuid, one.uuid, 8192, range(4000, 4030))

    async def taken() -> str:
        async with node.db.transaction() as tx:
            wanted = AllocateIp(l3_network_uuid=l3.uuid, vm_nic_uuid=new_uuid())
            (address,) = await part(node, AddressRecords).take(tx, [wanted])
        return address.ip

    assert len(set(await asyncio.gather(*(taken() for _ in range(30))))) == 30
    assert (await refused(take(here, l3.uuid))).facts["used"] == 8192


async def _fill(here: Site, l3_uuid: str, range_uuid: str, size: int, holes: range) -> None:
    from ipaddress import IPv4Address

    from sqlalchemy import insert

    from caelum.cloud.l3.model import UsedIpModel

    start = IPv4Address("10.0.16.0")
    rows = [
        {"uuid": new_uuid(), "l3_network_uuid": l3_uuid, "ip_range_uuid": range_uuid, "ip_offset": n,
         "holder": new_uuid(), "ip_version": 4, "ip": str(start + n)}
        for n in range(size) if n not in holes
    ]  # fmt: skip
    async with here.node.db.transaction() as tx:
        await tx.execute(insert(UsedIpModel), rows)


async def test_the_first_available_strategy_goes_in_order_and_skips_what_is_reserved(here: Site) -> None:
    l3 = await here.l3()
    await here.range(l3, "10.0.0.10", "10.0.0.19")
    reserved = await here.api(AddReservedIpRange(l3_network_uuid=l3.uuid, start_ip="10.0.0.11", end_ip="10.0.0.18"))
    got = [await take(here, l3.uuid, strategy=FIRST_AVAILABLE) for _ in range(2)]
    assert got == ["10.0.0.10", "10.0.0.19"]
    error = await refused(take(here, l3.uuid))
    assert (error.facts["total"], error.facts["used"], error.facts["reserved"]) == (10, 2, 8)
    assert await take(here, l3.uuid, required_ip="10.0.0.14") == "10.0.0.14"
    await here.api(DeleteReservedIpRange(uuid=reserved.uuid))
    assert await take(here, l3.uuid, strategy=FIRST_AVAILABLE) == "10.0.0.11"


async def test_free_addresses_and_availability(here: Site) -> None:
    l3 = await here.l3()
    await here.range(l3, "10.0.0.10", "10.0.0.19")
    await take(here, l3.uuid, required_ip="10.0.0.11")
    free = await here.api(GetFreeIp(l3_network_uuid=l3.uuid, limit=3))
    assert [one.ip for one in free] == ["10.0.0.10", "10.0.0.12", "10.0.0.13"]
    later = await here.api(GetFreeIp(l3_network_uuid=l3.uuid, start="10.0.0.18"))
    assert [one.ip for one in later] == ["10.0.0.18", "10.0.0.19"]

    async def available(ip: str) -> bool:
        return (await here.api(CheckIpAvailability(l3_network_uuid=l3.uuid, ip=ip))).available

    assert [await available(ip) for ip in ("10.0.0.10", "10.0.0.11", "10.0.0.1", "10.0.0.99")] == [
        True, False, False, False,
    ]  # fmt: skip


async def test_pools_give_no_addresses_to_nics(here: Site) -> None:
    l3 = await here.l3()
    await here.range(l3, "10.0.0.10", "10.0.0.11", ip_range_type="AddressPool", gateway=None)
    assert (await refused(take(here, l3.uuid))).facts["ranges"] == 0
    assert await take(here, l3.uuid, ip_range_type="AddressPool") in {"10.0.0.10", "10.0.0.11"}


async def test_a_disabled_network_gives_no_addresses(here: Site) -> None:
    l3 = await here.l3()
    await here.range(l3, "10.0.0.10", "10.0.0.11")
    nic = new_uuid()
    held = await take(here, l3.uuid, vm_nic_uuid=nic)
    await here.api(ChangeL3NetworkState(uuid=l3.uuid, state_event="disable"))
    assert (await refused(take(here, l3.uuid))).facts["state"] == "Disabled"
    assert await take(here, l3.uuid, vm_nic_uuid=nic) == held
    await here.api(ChangeL3NetworkState(uuid=l3.uuid, state_event="enable"))
    assert await take(here, l3.uuid)


async def test_mtu_is_the_l2_networks_until_it_is_set(here: Site) -> None:
    l3 = await here.l3()
    assert (await here.api(GetL3NetworkMtu(l3_network_uuid=l3.uuid))).mtu == 1500
    await here.api(SetL3NetworkMtu(l3_network_uuid=l3.uuid, mtu=1400))
    await here.api(SetL3NetworkMtu(l3_network_uuid=l3.uuid, mtu=1300))
    assert (await here.api(GetL3NetworkMtu(l3_network_uuid=l3.uuid))).mtu == 1300


async def test_update_changes_only_what_is_given(here: Site) -> None:
    l3 = await here.l3(dns_domain="a.example")
    changed = await here.api(UpdateL3Network(uuid=l3.uuid, name="new"))
    assert (changed.name, changed.dns_domain) == ("new", "a.example")


async def test_deleting_a_range_forgets_its_addresses(here: Site) -> None:
    l3 = await here.l3()
    one = await here.range(l3, "10.0.0.10", "10.0.0.11")
    await take(here, l3.uuid, required_ip="10.0.0.10")
    await here.api(DeleteIpRange(uuid=one.uuid))
    found = await here.api(QueryIpAddress(conditions=[QueryCondition("l3NetworkUuid", "=", l3.uuid)]))
    assert found.inventories == []


async def test_deleting_a_network_takes_everything_of_it(here: Site) -> None:
    l3 = await here.l3()
    await here.range(l3, "10.0.0.10", "10.0.0.11")
    await here.api(AddDnsToL3Network(l3_network_uuid=l3.uuid, dns="8.8.8.8"))
    nic = new_uuid()
    await take(here, l3.uuid, vm_nic_uuid=nic)
    error = await refused(here.api(DeleteL3Network(uuid=l3.uuid)))
    assert "addresses of 1 NICs" in error.details
    assert (await here.node.bus.call(GetL3(l3_network_uuids=[l3.uuid]))).networks[0].state == "Enabled"
    await here.node.bus.call(ReturnIp(vm_nic_uuid=nic))
    await here.api(DeleteL3Network(uuid=l3.uuid))
    assert (await here.api(QueryL3Network())).inventories == []


async def test_networks_are_queried_by_what_belongs_to_them(here: Site) -> None:
    l3, other = await here.l3(name="one"), await here.l3(name="two")
    await here.range(l3, "10.0.0.10", "10.0.0.19")
    await here.range(other, "10.0.0.10", "10.0.0.19")
    await here.api(AddDnsToL3Network(l3_network_uuid=l3.uuid, dns="8.8.8.8"))
    for name, op, value in (
        ("name", "=", "one"), ("ipRanges.startIp", "=", "10.0.0.10"), ("l2Network.physicalInterface", "=", "private0"),
        ("zone.name", "=", "zone"), ("dns", "=", "8.8.8.8"),
    ):  # fmt: skip
        found = (await here.api(QueryL3Network(conditions=[QueryCondition(name, op, value)]))).inventories
        assert l3.uuid in [one.uuid for one in found or []], name
