"""Upload a volume to a backup storage, flattened into one qcow2.

Invariant: what leaves the host holds the guest's bytes and no reference to another file. The flattened copy is gone
afterwards, whatever happened.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from caelum.agent.core import Agent
from caelum.agent.protocol import DOWNLOAD, STORAGE, FileInfo, UploadFile
from caelum.agent.registry import AgentFailure, handler
from caelum.agent.storage import space, volume
from caelum.agent.storage.paths import NEW, Storage
from caelum.kernel import image_header

CHUNK = 1 << 20
CONVERT_TIMEOUT = 6 * 3600.0
MIN_SPEED, MIN_SECONDS = 256 << 10, 600.0
"""A transfer slower than this many bytes a second is given up, but not before so many seconds."""
MAX_CHAIN = 64
"""Backing files below a volume."""
_FLATTENED = 50
"""Progress when the copy is made; the rest is the transfer."""


@handler(UploadFile, lock="upload-{install_path}")
async def upload_file(agent: Agent, cmd: UploadFile) -> FileInfo:
    """Flatten and PUT."""
    storage = Storage(cmd.storage_path)
    path = await agent.run_blocking(storage.existing, cmd.install_path)
    await agent.run_blocking(_check_chain, storage, path)
    temporary = path.with_name(f"{path.name}.upload{NEW}")
    try:
        await _flatten(agent, storage, path, temporary)
        agent.progress(_FLATTENED, "flattened")
        await _put(agent, cmd.url, temporary)
        return await agent.run_blocking(_told, path, temporary)
    finally:
        temporary.unlink(missing_ok=True)


def _check_chain(storage: Storage, path: Path) -> None:
    """Every file of the chain must be the storage's own, and the copy must fit."""
    needed, one = 0, path
    for _ in range(MAX_CHAIN):
        header = image_header.inspect(one)
        needed += one.stat().st_blocks * 512
        if header.data_file is not None:
            raise AgentFailure(STORAGE, f"{one} names an external data file", path=str(one))
        if header.backing is None:
            space.require(storage.root, min(needed, header.virtual_size or needed), f"the flattened copy of {path}")
            return
        one = storage.existing(header.backing)
    raise AgentFailure(STORAGE, f"{path} has more than {MAX_CHAIN} backing files", path=str(path))


async def _flatten(agent: Agent, storage: Storage, path: Path, temporary: Path) -> None:
    source = (await agent.run_blocking(image_header.inspect, path)).format
    argv = ["qemu-img", "convert", "-q", "-f", _driver(source), "-O", "qcow2", str(path), str(temporary)]
    done = await agent.run(argv, timeout=CONVERT_TIMEOUT, check=False)
    if done.code != 0:
        raise volume.image_tool_failure(done, storage.root, await agent.run_blocking(os.path.getsize, path))


def _driver(header_format: str) -> str:
    return "qcow2" if header_format == "qcow2" else "raw"


async def _put(agent: Agent, url: str, file: Path) -> None:
    size = await agent.run_blocking(os.path.getsize, file)
    headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
    timeout = aiohttp.ClientTimeout(total=MIN_SECONDS + size / MIN_SPEED, connect=30)
    try:
        async with agent.http.put(url, data=_chunks(agent, file, size), headers=headers, timeout=timeout) as response:
            if response.status >= 300:
                text = (await response.text())[:500]
                raise AgentFailure(
                    DOWNLOAD, f"PUT {url}: {response.status} {text}", transient=response.status >= 500, url=url
                )
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise AgentFailure(DOWNLOAD, f"PUT {url}: {error or type(error).__name__}", transient=True, url=url) from error


async def _chunks(agent: Agent, file: Path, size: int) -> AsyncIterator[bytes]:
    sent = 0
    with file.open("rb") as stream:
        while chunk := await agent.run_blocking(stream.read, CHUNK):
            yield chunk
            before, sent = sent, sent + len(chunk)
            if sent * 10 // size != before * 10 // size:
                agent.progress(_FLATTENED + sent * (100 - _FLATTENED) // size, f"{sent} of {size} bytes")


def _told(path: Path, temporary: Path) -> FileInfo:
    flat = space.info(temporary)
    return FileInfo(path=str(path), virtual_size=flat.virtual_size, actual_size=flat.actual_size, format=flat.format)
