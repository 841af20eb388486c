"""Headers are read as QEMU writes them, and the malicious ones are refused."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from caelum.kernel.image_header import HEAD_SIZE, ImageHeader, ImageRejected, check, inspect, parse

needs_qemu = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")
GIB = 1 << 30


def qemu_img(*argv: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, argv)], check=True, capture_output=True, timeout=30)


def qcow2(
    *, version: int = 3, size: int = GIB, cluster_bits: int = 16, backing: bytes = b"", l1_entries: int = 16,
    l1_offset: int = 3 << 16, crypt: int = 0, features: int = 0, extensions: bytes = b"", length: int = 104,
    snapshots: int = 0, backing_offset: int | None = None,
) -> bytes:  # fmt: skip
    """A header made by hand."""
    at = backing_offset if backing_offset is not None else (512 if backing else 0)
    head = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", version, at, len(backing), cluster_bits, size, crypt,
        l1_entries, l1_offset, 1 << max(16, cluster_bits % 32), 1, snapshots, 0,
    )  # fmt: skip
    head += struct.pack(">QQQII", features, 0, 0, 4, length) + extensions
    return (head.ljust(512, b"\0") + backing).ljust(HEAD_SIZE, b"\0")


def extension(kind: int, text: bytes) -> bytes:
    return struct.pack(">II", kind, len(text)) + text + b"\0" * (-len(text) % 8)


@needs_qemu
@pytest.mark.parametrize(
    "options",
    ["compat=1.1", "compat=0.10", "cluster_size=2M", "cluster_size=512", "extended_l2=on", "compression_type=zstd"],
)
def test_made_by_qemu(tmp_path: Path, options: str) -> None:
    qemu_img("create", "-f", "qcow2", "-o", options, tmp_path / "a", "3G")
    header = check(inspect(tmp_path / "a"), declared="qcow2")
    assert (header.format, header.virtual_size, header.backing, header.snapshots) == ("qcow2", 3 * GIB, None, 0)


@needs_qemu
def test_backing_file_and_data_file_are_seen(tmp_path: Path) -> None:
    base = tmp_path / "base"
    qemu_img("create", "-f", "qcow2", base, "1G")
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", tmp_path / "clone")
    clone = inspect(tmp_path / "clone")
    assert (clone.backing, clone.backing_format, clone.virtual_size) == (str(base), "qcow2", GIB)
    with pytest.raises(ImageRejected, match="backing file"):
        check(clone)
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", tmp_path / "outside", "1G")
    outside = inspect(tmp_path / "outside")
    assert outside.data_file == str(tmp_path / "data")
    with pytest.raises(ImageRejected, match="external data file"):
        check(outside)


@needs_qemu
def test_other_formats_are_named(tmp_path: Path) -> None:
    for name in ("vmdk", "vhdx", "vdi", "qed", "parallels"):
        qemu_img("create", "-f", name, tmp_path / name, "10M")
        header = inspect(tmp_path / name)
        assert header.format == name
        for declared in (None, "raw", "qcow2", "iso", name):
            with pytest.raises(ImageRejected, match=f"the image is {name}"):
                check(header, declared=declared)


def test_raw_only_when_declared() -> None:
    boot_sector = bytes(510) + b"\x55\xaa" + bytes(512)
    header = parse(boot_sector, GIB)
    assert header == ImageHeader(format="raw", virtual_size=GIB)
    assert check(header, declared="raw") == header
    with pytest.raises(ImageRejected, match="the image is raw"):
        check(header)
    with pytest.raises(ImageRejected, match="the image is qcow2, not raw"):
        check(parse(qcow2(), GIB), declared="raw")


def test_iso_by_signature() -> None:
    header = parse(bytes(32769) + b"CD001" + bytes(100), 700 << 20)
    assert header.format == "iso"
    assert check(header) == check(header, declared="iso") == header
    for declared in ("qcow2", "vmdk"):
        with pytest.raises(ImageRejected):
            check(header, declared=declared)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (qcow2(backing=b"/etc/shadow"), "backing file, '/etc/shadow'"),
        (qcow2(backing=b'json:{"file.filename":"/etc/shadow"}'), "backing file"),
        (qcow2(version=2, backing=b"nbd://10.0.0.1/x"), "backing file"),
        (qcow2(backing=b"x" * 1024), "name of 1024 bytes"),
        (qcow2(backing=b"x", backing_offset=1 << 40), "is not in the header"),
        (qcow2(features=1 << 2, extensions=extension(0x44415441, b"/dev/sda")), "external data file, '/dev/sda'"),
        (qcow2(features=1 << 2), "external data file"),
        (qcow2(extensions=extension(0x44415441, b"/dev/sda")), "external data file"),
        (qcow2(features=1 << 1), "corrupt"),
        (qcow2(features=1 << 40), "unknown features"),
        (qcow2(crypt=2), "encrypted"),
        (qcow2(size=1 << 62, l1_entries=4 << 20), "cannot map"),
        (qcow2(size=100 << 40, l1_entries=4 << 20, cluster_bits=21, l1_offset=4 << 20), "virtual size is"),
        (qcow2(l1_entries=0xFFFFFFFF), "4294967295 entries"),
        (qcow2(size=0), "virtual size is 0"),
        (qcow2(cluster_bits=63), r"2\^63"),
        (qcow2(cluster_bits=0), r"2\^0"),
        (qcow2(version=9), "version 9"),
        (qcow2(length=100000), "length of 100000"),
        (qcow2(snapshots=1 << 30), "1073741824 snapshots"),
        (qcow2(l1_offset=1 << 40), "first-level table lies at"),
        (qcow2(extensions=struct.pack(">II", 0x44415441, 0xFFFFFFF0)), "cut off"),
        (qcow2()[:40], "cut off after 40"),
        (qcow2()[:80], "cut off after 80"),
    ],
)  # fmt: skip
def test_malicious_header(image: bytes, message: str) -> None:
    with pytest.raises(ImageRejected, match=message):
        check(parse(image, GIB))


def test_facts_have_the_numbers() -> None:
    with pytest.raises(ImageRejected) as caught:
        check(parse(qcow2(size=2 * GIB), GIB), max_virtual_size=GIB)
    assert caught.value.facts == {"virtual_size": 2 * GIB, "allowed": GIB}


def test_no_plain_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageRejected, match="no plain file"):
        inspect(tmp_path / "pipe")
    with pytest.raises(ImageRejected, match="no plain file"):
        inspect(tmp_path)


def test_garbage_never_breaks_the_parser() -> None:
    chance = random.Random(1)
    for _ in range(3000):
        image = bytearray(qcow2(backing=b"abc", extensions=extension(0xE2792ACA, b"raw")))
        for _ in range(chance.randint(1, 20)):
            image[chance.randrange(4, 600)] = chance.randrange(256)
        try:
            parse(bytes(image[: chance.choice((90, 200, 600, HEAD_SIZE))]), chance.choice((0, 100, GIB)))
        except ImageRejected:
            pass
