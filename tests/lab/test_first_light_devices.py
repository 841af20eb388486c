"""What an operation does is seen inside the guest: power, hot-plugged volumes, hot-plugged NICs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cloud_lab import LabCloud
from first_light_lab import Guest, Guests, settled

pytestmark = pytest.mark.timeout(400)

GIB = 1 << 30


@pytest.fixture
def volume(cloud: LabCloud) -> Iterator[dict[str, Any]]:
    """A data volume of 1 GiB."""
    offering = cloud.client.query("DiskOffering", "name=1G")[0]
    made = cloud.client.call("CreateDataVolume", name="data", diskOfferingUuid=offering["uuid"])
    yield made
    if cloud.client.query("Volume", f"uuid={made['uuid']}")[0].get("vmInstanceUuid"):
        cloud.client.call("DetachDataVolumeFromVm", uuid=made["uuid"])
    cloud.client.call("DeleteDataVolume", uuid=made["uuid"])
    cloud.client.call("ExpungeDataVolume", uuid=made["uuid"])


@pytest.fixture
def second_network(cloud: LabCloud) -> Iterator[str]:
    """An L3 network with DHCP on an L2 network of its own."""
    call, zone, cluster = cloud.client.call, cloud.bystander["zoneUuid"], cloud.bystander["clusterUuid"]
    l2 = call("CreateL2NoVlanNetwork", name="second", zoneUuid=zone, physicalInterface="private1")["uuid"]
    call("AttachL2NetworkToCluster", l2NetworkUuid=l2, clusterUuid=cluster)
    l3 = call("CreateL3Network", name="second", l2NetworkUuid=l2, type="L3BasicNetwork")["uuid"]
    call("AddIpRangeByNetworkCidr", name="second", l3NetworkUuid=l3, networkCidr="10.88.0.0/24")
    flat = cloud.client.query("NetworkServiceProvider", "type=Flat")[0]["uuid"]
    call("AttachNetworkServiceToL3Network", l3NetworkUuid=l3, networkServices={flat: ["DHCP", "Userdata"]})
    yield l3
    call("DeleteL2Network", uuid=l2)
    assert not cloud.client.query("L3Network", f"uuid={l3}")


def _attach(guest: Guest, volume: dict[str, Any]) -> str:
    """Attach a volume; the disk that it is inside."""
    guest._lab.client.call("AttachDataVolumeToVm", vmInstanceUuid=guest.uuid, volumeUuid=volume["uuid"])
    guest._lab.cloud.until(lambda: guest.disk(volume["uuid"]), 30, "the guest has the disk")
    disk = guest.disk(volume["uuid"])
    assert disk is not None
    return disk


def _detach(guest: Guest, volume: dict[str, Any]) -> None:
    guest._lab.client.call("DetachDataVolumeFromVm", uuid=volume["uuid"])
    guest._lab.cloud.until(lambda: not guest.disk(volume["uuid"]), 30, "the guest's disk is gone")


def test_stop_and_start(web: Guest) -> None:
    boot, address = web.boot_id(), web.address
    web.sh("echo kept > /root/kept && sync")
    assert web.call("StopVmInstance")["state"] == "Stopped"
    assert settled(2, lambda: not web.pings())
    assert web._lab.cloud.guest_pid(web.uuid) is None
    started = time.monotonic()
    assert web.call("StartVmInstance")["state"] == "Running"
    web.is_up()
    assert web.boot_id() != boot
    assert web.uptime() < time.monotonic() - started + 1
    assert web.address == address
    assert web.sh("cat /root/kept") == "kept"
    assert web.sh("cat /root/runs") == "on web", "the user data ran once, not at each boot"


def test_reboot(web: Guest) -> None:
    boot = web.boot_id()
    assert web.call("RebootVmInstance")["state"] == "Running"
    web._lab.cloud.until(lambda: web.ssh("true").returncode == 0 and web.boot_id() != boot, 150, "another boot")
    assert web.sh("cat /root/runs") == "on web"


def test_pause_and_resume(web: Guest) -> None:
    boot, uptime, begun = web.boot_id(), web.uptime(), time.monotonic()
    assert web.call("PauseVmInstance")["state"] == "Paused"
    paused = time.monotonic()
    assert settled(4, lambda: not web.pings())
    assert web.call("ResumeVmInstance")["state"] == "Running"
    stood_still = time.monotonic() - paused
    web.is_up()
    assert web.boot_id() == boot
    assert web.uptime() - uptime < time.monotonic() - begun - stood_still + 1, "its clock stood still"


def test_volume_comes_and_goes(web: Guest, volume: dict[str, Any]) -> None:
    disk = _attach(web, volume)
    assert int(web.sh(f"cat /sys/block/{disk}/size")) * 512 == GIB
    web.sh(f"printf precious | dd of=/dev/{disk} bs=512 seek=2000000 conv=sync 2>/dev/null; sync")
    web.call("StopVmInstance")
    web.call("StartVmInstance")
    web.is_up()
    read = "dd if=/dev/{} bs=512 skip=2000000 count=1 2>/dev/null | head -c 8"
    assert web.sh(read.format(web.disk(volume["uuid"]))) == "precious"
    _detach(web, volume)
    assert web.sh(read.format(_attach(web, volume))) == "precious"
    _detach(web, volume)


def test_volume_goes_from_guest_to_stopped_guest(web: Guest, peer: Guest, volume: dict[str, Any]) -> None:
    disk = _attach(web, volume)
    web.sh(f"printf moved | dd of=/dev/{disk} bs=512 conv=sync 2>/dev/null; sync")
    _detach(web, volume)
    peer.call("StopVmInstance")
    web._lab.client.call("AttachDataVolumeToVm", vmInstanceUuid=peer.uuid, volumeUuid=volume["uuid"])
    peer.call("StartVmInstance")
    peer.is_up()
    assert peer.sh(f"head -c 5 /dev/{peer.disk(volume['uuid'])}") == "moved"
    _detach(peer, volume)


def test_nic_comes_and_goes(guests: Guests, web: Guest, second_network: str) -> None:
    routes = web.sh("ip route | grep default")
    guests.client.call("AttachL3NetworkToVm", vmInstanceUuid=web.uuid, l3NetworkUuid=second_network)
    nic = next(one for one in web.vm["vmNics"] if one["l3NetworkUuid"] == second_network)
    web.until(f"ip address show eth1 | grep -q 'inet {nic['ip']}/24'", "the second NIC has its address")
    assert web.sh("cat /sys/class/net/eth1/address") == nic["mac"]
    assert web.sh("ip route | grep default") == routes, "the default route stays where it was"
    guests.client.call("DetachL3NetworkFromVm", vmNicUuid=nic["uuid"])
    web.until("! test -e /sys/class/net/eth1", "the second NIC is gone")
    assert web.pings(5)


def test_guests_meet_on_the_second_network(guests: Guests, web: Guest, peer: Guest, second_network: str) -> None:
    for guest in (web, peer):
        guests.client.call("AttachL3NetworkToVm", vmInstanceUuid=guest.uuid, l3NetworkUuid=second_network)
    there = {one.name: next(nic for nic in one.vm["vmNics"] if nic["l3NetworkUuid"] == second_network)
             for one in (web, peer)}  # fmt: skip
    peer.until(f"ip address show eth1 | grep -q 'inet {there['peer']['ip']}/24'", "peer's address")
    web.until(f"ping -c 1 -W 2 {there['peer']['ip']}", "web reaches peer on the second network")
    for nic in there.values():
        guests.client.call("DetachL3NetworkFromVm", vmNicUuid=nic["uuid"])


def test_the_auditor_finds_nothing(cloud: LabCloud, web: Guest) -> None:
    report = cloud.audit()
    assert report["findings"] == [], json.dumps(report["findings"], indent=1)
