"""Guests of the lab's cloud: made through the public API, looked at from inside by SSH, by their web page, by ping."""

from __future__ import annotations

import base64
import socket
import struct
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cloud_lab import LabCloud

BOOT_TIMEOUT = 150.0
USER_DATA = """#!/bin/sh
echo "on $(hostname)" >> /root/runs
"""


class Guest:
    """A running VM and the way into it."""

    def __init__(self, lab: Guests, vm: dict[str, Any]) -> None:
        self._lab = lab
        self.uuid: str = vm["uuid"]
        self.name: str = vm["name"]

    @property
    def vm(self) -> dict[str, Any]:
        """What the API says of it."""
        return dict(self._lab.client.query("VmInstance", f"uuid={self.uuid}")[0])

    @property
    def nic(self) -> dict[str, Any]:
        """Its first NIC, as the API has it."""
        return dict(min(self.vm["vmNics"], key=lambda nic: nic["deviceId"]))

    @property
    def address(self) -> str:
        return str(self.nic["ip"])

    def ssh(self, script: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a shell script inside."""
        command = [
            "ssh", "-i", str(self._lab.key), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=5",
            f"root@{self.address}", script,
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)

    def sh(self, script: str, timeout: float = 60) -> str:
        """The output of a shell script that succeeds inside."""
        done = self.ssh(script, timeout)
        assert done.returncode == 0, f"{script}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def until(self, script: str, what: str, timeout: float = 30) -> None:
        """Wait until a shell script succeeds inside."""
        self._lab.cloud.until(lambda: self.ssh(script).returncode == 0, timeout, what)

    def info(self) -> dict[str, list[str]]:
        """What its web page tells: words by the line's first."""
        url = f"http://{self.address}/cgi-bin/info"
        with urllib.request.urlopen(url, timeout=20) as answer:
            lines = answer.read().decode().splitlines()
        told: dict[str, list[str]] = {}
        for line in lines:
            key, _, rest = line.partition(" ")
            told.setdefault(key, []).append(rest)
        return told

    def pings(self, seconds: float = 1) -> bool:
        """Whether it answers within this time."""
        command = ["ping", "-n", "-c", "1", "-W", str(max(1, int(seconds))), self.address]
        return subprocess.run(command, capture_output=True, timeout=seconds + 10, check=False).returncode == 0

    def boot_id(self) -> str:
        """Another one with each boot."""
        return self.sh("cat /proc/sys/kernel/random/boot_id")

    def uptime(self) -> float:
        """Seconds since its boot, by its own clock."""
        return float(self.sh("cut -d' ' -f1 /proc/uptime"))

    def is_up(self) -> Guest:
        """Wait until one can log in."""
        self._lab.cloud.until(lambda: self.ssh("true").returncode == 0, BOOT_TIMEOUT, f"{self.name} lets us in")
        return self

    def call(self, operation: str, **parameters: Any) -> Any:
        """An operation on this VM."""
        return self._lab.client.call(operation, uuid=self.uuid, **parameters)

    def disk(self, volume_uuid: str) -> str | None:
        """The name of the disk that is this volume, by its serial number."""
        serial = volume_uuid[:20]
        script = f'for d in /sys/block/vd*; do [ "$(cat $d/serial)" = {serial} ] && echo "${{d##*/}}"; done; true'
        return self.sh(script) or None


class Guests:
    """Makes guests like the cloud's first one, each with our SSH key."""

    def __init__(self, cloud: LabCloud, directory: Path) -> None:
        self.cloud, self.client = cloud, cloud.client
        self.key = directory / "key"
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(self.key)]
        subprocess.run(command, check=True, timeout=30)
        self.public_key = self.key.with_suffix(".pub").read_text().strip()
        vm = cloud.bystander
        self.choices = {
            "imageUuid": vm["imageUuid"],
            "instanceOfferingUuid": vm["instanceOfferingUuid"],
            "l3NetworkUuids": [vm["vmNics"][0]["l3NetworkUuid"]],
        }

    def make(self, name: str, *tags: str, **choices: Any) -> Guest:
        """A guest of this name; it may still be booting."""
        given = [f"hostname::{name}", f"sshkey::{self.public_key}", *tags]
        vm = self.client.call("CreateVmInstance", name=name, systemTags=given, **(self.choices | choices))
        return Guest(self, vm)

    def remove(self, guest: Guest) -> None:
        """Nothing is left of it."""
        guest.call("DestroyVmInstance")
        guest.call("ExpungeVmInstance")


@pytest.fixture(scope="session")
def session_guests(session_cloud: LabCloud, tmp_path_factory: pytest.TempPathFactory) -> Guests:
    return Guests(session_cloud, tmp_path_factory.mktemp("guests"))


@pytest.fixture
def guests(cloud: LabCloud, session_guests: Guests) -> Guests:
    """A maker of guests, inside the cloud's network."""
    return session_guests


@pytest.fixture(scope="session")
def two_guests(session_guests: Guests) -> Iterator[tuple[Guest, Guest]]:
    """`web`, with user data, and `peer`: they boot at the same time, and live until the last test."""
    with session_guests.cloud.machine.inside():
        web = session_guests.make("web", f"userdata::{base64.b64encode(USER_DATA.encode()).decode()}")
        peer = session_guests.make("peer")
        web.is_up(), peer.is_up()
    yield web, peer
    with session_guests.cloud.machine.inside():
        session_guests.remove(web)
        session_guests.remove(peer)


@pytest.fixture
def web(cloud: LabCloud, two_guests: tuple[Guest, Guest]) -> Guest:
    return two_guests[0]


@pytest.fixture
def peer(cloud: LabCloud, two_guests: tuple[Guest, Guest]) -> Guest:
    return two_guests[1]


@contextmanager
def name_server(cloud: LabCloud, address: str, answer: str) -> Iterator[None]:
    """A name server of the outside world, at an address of the machine: every name is at `answer`."""
    cloud.machine.run("ip", "address", "add", f"{address}/32", "dev", "lo")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        port.bind((address, 53))
        port.settimeout(0.2)
        over = threading.Event()
        thread = threading.Thread(target=_answer_names, args=(port, answer, over.is_set))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            cloud.machine.run("ip", "address", "delete", f"{address}/32", "dev", "lo")


def _answer_names(port: socket.socket, answer: str, is_over: Callable[[], bool]) -> None:
    while not is_over():
        try:
            query, sender = port.recvfrom(512)
        except TimeoutError:
            continue
        end = query.index(b"\0", 12) + 5
        is_address = query[end - 4 : end - 2] == b"\0\1"
        record = b"\xc0\x0c\0\1\0\1" + struct.pack(">IH", 60, 4) + socket.inet_aton(answer)
        head = query[:2] + b"\x81\x80" + struct.pack(">HHHH", 1, int(is_address), 0, 0)
        port.sendto(head + query[12:end] + (record if is_address else b""), sender)


def settled(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition holds all the time for this long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not condition():
            return False
        time.sleep(0.2)
    return True
