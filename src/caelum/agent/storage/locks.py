"""Whether QEMU has a file open: it holds byte-range locks on every image that it uses.

Invariant: asking takes no lock, so it can never get in a guest's way.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

_FLOCK = struct.Struct("hhqqi4x")
_FIRST, _LENGTH = 100, 128
"""Where QEMU's image locks lie: permissions held from byte 100, permissions denied from byte 200."""


def in_use(path: Path) -> bool:
    """Whether some process holds one of QEMU's locks on the file, for reading or writing."""
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _FIRST, _LENGTH, 0)
        answer = fcntl.fcntl(handle, fcntl.F_OFD_GETLK, question)
    finally:
        os.close(handle)
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK
