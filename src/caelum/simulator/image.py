"""Images for guests that nobody boots."""

from __future__ import annotations

import struct
from pathlib import Path

IMAGE_SIZE = 64 << 20


def empty_qcow2(path: Path) -> Path:
    """A valid qcow2 image without content, made without tools: header, refcount table and block, L1 table."""
    cluster = 1 << 16
    path.parent.mkdir(parents=True, exist_ok=True)
    l1_entries = max(1, IMAGE_SIZE // (cluster * (cluster // 8)))
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb", 3, 0, 0, 16, IMAGE_SIZE, 0, l1_entries, 3 * cluster, cluster, 1, 0, 0, 0, 0, 0, 4, 104,
    )  # fmt: skip
    refcount_table = struct.pack(">Q", 2 * cluster).ljust(cluster, b"\0")
    refcount_block = struct.pack(">4H", 1, 1, 1, 1).ljust(cluster, b"\0")
    path.write_bytes(header.ljust(cluster, b"\0") + refcount_table + refcount_block + bytes(cluster))
    return path
