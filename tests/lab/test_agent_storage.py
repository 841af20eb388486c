"""Storage with real files, qemu-img, and a backup storage that breaks off, lies, or is too small."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from caelum.agent import storage
from caelum.agent.core import Agent, AgentConfig
from caelum.agent.protocol import (
    DOWNLOAD,
    NO_SPACE,
    NOT_FOUND,
    STORAGE,
    Command,
    CreateVolume,
    DeleteFile,
    DownloadToCache,
    GetFileInfo,
    GetStorageCapacity,
    InitStorage,
    UploadFile,
)
from caelum.agent.registry import AgentFailure, handlers
from caelum.agent.storage import download, locks, space
from caelum.kernel import image_header
from caelum.kernel.ids import new_uuid

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")

MIB = 1 << 20
UUID = new_uuid()


class Reports:
    agent_uuid = "0" * 32

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def add(self, kind: str, body: dict[str, Any]) -> None:
        self.seen.append((kind, body))

    def send_to(self, url: str, host_uuid: str) -> None: ...


class BackupStorage:
    """Serves one image, with faults on demand."""

    def __init__(self) -> None:
        self.content = b""
        self.requests: list[str | None] = []
        self.break_after: list[int] = []
        self.ranges = True
        self.received = b""

    async def get(self, request: web.Request) -> web.StreamResponse:
        asked = request.headers.get("Range")
        self.requests.append(asked)
        start = int(asked.split("=")[1].rstrip("-")) if asked and self.ranges else 0
        body = self.content[start:]
        response = web.StreamResponse(status=206 if start else 200, headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        if self.break_after:
            await response.write(body[: self.break_after.pop(0)])
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(body)
        return response

    async def put(self, request: web.Request) -> web.Response:
        assert request.headers["Content-Length"]
        self.received = await request.read()
        return web.Response()


class Lab:
    def __init__(self, agent: Agent, backup: BackupStorage, url: str, root: Path, reports: Reports) -> None:
        self.agent, self.backup, self.url, self.root, self.reports = agent, backup, url, root, reports

    async def do(self, command: Command[Any]) -> Any:
        found = handlers()[command.path]
        name = found.lock_name(command)
        async with self.agent.lock(name) if name else contextlib.nullcontext():
            return await found.function(self.agent, command)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def download(self, **changes: Any) -> DownloadToCache:
        fields = {
            "storage_path": str(self.root), "url": self.url, "install_path": self.path("cache/i/image.qcow2"),
            "sha256": hashlib.sha256(self.backup.content).hexdigest(), "size": len(self.backup.content), **changes,
        }  # fmt: skip
        return DownloadToCache(**fields)

    def volume(self, name: str = "vol/v.qcow2", size: int = 16 * MIB, **changes: Any) -> CreateVolume:
        return CreateVolume(
            storage_path=str(self.root), volume_uuid=new_uuid(), install_path=self.path(name), size=size, **changes
        )

    def files(self) -> list[str]:
        return sorted(str(one.relative_to(self.root)) for one in self.root.rglob("*") if one.is_file())


@pytest.fixture
async def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lab]:
    monkeypatch.setattr(download, "RETRY_SECONDS", 0.01)
    backup, reports = BackupStorage(), Reports()
    app = web.Application(client_max_size=1 << 30)
    app.add_routes([web.get("/image", backup.get, allow_head=False), web.put("/image", backup.put)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession() as http:
        agent = Agent(AgentConfig(state_dir=tmp_path, tls_dir=tmp_path), http, reports)
        storage.setup(agent)
        one = Lab(agent, backup, f"http://127.0.0.1:{port}/image", tmp_path / "ps", reports)
        await one.do(InitStorage(storage_uuid=UUID, storage_path=str(one.root), first=True))
        yield one
        await agent.close()
    await runner.cleanup()


@pytest.fixture
def image(lab: Lab, tmp_path: Path) -> bytes:
    qemu_img("create", "-f", "raw", tmp_path / "raw", "8M")
    with (tmp_path / "raw").open("r+b") as stream:
        stream.write(os.urandom(3 * MIB))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp_path / "raw", tmp_path / "image")
    lab.backup.content = (tmp_path / "image").read_bytes()
    return lab.backup.content


def qemu_img(*argv: str | Path) -> str:
    return subprocess.run(
        ["qemu-img", *map(str, argv)], check=True, capture_output=True, text=True, timeout=30
    ).stdout  # fmt: skip


async def test_mark_guards_against_an_unmounted_disk(lab: Lab) -> None:
    again = InitStorage(storage_uuid=UUID, storage_path=str(lab.root))
    found = await lab.do(again)
    assert found.total >= found.available > 0
    assert await lab.do(GetStorageCapacity(storage_path=str(lab.root))) is not None
    with pytest.raises(AgentFailure, match=f"belongs to the storage {UUID}"):
        await lab.do(InitStorage(storage_uuid=new_uuid(), storage_path=str(lab.root), first=True))
    (lab.root / ".caelum-storage").unlink()
    for command in (again, GetStorageCapacity(storage_path=str(lab.root)), lab.volume(), lab.download()):
        with pytest.raises(AgentFailure, match="not mounted") as caught:
            await lab.do(command)
        assert caught.value.code == STORAGE


async def test_download_once_for_many(lab: Lab, image: bytes) -> None:
    infos = await asyncio.gather(*(lab.do(lab.download()) for _ in range(5)))
    assert {(one.format, one.virtual_size) for one in infos} == {("qcow2", 8 * MIB)}
    assert len(lab.backup.requests) == 1
    assert (lab.root / "cache/i/image.qcow2").read_bytes() == image
    assert lab.files() == [".caelum-storage", "cache/i/image.qcow2"]


async def test_broken_transfer_is_resumed(lab: Lab, image: bytes) -> None:
    lab.backup.break_after = [MIB, MIB]
    await lab.do(lab.download())
    assert (lab.root / "cache/i/image.qcow2").read_bytes() == image
    assert lab.backup.requests[0] is None
    assert all(asked is not None and asked.startswith("bytes=") for asked in lab.backup.requests[1:])
    assert len(lab.backup.requests) == 3


async def test_next_command_takes_up_what_the_last_one_left(lab: Lab, image: bytes) -> None:
    lab.backup.break_after = [MIB] + [0] * 4
    with pytest.raises(AgentFailure) as caught:
        await lab.do(lab.download())
    assert (caught.value.code, caught.value.transient) == (DOWNLOAD, True)
    assert lab.files() == [".caelum-storage", "cache/i/image.qcow2.part"]
    left = (lab.root / "cache/i/image.qcow2.part").stat().st_size
    await lab.do(lab.download())
    assert lab.backup.requests[-1] == f"bytes={left}-"
    assert left > 0
    assert (lab.root / "cache/i/image.qcow2").read_bytes() == image


async def test_resuming_another_files_remains_starts_over(lab: Lab, image: bytes) -> None:
    part = lab.root / "cache/i/image.qcow2.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"something else")
    await lab.do(lab.download())
    assert lab.backup.requests == ["bytes=14-", None]
    lab.backup.ranges = False
    await lab.do(DeleteFile(storage_path=str(lab.root), install_path=lab.path("cache/i/image.qcow2")))
    lab.backup.break_after = [MIB]
    await lab.do(lab.download())
    assert (lab.root / "cache/i/image.qcow2").read_bytes() == image


async def test_bad_images_do_not_stay(lab: Lab, image: bytes, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"sha256": "0" * 64}, DOWNLOAD, "SHA-256 is"),
        ({"size": len(image) + 1}, DOWNLOAD, "announces"),
        ({"url": lab.url + "/none"}, DOWNLOAD, "404"),
        ({"format": "iso"}, STORAGE, "the image is qcow2, not iso"),
    ]
    for changes, code, message in cases:
        with pytest.raises(AgentFailure, match=message) as caught:
            await lab.do(lab.download(**changes))
        assert caught.value.code == code
        assert lab.files() == [".caelum-storage"]
    qemu_img("create", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", tmp_path / "evil", "1M")
    lab.backup.content = (tmp_path / "evil").read_bytes()
    with pytest.raises(AgentFailure, match="backing file, '/etc/passwd'"):
        await lab.do(lab.download())
    lab.backup.content = b"#!/bin/sh\n" * 100
    with pytest.raises(AgentFailure, match="the image is raw"):
        await lab.do(lab.download())
    assert lab.files() == [".caelum-storage"]
    assert (await lab.do(lab.download(format="raw"))).format == "raw"


async def test_no_space_is_told_with_numbers(lab: Lab, image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "capacity", lambda path: space.StorageCapacity(total=10 * MIB, available=MIB))
    with pytest.raises(AgentFailure) as caught:
        await lab.do(lab.download())
    assert caught.value.code == NO_SPACE
    assert caught.value.facts["needed"] == len(image)
    assert caught.value.facts["available"] == MIB
    assert lab.files() == [".caelum-storage"]


async def test_canceled_download_leaves_nothing(lab: Lab, image: bytes) -> None:
    lab.backup.content = image + bytes(64 * MIB)
    task = asyncio.create_task(lab.do(lab.download()))
    while not lab.backup.requests:  # noqa: ASYNC110 - the server has no event to wait for
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert lab.files() == [".caelum-storage"]


async def test_volume_is_made_once(lab: Lab) -> None:
    command = lab.volume(size=16 * MIB + 1)
    (lab.root / "vol").mkdir()
    (lab.root / "vol" / "v.qcow2.new").write_bytes(b"left by a crash")
    made = await lab.do(command)
    assert (made.format, made.virtual_size) == ("qcow2", 16 * MIB + 512)
    inode = os.stat(command.install_path).st_ino
    assert await lab.do(command) == made
    assert os.stat(command.install_path).st_ino == inode
    with pytest.raises(AgentFailure, match="exists already"):
        await lab.do(lab.volume(size=32 * MIB))
    assert lab.files() == [".caelum-storage", "vol/v.qcow2"]


async def test_linked_clone(lab: Lab, image: bytes) -> None:
    await lab.do(lab.download())
    backing = lab.path("cache/i/image.qcow2")
    made = await lab.do(lab.volume(size=MIB, backing=backing))
    assert made.virtual_size == 8 * MIB, "at least the image's size"
    header = image_header.inspect(made.path)
    assert (header.backing, header.backing_format) == (backing, "qcow2")
    assert made.actual_size < MIB
    with pytest.raises(AgentFailure, match="exists already"):
        await lab.do(lab.volume(size=8 * MIB))
    for missing in (lab.path("cache/none"), "/etc/passwd"):
        with pytest.raises(AgentFailure):
            await lab.do(lab.volume("vol/w.qcow2", backing=missing))
    with pytest.raises(AgentFailure, match="the image is qcow2, not raw"):
        await lab.do(lab.volume("vol/w.qcow2", backing=backing, backing_format="raw"))
    assert await lab.do(GetFileInfo(storage_path=str(lab.root), install_path=made.path)) == made


async def test_delete(lab: Lab) -> None:
    made = await lab.do(lab.volume("a/b/v.qcow2"))
    delete = DeleteFile(storage_path=str(lab.root), install_path=made.path)
    holder = subprocess.Popen(["qemu-io", "-f", "qcow2", made.path], stdin=subprocess.PIPE)  # noqa: ASYNC220
    try:
        async with asyncio.timeout(10):
            while not locks.in_use(Path(made.path)):  # noqa: ASYNC110 - it has no way to tell us
                await asyncio.sleep(0.01)
        with pytest.raises(AgentFailure, match="open in a running guest"):
            await lab.do(delete)
    finally:
        holder.kill()
        holder.wait()
    for _ in range(2):
        await lab.do(delete)
    assert lab.files() == [".caelum-storage"]
    assert not (lab.root / "a").exists()
    with pytest.raises(AgentFailure) as caught:
        await lab.do(GetFileInfo(storage_path=str(lab.root), install_path=made.path))
    assert caught.value.code == NOT_FOUND
    (lab.root / "dir").mkdir()
    with pytest.raises(AgentFailure, match="is a directory"):
        await lab.do(DeleteFile(storage_path=str(lab.root), install_path=lab.path("dir")))


async def test_clones_and_deletions_in_the_same_directory(lab: Lab) -> None:
    async def life(number: int) -> None:
        made = await lab.do(lab.volume(f"shared/{number}.qcow2"))
        await lab.do(DeleteFile(storage_path=str(lab.root), install_path=made.path))

    await asyncio.gather(*(life(number) for number in range(12)))
    assert lab.files() == [".caelum-storage"]


async def test_upload_is_flat(lab: Lab, image: bytes, tmp_path: Path) -> None:
    await lab.do(lab.download())
    made = await lab.do(lab.volume(backing=lab.path("cache/i/image.qcow2")))
    uploaded = await lab.do(UploadFile(storage_path=str(lab.root), install_path=made.path, url=lab.url))
    assert (uploaded.virtual_size, uploaded.format) == (16 * MIB, "qcow2")
    (tmp_path / "back").write_bytes(lab.backup.received)
    assert image_header.check(image_header.inspect(tmp_path / "back"), declared="qcow2").backing is None
    assert "identical" in qemu_img("compare", made.path, tmp_path / "back")
    assert not [name for name in lab.files() if name.endswith(".new")]
    assert [body["percent"] for kind, body in lab.reports.seen if kind == "progress"] == []
    with pytest.raises(AgentFailure, match="404"):
        await lab.do(UploadFile(storage_path=str(lab.root), install_path=made.path, url=lab.url + "/none"))
    assert not [name for name in lab.files() if name.endswith(".new")]


async def test_chain_out_of_the_storage_is_not_uploaded(lab: Lab, tmp_path: Path) -> None:
    qemu_img("create", "-f", "raw", tmp_path / "secret", "1M")
    qemu_img("create", "-f", "qcow2", "-b", tmp_path / "secret", "-F", "raw", lab.root / "evil.qcow2")
    with pytest.raises(AgentFailure, match="not a file of the storage"):
        await lab.do(UploadFile(storage_path=str(lab.root), install_path=lab.path("evil.qcow2"), url=lab.url))
    assert lab.backup.received == b""


async def test_dump_and_stale_leftovers(lab: Lab) -> None:
    made = await lab.do(lab.volume())
    old, young = lab.root / "old" / "x.part", lab.root / "young.part"
    old.parent.mkdir()
    old.touch()
    young.touch()
    os.utime(old, (1, 1))
    await lab.do(InitStorage(storage_uuid=UUID, storage_path=str(lab.root)))
    dump = await lab.agent.hooks.dump[0](lab.agent, [str(lab.root)])
    assert dump == {"files": {str(lab.root): [made.path, str(young)]}}
    assert not old.parent.exists()
