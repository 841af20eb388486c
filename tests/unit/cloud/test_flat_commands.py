"""What the Flat provider tells hosts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from caelum.agent.protocol import ApplyDhcp, ApplyMetadata, ApplyNat, DeleteDhcp, DeleteNat
from caelum.cloud.host.spec import NicIp, NicSpec, VmSpec
from caelum.cloud.l3.api import (
    IpRangeInventory,
    L3NetworkHostRouteInventory,
    L3NetworkInventory,
    UsedIpInventory,
)
from caelum.drivers.flat_network.commands import FlatNetwork, Guest, apply, guests_by_network, release, remove

NOW = datetime(2026, 1, 1)
DATES: dict[str, Any] = {"create_date": NOW, "last_op_date": NOW}


def network(*services: str, **fields: Any) -> FlatNetwork:
    one = IpRangeInventory(
        uuid="r", l3_network_uuid="l3", name="r", start_ip="10.0.0.10", end_ip="10.0.0.19", gateway="10.0.0.1",
        netmask="255.255.255.0", network_cidr="10.0.0.0/24", ip_version=4, ip_range_type="Normal", **DATES,
    )  # fmt: skip
    route = L3NetworkHostRouteInventory(id=1, l3_network_uuid="l3", prefix="1.0.0.0/8", nexthop="10.0.0.2", **DATES)
    l3 = L3NetworkInventory(
        uuid="l3", name="l3", type="L3BasicNetwork", zone_uuid="z", l2_network_uuid="l2", state="Enabled", system=False,
        category="Private", ip_version=4, enable_ipam=True, isolated=False, dns=["8.8.8.8", "2001::8"], ip_ranges=[one],
        network_services=[], host_route=[route], reserved_ip_ranges=[], **DATES,
    )  # fmt: skip
    server = UsedIpInventory(
        uuid="u",
        l3_network_uuid="l3",
        ip_version=4,
        ip="10.0.0.19",
        netmask="255.255.255.0",
        gateway="10.0.0.1",
        **DATES,
    )
    values = {"server": server if "DHCP" in services else None, "own_dns": False, **fields}
    return FlatNetwork(l3=l3, services=frozenset(services), bridge="br0", mtu=1400, **values)


def guest(ip: str = "10.0.0.11", **fields: Any) -> Guest:
    nic = NicSpec(
        nic_uuid="n", l3_network_uuid="l3", device_id=0, mac="fa:00:00:00:00:01", ips=[NicIp(ip=ip, netmask="")],
        is_default=True,
    )  # fmt: skip
    vm = VmSpec(vm_uuid="v", name="web", internal_id=1, cpu_num=1, memory=1, nics=[nic], **fields)
    return Guest(vm, nic)


def test_each_service_adds_its_part() -> None:
    def kinds(*services: str) -> list[type]:
        return [type(one) for one in apply(network(*services), [guest()], rebuild=False)]

    assert kinds("DHCP") == [ApplyDhcp]
    assert kinds("DHCP", "Userdata") == [ApplyDhcp, ApplyMetadata]
    assert kinds("SNAT") == [ApplyNat]
    assert kinds("DHCP", "Userdata", "SNAT") == [ApplyDhcp, ApplyMetadata, ApplyNat]
    assert kinds("Eip") == []


def test_dns_and_routes_are_told_only_when_served_and_only_of_ipv4() -> None:
    def dhcp(*services: str, **fields: Any) -> ApplyDhcp:
        found = apply(network("DHCP", *services, **fields), [guest()], rebuild=True)[0]
        assert isinstance(found, ApplyDhcp)
        return found

    assert (dhcp().dns, dhcp().host_routes, dhcp().metadata, dhcp().mtu) == ([], [], False, 1400)
    assert dhcp("DNS").dns == ["8.8.8.8"]
    assert (dhcp("DNS", own_dns=True).dns, dhcp("DNS", own_dns=True).forward_dns) == (["10.0.0.19", "8.8.8.8"], True)
    assert dhcp(own_dns=True).forward_dns is False
    assert [one.prefix for one in dhcp("HostRoute").host_routes] == ["1.0.0.0/8"]


def test_guests_are_found_by_network_and_need_an_ipv4_address() -> None:
    with_address, without = guest(), guest()
    without.nic.ips = []
    found = guests_by_network([with_address.vm, without.vm])
    assert {l3: [one.ip for one in guests] for l3, guests in found.items()} == {"l3": ["10.0.0.11"]}
    assert guest().hostname == "10-0-0-11"
    assert guest(hostname="www").hostname == "www"


def test_releases_and_removals_name_exactly_what_goes() -> None:
    dhcp, metadata = release("l3", [guest()])
    assert dhcp.macs == ["fa:00:00:00:00:01"]  # type: ignore[attr-defined]
    assert metadata.ips == ["10.0.0.11"]  # type: ignore[attr-defined]
    assert [type(one) for one in remove("l3", "br0", {"DHCP", "SNAT", "DNS"})] == [DeleteDhcp, DeleteNat]
    assert remove("l3", "br0", {"DNS"}) == []
