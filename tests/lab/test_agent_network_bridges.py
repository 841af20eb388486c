"""Bridges never touch what is the host's own; translation is a private network's way out and nobody's way in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import agent_network_lab as lab
import pytest

from caelum.agent.network import keeper, spoofing
from caelum.agent.network.state import NatState, Networks
from caelum.agent.protocol import (
    ApplyNat,
    CheckInterface,
    CreateBridge,
    DeleteBridge,
    DeleteNat,
    Nic,
)
from caelum.agent.registry import AgentFailure
from caelum.kernel.ids import new_uuid

pytestmark = pytest.mark.skipif(not lab.RUNS_HERE, reason=f"needs root and {lab.MISSING}")

MAC1, MAC2 = "fa:16:3e:00:00:01", "fa:16:3e:00:00:02"
EMPTY_HOST = {"bridges": [], "dhcp": {}, "metadata": {}, "nat": [], "taps": []}


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[lab.Host]:
    async with lab.host(tmp_path) as one:
        yield one


def private(bridge: str = "br-lab", l2_uuid: str | None = None) -> CreateBridge:
    return CreateBridge(l2_uuid=l2_uuid or new_uuid(), bridge=bridge, interface=None)


async def test_private_bridge(host: lab.Host) -> None:
    command = CreateBridge(l2_uuid=new_uuid(), bridge="br-lab", interface=None, mtu=1450)
    await host.do(command)
    made = lab.links("br-lab")
    await host.do(command)
    assert lab.links("br-lab")["ifindex"] == made["ifindex"]
    data = made["linkinfo"]["info_data"]
    assert (data["stp_state"], data["forward_delay"], data["mcast_snooping"]) == (0, 0, 0)
    assert (made["mtu"], made["ifalias"]) == (1450, f"caelum-l2:{command.l2_uuid}:")
    assert lab.addresses("br-lab") == [], "no IPv6 address either"
    assert (await host.dump())["bridges"] == ["br-lab"]


async def test_uplink_is_taken_and_given_back(host: lab.Host) -> None:
    lab.run("ip", "link", "add", "eth9", "type", "veth", "peer", "name", "wire")
    l2 = new_uuid()
    await host.do(CheckInterface(name="eth9"))
    await host.do(CreateBridge(l2_uuid=l2, bridge="br-lab", interface="eth9"))
    uplink = lab.links("eth9")
    assert uplink["master"] == "br-lab"
    assert "UP" in uplink["flags"]
    assert lab.links("br-lab")["address"] == uplink["address"]
    await host.do(DeleteBridge(l2_uuid=new_uuid(), bridge="br-lab"))
    assert lab.links("eth9")["master"] == "br-lab", "another L2 network's order"
    await host.do(DeleteBridge(l2_uuid=l2, bridge="br-lab"))
    assert "master" not in lab.links("eth9")


async def test_host_interfaces_are_refused(host: lab.Host) -> None:
    lab.run("ip", "link", "add", "eth8", "type", "veth", "peer", "name", "eth9")
    lab.run("ip", "addr", "add", "192.0.2.8/24", "dev", "eth8")
    with pytest.raises(AgentFailure, match=r"192\.0\.2\.8/24") as caught:
        await host.do(CreateBridge(l2_uuid=new_uuid(), bridge="br-lab", interface="eth8"))
    assert caught.value.facts["addresses"] == ["192.0.2.8/24"]
    with pytest.raises(AgentFailure, match="there is no interface eth7; there are eth8, eth9, lo"):
        await host.do(CheckInterface(name="eth7"))
    with pytest.raises(AgentFailure, match="MTU of 1500, the network needs 9000"):
        await host.do(CreateBridge(l2_uuid=new_uuid(), bridge="br-lab", interface="eth9", mtu=9000))
    lab.run("ip", "link", "add", "br-op", "type", "bridge")
    lab.run("ip", "link", "set", "eth9", "master", "br-op")
    with pytest.raises(AgentFailure, match="eth9 belongs to br-op"):
        await host.do(CreateBridge(l2_uuid=new_uuid(), bridge="br-lab", interface="eth9"))
    assert await host.dump() == EMPTY_HOST


async def test_operators_bridge_is_used_as_it_is(host: lab.Host) -> None:
    lab.run("ip", "link", "add", "eth8", "type", "veth", "peer", "name", "eth9")
    lab.run("ip", "link", "add", "br-op", "type", "bridge")
    lab.run("ip", "link", "set", "eth8", "master", "br-op")
    lab.run("ip", "addr", "add", "192.0.2.8/24", "dev", "br-op")
    with pytest.raises(AgentFailure, match="put eth9 into it"):
        await host.do(CreateBridge(l2_uuid=new_uuid(), bridge="br-op", interface="eth9"))
    command = CreateBridge(l2_uuid=new_uuid(), bridge="br-op", interface="eth8")
    await host.do(command)
    await host.do(DeleteBridge(l2_uuid=command.l2_uuid, bridge="br-op"))
    assert lab.links("eth8")["master"] == "br-op"
    assert lab.addresses("br-op") == ["192.0.2.8/24"]


async def test_bridge_with_guests_stays(host: lab.Host, tmp_path: Path) -> None:
    command = private()
    await host.do(command)
    host.guest("vnic1.0", "br-lab", MAC1, tmp_path)
    with pytest.raises(AgentFailure, match=r"vnic1\.0"):
        await host.do(DeleteBridge(l2_uuid=command.l2_uuid, bridge="br-lab"))
    with pytest.raises(AgentFailure, match=command.l2_uuid):
        await host.do(private())


async def test_two_private_networks_behind_translation(host: lab.Host, tmp_path: Path) -> None:
    """Both reach the world with the host's address; neither reaches the other, and the world reaches neither."""
    world = host.guest("wan0", None, "02:00:00:00:00:99", tmp_path)
    lab.run("ip", "addr", "add", "203.0.113.1/24", "dev", "wan0")
    world.run("ip", "addr", "add", "203.0.113.9/24", "dev", "eth0")
    natted = [new_uuid(), new_uuid()]
    guests = []
    for number, l3 in enumerate(natted, 1):
        bridge = f"br-{number}"
        await host.do(private(bridge))
        command = ApplyNat(l3_uuid=l3, bridge=bridge, gateway=f"10.{number}.0.1", cidr=f"10.{number}.0.0/24")
        for _ in range(2):
            await host.do(command)
        guest = host.guest(f"vnic{number}.0", bridge, f"fa:16:3e:00:00:0{number}", tmp_path)
        guest.run("ip", "addr", "add", f"10.{number}.0.11/24", "dev", "eth0")
        guest.run("ip", "route", "add", "default", "via", f"10.{number}.0.1")
        guests.append(guest)
    assert lab.addresses("br-1") == ["10.1.0.1/24"]
    first, second = guests
    assert first.pings("203.0.113.9"), "which knows no way back to 10.1.0.11"
    assert second.pings("203.0.113.9")
    assert not first.pings("10.2.0.11")
    world.run("ip", "route", "add", "10.0.0.0/8", "via", "203.0.113.1")
    assert not world.pings("10.1.0.11")
    world.run("ip", "route", "delete", "10.0.0.0/8")
    lab.run("nft", "flush", "ruleset")
    assert not first.pings("203.0.113.9")
    await keeper.look(host.agent)
    assert first.pings("203.0.113.9"), "the translation is back"
    assert sorted((await host.dump())["nat"]) == sorted(natted)
    with pytest.raises(AgentFailure, match=r"overlaps 10\.1\.0\.1/24 of this host's br-1"):
        await host.do(ApplyNat(l3_uuid=new_uuid(), bridge="br-2", gateway="10.1.0.129", cidr="10.1.0.128/25"))

    await host.do(DeleteNat(l3_uuid=natted[0], bridge="br-1"))
    assert second.pings("203.0.113.9"), "forwarding stays while somebody needs it"
    for _ in range(2):
        await host.do(DeleteNat(l3_uuid=natted[1], bridge="br-2"))
    assert lab.run("cat", "/proc/sys/net/ipv4/ip_forward") == "0\n"
    assert lab.addresses("br-2") == []
    assert lab.run("nft", "list", "tables") == ""


async def test_foreign_firewall_is_told_of_and_left_alone(host: lab.Host) -> None:
    await host.do(private())
    lab.run("nft", "add", "table", "ip", "site")
    lab.run("nft", "add", "chain", "ip", "site", "fw", "{ type filter hook forward priority 0; policy drop; }")
    before = lab.run("nft", "list", "table", "ip", "site")
    l3 = new_uuid()
    command = ApplyNat(l3_uuid=l3, bridge="br-lab", gateway="10.1.0.1", cidr="10.1.0.0/24")
    with pytest.raises(AgentFailure, match="ip site fw") as caught:
        await host.do(command)
    assert caught.value.facts["chains"] == ["ip site fw"]
    assert lab.run("nft", "list", "table", "ip", "site") == before
    lab.run("nft", "add", "rule", "ip", "site", "fw", "iifname", "br-lab", "accept")
    await host.do(command)
    await host.do(DeleteNat(l3_uuid=l3, bridge="br-lab"))


async def test_guest_speaks_only_as_itself(host: lab.Host, tmp_path: Path) -> None:
    await host.do(private())
    guest = host.guest("vnic1.0", "br-lab", MAC1, tmp_path)
    peer = host.guest("vnic2.0", "br-lab", MAC2, tmp_path)
    guest.run("ip", "addr", "add", "10.1.0.11/24", "dev", "eth0")
    guest.run("ip", "addr", "add", "10.1.0.66/24", "dev", "eth0")
    peer.run("ip", "addr", "add", "10.1.0.12/24", "dev", "eth0")
    nic = Nic(nic_uuid=new_uuid(), device_id=0, mac=MAC1, name="vnic1.0", bridge="br-lab", ips=["10.1.0.11"])
    for _ in range(2):
        await spoofing.plugged(host.agent, nic)
    assert (await host.dump())["taps"] == ["vnic1.0"]

    def answers(source: str) -> bool:
        peer.run("ip", "neigh", "flush", "dev", "eth0")
        guest.run("ip", "neigh", "flush", "dev", "eth0")
        return "1 received" in guest.run("ping", "-c1", "-W1", "-I", source, "10.1.0.12", check=False)

    assert answers("10.1.0.11")
    assert not answers("10.1.0.66"), "another address"
    assert "Received 0" in peer.run("busybox", "arping", "-c", "1", "-w", "1", "-I", "eth0", "10.1.0.66", check=False)
    assert "Received 1" in peer.run("busybox", "arping", "-c", "1", "-w", "2", "-I", "eth0", "10.1.0.11", check=False)
    guest.run("ip", "link", "set", "eth0", "address", "fa:16:3e:00:00:77")
    assert not answers("10.1.0.11"), "another MAC"
    guest.run("ip", "link", "set", "eth0", "address", MAC1)
    assert answers("10.1.0.11")

    lab.run("nft", "flush", "ruleset")
    assert answers("10.1.0.66")
    await keeper.look(host.agent)
    assert not answers("10.1.0.66"), "the guard is back"

    await spoofing.unplugged(host.agent, nic)
    assert answers("10.1.0.66")
    await spoofing.unplugged(host.agent, nic)
    assert (await host.dump())["taps"] == []


async def test_what_a_boot_took_is_forgotten(host: lab.Host) -> None:
    """After a boot the files are there, and nothing that they tell of."""
    before = Networks(host.agent.state_dir)
    l3 = new_uuid()
    nic = Nic(nic_uuid=new_uuid(), device_id=0, mac=MAC1, name="vnic1.0", bridge="br-lab", ips=["10.1.0.11"])
    before.save_bridge(private())
    before.save_tap(nic)
    before.save_nat(NatState(command=ApplyNat(l3_uuid=l3, bridge="br-lab", gateway="10.1.0.1", cidr="10.1.0.0/24")))
    lab.run("nft", "add", "table", "netdev", "caelum-tap-vnic2.0")
    await keeper.started(host.agent)
    await keeper.look(host.agent)
    assert (before.bridges(), before.taps(), list(before.all_nat())) == ([], [], [])
    assert lab.run("nft", "list", "tables") == ""
