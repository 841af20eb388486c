"""A storage as a directory: made and marked once, then measured, listed, and cleaned of what a crash left.

Invariant: a storage that was marked once is never marked again by itself. Were an unmounted disk's empty mount point
taken for the storage, every volume would seem lost, and new ones would fill the host's own disk.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec

from caelum.agent.core import Agent
from caelum.agent.protocol import (
    STORAGE,
    DeleteFile,
    Empty,
    FileInfo,
    GetFileInfo,
    GetStorageCapacity,
    InitStorage,
    LeaveStorage,
    StorageCapacity,
)
from caelum.agent.registry import AgentFailure, handler
from caelum.agent.storage import locks, space
from caelum.agent.storage.paths import NEW, PART, Marker, Storage

STALE_SECONDS = 24 * 3600
"""Age at which an unfinished file is nobody's any more: no command runs that long."""


@handler(InitStorage, lock="storage-{storage_path}")
async def init_storage(agent: Agent, cmd: InitStorage) -> StorageCapacity:
    """Make and mark the storage, or find its mark."""
    storage = Storage(cmd.storage_path)
    await agent.run_blocking(_init, storage, cmd)
    await agent.run_blocking(_remove_stale, storage)
    return await agent.run_blocking(space.capacity, storage.root)


def _init(storage: Storage, cmd: InitStorage) -> None:
    present = storage.read_marker()
    if present is None:
        if not cmd.first:
            storage.require_mark()
        storage.root.mkdir(parents=True, exist_ok=True)
        _mark(storage, Marker(cmd.storage_uuid))
    elif present.storage_uuid != cmd.storage_uuid:
        raise AgentFailure(
            STORAGE,
            f"{storage.root} belongs to the storage {present.storage_uuid}, not {cmd.storage_uuid}",
            path=str(storage.root), storage_uuid=present.storage_uuid,
        )  # fmt: skip


@handler(LeaveStorage, lock="storage-{storage_path}")
async def leave_storage(agent: Agent, cmd: LeaveStorage) -> Empty:
    """Take our mark away."""
    await agent.run_blocking(_leave, Storage(cmd.storage_path), cmd.storage_uuid)
    return Empty()


def _leave(storage: Storage, storage_uuid: str) -> None:
    present = storage.read_marker()
    if present is not None and present.storage_uuid == storage_uuid:
        storage.marker.unlink(missing_ok=True)


def _mark(storage: Storage, marker: Marker) -> None:
    temporary = storage.marker.with_name(storage.marker.name + NEW)
    with temporary.open("wb") as stream:
        stream.write(msgspec.json.encode(marker))
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(storage.marker)


def _remove_stale(storage: Storage) -> None:
    before = time.time() - STALE_SECONDS
    for file in list(storage.files()):
        if file.name.endswith((PART, NEW)) and file.lstat().st_mtime < before:
            file.unlink(missing_ok=True)
            storage.remove_empty_parents(file)


@handler(GetStorageCapacity)
async def get_capacity(agent: Agent, cmd: GetStorageCapacity) -> StorageCapacity:
    """Measure a storage that is here."""
    storage = Storage(cmd.storage_path)
    await agent.run_blocking(storage.require_mark)
    return await agent.run_blocking(space.capacity, storage.root)


@handler(GetFileInfo)
async def get_file_info(agent: Agent, cmd: GetFileInfo) -> FileInfo:
    """Tell what a file is."""
    path = await agent.run_blocking(Storage(cmd.storage_path).existing, cmd.install_path)
    return await agent.run_blocking(space.info, path)


@handler(DeleteFile, lock="file-{install_path}")
async def delete_file(agent: Agent, cmd: DeleteFile) -> Empty:
    """Delete a file, what is unfinished of it, and the directories left empty."""
    storage = Storage(cmd.storage_path)
    path = await agent.run_blocking(storage.file, cmd.install_path)
    await agent.run_blocking(_delete, path)
    async with agent.lock(f"folders-{storage.root}"):
        await agent.run_blocking(storage.remove_empty_parents, path)
    return Empty()


def _delete(path: Path) -> None:
    if path.is_dir():
        raise AgentFailure(STORAGE, f"{path} is a directory, not a file", path=str(path))
    if path.exists() and locks.in_use(path):
        raise AgentFailure(STORAGE, f"{path} is open in a running guest", transient=True, path=str(path))
    for one in (path, path.with_name(path.name + PART), path.with_name(path.name + NEW)):
        one.unlink(missing_ok=True)


async def dump(agent: Agent, storage_paths: list[str]) -> dict[str, Any]:
    """Every file of these storages, as a field of `HostDump`."""
    found = {path: await agent.run_blocking(_listed, Storage(path)) for path in storage_paths}
    return {"files": found}


def _listed(storage: Storage) -> list[str]:
    return sorted(str(file) for file in storage.files())
