"""Images: added, changed, deleted, recovered, expunged."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from sqlalchemy import update

from caelum.cloud.backup_storage.api import GetBackupStorageCapacity
from caelum.cloud.backup_storage.errors import DOWNLOAD_ERROR
from caelum.cloud.identity.api import CreateAccount, UpdateQuota
from caelum.cloud.image.api import (
    AddImage,
    ChangeImageState,
    DeleteImage,
    ExpungeImage,
    ImageInventory,
    QueryImage,
    RecoverImage,
    SyncImageSize,
    UpdateImage,
)
from caelum.cloud.image.errors import IMAGE_NOT_USABLE
from caelum.cloud.image.events import ImageTracked
from caelum.cloud.image.messages import GetImage, LocateImage
from caelum.cloud.image.model import ImageModel
from caelum.cloud.image.settings import DELETION_POLICY, EXPUNGE_PERIOD
from caelum.cloud.ownership import owner_of
from caelum.cloud.quota import QUOTA_EXCEEDING, usage
from caelum.drivers.directory_backup.api import AddDirectoryBackupStorage
from caelum.drivers.directory_backup.settings import ALLOWED_NETWORKS
from caelum.kernel.context import ADMIN_ACCOUNT_UUID, Actor
from caelum.kernel.database import utcnow
from caelum.kernel.errors import INVALID_ARGUMENT, CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import QueryCondition
from caelum.testing.simcloud import IMAGE_SIZE, SimulatedCloud, empty_qcow2, simulated_cloud


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SimulatedCloud]:
    async with simulated_cloud(tmp_path, hosts=1) as made:
        yield made


def add(world: SimulatedCloud, url: str, **fields: Any) -> AddImage:
    return AddImage(name="image", url=url, backup_storage_uuids=[world.backup_storage], **fields)


async def images(world: SimulatedCloud, *conditions: QueryCondition, **more: Any) -> list[ImageInventory]:
    return (await world.api(QueryImage(conditions=list(conditions)), **more)).inventories or []


def files(world: SimulatedCloud, uuid: str) -> list[str]:
    return sorted(one.name for one in (world.directory / "backup").rglob(f"*/{uuid}/*"))


async def free(world: SimulatedCloud) -> int:
    return (await world.api(GetBackupStorageCapacity(all=True))).available_capacity


async def used(world: SimulatedCloud, name: str, account: str) -> int:
    async with world.cloud.node.db.read() as session:
        return {one: taken for one, taken, _ in await usage(session, account)}[name]


async def test_an_image_is_added_with_what_its_header_says(world: SimulatedCloud) -> None:
    path = empty_qcow2(world.directory / "second.qcow2")
    data, before, uuid = path.read_bytes(), await free(world), new_uuid()
    image = await world.api(
        add(world, f"file://{path}", resource_uuid=uuid, user_tags=["golden"], guest_os_type="Linux")
    )
    assert (image.uuid, image.status, image.state, image.format) == (uuid, "Ready", "Enabled", "qcow2")
    assert (image.size, image.actual_size) == (IMAGE_SIZE, len(data))
    assert image.md5_sum == hashlib.md5(data).hexdigest()
    assert (image.media_type, image.platform, image.architecture) == ("RootVolumeTemplate", "Linux", "x86_64")
    assert [(one.backup_storage_uuid, one.status) for one in image.backup_storage_refs] == [
        (world.backup_storage, "Ready")
    ]
    assert files(world, uuid) == [f"{uuid}.qcow2", "image.json"]
    assert await free(world) == before - len(data)
    location = await world.cloud.node.bus.call(LocateImage(uuid, world.zone))
    assert location.sha256 == hashlib.sha256(data).hexdigest()
    assert [one.uuid for one in await images(world, QueryCondition("__userTag__", "=", "golden"))] == [uuid]
    assert uuid in [one.uuid for one in await images(world, QueryCondition("backupStorage.name", "=", "images"))]
    async with world.cloud.node.db.read() as session:
        assert await owner_of(session, uuid) == ADMIN_ACCOUNT_UUID
    assert [one.success for one in await world.cloud.seen(ImageTracked)][-1] is True


async def test_images_that_are_refused_leave_nothing(world: SimulatedCloud) -> None:
    before, others = await free(world), len(await images(world))
    bad = world.directory / "bad.qcow2"
    cases = {
        "backing": bytearray(empty_qcow2(bad).read_bytes()),
        "vmdk": bytearray(b"KDMV" + bytes(200_000)),
        "not qcow2 or ISO": bytearray(b"<html>no such image</html>"),
    }
    cases["backing"][8:20] = (512).to_bytes(8, "big") + (4).to_bytes(4, "big")
    cases["backing"][512:516] = b"/etc"
    for words, data in cases.items():
        bad.write_bytes(data)
        uuid = new_uuid()
        with pytest.raises(CloudError, match=words) as refused:
            await world.api(add(world, f"file://{bad}", resource_uuid=uuid))
        assert refused.value.kind is DOWNLOAD_ERROR
        assert isinstance(refused.value.cause, CloudError)
        assert refused.value.cause.kind is INVALID_ARGUMENT
        assert files(world, uuid) == []
    assert (await free(world), len(await images(world))) == (before, others)
    assert await used(world, "image.num", ADMIN_ACCOUNT_UUID) == others
    assert [one.success for one in await world.cloud.seen(ImageTracked)][-3:] == [False] * 3


async def test_checks_come_first(world: SimulatedCloud) -> None:
    path = f"file://{world.directory}/image.qcow2"
    user = Actor(new_uuid(), new_uuid(), None, False)
    wrong: list[tuple[AddImage, Actor | None]] = [
        (add(world, path, format="vmdk"), None),
        (add(world, path, media_type="ISO", format="qcow2"), None),
        (add(world, path, media_type="RootVolumeTemplate", format="iso"), None),
        (add(world, "file:///etc/passwd"), None),
        (add(world, "http://127.0.0.1/x"), None),
        (add(world, "ftp://8.8.8.8/x"), None),
        (add(world, path), user),
    ]
    for msg, actor in wrong:
        with pytest.raises(CloudError) as refused:
            await world.api(msg, actor=actor)
        assert refused.value.kind is INVALID_ARGUMENT
    assert len(await images(world)) == 1


async def test_raw_and_iso(world: SimulatedCloud) -> None:
    raw, iso = world.directory / "disk.raw", world.directory / "cd.iso"
    raw.write_bytes(b"\xeb\x63\x90" + bytes(1 << 20))
    data = bytearray(40_960)
    data[32769:32774] = b"CD001"
    iso.write_bytes(data)
    made = await world.api(add(world, f"file://{raw}", format="raw"))
    assert (made.format, made.size, made.media_type) == ("raw", 3 + (1 << 20), "RootVolumeTemplate")
    for msg in (add(world, f"file://{iso}", media_type="ISO"), add(world, f"file://{iso}", format="iso")):
        made = await world.api(msg)
        assert (made.format, made.media_type, made.size) == ("iso", "ISO", 40_960)
        location = await world.cloud.node.bus.call(LocateImage(made.uuid, world.zone))
        assert location.url.endswith(f"/isos/acct-{ADMIN_ACCOUNT_UUID}/{made.uuid}/{made.uuid}.iso")


async def test_an_image_from_the_web_shows_its_progress(world: SimulatedCloud) -> None:
    data, go_on = empty_qcow2(world.directory / "web.qcow2").read_bytes(), asyncio.Event()

    async def serve(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[:100_000])
        await go_on.wait()
        await response.write(data[100_000:])
        return response

    app = web.Application()
    app.router.add_get("/web.qcow2", serve)
    async with TestServer(app, host="127.0.0.1") as server:
        await world.cloud.node.settings.set(ALLOWED_NETWORKS, "127.0.0.0/8")
        url, uuid = f"http://user:secret@127.0.0.1:{server.port}/web.qcow2", new_uuid()
        adding = asyncio.create_task(world.api(add(world, url, resource_uuid=uuid)))

        async def downloading() -> bool:
            return [one.status for one in await images(world, QueryCondition("uuid", "=", uuid))] == ["Downloading"]

        await world.cloud.until(downloading)
        with pytest.raises(CloudError) as early:
            await world.cloud.node.bus.call(GetImage(uuid, usable=True))
        assert early.value.kind is IMAGE_NOT_USABLE
        go_on.set()
        image = await adding
    assert (image.status, image.actual_size) == ("Ready", len(data))
    assert "secret" not in image.url


async def test_an_image_that_is_deleted_while_it_is_fetched_is_gone(world: SimulatedCloud) -> None:
    async def serve(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000000"})
        await response.prepare(request)
        await response.write(empty_qcow2(world.directory / "w.qcow2").read_bytes()[:70_000])
        await asyncio.sleep(60)
        return response

    app = web.Application()
    app.router.add_get("/slow", serve)
    async with TestServer(app, host="127.0.0.1") as server:
        await world.cloud.node.settings.set(ALLOWED_NETWORKS, "127.0.0.0/8")
        before, uuid = await free(world), new_uuid()
        adding = asyncio.create_task(world.api(add(world, str(server.make_url("/slow")), resource_uuid=uuid)))

        async def begun() -> bool:
            return f"{uuid}.part" in files(world, uuid)

        await world.cloud.until(begun)
        await world.api(DeleteImage(uuid=uuid))
        with pytest.raises(CloudError):
            await adding
    assert (files(world, uuid), await images(world, QueryCondition("uuid", "=", uuid))) == ([], [])
    assert await free(world) == before


async def test_one_storage_of_two_is_enough(world: SimulatedCloud) -> None:
    second = await world.api(AddDirectoryBackupStorage(name="second", url=str(world.directory / "backup2")))
    root = world.directory / "backup2" / "rootVolumeTemplates"
    root.write_text("a file where a directory belongs")
    path = empty_qcow2(world.directory / "second.qcow2")
    msg = AddImage(name="both", url=f"file://{path}", backup_storage_uuids=[second.uuid, world.backup_storage])
    image = await world.api(msg)
    assert [one.backup_storage_uuid for one in image.backup_storage_refs] == [world.backup_storage]
    root.unlink()
    image = await world.api(msg)
    assert len(image.backup_storage_refs) == 2
    await world.api(DeleteImage(uuid=image.uuid, backup_storage_uuids=[second.uuid]))
    image = (await images(world, QueryCondition("uuid", "=", image.uuid)))[0]
    assert (image.status, [one.status for one in image.backup_storage_refs]) == ("Ready", ["Deleted", "Ready"])


async def test_an_image_changes(world: SimulatedCloud) -> None:
    changed = await world.api(UpdateImage(uuid=world.image, name="new", platform="Other", virtio=False))
    assert (changed.name, changed.platform, changed.virtio) == ("new", "Other", False)
    assert (await world.api(ChangeImageState(uuid=world.image, state_event="disable"))).state == "Disabled"
    with pytest.raises(CloudError, match="Disabled"):
        await world.cloud.node.bus.call(GetImage(world.image, usable=True))
    await world.api(ChangeImageState(uuid=world.image, state_event="enable"))
    next((world.directory / "backup").rglob(f"{world.image}.qcow2")).write_bytes(b"x" * 1234)
    assert (await world.api(SyncImageSize(uuid=world.image))).actual_size == 1234


async def test_a_deleted_image_waits_to_be_recovered_or_expunged(world: SimulatedCloud) -> None:
    before = await free(world)
    with pytest.raises(CloudError, match="not deleted"):
        await world.api(ExpungeImage(image_uuid=world.image))
    await world.api(DeleteImage(uuid=world.image))
    assert (await images(world))[0].status == "Deleted"
    assert files(world, world.image)
    with pytest.raises(CloudError):
        await world.cloud.node.bus.call(LocateImage(world.image))
    assert (await world.api(RecoverImage(image_uuid=world.image))).status == "Ready"
    assert (await world.cloud.node.bus.call(LocateImage(world.image))).image_uuid == world.image
    await world.api(DeleteImage(uuid=world.image))
    await world.api(ExpungeImage(image_uuid=world.image))
    assert (await images(world), files(world, world.image)) == ([], [])
    assert await free(world) > before
    assert await used(world, "image.num", ADMIN_ACCOUNT_UUID) == 0
    assert await used(world, "image.size", ADMIN_ACCOUNT_UUID) == 0
    async with world.cloud.node.db.read() as session:
        assert await owner_of(session, world.image) is None


async def test_policies(world: SimulatedCloud) -> None:
    await world.cloud.node.settings.set(DELETION_POLICY, "Direct")
    path = empty_qcow2(world.directory / "second.qcow2")
    direct = await world.api(add(world, f"file://{path}"))
    await world.api(DeleteImage(uuid=direct.uuid))
    assert files(world, direct.uuid) == []
    await world.cloud.node.settings.set(DELETION_POLICY, "Never")
    await world.api(DeleteImage(uuid=world.image))
    assert files(world, world.image)
    assert await images(world) == []


async def test_old_deletions_are_expunged_by_themselves(world: SimulatedCloud) -> None:
    await world.api(DeleteImage(uuid=world.image))
    service: Any = world.cloud.node.services["image"]
    await service.expunge_old()
    assert len(await images(world)) == 1, "it was deleted just now"
    long_ago = utcnow() - timedelta(seconds=world.cloud.node.settings.get(EXPUNGE_PERIOD) + 1)
    async with world.cloud.node.db.transaction() as tx:
        await tx.execute(update(ImageModel).values(last_op_date=long_ago))
    await service.expunge_old()
    assert (await images(world), files(world, world.image)) == ([], [])


async def test_a_quota_counts_images_and_their_bytes(world: SimulatedCloud) -> None:
    account = await world.api(CreateAccount(name="dev", password="x" * 128))
    actor = Actor(account.uuid, account.uuid, None, False)
    await world.api(UpdateQuota(identity_uuid=account.uuid, name="image.size", value=100))
    data = empty_qcow2(world.directory / "web.qcow2").read_bytes()

    async def serve(_request: web.Request) -> web.Response:
        return web.Response(body=data)

    app = web.Application()
    app.router.add_get("/web.qcow2", serve)
    async with TestServer(app, host="127.0.0.1") as server:
        await world.cloud.node.settings.set(ALLOWED_NETWORKS, "127.0.0.0/8")
        msg = add(world, str(server.make_url("/web.qcow2")))
        with pytest.raises(CloudError) as refused:
            await world.api(msg, actor=actor)
        assert refused.value.kind is QUOTA_EXCEEDING
        assert str(len(data)) in refused.value.details
        assert await used(world, "image.num", account.uuid) == 0
        await world.api(UpdateQuota(identity_uuid=account.uuid, name="image.size", value=len(data)))
        image = await world.api(msg, actor=actor)
    assert [one.uuid for one in await images(world, actor=actor)] == [image.uuid]
    assert await used(world, "image.size", account.uuid) == len(data)
