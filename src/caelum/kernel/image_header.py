"""What a disk image says of itself, read from its first bytes without running any image tool on it.

Invariant: nothing in an image is followed. A header that names a backing file or an external data file would make QEMU
open that file of the host for whoever owns the image; one that claims absurd sizes would make it eat memory. Such
images are refused here, before any program that acts on headers sees them. Pure functions on bytes and one open file.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path

import msgspec

HEAD_SIZE = 128 * 1024
"""Bytes that are read: the signatures, and a qcow2 header with its extensions and backing file name."""
MAX_VIRTUAL_SIZE = 64 << 40
"""The largest disk that is accepted unless the caller says otherwise."""
MAX_BACKING_NAME = 1023
"""The longest backing file name that qcow2 allows."""

_QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_QCOW2_FEATURES = struct.Struct(">QQQII")
_QCOW2_V2_LENGTH = 72
_EXTENSION_END, _EXTENSION_BACKING_FORMAT, _EXTENSION_DATA_FILE = 0, 0xE2792ACA, 0x44415441
_EXTERNAL_DATA_FILE, _CORRUPT = 1 << 2, 1 << 1
_KNOWN_INCOMPATIBLE = 0b11111
_MAX_L1_SIZE = 32 << 20
"""Bytes of the first-level table that QEMU accepts."""
_MAX_SNAPSHOTS = 65536

_ACCEPTED: Mapping[str | None, tuple[str, ...]] = {
    None: ("qcow2", "iso"),
    "qcow2": ("qcow2",),
    "raw": ("raw", "iso"),
    "iso": ("iso", "raw"),
}
"""What an image may be by its signature, by what it was declared as. A pure UDF disk has no ISO signature."""

_ISO_OFFSET, _ISO_MAGIC = 32769, b"CD001"
_OTHER_MAGIC: Mapping[bytes, str] = {
    b"KDMV": "vmdk", b"COWD": "vmdk", b"# Disk DescriptorFile": "vmdk", b"vhdxfile": "vhdx", b"conectix": "vpc",
    b"QED\0": "qed", b"LUKS\xba\xbe": "luks", b"WithoutFreeSpace": "parallels", b"WithouFreSpacExt": "parallels",
    b"<<< Oracle VM VirtualBox Disk Image": "vdi", b"<<< QEMU VM Virtual Disk Image": "vdi", b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd",
}  # fmt: skip


class ImageHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What an image claims. Nothing of it is proven but `format`, which its signature decides.

    `format` is "qcow2", "iso", "raw" (no known signature), or the name of a format that is not accepted.
    """

    format: str
    virtual_size: int
    backing: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    encrypted: bool = False
    snapshots: int = 0
    cluster_size: int = 0


class ImageRejected(ValueError):  # noqa: N818 - it is about the image, not an error of the program
    """The image is broken, dangerous, or not what it was declared as; `facts` has the numbers and names."""

    def __init__(self, reason: str, **facts: object) -> None:
        super().__init__(reason)
        self.reason = reason
        self.facts = facts


def inspect(path: Path | str) -> ImageHeader:
    """The header of an image file. ImageRejected when it is no plain file or its header is broken."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ImageRejected(f"{path} is no plain file", path=str(path))
        return parse(os.pread(handle, HEAD_SIZE, 0), status.st_size)
    finally:
        os.close(handle)


def parse(head: bytes, file_size: int) -> ImageHeader:
    """The header in the first `HEAD_SIZE` bytes of an image of `file_size` bytes."""
    if head.startswith(_QCOW2_MAGIC):
        return _parse_qcow2(head, file_size)
    return ImageHeader(format=_other_format(head), virtual_size=file_size)


def check(header: ImageHeader, *, declared: str | None = None, max_virtual_size: int = MAX_VIRTUAL_SIZE) -> ImageHeader:
    """The header, if an image that comes from outside may have it; else ImageRejected.

    `declared` is the format that the owner named: "qcow2", "iso" or "raw"; None takes qcow2 and ISO by signature but
    never raw, since anything at all could be that.
    """
    if header.format not in _ACCEPTED.get(declared, ()):
        raise ImageRejected(
            f"the image is {header.format}, not {declared or 'qcow2 or ISO'}", found=header.format, declared=declared
        )
    if header.backing is not None:
        raise ImageRejected(f"the image names a backing file, {header.backing!r}", backing=header.backing)
    if header.data_file is not None:
        raise ImageRejected(f"the image names an external data file, {header.data_file!r}", data_file=header.data_file)
    if header.encrypted:
        raise ImageRejected("the image is encrypted")
    if not 0 < header.virtual_size <= max_virtual_size:
        raise ImageRejected(
            f"the image's virtual size is {header.virtual_size}, allowed are 1 to {max_virtual_size}",
            virtual_size=header.virtual_size, allowed=max_virtual_size,
        )  # fmt: skip
    return header


def _other_format(head: bytes) -> str:
    if head[_ISO_OFFSET : _ISO_OFFSET + len(_ISO_MAGIC)] == _ISO_MAGIC:
        return "iso"
    return next((name for magic, name in _OTHER_MAGIC.items() if head.startswith(magic)), "raw")


def _parse_qcow2(head: bytes, file_size: int) -> ImageHeader:
    if len(head) < _QCOW2_V2_LENGTH:
        raise ImageRejected(f"the qcow2 header is cut off after {len(head)} bytes", length=len(head))
    (_, version, backing_offset, backing_length, cluster_bits, size, crypt, l1_entries, l1_offset, refcount_offset,
     _, snapshots, _) = _QCOW2_HEADER.unpack_from(head)  # fmt: skip
    if version not in (2, 3):
        raise ImageRejected(f"qcow2 version {version} is not known", version=version)
    if not 9 <= cluster_bits <= 21:
        raise ImageRejected(f"the cluster size is 2^{cluster_bits}, allowed are 2^9 to 2^21", cluster_bits=cluster_bits)
    cluster = 1 << cluster_bits
    _check_tables(cluster, size, l1_entries, file_size, {"first-level": l1_offset, "reference count": refcount_offset})
    if snapshots > _MAX_SNAPSHOTS:
        raise ImageRejected(f"the image claims {snapshots} snapshots", snapshots=snapshots)
    incompatible, length = _features(head, version)
    extensions = _extensions(head, length, min(cluster, len(head)))
    data_file = extensions.get(_EXTENSION_DATA_FILE, "") if incompatible & _EXTERNAL_DATA_FILE else None
    return ImageHeader(
        format="qcow2",
        virtual_size=size,
        backing=_backing(head, backing_offset, backing_length, cluster),
        backing_format=extensions.get(_EXTENSION_BACKING_FORMAT),
        data_file=extensions.get(_EXTENSION_DATA_FILE, data_file),
        encrypted=crypt != 0,
        snapshots=snapshots,
        cluster_size=cluster,
    )


def _check_tables(cluster: int, size: int, l1_entries: int, file_size: int, offsets: Mapping[str, int]) -> None:
    """The first-level table must be of a bounded size and cover the disk; both tables must begin inside the file."""
    if l1_entries * 8 > _MAX_L1_SIZE:
        raise ImageRejected(f"the first-level table has {l1_entries} entries", l1_entries=l1_entries)
    # With extended entries a second-level table covers half as much: the bound is the weaker of both.
    if l1_entries * cluster * (cluster // 8) < size:
        raise ImageRejected(
            f"the first-level table of {l1_entries} entries cannot map {size} bytes", l1_entries=l1_entries, size=size
        )
    for name, offset in offsets.items():
        if offset % cluster or offset >= max(file_size, 1):
            raise ImageRejected(
                f"the {name} table lies at {offset} of {file_size} bytes", offset=offset, size=file_size
            )


def _features(head: bytes, version: int) -> tuple[int, int]:
    """The incompatible features and the header's length."""
    if version == 2:
        return 0, _QCOW2_V2_LENGTH
    if len(head) < _QCOW2_V2_LENGTH + _QCOW2_FEATURES.size:
        raise ImageRejected(f"the qcow2 header is cut off after {len(head)} bytes", length=len(head))
    incompatible, _, _, _, length = _QCOW2_FEATURES.unpack_from(head, _QCOW2_V2_LENGTH)
    if incompatible & ~_KNOWN_INCOMPATIBLE:
        raise ImageRejected(f"the image needs unknown features, {incompatible:#x}", features=incompatible)
    if incompatible & _CORRUPT:
        raise ImageRejected("the image is marked as corrupt")
    if length % 8 or not _QCOW2_V2_LENGTH + _QCOW2_FEATURES.size <= length <= 4096:
        raise ImageRejected(f"the qcow2 header claims a length of {length} bytes", length=length)
    return incompatible, length


def _extensions(head: bytes, start: int, end: int) -> dict[int, str]:
    """The header extensions that are texts we care for, by type."""
    found: dict[int, str] = {}
    position = start
    while position + 8 <= end:
        kind, length = struct.unpack_from(">II", head, position)
        if kind == _EXTENSION_END:
            break
        position += 8
        if position + length > end:
            raise ImageRejected(f"the header extension {kind:#x} of {length} bytes is cut off", extension=kind)
        if kind in (_EXTENSION_BACKING_FORMAT, _EXTENSION_DATA_FILE):
            found[kind] = head[position : position + length].decode(errors="replace")
        position += (length + 7) & ~7
    return found


def _backing(head: bytes, offset: int, length: int, cluster: int) -> str | None:
    if offset == 0:
        return None
    if not 0 < length <= MAX_BACKING_NAME or offset + length > min(cluster, len(head)):
        raise ImageRejected(f"the backing file name of {length} bytes at {offset} is not in the header", offset=offset)
    return head[offset : offset + length].decode(errors="replace")
