"""Volumes: empty qcow2 files, and linked clones of cached images.

Invariant: a file at a volume's path is a whole volume. It is made beside it under another name and moved there; what a
crash leaves under that name is made anew. A volume that is there is never overwritten, whatever the command says.
"""

from __future__ import annotations

import os
from pathlib import Path

from caelum.agent.core import Agent
from caelum.agent.process import Completed
from caelum.agent.protocol import NOT_FOUND, STORAGE, CreateVolume, FileInfo
from caelum.agent.registry import AgentFailure, handler
from caelum.agent.storage import space
from caelum.agent.storage.paths import NEW, Storage
from caelum.kernel import image_header
from caelum.kernel.image_header import ImageHeader, ImageRejected

SECTOR = 512
CREATE_TIMEOUT = 120.0
LIMITS = ["prlimit", "--as=2147483648", "--cpu=60", "--"]
"""An image tool gets 2 GiB of addresses and a minute of CPU: a hostile image must not take the host with it."""


@handler(CreateVolume, lock="file-{install_path}")
async def create_volume(agent: Agent, cmd: CreateVolume) -> FileInfo:
    """Make a volume, or find it made."""
    storage = Storage(cmd.storage_path)
    path = await agent.run_blocking(storage.file, cmd.install_path)
    backing = await agent.run_blocking(_backing, storage, cmd)
    size = max(_rounded(cmd.size), backing.virtual_size if backing else 0)
    found = await agent.run_blocking(_present, path, cmd.backing, size)
    if found is not None:
        return found
    temporary = path.with_name(path.name + NEW)
    async with agent.lock(f"folders-{storage.root}"):
        # With a file in it, the directory cannot be taken for one that a deletion left empty.
        await agent.run_blocking(_touch, temporary)
    done = await agent.run([*LIMITS, *_argv(cmd, temporary, size)], timeout=CREATE_TIMEOUT, check=False)
    if done.code != 0:
        await agent.run_blocking(_clean_up, storage, temporary)
        raise image_tool_failure(done, storage.root, size)
    await agent.run_blocking(settle, temporary, path)
    return await agent.run_blocking(space.info, path)


def _argv(cmd: CreateVolume, path: Path, size: int) -> list[str]:
    backing = ["-b", cmd.backing, "-F", cmd.backing_format] if cmd.backing else []
    return ["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(path), str(size)]


def _rounded(size: int) -> int:
    return -(-size // SECTOR) * SECTOR


def _backing(storage: Storage, cmd: CreateVolume) -> ImageHeader | None:
    """The cached image to clone. It was checked when it came, and is again: it may have been tampered with since."""
    if cmd.backing is None:
        return None
    path = storage.existing(cmd.backing)
    declared = cmd.backing_format
    try:
        return image_header.check(image_header.inspect(path), declared=declared)
    except ImageRejected as error:
        raise rejected(path, error) from error


def _present(path: Path, backing: str | None, size: int) -> FileInfo | None:
    """The volume, if it is there as it is to be; a failure if something else is there."""
    if not path.exists():
        return None
    try:
        header = image_header.inspect(path)
    except ImageRejected as error:
        raise rejected(path, error) from error
    if header.format != "qcow2" or header.backing != backing or header.virtual_size < size:
        raise AgentFailure(
            STORAGE,
            f"{path} exists already: {header.format} of {header.virtual_size} bytes over {header.backing},"
            f" wanted qcow2 of {size} bytes over {backing}",
            path=str(path), size=header.virtual_size, backing=header.backing,
        )  # fmt: skip
    return space.info(path, header)


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _clean_up(storage: Storage, temporary: Path) -> None:
    temporary.unlink(missing_ok=True)
    storage.remove_empty_parents(temporary)


def settle(temporary: Path, path: Path) -> None:
    """Move a finished file to its name so that both survive a loss of power."""
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have a file or a directory on disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rejected(path: Path, error: ImageRejected) -> AgentFailure:
    """The failure for a file whose header is not acceptable."""
    failure = AgentFailure(STORAGE, f"{path}: {error.reason}")
    failure.facts = {**error.facts, "path": str(path)}
    return failure


def image_tool_failure(done: Completed, root: Path, needed: int) -> AgentFailure:
    """Why qemu-img failed: a full disk is told apart, since waiting or deleting helps against it."""
    if "No space left" in done.error_text:
        return space.no_space(root, needed, space.capacity(root).available, "the image")
    code = NOT_FOUND if "No such file" in done.error_text else STORAGE
    return AgentFailure(code, f"{' '.join(done.argv)}: {done.error_text}", exit_code=done.code)
