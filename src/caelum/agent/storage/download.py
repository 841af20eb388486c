"""Fetch an image into the image cache.

Invariant: a file at its path in the cache is complete, has the checksum that was asked for, and its header names no
other file. It is fetched beside it and moved there; a transfer that broke off is resumed only when a checksum proves
the result.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import aiohttp

from caelum.agent.core import Agent
from caelum.agent.protocol import DOWNLOAD, DownloadToCache, FileInfo
from caelum.agent.registry import AgentFailure, handler
from caelum.agent.storage import space, volume
from caelum.agent.storage.paths import PART, Storage
from caelum.kernel import image_header
from caelum.kernel.image_header import ImageRejected

CHUNK = 1 << 20
ATTEMPTS = 5
"""How often a transfer that broke off is taken up again."""
RETRY_SECONDS = 1.0
"""The pause before the first new attempt; each further one is longer by as much."""
STALL_SECONDS = 60.0
"""How long a transfer may stand still."""


@handler(DownloadToCache, lock="file-{install_path}")
async def download_to_cache(agent: Agent, cmd: DownloadToCache) -> FileInfo:
    """Have the image in the cache. The lock makes a second caller wait and find the first one's file."""
    storage = Storage(cmd.storage_path)
    path = await agent.run_blocking(storage.file, cmd.install_path)
    if not await agent.run_blocking(path.is_file):
        await _fetch(agent, cmd, storage, path)
    return await agent.run_blocking(_checked, path, cmd)


async def _fetch(agent: Agent, cmd: DownloadToCache, storage: Storage, path: Path) -> None:
    part = path.with_name(path.name + PART)
    async with agent.lock(f"folders-{storage.root}"):
        await agent.run_blocking(_touch, part, cmd.sha256 is not None)
    transfer = Transfer(agent, cmd, storage, part)
    try:
        await transfer.run()
        await agent.run_blocking(_checked, part, cmd)
        await agent.run_blocking(volume.settle, part, path)
    except BaseException as error:
        if not (isinstance(error, AgentFailure) and error.transient and cmd.sha256):
            await agent.run_blocking(_clean_up, storage, part)
        raise


def _touch(part: Path, resumable: bool) -> None:
    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    if not resumable:
        os.truncate(part, 0)


def _clean_up(storage: Storage, part: Path) -> None:
    part.unlink(missing_ok=True)
    storage.remove_empty_parents(part)


def _checked(path: Path, cmd: DownloadToCache) -> FileInfo:
    """What the file is, if it may be an image here."""
    size = path.stat().st_size
    if cmd.size is not None and size != cmd.size:
        raise AgentFailure(
            DOWNLOAD, f"{path} has {size} bytes, the image has {cmd.size}", path=str(path), size=size, expected=cmd.size
        )
    try:
        return space.info(path, image_header.check(image_header.inspect(path), declared=cmd.format))
    except ImageRejected as error:
        raise volume.rejected(path, error) from error


class Transfer:
    """One image on its way into its `.part` file."""

    def __init__(self, agent: Agent, cmd: DownloadToCache, storage: Storage, part: Path) -> None:
        self._agent = agent
        self._cmd = cmd
        self._storage = storage
        self._part = part
        self._hash = hashlib.sha256()
        self._done = 0
        self._total = cmd.size
        self._told = -1

    async def run(self) -> None:
        """Transfer everything and compare checksums; once more from the start when a resumed one does not match."""
        resumed = await self._take_up()
        await self._transfer()
        if self._matches():
            return
        if resumed:
            await self._start_over()
            await self._transfer()
        if not self._matches():
            raise AgentFailure(
                DOWNLOAD,
                f"{self._cmd.url}: SHA-256 is {self._hash.hexdigest()}, expected {self._cmd.sha256}",
                url=self._cmd.url, sha256=self._hash.hexdigest(), expected=self._cmd.sha256,
            )  # fmt: skip

    def _matches(self) -> bool:
        return self._cmd.sha256 is None or self._hash.hexdigest() == self._cmd.sha256.lower()

    async def _take_up(self) -> bool:
        """Hash what an earlier transfer left; tells whether there was any."""
        self._done = await self._agent.run_blocking(self._hash_part)
        return self._done > 0

    def _hash_part(self) -> int:
        length = 0
        with self._part.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                self._hash.update(chunk)
                length += len(chunk)
        return length

    async def _start_over(self) -> None:
        await self._agent.run_blocking(os.truncate, self._part, 0)
        self._hash, self._done = hashlib.sha256(), 0

    async def _transfer(self) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._attempt()
            except (aiohttp.ClientError, TimeoutError) as error:
                if attempt == ATTEMPTS:
                    raise self._failure(str(error) or type(error).__name__, transient=True) from error
            await asyncio.sleep(attempt * RETRY_SECONDS)
        return None

    async def _attempt(self) -> None:
        if self._total is not None and self._done == self._total:
            return
        if self._done and self._cmd.sha256 is None:
            await self._start_over()
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={self._done}-"} if self._done else {})}
        timeout = aiohttp.ClientTimeout(total=None, connect=30, sock_read=STALL_SECONDS)
        async with self._agent.http.get(self._cmd.url, headers=headers, timeout=timeout) as response:
            if response.status == 416 or (response.status == 200 and self._done):
                await self._start_over()  # the server's file is another one by now, or it cannot resume
            if response.status == 416:
                raise aiohttp.ClientPayloadError("the range is not there")
            if response.status not in (200, 206):
                raise self._failure(f"{response.status} {response.reason}", transient=response.status >= 500)
            await self._measure(response)
            await self._receive(response)

    async def _measure(self, response: aiohttp.ClientResponse) -> None:
        """Learn the size, and refuse what does not fit before it fills the disk."""
        if response.content_length is not None:
            announced = self._done + response.content_length
            if self._total is not None and announced != self._total:
                raise self._failure(f"the server announces {announced} bytes, the image has {self._total}")
            self._total = announced
        if self._total is not None:
            missing = self._total - self._done
            await self._agent.run_blocking(space.require, self._storage.root, missing, f"the image {self._part.name}")

    async def _receive(self, response: aiohttp.ClientResponse) -> None:
        with self._part.open("ab", buffering=0) as stream:
            async for chunk in response.content.iter_chunked(CHUNK):
                if self._total is not None and self._done + len(chunk) > self._total:
                    raise self._failure(f"the server sends more than the {self._total} bytes of the image")
                await self._agent.run_blocking(self._keep, stream, chunk)
                self._tell()
        if self._total is not None and self._done < self._total:
            raise aiohttp.ClientPayloadError(f"broke off after {self._done} of {self._total} bytes")

    def _keep(self, stream: BinaryIO, chunk: bytes) -> None:
        try:
            rest = memoryview(chunk)
            while rest:
                rest = rest[stream.write(rest) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            root = self._storage.root
            needed = (self._total or self._done + len(chunk)) - self._done
            raise space.no_space(
                root, needed, space.capacity(root).available, f"the image {self._part.name}"
            ) from error
        self._hash.update(chunk)
        self._done += len(chunk)

    def _tell(self) -> None:
        if self._total:
            percent = self._done * 100 // self._total
            if percent >= self._told + 5:
                self._told = percent
                self._agent.progress(percent, f"{self._done} of {self._total} bytes")

    def _failure(self, details: str, *, transient: bool = False) -> AgentFailure:
        url = self._cmd.url
        return AgentFailure(DOWNLOAD, f"{url}: {details}", transient=transient, url=url, received=self._done)
