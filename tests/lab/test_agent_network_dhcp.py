"""Guests of an L3 network get their lease, names and metadata from their host, and from nobody else."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import agent_network_lab as lab
import pytest

from caelum.agent.network import keeper, processes
from caelum.agent.network import metadata as metadata_module
from caelum.agent.network.dnsmasq import Dnsmasq
from caelum.agent.network.state import Networks
from caelum.agent.protocol import (
    ApplyDhcp,
    ApplyMetadata,
    CreateBridge,
    DeleteBridge,
    DeleteDhcp,
    DhcpEntry,
    HostRoute,
    MetadataEntry,
    ReleaseDhcp,
    ReleaseMetadata,
)
from caelum.agent.registry import AgentFailure
from caelum.kernel.ids import new_uuid

pytestmark = pytest.mark.skipif(not lab.RUNS_HERE, reason=f"needs root and {lab.MISSING}")

MAC1, MAC2, MAC3 = "fa:16:3e:00:00:01", "fa:16:3e:00:00:02", "fa:16:3e:00:00:03"
L2 = new_uuid()


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[lab.Host]:
    async with lab.host(tmp_path) as one:
        yield one


def dhcp(l3_uuid: str, *entries: DhcpEntry, **changes: object) -> ApplyDhcp:
    fields = {
        "bridge": "br-lab", "server_ip": "10.7.0.2", "netmask": "255.255.255.0", "gateway": "10.7.0.1",
        "dns": ["192.0.2.53"], "domain": "lab.test", "mtu": 1450, **changes,
    }  # fmt: skip
    return ApplyDhcp(l3_uuid=l3_uuid, entries=list(entries), **fields)  # type: ignore[arg-type]


def entry(mac: str, last: int, *, is_default: bool = True) -> DhcpEntry:
    return DhcpEntry(mac=mac, ip=f"10.7.0.{last}", hostname=f"web-{last}", is_default=is_default)


async def test_lease_routes_names_and_metadata(host: lab.Host, tmp_path: Path) -> None:
    l3 = new_uuid()
    await host.do(CreateBridge(l2_uuid=L2, bridge="br-lab", interface=None))
    await host.do(dhcp(l3, entry(MAC1, 11), host_routes=[HostRoute(prefix="10.20.0.0/16", nexthop="10.7.0.254")]))
    key = "ssh-ed25519 AAAA one@lab"
    vm = MetadataEntry(ip="10.7.0.11", vm_uuid="vm-1", hostname="web-11", ssh_keys=[key], user_data="#!/bin/sh\ntrue\n")
    await host.do(ApplyMetadata(l3_uuid=l3, entries=[vm]))
    guest = host.guest("vnic1.0", "br-lab", MAC1, tmp_path)

    lease = guest.dhcp()
    assert lease["ip"] == "10.7.0.11"
    assert lease["subnet"] == "255.255.255.0"
    assert (lease["router"], lease["dns"], lease["domain"]) == ("10.7.0.1", "192.0.2.53", "lab.test")
    assert (lease["hostname"], lease["mtu"], lease["serverid"]) == ("web-11", "1450", "10.7.0.2")
    routes = lease["staticroutes"].split()
    assert dict(zip(routes[::2], routes[1::2], strict=True)) == {
        "169.254.169.254/32": "10.7.0.2", "10.20.0.0/16": "10.7.0.254", "0.0.0.0/0": "10.7.0.1",
    }  # fmt: skip

    base = "http://169.254.169.254"
    assert guest.get(f"{base}/latest/meta-data/instance-id") == "vm-1"
    assert guest.get(f"{base}/2009-04-04/meta-data/public-keys/0/openssh-key") == key
    assert guest.get(f"{base}/latest/user-data") == "#!/bin/sh\ntrue\n"
    assert "10.7.0.11" in guest.run("busybox", "nslookup", "web-11.lab.test", "10.7.0.2")

    # A second guest comes; the first's entry stays, and each is told its own things only.
    await host.do(dhcp(l3, entry(MAC2, 12)))
    other = host.guest("vnic2.0", "br-lab", MAC2, tmp_path)
    assert other.dhcp()["ip"] == "10.7.0.12"
    assert other.get(f"{base}/latest/meta-data/instance-id") is None
    assert "10.7.0.12" in guest.run("busybox", "nslookup", "web-12.lab.test", "10.7.0.2")
    assert other.pings("10.7.0.11")
    dump = await host.dump()
    assert dump["dhcp"] == {l3: [MAC1, MAC2]}
    assert dump["metadata"] == {l3: ["10.7.0.11"]}

    await host.do(ReleaseMetadata(l3_uuid=l3, ips=["10.7.0.11"]))
    assert guest.get(f"{base}/latest/meta-data/instance-id") is None


async def test_network_that_is_not_the_default_one(host: lab.Host, tmp_path: Path) -> None:
    await host.do(CreateBridge(l2_uuid=L2, bridge="br-lab", interface=None))
    await host.do(dhcp(new_uuid(), entry(MAC1, 11, is_default=False)))
    lease = host.guest("vnic1.0", "br-lab", MAC1, tmp_path).dhcp()
    assert lease["ip"] == "10.7.0.11"
    assert {"router", "dns", "staticroutes"} & set(lease) == set()


async def test_address_given_to_another_guest(host: lab.Host, tmp_path: Path) -> None:
    l3 = new_uuid()
    await host.do(CreateBridge(l2_uuid=L2, bridge="br-lab", interface=None))
    await host.do(dhcp(l3, entry(MAC1, 11)))
    first = host.guest("vnic1.0", "br-lab", MAC1, tmp_path)
    assert first.dhcp()["ip"] == "10.7.0.11"
    await host.do(ReleaseDhcp(l3_uuid=l3, macs=[MAC1]))
    assert first.dhcp(tries=2) == {}
    await host.do(dhcp(l3, entry(MAC2, 11)))
    assert host.guest("vnic2.0", "br-lab", MAC2, tmp_path).dhcp()["ip"] == "10.7.0.11"


async def test_rebuild_replaces_and_stranger_gets_nothing(host: lab.Host, tmp_path: Path) -> None:
    l3 = new_uuid()
    await host.do(CreateBridge(l2_uuid=L2, bridge="br-lab", interface=None))
    await host.do(dhcp(l3, entry(MAC1, 11), entry(MAC2, 12)))
    await host.do(dhcp(l3, entry(MAC2, 22), rebuild=True))
    assert host.guest("vnic2.0", "br-lab", MAC2, tmp_path).dhcp()["ip"] == "10.7.0.22"
    assert host.guest("vnic1.0", "br-lab", MAC1, tmp_path).dhcp(tries=2) == {}
    assert (await host.dump())["dhcp"] == {l3: [MAC2]}


async def test_two_networks_on_one_bridge(host: lab.Host, tmp_path: Path) -> None:
    await host.do(CreateBridge(l2_uuid=L2, bridge="br-lab", interface=None))
    await host.do(dhcp(new_uuid(), entry(MAC1, 11)))
    other = DhcpEntry(mac=MAC2, ip="10.8.0.12", hostname="db")
    await host.do(dhcp(new_uuid(), other, server_ip="10.8.0.2", gateway="10.8.0.1"))
    assert host.guest("vnic1.0", "br-lab", MAC1, tmp_path).dhcp()["serverid"] == "10.7.0.2"
    assert host.guest("vnic2.0", "br-lab", MAC2, tmp_path).dhcp()["ip"] == "10.8.0.12"


async def test_foreign_server_is_not_heard(host: lab.Host, tmp_path: Path) -> None:
    """A rogue guest, and a server behind the uplink, answer faster or slower: ours alone counts. Strangers are free."""
    uplink = host.guest("uplink0", None, "02:00:00:00:00:99", tmp_path)
    rogue = host.guest("vnic9.0", None, "fa:16:3e:00:00:99", tmp_path)
    await host.do(CreateBridge(l2_uuid=L2, bridge="br-lab", interface="uplink0"))
    lab.run("ip", "link", "set", "vnic9.0", "master", "br-lab")
    for number, server in enumerate((uplink, rogue)):
        server.run("ip", "addr", "add", f"10.7.0.{200 + number}/24", "dev", "eth0")
        server.run(
            "dnsmasq", "--port=0", "--dhcp-authoritative", "--leasefile-ro", "--no-ping", "--conf-file=/dev/null",
            f"--dhcp-range=10.7.0.{100 + number * 20},10.7.0.{110 + number * 20}", "--user=root", "--bind-interfaces",
            "--interface=eth0", f"--pid-file={tmp_path}/rogue{number}.pid",
        )  # fmt: skip
    try:
        l3 = new_uuid()
        await host.do(dhcp(l3, entry(MAC1, 11)))
        guest = host.guest("vnic1.0", "br-lab", MAC1, tmp_path)
        assert guest.dhcp()["serverid"] == "10.7.0.2"
        await host.do(ReleaseDhcp(l3_uuid=l3, macs=[MAC1]))
        await host.do(dhcp(l3, entry(MAC2, 12)))
        mine = host.guest("vnic2.0", "br-lab", MAC2, tmp_path)
        os.kill(_pid(host, l3), signal.SIGKILL)
        assert mine.dhcp(tries=2) == {}, "a foreign server answered"
        # Ours does not answer through the uplink, not even ARP; a stranger behind it is served by the stranger there.
        assert not uplink.pings("10.7.0.2")
        stranger = host.guest("vnic3.0", "br-lab", MAC3, tmp_path)
        assert stranger.dhcp()["serverid"] in ("10.7.0.200", "10.7.0.201")
    finally:
        for number in range(2):
            os.kill(int((tmp_path / f"rogue{number}.pid").read_text()), signal.SIGTERM)


async def test_forwarded_names(host: lab.Host, tmp_path: Path) -> None:
    upstream = host.guest("vnic8.0", None, "fa:16:3e:00:00:88", tmp_path)
    await host.do(CreateBridge(l2_uuid=L2, bridge="br-lab", interface=None))
    lab.run("ip", "link", "set", "vnic8.0", "master", "br-lab")
    upstream.run("ip", "addr", "add", "10.7.0.1/24", "dev", "eth0")
    upstream.run("ip", "addr", "add", "192.0.2.53/32", "dev", "lo")
    upstream.run(
        "dnsmasq", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--address=/world.test/203.0.113.9",
        "--user=root",
        f"--pid-file={tmp_path}/up.pid", "--bind-interfaces", "--listen-address=192.0.2.53",
    )  # fmt: skip
    try:
        await host.do(dhcp(new_uuid(), entry(MAC1, 11), dns=["10.7.0.2", "192.0.2.53"], forward_dns=True))
        guest = host.guest("vnic1.0", "br-lab", MAC1, tmp_path)
        assert guest.dhcp()["dns"] == "10.7.0.2"
        assert "203.0.113.9" in guest.run("busybox", "nslookup", "www.world.test", "10.7.0.2", check=False)
        assert "10.7.0.11" in guest.run("busybox", "nslookup", "web-11.lab.test", "10.7.0.2")
    finally:
        os.kill(int((tmp_path / "up.pid").read_text()), signal.SIGTERM)


async def test_restarted_agent_adopts_and_revives(host: lab.Host, tmp_path: Path) -> None:
    l3 = new_uuid()
    await host.do(CreateBridge(l2_uuid=L2, bridge="br-lab", interface=None))
    await host.do(dhcp(l3, entry(MAC1, 11)))
    await host.do(ApplyMetadata(l3_uuid=l3, entries=[MetadataEntry(ip="10.7.0.11", vm_uuid="vm-1", hostname="web-11")]))
    guest = host.guest("vnic1.0", "br-lab", MAC1, tmp_path)
    assert guest.dhcp()["ip"] == "10.7.0.11"
    before = _pid(host, l3), metadata_module.pid(host.agent, l3)

    again = lab.Host(host.agent.state_dir, host.agent.http)
    await again.do(dhcp(l3, entry(MAC1, 11), rebuild=True))
    assert (_pid(again, l3), metadata_module.pid(again.agent, l3)) == before, "a running server was disturbed"

    # Files that an agent wrote, and died before it told the server, are taken notice of by the next command.
    server = Dnsmasq(l3)
    server.write(dhcp(l3, entry(MAC1, 11), entry(MAC2, 12)), reaches_gateway=True)
    await again.do(dhcp(l3, entry(MAC2, 12)))
    assert host.guest("vnic2.0", "br-lab", MAC2, tmp_path).dhcp()["ip"] == "10.7.0.12"
    assert _pid(again, l3) == before[0]

    for pid in before:
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await processes.stop(host.agent, [pid])
    lab.run("nft", "delete", "table", "bridge", "caelum-dhcp")
    await keeper.look(again.agent)
    assert "caelum-dhcp" in lab.run("nft", "list", "tables")
    assert guest.dhcp()["ip"] == "10.7.0.11"
    assert guest.get("http://169.254.169.254/latest/meta-data/hostname") == "web-11"
    await again.agent.close()


async def test_everything_goes(host: lab.Host) -> None:
    l3 = new_uuid()
    await host.do(CreateBridge(l2_uuid=L2, bridge="br-lab", interface=None))
    await host.do(dhcp(l3, entry(MAC1, 11)))
    with pytest.raises(AgentFailure, match="still has the ports cd"):
        await host.do(DeleteBridge(l2_uuid=L2, bridge="br-lab"))
    for _ in range(2):
        await host.do(DeleteDhcp(l3_uuid=l3, bridge="br-lab"))
        await host.do(DeleteBridge(l2_uuid=L2, bridge="br-lab"))
    assert await host.dump() == {"bridges": [], "dhcp": {}, "metadata": {}, "nat": [], "taps": []}
    assert not Networks(host.agent.state_dir).folder(l3).exists()
    assert lab.run("nft", "list", "tables") == ""


def _pid(host: lab.Host, l3_uuid: str) -> int:
    pid = Dnsmasq(l3_uuid).pid()
    assert pid is not None
    return pid
