"""The definition of a guest."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from caelum.agent.protocol import Cdrom, Disk, Nic, StartVm
from caelum.agent.registry import AgentFailure
from caelum.agent.vm.xml import NAMESPACE, HostSide, boot_orders, build, device_name

VM = "0123456789abcdef0123456789abcdef"
HERE = Path("/state/vm") / VM


def _disk(device_id: int, **fields: Any) -> Disk:
    uuid = f"{device_id:032x}"
    return Disk(volume_uuid=uuid, install_path=f"/ps/{device_id}", format="qcow2", device_id=device_id, **fields)


def _nic(device_id: int = 0, **fields: Any) -> Nic:
    given: dict[str, Any] = {
        "nic_uuid": f"n{device_id}", "mac": "fa:00:00:00:00:01", "name": f"vnic5.{device_id}", "bridge": "br0",
        "ips": ["10.0.0.2"], "device_id": device_id,
    }  # fmt: skip
    return Nic(**given | fields)


def _vm(**fields: Any) -> StartVm:
    given: dict[str, Any] = {
        "vm_uuid": VM, "name": "a <b> & c", "internal_id": 5, "cpu_num": 2, "memory": 1 << 30, "disks": [_disk(0)],
        "nics": [],
    }  # fmt: skip
    return StartVm(**given | fields)


def _built(cmd: StartVm, hypervisor: Any = "tcg", **host: Any) -> ET.Element:
    return ET.fromstring(build(cmd, HostSide(hypervisor=hypervisor, directory=HERE, **host)))


def _get(root: ET.Element, path: str, attribute: str) -> str | None:
    found = root.find(path)
    assert found is not None, path
    return found.get(attribute)


def test_a_domain_is_named_after_its_vm_and_carries_our_mark() -> None:
    root = _built(_vm(nics=[_nic()]))
    assert root.findtext("name") == VM
    assert root.findtext("uuid") == "01234567-89ab-cdef-0123-456789abcdef"
    assert root.findtext("title") == "a <b> & c"
    mark = root.find(f"metadata/{{{NAMESPACE}}}vm")
    assert mark is not None
    assert mark.get("internal-id") == "5"
    assert [one.attrib for one in mark] == [
        {"uuid": "n0", "name": "vnic5.0", "mac": "fa:00:00:00:00:01", "bridge": "br0"}
    ]


def test_the_same_command_gives_the_same_definition() -> None:
    host = HostSide(hypervisor="tcg", directory=HERE)
    assert build(_vm(), host) == build(_vm(), host)


def test_a_disk_is_found_by_alias_and_serial() -> None:
    root = _built(_vm(disks=[_disk(0), _disk(3, cache_mode="writeback")]), cache_modes={"/ps/0": "writethrough"})
    first, second = root.findall("devices/disk")
    assert _get(first, "driver", "cache") == "writethrough"
    assert _get(first, "driver", "discard") == "unmap"
    assert _get(second, "driver", "cache") == "writeback"
    assert _get(second, "target", "dev") == "vdd"
    assert first.findtext("serial") == "0" * 20
    assert _get(second, "alias", "name") == f"ua-volume-{3:032x}"


def test_an_emulated_guest_has_every_processor_feature_and_a_large_code_cache() -> None:
    root = _built(_vm(cpu_mode="host-passthrough"))
    assert root.get("type") == "qemu"
    assert _get(root, "cpu", "mode") == "maximum"
    assert root.findtext("features/tcg/tb-cache") == "32"


@pytest.mark.parametrize(
    ("mode", "nested", "attributes", "hidden"),
    [
        ("host-model", False, {"mode": "host-model"}, ["vmx", "svm"]),
        ("host-passthrough", True, {"mode": "host-passthrough"}, []),
        ("Haswell", False, {"mode": "custom", "match": "exact"}, []),
    ],
)
def test_an_accelerated_guest_gets_the_processor_asked_for(
    mode: str, nested: bool, attributes: dict[str, str], hidden: list[str]
) -> None:
    root = _built(_vm(cpu_mode=mode, nested=nested), "kvm")
    cpu = root.find("cpu")
    assert root.get("type") == "kvm"
    assert cpu is not None
    assert cpu.attrib == attributes
    assert [one.get("name") for one in cpu.findall("feature")] == hidden
    assert root.find("features/tcg") is None


def test_there_are_slots_for_hot_plug() -> None:
    ports = "devices/controller[@model='pcie-root-port']"
    assert len(_built(_vm()).findall(ports)) == 1 + 6 + 12
    assert len(_built(_vm(disks=[_disk(n) for n in range(24)])).findall(ports)) == 28
    assert _built(_vm(machine="pc")).findall(ports) == []


def test_the_screen_is_for_this_host_only() -> None:
    root = _built(_vm(console_password="secret-and-long"))
    assert _get(root, "devices/graphics", "listen") == "127.0.0.1"
    assert _get(root, "devices/graphics", "passwd") == "secret-a"
    assert _get(root, "devices/serial/log", "file") == str(HERE / "serial.log")


def test_cdroms_take_sata_units_that_disks_leave() -> None:
    cmd = _vm(disks=[_disk(0, bus="sata"), _disk(5, bus="sata")], cdroms=[Cdrom(device_id=0, install_path="/a.iso")])
    drives = _built(cmd, cidata=HERE / "cidata.iso").findall("devices/disk[@device='cdrom']")
    assert [_get(drive, "address", "unit") for drive in drives] == ["4", "0"]
    assert [_get(drive, "target", "bus") for drive in drives] == ["sata", "scsi"]
    assert [_get(drive, "source", "file") for drive in drives] == ["/a.iso", str(HERE / "cidata.iso")]
    with pytest.raises(AgentFailure, match="7 CD-ROM drives and 0 SATA disks"):
        _built(_vm(cdroms=[Cdrom(device_id=number) for number in range(7)]))


def test_boot_order_by_kind() -> None:
    cmd = _vm(disks=[_disk(1), _disk(0)], cdroms=[Cdrom(device_id=0)], nics=[_nic()], boot_order=("CdRom", "HardDisk"))
    assert boot_orders(cmd) == {"ua-cdrom-0": 1, f"ua-volume-{0:032x}": 2, f"ua-volume-{1:032x}": 3}
    network = _vm(nics=[_nic()], boot_order=("Network", "HardDisk"))
    assert boot_orders(network)["ua-nic-n0"] == 1
    assert _get(_built(network), "devices/interface/rom", "enabled") == "yes"
    assert _get(_built(cmd), "devices/interface/rom", "enabled") == "no"


def test_boot_order_by_device_wins() -> None:
    cmd = _vm(disks=[_disk(0, boot_order=2)], cdroms=[Cdrom(device_id=0, boot_order=1)], nics=[_nic()])
    assert boot_orders(cmd) == {"ua-cdrom-0": 1, f"ua-volume-{0:032x}": 2}


def test_a_speed_limit_is_percent_of_a_core() -> None:
    root = _built(_vm(cpu_speed_quota=25))
    assert (root.findtext("cputune/period"), root.findtext("cputune/quota")) == ("100000", "25000")
    assert _built(_vm()).find("cputune") is None


@pytest.mark.parametrize(("index", "name"), [(0, "vda"), (25, "vdz"), (26, "vdaa"), (701, "vdzz"), (702, "vdaaa")])
def test_device_names(index: int, name: str) -> None:
    assert device_name("vd", index) == name
