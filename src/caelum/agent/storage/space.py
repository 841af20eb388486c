"""How much room a storage has, and the failure when it is not enough.

Invariant: whoever is refused for lack of space is told how much was needed and how much there is.
"""

from __future__ import annotations

import os
from pathlib import Path

from caelum.agent.protocol import NO_SPACE, FileInfo, StorageCapacity
from caelum.agent.registry import AgentFailure
from caelum.kernel import image_header
from caelum.kernel.image_header import ImageHeader


def capacity(path: Path) -> StorageCapacity:
    """Bytes of the file system that holds `path`; what root keeps for itself is not available."""
    status = os.statvfs(path)
    return StorageCapacity(total=status.f_blocks * status.f_frsize, available=status.f_bavail * status.f_frsize)


def require(path: Path, needed: int, purpose: str) -> None:
    """Fail unless `needed` bytes are free."""
    available = capacity(path).available
    if needed > available:
        raise no_space(path, needed, available, purpose)


def no_space(path: Path, needed: int, available: int, purpose: str) -> AgentFailure:
    """The failure for a full disk."""
    return AgentFailure(
        NO_SPACE,
        f"{purpose} needs {needed} bytes, {path} has {available} left",
        path=str(path), needed=needed, available=available,
    )  # fmt: skip


def info(path: Path, header: ImageHeader | None = None) -> FileInfo:
    """What a file is: its header's claims, and the blocks that it really takes."""
    found = header or image_header.inspect(path)
    return FileInfo(
        path=str(path),
        virtual_size=found.virtual_size,
        actual_size=path.stat().st_blocks * 512,
        format=found.format,
    )
