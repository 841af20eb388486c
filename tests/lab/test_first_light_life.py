"""The ends of things: destroyed guests come back or go for good, images go while they are used, refusals explain."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud_lab import LabCloud
from first_light_lab import Guest, Guests

from caelum.sdk import ApiError

pytestmark = pytest.mark.timeout(400)

TIB = 1 << 40


@pytest.fixture
def brief(guests: Guests) -> Iterator[Guest]:
    """A guest for one test."""
    guest = guests.make("brief")
    yield guest
    found = guests.client.query("VmInstance", f"uuid={guest.uuid}")
    if found:
        if found[0]["state"] != "Destroyed":
            guest.call("DestroyVmInstance")
        guest.call("ExpungeVmInstance")


def test_destroy_recover_expunge(cloud: LabCloud, guests: Guests, brief: Guest) -> None:
    brief.is_up().sh("echo kept > /root/kept && sync")
    root = Path(cloud.client.query("Volume", f"uuid={brief.vm['rootVolumeUuid']}")[0]["installPath"])
    brief.call("DestroyVmInstance")
    assert brief.vm["state"] == "Destroyed"
    assert cloud.guest_pid(brief.uuid) is None
    assert root.exists()
    assert brief.call("RecoverVmInstance")["state"] == "Stopped"
    brief.call("StartVmInstance")
    assert brief.is_up().sh("cat /root/kept") == "kept"
    brief.call("DestroyVmInstance")
    brief.call("ExpungeVmInstance")
    assert not cloud.client.query("VmInstance", f"uuid={brief.uuid}")
    assert not cloud.client.query("Volume", f"uuid={root.stem}")
    cloud.until(lambda: not root.exists(), 20, "the root volume's file is gone")
    with pytest.raises(ApiError) as refused:
        brief.call("RecoverVmInstance")
    assert brief.uuid in str(refused.value)


def test_an_image_goes_while_a_guest_uses_it(cloud: LabCloud, guests: Guests) -> None:
    call = cloud.client.call
    backup = cloud.client.query("BackupStorage")[0]["uuid"]
    image = call(
        "AddImage", name="brief", url=f"file://{cloud.layout.guest_image}", mediaType="RootVolumeTemplate",
        format="qcow2", platform="Linux", backupStorageUuids=[backup],
    )["uuid"]  # fmt: skip
    guest = guests.make("orphan", imageUuid=image).is_up()
    call("DeleteImage", uuid=image)
    call("ExpungeImage", imageUuid=image)
    with pytest.raises(ApiError) as refused:
        guests.make("late", imageUuid=image)
    assert image in str(refused.value)
    boot = guest.boot_id()
    guest.call("StopVmInstance")
    guest.call("StartVmInstance")
    assert guest.is_up().boot_id() != boot
    guests.remove(guest)


def test_a_vm_too_large_is_told_the_numbers(cloud: LabCloud, guests: Guests) -> None:
    large = cloud.client.call("CreateInstanceOffering", name="large", cpuNum=2, memorySize=TIB)["uuid"]
    with pytest.raises(ApiError) as refused:
        guests.make("large", instanceOfferingUuid=large)
    told = str(refused.value)
    assert str(TIB) in told or "1024" in told, told
    assert "memory" in told.lower()
    assert refused.value.code == "VM.1000"
    assert not cloud.client.query("VmInstance", "name=large")
    cloud.client.call("DeleteInstanceOffering", uuid=large)


def test_a_volume_too_large_is_told_the_numbers(cloud: LabCloud, guests: Guests) -> None:
    client = cloud.client
    size = 100 * TIB
    volume = client.call("CreateDataVolume", name="vast", diskSize=size)["uuid"]
    with pytest.raises(ApiError) as refused:
        client.call("AttachDataVolumeToVm", vmInstanceUuid=cloud.bystander["uuid"], volumeUuid=volume)
    assert str(size) in str(refused.value) or "100" in str(refused.value)
    client.call("DeleteDataVolume", uuid=volume)
    client.call("ExpungeDataVolume", uuid=volume)


def test_an_address_that_is_taken_is_refused(cloud: LabCloud, guests: Guests) -> None:
    taken = cloud.bystander["vmNics"][0]
    with pytest.raises(ApiError) as refused:
        guests.make("twin", f"staticIp::{taken['l3NetworkUuid']}::{taken['ip']}")
    assert taken["ip"] in str(refused.value)
    assert not cloud.client.query("VmInstance", "name=twin")


def test_the_auditor_finds_nothing(cloud: LabCloud) -> None:
    report = cloud.audit()
    assert report["findings"] == [], json.dumps(report["findings"], indent=1)
