"""A NoCloud disk: an ISO 9660 image, label `cidata`, that cloud-init in a guest reads its configuration from.

Invariant: readers with Joliet see the files' names as given; readers without it see them in capitals.
Written here because it is a hundred lines, and every host would need a program for it otherwise.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import NamedTuple

SECTOR = 2048
LABEL = "cidata"
SYSTEM_SECTORS = 16
"""Left empty at the start, by the standard."""
ROOT_SECTOR = 23
"""After three descriptors and four path tables comes the primary root directory, then Joliet's, then the files."""
LEAST_SECTORS = 192
"""Programs that look for labels read where other file systems have their marks, and give up where a disk ends early."""
_PRIMARY_TABLES = (19, 20)
_JOLIET_TABLES = (21, 22)
_DIRECTORY_FLAG = 2


class _File(NamedTuple):
    name: str
    content: bytes
    sector: int


def write(path: Path, files: dict[str, str]) -> None:
    """Write the image, by way of a temporary file, so that it is never half there."""
    temporary = path.with_suffix(".part")
    temporary.write_bytes(image(files))
    temporary.replace(path)


def image(files: dict[str, str]) -> bytes:
    """The image of a disk that holds `files` in its root directory."""
    placed = _place(files)
    used = (placed[-1].sector + _sectors(len(placed[-1].content))) if placed else ROOT_SECTOR + 2
    total = max(used, LEAST_SECTORS)
    parts = [
        bytes(SYSTEM_SECTORS * SECTOR),
        _volume(1, total, ROOT_SECTOR, _PRIMARY_TABLES),
        _volume(2, total, ROOT_SECTOR + 1, _JOLIET_TABLES),
        _padded(b"\xffCD001\x01"),
        *(_path_table(order, ROOT_SECTOR) for order in "<>"),
        *(_path_table(order, ROOT_SECTOR + 1) for order in "<>"),
        _directory(ROOT_SECTOR, [(_plain(file.name), file) for file in placed]),
        _directory(ROOT_SECTOR + 1, [(file.name.encode("utf-16-be"), file) for file in placed]),
        *(_padded(file.content) for file in placed),
        bytes((total - used) * SECTOR),
    ]
    return b"".join(parts)


def _place(files: dict[str, str]) -> list[_File]:
    placed = []
    sector = ROOT_SECTOR + 2
    for name in sorted(files):
        content = files[name].encode()
        placed.append(_File(name, content, sector))
        sector += _sectors(len(content))
    return placed


def _sectors(size: int) -> int:
    return max(1, -(-size // SECTOR))


def _padded(content: bytes) -> bytes:
    return content.ljust(_sectors(len(content)) * SECTOR, b"\0")


def _plain(name: str) -> bytes:
    """A name as ISO 9660 has it; Linux shows it in lower case, without dot and version."""
    return f"{name.upper()}.;1".encode("ascii") if "." not in name else f"{name.upper()};1".encode("ascii")


def _both(value: int, size: int = 4) -> bytes:
    """A number in both byte orders, as the standard wants it."""
    return value.to_bytes(size, "little") + value.to_bytes(size, "big")


def _record(name: bytes, sector: int, size: int, flags: int) -> bytes:
    """A directory record."""
    now = time.gmtime()
    date = bytes([now.tm_year - 1900, now.tm_mon, now.tm_mday, now.tm_hour, now.tm_min, now.tm_sec, 0])
    padding = b"" if len(name) % 2 else b"\0"
    body = b"\0" + _both(sector) + _both(size) + date + bytes([flags, 0, 0]) + _both(1, 2) + bytes([len(name)])
    body += name + padding
    return bytes([len(body) + 1]) + body


def _directory(own_sector: int, entries: list[tuple[bytes, _File]]) -> bytes:
    """A root directory: itself, its parent (itself again), and the files, sorted by name."""
    records = [_record(dots, own_sector, SECTOR, _DIRECTORY_FLAG) for dots in (b"\0", b"\1")]
    records += [_record(name, file.sector, len(file.content), 0) for name, file in sorted(entries)]
    content = b"".join(records)
    if len(content) > SECTOR:
        raise ValueError(f"{len(entries)} files do not fit into one directory sector")
    return _padded(content)


def _path_table(order: str, root_sector: int) -> bytes:
    return _padded(struct.pack(f"{order}BBIHBB", 1, 0, root_sector, 1, 0, 0))


def _volume(kind: int, total: int, root_sector: int, tables: tuple[int, int]) -> bytes:
    """A volume descriptor: 1 primary, 2 supplementary (Joliet, level 3)."""
    encoding = "ascii" if kind == 1 else "utf-16-be"

    def text(value: str, size: int) -> bytes:
        return (value.encode(encoding) + " ".encode(encoding) * size)[:size]

    parts = [
        bytes([kind]) + b"CD001\x01\0" + text("", 32) + text(LABEL, 32),
        bytes(8) + _both(total) + (bytes(32) if kind == 1 else b"%/E".ljust(32, b"\0")),
        _both(1, 2) + _both(1, 2) + _both(SECTOR, 2) + _both(10),
        struct.pack("<II", tables[0], 0) + struct.pack(">II", tables[1], 0),
        _record(b"\0", root_sector, SECTOR, _DIRECTORY_FLAG),
        text("", 128 * 4) + text("", 37 * 3),
        (b"0" * 16 + b"\0") * 4 + b"\1",
    ]
    return _padded(b"".join(parts))
