"""The directory of a backup storage: complete, checked files or none."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest

from caelum.drivers.directory_backup import store
from caelum.kernel.image_header import HEAD_SIZE, ImageRejected
from caelum.testing.simcloud import IMAGE_SIZE, empty_qcow2

IMAGE = "d" * 32


def pour(folder: Path, data: bytes, declared: str | None = None, limit: int = 1 << 40) -> store.Sink:
    sink = store.Sink(folder, IMAGE, declared, limit)
    for start in range(0, len(data), 100_000):
        sink.write(data[start : start + 100_000])
    return sink


def test_an_image_is_kept_with_its_digests(tmp_path: Path) -> None:
    data = empty_qcow2(tmp_path / "a.qcow2").read_bytes()
    folder = store.folder_of(tmp_path, "RootVolumeTemplate", "acc", IMAGE)
    image = pour(folder, data).finish()
    assert image.install_path == str(tmp_path / "rootVolumeTemplates" / "acct-acc" / IMAGE / f"{IMAGE}.qcow2")
    assert (image.size, image.actual_size, image.format) == (IMAGE_SIZE, len(data), "qcow2")
    assert image.sha256 == hashlib.sha256(data).hexdigest()
    assert image.md5 == hashlib.md5(data).hexdigest()
    assert Path(image.install_path).read_bytes() == data
    assert store.stored(folder) == image
    assert not list(folder.glob("*.part"))


def test_half_an_image_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "rootVolumeTemplates" / "acct-a" / IMAGE
    pour(folder, b"QFI\xfb").close()
    assert store.stored(folder) is None
    store.remove_image(tmp_path, IMAGE)
    assert not folder.exists()


def test_a_backing_file_is_refused(tmp_path: Path) -> None:
    data = bytearray(empty_qcow2(tmp_path / "a.qcow2").read_bytes())
    name = b"/etc/shadow"
    struct.pack_into(">QI", data, 8, 512, len(name))
    data[512 : 512 + len(name)] = name
    with pytest.raises(ImageRejected, match="backing"):
        pour(tmp_path / "x", bytes(data)).finish()


def test_an_absurd_size_is_refused(tmp_path: Path) -> None:
    data = bytearray(empty_qcow2(tmp_path / "a.qcow2").read_bytes())
    struct.pack_into(">Q", data, 24, 1 << 60)
    with pytest.raises(ImageRejected):
        pour(tmp_path / "x", bytes(data)).finish()


def test_what_is_no_image_is_refused_before_it_is_all_there(tmp_path: Path) -> None:
    with pytest.raises(ImageRejected, match="vmdk"):
        pour(tmp_path / "x", b"KDMV" + bytes(HEAD_SIZE))
    with pytest.raises(ImageRejected, match="raw"):
        pour(tmp_path / "y", b"<html>" + bytes(HEAD_SIZE))


def test_raw_must_be_said(tmp_path: Path) -> None:
    data = b"\xeb\x3c" + bytes(HEAD_SIZE)
    assert pour(tmp_path / "x", data, "raw").finish().format == "raw"
    qcow2 = empty_qcow2(tmp_path / "a.qcow2").read_bytes()
    with pytest.raises(ImageRejected, match="qcow2"):
        pour(tmp_path / "y", qcow2, "raw").finish()


def test_an_iso_is_known_by_its_signature(tmp_path: Path) -> None:
    data = bytearray(40_000)
    data[32769:32774] = b"CD001"
    assert pour(tmp_path / "x", bytes(data)).finish().format == "iso"
    with pytest.raises(ImageRejected, match="iso"):
        pour(tmp_path / "y", b"\0" * 40_000, "iso").finish()


def test_more_than_fits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageRejected, match="1000 bytes"):
        pour(tmp_path / "x", bytes(1001), "raw", limit=1000)


def test_a_directory_belongs_to_one_storage(tmp_path: Path) -> None:
    root = tmp_path / "images"
    store.claim(root, "one", first=True)
    store.claim(root, "one", first=False)
    with pytest.raises(store.WrongDirectory, match="belongs to"):
        store.claim(root, "two", first=True)
    (root / store.MARK).unlink()
    with pytest.raises(store.WrongDirectory, match="not mounted"):
        store.claim(root, "one", first=False)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../secret", ""])
def test_nothing_outside_is_touched(tmp_path: Path, path: str) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(ValueError, match="not inside"):
        store.inside(tmp_path / "root", path)


def test_a_link_does_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to("/etc")
    with pytest.raises(ValueError, match="not inside"):
        store.inside(tmp_path / "root", "link/passwd")
