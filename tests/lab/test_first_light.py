"""First light: a guest made through the API is on the network, with its console, identity, names and neighbours."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
from agent_vm_lab import read_until
from cloud_lab import LabCloud
from first_light_lab import Guest, name_server

pytestmark = pytest.mark.timeout(400)

METADATA = "http://169.254.169.254"


def test_the_first_guest_is_there(cloud: LabCloud, web: Guest) -> None:
    first = Guest(web._lab, cloud.bystander)
    assert first.pings(5)
    told = first.info()
    assert told["hostname"] == ["first"]
    assert f"eth0 {first.address}/24" in told["address"]
    assert "The cloud refused" not in cloud.said


def test_log_in_on_the_serial_console(cloud: LabCloud, web: Guest) -> None:
    """As `caelum vm console` and the page do it; Enter is a carriage return."""
    access = cloud.client.call("RequestConsoleAccess", vmInstanceUuid=web.uuid)
    url = f"{access['scheme']}://{access['hostname']}:{access['port']}/serial"

    async def log_in() -> None:
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(url, params={"token": access["token"]}, protocols=("binary",)) as line,
        ):
            for typed, shown in (
                ("\r", "web login: "),
                ("root\r", "Password: "),
                ("caelum\r", "~ # "),
                ("echo six times seven is $((6*7))\r", "six times seven is 42"),
                ("exit\r", "web login: "),
            ):
                await line.send_bytes(typed.encode())
                await read_until(line, shown, 30)

    asyncio.run(log_in())


def test_address_routes_and_resolver(web: Guest) -> None:
    nic, told = web.nic, web.info()
    assert told["hostname"] == ["web"]
    assert web.sh("cat /sys/class/net/eth0/address") == nic["mac"]
    assert f"eth0 {nic['ip']}/24" in told["address"]
    assert any(route.startswith(f"default via {nic['gateway']}") for route in told["route"])
    assert web.sh(f"ping -c 1 -W 5 {nic['gateway']}")
    assert any(line.startswith("nameserver ") for line in told["dns"])
    assert told["cpus"] == ["1"]
    assert 80_000 < int(told["memory"][0]) < 131_072


def test_metadata_and_user_data(web: Guest) -> None:
    def fetch(path: str) -> str:
        return web.sh(f"wget -q -O - {METADATA}/{path}")

    assert fetch("latest/meta-data/instance-id") == web.uuid
    assert fetch("latest/meta-data/local-hostname") == "web"
    assert fetch("latest/meta-data/local-ipv4") == web.address
    assert fetch("latest/meta-data/public-keys/0/openssh-key") == web._lab.public_key
    assert "/root/runs" in fetch("latest/user-data")
    assert web.sh("cat /root/runs") == "on web"


def test_metadata_is_each_guests_own(web: Guest, peer: Guest) -> None:
    assert peer.sh(f"wget -q -O - {METADATA}/latest/meta-data/instance-id") == peer.uuid
    assert peer.ssh("test -e /root/runs").returncode != 0


def test_guests_find_each_other_by_name(web: Guest, peer: Guest) -> None:
    for name, address in (("peer", peer.address), ("first", web._lab.cloud.bystander["vmNics"][0]["ip"])):
        assert address in web.sh(f"nslookup {name}")
    assert web.sh("wget -q -O - http://peer/cgi-bin/info").startswith("hostname peer")
    assert peer.sh("wget -q -O - http://web/cgi-bin/info").startswith("hostname web")


def test_names_of_the_world_are_forwarded(cloud: LabCloud, web: Guest) -> None:
    network = web.nic["l3NetworkUuid"]
    with name_server(cloud, "192.0.2.53", "192.0.2.80"):
        cloud.client.call("AddDnsToL3Network", l3NetworkUuid=network, dns="192.0.2.53")
        try:
            web.until("nslookup www.example.org | grep -q 192.0.2.80", "a name of the world resolves")
        finally:
            cloud.client.call("RemoveDnsFromL3Network", l3NetworkUuid=network, dns="192.0.2.53")


def test_a_forged_address_reaches_nobody(web: Guest, peer: Guest) -> None:
    assert web.sh(f"ping -c 1 -W 5 {peer.address}")
    network = web.nic["l3NetworkUuid"]  # an address that is nobody's: the DHCP server's is drawn from the same range
    forged = web._lab.client.call("GetFreeIp", l3NetworkUuid=network, limit=1)[0]["ip"]
    web.sh(f"ip address add {forged}/32 dev eth0")
    try:
        assert web.ssh(f"ping -c 2 -W 2 -I {forged} {peer.address}").returncode != 0
        web.ssh(f"arping -c 2 -U -I eth0 -s {forged} {forged}")
        assert forged not in peer.sh("cat /proc/net/arp").split()
    finally:
        web.sh(f"ip address delete {forged}/32 dev eth0")
    assert web.sh(f"ping -c 1 -W 5 {peer.address}")


def test_a_forged_mac_reaches_nobody(web: Guest, peer: Guest) -> None:
    change = "ip link set eth0 down; ip link set eth0 address {}; ip link set eth0 up"
    script = (
        f"({change.format('02:00:00:00:00:66')}; sleep 1; ping -c 2 -W 2 {peer.address} > /tmp/forged 2>&1;"
        f" {change.format(web.nic['mac'])}; kill -USR1 $(cat /run/udhcpc.eth0.pid); echo over >> /tmp/forged)"
        " > /dev/null 2>&1 < /dev/null &"
    )
    web.sh(script)
    web.until("grep -q over /tmp/forged", "the forger is back with its own address", 60)
    assert "2 packets transmitted, 0 packets received" in web.sh("cat /tmp/forged")
    assert web.sh(f"ping -c 1 -W 5 {peer.address}")


def test_the_auditor_finds_nothing(cloud: LabCloud, web: Guest) -> None:
    report = cloud.audit()
    assert report["findings"] == [], json.dumps(report["findings"], indent=1)
