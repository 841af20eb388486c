"""The auditor on a real cloud, by its command: the real agent tells what libvirt, the kernel and the disks have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cloud_lab import LabCloud

from caelum.kernel.ids import new_uuid

pytestmark = pytest.mark.timeout(240)

NOWHERE = new_uuid()
Undo = Callable[[], Any]


def audit(cloud: LabCloud, *options: str) -> tuple[int, str]:
    """`caelum admin audit`: its exit code and what it prints."""
    environment = {**os.environ, "CAELUM_URL": cloud.layout.api, "CAELUM_SESSION": cloud.client.session or ""}
    command = [sys.executable, "-m", "caelum.cli.main", "admin", "audit", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    return done.returncode, done.stdout + done.stderr


def _file(cloud: LabCloud) -> Undo:
    file = cloud.layout.primary_storage / "dataVolumes" / "left-over.qcow2.part"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"half")
    return file.unlink


def _lost_file(cloud: LabCloud) -> Undo:
    volume = cloud.client.query("Volume", f"uuid={cloud.bystander['rootVolumeUuid']}")[0]
    path, away = volume["installPath"], volume["installPath"] + ".away"
    os.rename(path, away)
    return lambda: os.rename(away, path)


def _bridge(cloud: LabCloud) -> Undo:
    cloud.machine.run("ip", "link", "add", "br_old", "type", "bridge")
    cloud.machine.run("ip", "link", "set", "br_old", "alias", f"caelum-l2:{NOWHERE}:")
    return lambda: cloud.machine.run("ip", "link", "delete", "br_old")


def _namespace(cloud: LabCloud) -> Undo:
    cloud.machine.run("ip", "netns", "add", f"caelum-{NOWHERE}")
    return lambda: cloud.machine.run("ip", "netns", "delete", f"caelum-{NOWHERE}")


def _translation(cloud: LabCloud) -> Undo:
    cloud.machine.run("nft", "add", "table", "ip", f"caelum-nat-{NOWHERE}")
    return lambda: cloud.machine.run("nft", "delete", "table", "ip", f"caelum-nat-{NOWHERE}")


def _image(cloud: LabCloud) -> Undo:
    file = cloud.layout.backup_storage / "left-over.qcow2"
    file.write_bytes(b"half")
    return file.unlink


DAMAGES = {
    _file: {"StrayFile"},
    _lost_file: {"VolumeFileMissing", "StrayFile"},
    _bridge: {"StrayBridge"},
    _namespace: {"StrayDhcp"},
    _translation: {"StrayTranslation"},
    _image: {"StrayImageFile"},
}


@contextmanager
def damaged(cloud: LabCloud, damage: Callable[[LabCloud], Undo]) -> Iterator[None]:
    """The cloud is broken inside the block, and whole again after it."""
    undo = damage(cloud)
    try:
        yield
    finally:
        undo()


def test_a_cloud_in_order_is_clean(cloud: LabCloud) -> None:
    status, text = audit(cloud)
    assert status == 0, text
    assert text.startswith("Clean"), text


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_damage_is_found(cloud: LabCloud, damage: Callable[[LabCloud], Undo]) -> None:
    with damaged(cloud, damage):
        status, text = audit(cloud, "-o", "json")
    assert status == 1, text
    assert {one["kind"] for one in json.loads(text)["findings"]} == DAMAGES[damage], text
    assert audit(cloud)[0] == 0
