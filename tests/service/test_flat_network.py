"""The Flat provider on simulated hosts: guests come and go, networks change, hosts come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.service.network_clouds import HostSite, host_site

from caelum.agent import protocol as p
from caelum.cloud.host.spec import NicIp, NicSpec, VmSpec
from caelum.cloud.l2.api import AttachL2NetworkToCluster, L2NetworkInventory
from caelum.cloud.l3.api import (
    AddDnsToL3Network,
    AddHostRouteToL3Network,
    AddIpRange,
    CreateL3Network,
    DeleteIpRange,
    DeleteL3Network,
    L3NetworkInventory,
)
from caelum.cloud.l3.messages import AllocateIp, GetL3
from caelum.cloud.network_service.api import AttachNetworkServiceToL3Network, DetachNetworkServiceFromL3Network
from caelum.cloud.vm.extension import VmResourceProvider
from caelum.drivers.flat_network import driver
from caelum.drivers.flat_network.api import GetL3NetworkDhcpIpAddress
from caelum.drivers.flat_network.settings import DEFAULT_DNS
from caelum.kernel.errors import INTERNAL, CloudError
from caelum.kernel.ids import new_uuid

ALL = ["DHCP", "DNS", "Userdata", "HostRoute", "SNAT"]


class Flat:
    """A host, a private L2 network on it, and an L3 network that Flat serves."""

    def __init__(self, here: HostSite) -> None:
        self.here, self.api, self.bus = here, here.api, here.node.bus

    async def build(self, services: list[str] | None = None) -> Flat:
        self.host = await self.here.add_host()
        self.l2: L2NetworkInventory = await self.here.l2("private0")
        await self.api(AttachL2NetworkToCluster(l2_network_uuid=self.l2.uuid, cluster_uuid=self.here.cluster.uuid))
        self.l3 = await self.here.l3(self.l2, dns_domain="example.org")
        await self.here.range(self.l3, "10.0.0.10", "10.0.0.19")
        await self.attach(services or ALL)
        return self

    async def attach(self, services: list[str]) -> L3NetworkInventory:
        return await self.api(
            AttachNetworkServiceToL3Network(l3_network_uuid=self.l3.uuid, network_services={"Flat": services})
        )

    async def vm(self, name: str = "web", *, is_default: bool = True) -> VmSpec:
        """A machine with an address on the network; it is not on a host yet."""
        nic = new_uuid()
        ip = await self.bus.call(AllocateIp(l3_network_uuid=self.l3.uuid, vm_nic_uuid=nic))
        number = int(ip.ip.rsplit(".", 1)[1])
        return VmSpec(
            vm_uuid=new_uuid(), name=name, internal_id=number, cpu_num=1, memory=1 << 30, hostname=name,
            ssh_keys=["ssh-ed25519 AAAA me"], user_data="#cloud-config",
            nics=[
                NicSpec(
                    nic_uuid=nic, l3_network_uuid=self.l3.uuid, device_id=0, mac=f"fa:00:00:00:00:{number:02x}",
                    ips=[NicIp(ip=ip.ip, netmask="255.255.0.0", gateway="10.0.0.1")], is_default=is_default,
                )
            ],
        )  # fmt: skip

    async def start(self, vm: VmSpec) -> None:
        for one in self.here.node.extensions.of(VmResourceProvider):
            await one.prepare(vm, self.host.uuid)
        self.here.machines.on.setdefault(self.host.uuid, []).append(vm)

    async def stop(self, vm: VmSpec) -> None:
        self.here.machines.on[self.host.uuid].remove(vm)
        for one in self.here.node.extensions.of(VmResourceProvider):
            await one.release(vm, self.host.uuid)

    @property
    def world(self) -> Any:
        return self.here.world()

    @property
    def dhcp(self) -> p.ApplyDhcp:
        found: p.ApplyDhcp = self.world.dhcp[self.l3.uuid]
        return found

    @property
    def leases(self) -> dict[str, p.DhcpEntry]:
        found: dict[str, p.DhcpEntry] = self.world.leases.get(self.l3.uuid, {})
        return found

    async def server_ip(self) -> str | None:
        return (await self.api(GetL3NetworkDhcpIpAddress(l3_network_uuid=self.l3.uuid))).ip


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[HostSite]:
    async with host_site(tmp_path) as found:
        yield found


async def test_a_guest_is_served_before_it_starts_and_dropped_after_it_stops(here: HostSite) -> None:
    flat = await Flat(here).build()
    await flat.api(AddDnsToL3Network(l3_network_uuid=flat.l3.uuid, dns="8.8.8.8"))
    await flat.api(AddHostRouteToL3Network(l3_network_uuid=flat.l3.uuid, prefix="192.168.0.0/24", nexthop="10.0.0.2"))
    vm = await flat.vm()
    for _ in range(2):
        for one in here.node.extensions.of(VmResourceProvider):
            await one.prepare(vm, flat.host.uuid)
    ip, mac = vm.nics[0].ips[0].ip, vm.nics[0].mac
    served = flat.dhcp
    assert served.server_ip == await flat.server_ip()
    assert (served.bridge, served.gateway, served.netmask) == ("br_private0", "10.0.0.1", "255.255.0.0")
    assert (served.dns, served.domain, served.mtu, served.metadata) == (["8.8.8.8"], "example.org", 1500, True)
    assert [(one.prefix, one.nexthop) for one in served.host_routes] == [("192.168.0.0/24", "10.0.0.2")]
    assert {one.mac: (one.ip, one.hostname, one.is_default) for one in flat.leases.values()} == {mac: (ip, "web", True)}
    told = flat.world.metadata[flat.l3.uuid][ip]
    assert (told.vm_uuid, told.hostname, told.ssh_keys, told.user_data) == (
        vm.vm_uuid, "web", ["ssh-ed25519 AAAA me"], "#cloud-config",
    )  # fmt: skip
    nat = flat.world.nat[flat.l3.uuid]
    assert (nat.bridge, nat.gateway, nat.cidr) == ("br_private0", "10.0.0.1", "10.0.0.0/16")
    for _ in range(2):
        for one in here.node.extensions.of(VmResourceProvider):
            await one.release(vm, flat.host.uuid)
    assert flat.leases == {}
    assert flat.world.metadata[flat.l3.uuid] == {}


async def test_a_guest_without_a_hostname_is_named_by_its_address(here: HostSite) -> None:
    flat = await Flat(here).build()
    vm = await flat.vm()
    vm.hostname = None
    await flat.start(vm)
    assert next(iter(flat.leases.values())).hostname == vm.nics[0].ips[0].ip.replace(".", "-")


async def test_only_what_is_attached_is_served(here: HostSite) -> None:
    flat = await Flat(here).build(["DHCP"])
    await flat.api(AddDnsToL3Network(l3_network_uuid=flat.l3.uuid, dns="8.8.8.8"))
    await flat.start(await flat.vm())
    assert (flat.dhcp.dns, flat.dhcp.host_routes, flat.dhcp.metadata) == ([], [], False)
    assert flat.world.metadata == {}
    assert flat.world.nat == {}


async def test_a_network_of_nobody_is_left_alone(here: HostSite) -> None:
    flat = await Flat(here).build()
    flat.l3 = await here.l3(flat.l2)
    await here.range(flat.l3, "10.0.0.10", "10.0.0.19")
    await flat.start(await flat.vm())
    assert flat.world.dhcp == {}


async def test_the_dhcp_server_takes_its_address_at_once_and_the_wish_of_a_tag(here: HostSite) -> None:
    flat = await Flat(here).build()
    assert await flat.server_ip() in {f"10.0.0.{n}" for n in range(10, 20)}
    tag = "flatNetwork::DhcpServer::10.0.0.15::ipUuid::null"
    flat.l3 = await flat.api(CreateL3Network(name="wish", l2_network_uuid=flat.l2.uuid, system_tags=[tag]))
    await flat.attach(["DHCP"])
    await here.range(flat.l3, "10.0.0.10", "10.0.0.19")
    assert await flat.server_ip() == "10.0.0.15"
    with pytest.raises(CloudError, match=r"10\.0\.0\.15 .* is in use by DhcpServer"):
        await flat.bus.call(AllocateIp(l3_network_uuid=flat.l3.uuid, vm_nic_uuid=new_uuid(), required_ip="10.0.0.15"))


async def test_the_setting_for_own_dns_puts_the_server_first(here: HostSite) -> None:
    flat = await Flat(here).build()
    await here.node.settings.set(DEFAULT_DNS, True)
    await flat.api(AddDnsToL3Network(l3_network_uuid=flat.l3.uuid, dns="8.8.8.8"))
    await flat.start(await flat.vm())
    assert flat.dhcp.dns == [await flat.server_ip(), "8.8.8.8"]
    assert flat.dhcp.forward_dns


async def test_a_change_of_the_network_reaches_the_hosts_with_guests_on_it(here: HostSite) -> None:
    flat = await Flat(here).build()
    await flat.start(await flat.vm("one"))
    await flat.start(await flat.vm("two"))
    await flat.api(AddDnsToL3Network(l3_network_uuid=flat.l3.uuid, dns="1.1.1.1"))
    await here.cloud.until(lambda: flat.dhcp.dns == ["1.1.1.1"])
    assert {one.hostname for one in flat.leases.values()} == {"one", "two"}


async def test_a_host_that_connects_serves_exactly_its_guests(here: HostSite) -> None:
    flat = await Flat(here).build()
    stays, leaves = await flat.vm("stays"), await flat.vm("leaves")
    await flat.start(stays)
    await flat.start(leaves)
    gone = new_uuid()
    flat.world.dhcp[gone] = flat.dhcp
    flat.world.leases[gone] = {}
    flat.world.nat[gone] = flat.world.nat[flat.l3.uuid]
    await here.sim[0].die()
    await here.until_status(flat.host.uuid, "Disconnected")
    await flat.stop(leaves)
    assert await here.node.gc.open_jobs() == []
    here.sim[0].start(here.sim.port)
    await here.until_status(flat.host.uuid, "Connected")
    assert [one.hostname for one in flat.leases.values()] == ["stays"]
    assert list(flat.world.metadata[flat.l3.uuid]) == [stays.nics[0].ips[0].ip]
    assert gone not in flat.world.dhcp
    assert set(flat.world.nat) == {flat.l3.uuid}


async def test_a_release_that_fails_is_done_later_unless_the_guest_is_back(here: HostSite) -> None:
    flat = await Flat(here).build()
    vm, back = await flat.vm("gone"), await flat.vm("back")
    await flat.start(vm)
    await flat.start(back)
    here.sim.fault("error", p.ReleaseDhcp.path, code=p.NETWORK)
    await flat.stop(vm)
    await flat.stop(back)
    assert len(await here.node.gc.open_jobs()) == 2
    here.sim.heal()
    await flat.start(back)
    await here.node.gc.trigger_all()

    async def done() -> bool:
        return not await here.node.gc.open_jobs()

    await here.cloud.until(done)
    assert [one.hostname for one in flat.leases.values()] == ["back"]


@pytest.mark.parametrize(("protocol", "requests"), [(p.PROTOCOL_VERSION, 2), (2, 0), (1, 0)])
async def test_a_guests_commands_are_one_request_to_agents_that_take_several(
    here: HostSite, protocol: int, requests: int
) -> None:
    here.sim[0].protocol = protocol
    flat = await Flat(here).build()
    before, vm = here.sim[0].arrived.copy(), await flat.vm()
    await flat.start(vm)
    assert (set(flat.leases), set(flat.world.nat)) == ({vm.nics[0].mac}, {flat.l3.uuid})
    await flat.stop(vm)
    assert (flat.leases, flat.world.metadata[flat.l3.uuid]) == ({}, {})
    came = here.sim[0].arrived - before
    assert came.pop(p.Series.path, 0) == requests
    assert set(came) == {
        one.path for one in (p.ApplyDhcp, p.ApplyMetadata, p.ApplyNat, p.ReleaseDhcp, p.ReleaseMetadata)
    }
    assert set(came.values()) == {1}


async def test_a_command_that_fails_in_the_middle_ends_the_series_with_its_error(here: HostSite) -> None:
    flat = await Flat(here).build()
    here.sim.fault("error", p.ApplyMetadata.path, code=p.NETWORK)
    with pytest.raises(CloudError) as refused:
        await flat.start(await flat.vm())
    assert refused.value.code == p.NETWORK
    assert flat.leases
    assert flat.world.nat == {}


async def test_nothing_is_under_way_any_more_when_one_network_has_failed(
    here: HostSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat, other = await Flat(here).build(), Flat(here)
    other.l3 = await here.l3(flat.l2, name="other")
    await here.range(other.l3, "10.0.1.10", "10.0.1.19")
    await other.attach(ALL)
    vm, second = await flat.vm(), await other.vm()
    vm.nics.append(second.nics[0])
    send = driver.send

    async def refused_or_late(node: Any, host_uuid: str, commands: Any) -> None:
        if commands[0].l3_uuid == flat.l3.uuid:
            raise CloudError(INTERNAL, "refused")
        await asyncio.sleep(0.1)
        await send(node, host_uuid, commands)

    monkeypatch.setattr(driver, "send", refused_or_late)
    with pytest.raises(CloudError, match="refused"):
        await flat.start(vm)
    assert set(flat.world.leases) == {other.l3.uuid}, "it came before the failure was told, so the undo comes after it"


async def test_nics_come_and_go_one_by_one(here: HostSite) -> None:
    flat = await Flat(here).build()
    vm, provider = await flat.vm(), here.node.extensions.of(VmResourceProvider)[0]
    bare = VmSpec(vm_uuid=vm.vm_uuid, name="web", internal_id=1, cpu_num=1, memory=1, hostname="web")
    await provider.prepare_nic(bare, vm.nics[0], flat.host.uuid)
    assert set(flat.leases) == {vm.nics[0].mac}
    await provider.release_nic(bare, vm.nics[0], flat.host.uuid)
    assert flat.leases == {}


async def test_deleting_the_network_removes_it_from_the_hosts(here: HostSite) -> None:
    flat = await Flat(here).build()
    for one in here.node.extensions.of(VmResourceProvider):
        await one.prepare(
            VmSpec(vm_uuid=new_uuid(), name="x", internal_id=1, cpu_num=1, memory=1, nics=[
                NicSpec(nic_uuid=new_uuid(), l3_network_uuid=flat.l3.uuid, device_id=0, mac="fa:00:00:00:00:01",
                        ips=[NicIp(ip="10.0.0.10", netmask="255.255.0.0")])]),
            flat.host.uuid,
        )  # fmt: skip
    assert flat.l3.uuid in flat.world.dhcp
    here.sim.fault("error", p.DeleteDhcp.path, code=p.NETWORK)
    with pytest.raises(CloudError, match="a simulated failure"):
        await flat.api(DeleteL3Network(uuid=flat.l3.uuid))
    found = (await flat.bus.call(GetL3(l3_network_uuids=[flat.l3.uuid]))).networks[0]
    assert (found.state, len(found.ip_ranges)) == ("Enabled", 1)
    here.sim.heal()
    await flat.api(DeleteL3Network(uuid=flat.l3.uuid))
    assert flat.world.dhcp == flat.world.nat == {}


async def test_a_host_that_is_away_removes_a_deleted_network_when_it_is_back(here: HostSite) -> None:
    flat = await Flat(here).build()
    await flat.start(await flat.vm())
    here.machines.on.clear()
    await here.sim[0].die()
    await here.until_status(flat.host.uuid, "Disconnected")
    await flat.api(DeleteL3Network(uuid=flat.l3.uuid, delete_mode="Enforcing"))
    assert flat.world.dhcp
    here.sim[0].start(here.sim.port)
    await here.cloud.until(lambda: not flat.world.dhcp and not flat.world.nat, 20)


async def test_detaching_dhcp_removes_the_server_and_frees_its_address(here: HostSite) -> None:
    flat = await Flat(here).build()
    await flat.start(await flat.vm())
    await flat.api(DetachNetworkServiceFromL3Network(l3_network_uuid=flat.l3.uuid))
    assert flat.world.dhcp == flat.world.nat == {}
    assert await flat.server_ip() is None
    async with here.node.db.read() as session:
        used = here.node.resources.model("UsedIpVO").__table__
        rows = (await session.execute(used.select())).mappings().all()
    assert [row["used_for"] for row in rows] == ["VmNic"]


async def test_the_server_moves_to_another_range_when_its_own_is_deleted(here: HostSite) -> None:
    flat = await Flat(here).build(["DHCP"])
    found = (await flat.bus.call(GetL3(l3_network_uuids=[flat.l3.uuid]))).networks[0]
    await flat.api(
        AddIpRange(
            l3_network_uuid=flat.l3.uuid, name="second", start_ip="10.0.1.1", end_ip="10.0.1.5",
            netmask="255.255.0.0", gateway="10.0.0.1",
        )
    )  # fmt: skip
    await flat.api(DeleteIpRange(uuid=found.ip_ranges[0].uuid))
    await flat.start(await flat.vm())
    assert flat.dhcp.server_ip.startswith("10.0.1.")
    assert await flat.server_ip() == flat.dhcp.server_ip


async def test_snat_needs_a_private_network_and_userdata_needs_dhcp(here: HostSite) -> None:
    flat = await Flat(here).build(["DHCP"])
    flat.l3 = await here.l3(await here.l2("eth0"))
    with pytest.raises(CloudError, match="SNAT on private L2 networks only"):
        await flat.attach(["SNAT"])
    with pytest.raises(CloudError, match="attach DHCP with it"):
        await flat.attach(["Userdata"])
    found = (await flat.bus.call(GetL3(l3_network_uuids=[flat.l3.uuid]))).networks[0]
    assert found.network_services == []
