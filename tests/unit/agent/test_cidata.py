"""The NoCloud disk, read back by an independent reader."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from caelum.agent.vm import cidata

FILES = {"meta-data": "instance-id: i-1\n", "user-data": "#cloud-config\n" + "# x\n" * 2000, "network-config": ""}


@pytest.fixture
def iso(tmp_path: Path) -> Path:
    path = tmp_path / "cidata.iso"
    cidata.write(path, FILES)
    return path


def _isoinfo(iso: Path, *options: str) -> str:
    if shutil.which("isoinfo") is None:
        pytest.skip("isoinfo is not installed")
    return subprocess.run(["isoinfo", "-i", str(iso), *options], capture_output=True, text=True, check=True).stdout


def test_a_reader_finds_every_file_by_its_name(iso: Path) -> None:
    for name, content in FILES.items():
        assert _isoinfo(iso, "-J", "-x", f"/{name}") == content
    assert _isoinfo(iso, "-x", "/META-DATA.;1") == FILES["meta-data"]


def test_the_disk_is_known_by_its_label(iso: Path) -> None:
    assert "Volume id: cidata" in _isoinfo(iso, "-d")
    assert "Joliet with UCS level 3 found" in _isoinfo(iso, "-d")


def test_every_sector_is_whole_and_counted(iso: Path) -> None:
    content = iso.read_bytes()
    assert len(content) % cidata.SECTOR == 0
    assert int.from_bytes(content[16 * 2048 + 80 : 16 * 2048 + 84], "little") * cidata.SECTOR == len(content)
