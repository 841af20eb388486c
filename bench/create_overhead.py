"""What the cloud adds to the start of a guest, and how heavy and how quick a one-machine cloud is.

    python bench/create_overhead.py [--rounds 5] [--json]          (as root)

Brings up a cloud on a network of its own, then by turns creates a VM of a cached image through the API and lets `virsh
create` start the same domain, with a disk and a tap of its own, on the same libvirt. Both end when the guest runs; its
boot is not counted. Goals on an idle machine of 2 cores: 1.5 s more than virsh; server ready within 3 s, at most
150 MB of memory; `make up` of an installed machine within 60 s. Numbers are medians. Exit code 1: a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "lab")]

import startup
from agent_network_lab import own_network
from agent_vm_lab import guest_image
from cloud_lab import LabCloud

PAUSE = 2.0
"""Seconds between two measurements, for what the last one left to be done."""
IDLE = 10.0


class Goal(NamedTuple):
    """A measured number, and what it may be at most."""

    what: str
    value: float
    unit: str
    most: float | None = None

    def line(self) -> str:
        """A row of the table."""
        verdict = "" if self.most is None else f"{self.most:8.1f} {self.unit}   {'ok' if self.met else 'MISSED'}"
        return f"{self.what:44} {self.value:8.2f} {self.unit:2} {verdict}"

    @property
    def met(self) -> bool:
        return self.most is None or self.value <= self.most


class Creations:
    """Creates guests both ways, and removes them."""

    def __init__(self, cloud: LabCloud) -> None:
        self._cloud = cloud
        vm = cloud.bystander
        self._choices = {
            "imageUuid": vm["imageUuid"],
            "instanceOfferingUuid": vm["instanceOfferingUuid"],
            "l3NetworkUuids": [vm["vmNics"][0]["l3NetworkUuid"]],
        }
        self._domain = ""

    def by_api(self) -> float:
        """Seconds until the API says that a new VM runs."""
        call = self._cloud.client.call
        begun = time.perf_counter()
        vm = call("CreateVmInstance", name="bench", **self._choices)
        passed = time.perf_counter() - begun
        assert vm["state"] == "Running", vm
        self._domain = self._virsh("dumpxml", vm["uuid"])
        call("DestroyVmInstance", uuid=vm["uuid"])
        call("ExpungeVmInstance", uuid=vm["uuid"])
        return passed

    def by_virsh(self) -> float:
        """Seconds until `virsh create` of the last VM's domain ends."""
        with tempfile.TemporaryDirectory(prefix="caelum-bench-") as directory:
            disk = Path(directory) / "disk.qcow2"
            name, text = self._twin(disk)
            subprocess.run(["qemu-img", "convert", "-O", "qcow2", guest_image(), disk], check=True, timeout=60)
            file = Path(directory) / "domain.xml"
            file.write_text(text)
            begun = time.perf_counter()
            self._virsh("create", file)
            passed = time.perf_counter() - begun
            self._virsh("destroy", name)
        return passed

    def _twin(self, disk: Path) -> tuple[str, str]:
        """The domain under another name: what is one guest's own is changed, and our mark is taken off."""
        root = ET.fromstring(self._domain)
        name = f"bench-{uuid.uuid4().hex[:8]}"
        for child in [one for one in root if one.tag in ("uuid", "metadata", "title")]:
            root.remove(child)
        _only(root, "name").text = name
        _only(root, "devices/disk[@device='disk']/source").set("file", str(disk))
        for chain in root.findall("devices/disk/backingStore"):
            _only(root, "devices/disk[@device='disk']").remove(chain)
        _only(root, "devices/interface/mac").set("address", "fa:00:00:00:be:ef")
        _only(root, "devices/interface/target").set("dev", "vnic-bench")
        for log in root.findall("devices/*/log"):
            log.set("file", str(disk.with_name("serial.log")))
        return name, ET.tostring(root, encoding="unicode")

    def _virsh(self, *words: object) -> str:
        return self._cloud.machine.run("virsh", "-q", "-c", self._cloud.layout.libvirt_uri, *words)


def _only(root: ET.Element, path: str) -> ET.Element:
    found = root.find(path)
    assert found is not None, path
    return found


def create(cloud: LabCloud, rounds: int) -> list[Goal]:
    """The price of a VM."""
    creations = Creations(cloud)
    creations.by_api(), creations.by_virsh()  # the first of each pays for what is then cached
    api: list[float] = []
    virsh: list[float] = []
    for _ in range(rounds):
        for measure, into in ((creations.by_api, api), (creations.by_virsh, virsh)):
            time.sleep(PAUSE)
            into.append(measure())
    difference = statistics.median(api) - statistics.median(virsh)
    return [
        Goal("create a VM through the API", statistics.median(api), "s"),
        Goal("virsh create of the same domain", statistics.median(virsh), "s"),
        Goal("what the cloud adds", difference, "s", 1.5),
    ]


def memory(cloud: LabCloud) -> list[Goal]:
    """What server and agent hold when nothing happens."""
    time.sleep(IDLE)
    pids = {part: cloud.pid(part) for part in ("server", "agent")}
    megabytes = {part: startup.megabytes(pid) for part, pid in pids.items() if pid is not None}
    return [
        Goal("idle server, after that work", megabytes["server"], "MB", 150),
        Goal("idle agent", megabytes["agent"], "MB"),
    ]


def starts(rounds: int) -> list[Goal]:
    """A server of its own, from its start until it is ready."""
    measured = startup.measure(rounds)
    return [
        Goal("server, first start until ready", measured["first start"]["seconds"], "s", 3),
        Goal("server, later start until ready", measured["start"]["seconds"], "s", 3),
        Goal("   processor time of it", measured["start"]["processor"], "s"),
        Goal("   memory then", measured["start"]["megabytes"], "MB", 150),
    ]


def up(cloud: LabCloud) -> list[Goal]:
    """`make up` when all is installed, and again."""
    goals = []
    for what, action, most in (
        ("make up, installed, with the guest's answer", cloud.up, 60.0),
        ("make up again", cloud.up_again, 10.0),
    ):
        begun = time.perf_counter()
        action()
        goals.append(Goal(what, time.perf_counter() - begun, "s", most))
    return goals


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("Root is needed: real guests are started.")
    guest_image()
    with own_network():
        cloud = LabCloud()
        try:
            goals = up(cloud)
            with cloud.machine.inside():
                goals += create(cloud, options.rounds)
                goals += memory(cloud)
        finally:
            cloud.down()
        goals += starts(options.rounds)
    if options.json:
        print(json.dumps([one._asdict() | {"met": one.met} for one in goals]))
    else:
        print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, median of {options.rounds}\n")
        print(*(one.line() for one in goals), sep="\n")
    return 0 if all(one.met for one in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
