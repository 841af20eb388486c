"""Backup storages: directories that the server hands to its hosts."""

# ruff: noqa: ASYNC240 - a test may wait for its own little files
from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from caelum.cloud.backup_storage.api import (
    AttachBackupStorageToZone,
    BackupStorageInventory,
    ChangeBackupStorageState,
    DeleteBackupStorage,
    DetachBackupStorageFromZone,
    GetBackupStorageCapacity,
    GetBackupStorageTypes,
    QueryBackupStorage,
    ReconnectBackupStorage,
    UpdateBackupStorage,
)
from caelum.cloud.backup_storage.errors import CONNECT_ERROR
from caelum.cloud.backup_storage.events import BackupStorageDisconnected, BackupStorageStatusChanged
from caelum.cloud.backup_storage.messages import FindBackupStorages, GetBackupStorage
from caelum.cloud.image.api import QueryImage
from caelum.cloud.image.errors import NO_COPY
from caelum.cloud.image.messages import ImageLocation, LocateImage
from caelum.cloud.zone.api import CreateZone, DeleteZone
from caelum.drivers.directory_backup.api import AddDirectoryBackupStorage
from caelum.drivers.directory_backup.store import MARK
from caelum.kernel.errors import INVALID_ARGUMENT, CloudError
from caelum.kernel.message import QueryCondition
from caelum.testing.simcloud import SimulatedCloud, simulated_cloud


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SimulatedCloud]:
    async with simulated_cloud(tmp_path, hosts=1) as made:
        yield made


async def storage(world: SimulatedCloud) -> BackupStorageInventory:
    return await world.cloud.node.bus.call(GetBackupStorage(world.backup_storage))


async def query(world: SimulatedCloud, cls: type[Any], *conditions: QueryCondition) -> list[Any]:
    return (await world.api(cls(conditions=list(conditions)))).inventories or []


async def test_a_directory_becomes_a_storage(world: SimulatedCloud) -> None:
    directory = world.directory / "backup2"
    bs = await world.api(AddDirectoryBackupStorage(name="second", url=str(directory), description="more"))
    assert (bs.status, bs.state, bs.type) == ("Connected", "Enabled", "DirectoryBackupStorage")
    assert bs.total_capacity > bs.available_capacity > 0
    assert (directory / MARK).read_text().strip() == bs.uuid
    attached = await world.api(AttachBackupStorageToZone(zone_uuid=world.zone, backup_storage_uuid=bs.uuid))
    assert attached.attached_zone_uuids == [world.zone]
    with pytest.raises(CloudError, match="already"):
        await world.api(AttachBackupStorageToZone(zone_uuid=world.zone, backup_storage_uuid=bs.uuid))
    found = await query(world, QueryBackupStorage, QueryCondition("zone.uuid", "=", world.zone))
    assert {one.uuid for one in found} == {bs.uuid, world.backup_storage}
    assert (await world.api(UpdateBackupStorage(uuid=bs.uuid, name="new"))).name == "new"
    sums = await world.api(GetBackupStorageCapacity(backup_storage_uuids=[bs.uuid]))
    assert sums.total_capacity == bs.total_capacity
    detached = await world.api(DetachBackupStorageFromZone(zone_uuid=world.zone, backup_storage_uuid=bs.uuid))
    assert detached.attached_zone_uuids == []
    with pytest.raises(CloudError, match="not attached"):
        await world.api(DetachBackupStorageFromZone(zone_uuid=world.zone, backup_storage_uuid=bs.uuid))
    await world.api(DeleteBackupStorage(uuid=bs.uuid))
    assert not (directory / MARK).exists()
    assert (await world.api(GetBackupStorageTypes())).types == ["DirectoryBackupStorage"]


async def test_directories_that_will_not_do(world: SimulatedCloud) -> None:
    (world.directory / "file").write_text("x")
    cases = {
        "relative": INVALID_ARGUMENT,
        "/etc/images": INVALID_ARGUMENT,
        "/a/../b": INVALID_ARGUMENT,
        str(world.directory / "backup"): INVALID_ARGUMENT,
        str(world.directory / "file" / "x"): CONNECT_ERROR,
    }
    for url, kind in cases.items():
        with pytest.raises(CloudError) as refused:
            await world.api(AddDirectoryBackupStorage(name="bad", url=url))
        assert refused.value.kind is kind, url
    assert len(await query(world, QueryBackupStorage)) == 1


async def test_a_directory_that_is_gone_is_noticed(world: SimulatedCloud) -> None:
    bs = await storage(world)
    root = Path(bs.url)
    root.rename(root.with_name("away"))
    await world.cloud.node.services["backup_storage"].ping()  # type: ignore[attr-defined]
    assert (await storage(world)).status == "Disconnected"
    with pytest.raises(CloudError) as refused:
        await world.api(ReconnectBackupStorage(uuid=bs.uuid))
    assert refused.value.kind is CONNECT_ERROR
    assert "not mounted" in refused.value.details
    assert not root.exists(), "nothing is made where a disk is not mounted"
    with pytest.raises(CloudError) as refused:
        await world.cloud.node.bus.call(LocateImage(world.image, world.zone))
    assert refused.value.kind is NO_COPY
    assert "Disconnected" in refused.value.details
    root.with_name("away").rename(root)
    assert (await world.api(ReconnectBackupStorage(uuid=bs.uuid))).status == "Connected"
    changes = [(one.old_status, one.new_status) for one in await world.cloud.seen(BackupStorageStatusChanged)]
    assert changes[-2:] == [("Connected", "Disconnected"), ("Disconnected", "Connected")]
    assert len(await world.cloud.seen(BackupStorageDisconnected)) == 1


async def test_a_disabled_storage_gives_and_takes_nothing(world: SimulatedCloud) -> None:
    await world.api(ChangeBackupStorageState(uuid=world.backup_storage, state_event="disable"))
    bus = world.cloud.node.bus
    assert (await bus.call(FindBackupStorages(zone_uuid=world.zone))).storages == []
    with pytest.raises(CloudError, match="Disabled"):
        await bus.call(LocateImage(world.image, world.zone))
    await world.api(ChangeBackupStorageState(uuid=world.backup_storage, state_event="enable"))
    assert len((await bus.call(FindBackupStorages(zone_uuid=world.zone))).storages) == 1
    assert (await bus.call(FindBackupStorages(size=1 << 60))).storages == []


async def test_a_storage_that_goes_takes_its_records_and_leaves_its_files(world: SimulatedCloud) -> None:
    location = await world.cloud.node.bus.call(LocateImage(world.image, world.zone))
    files = list(Path((await storage(world)).url).rglob(f"{world.image}.qcow2"))
    await world.api(DeleteBackupStorage(uuid=world.backup_storage))
    assert location.image_uuid == world.image
    assert await query(world, QueryImage) == []
    assert files[0].exists()


async def test_a_zone_that_goes_leaves_its_storages(world: SimulatedCloud) -> None:
    zone = await world.api(CreateZone(name="far"))
    await world.api(AttachBackupStorageToZone(zone_uuid=zone.uuid, backup_storage_uuid=world.backup_storage))
    await world.api(DeleteZone(uuid=zone.uuid))
    assert (await storage(world)).attached_zone_uuids == [world.zone]


# --- what hosts see ---------------------------------------------------------------------------------------------------


def host_tls(world: SimulatedCloud) -> ssl.SSLContext:
    return world.hosts[0].outgoing_tls()


async def fetch(url: str, tls: ssl.SSLContext, **headers: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.get(url, ssl=tls, headers=headers) as response:
        return response.status, await response.read()


async def test_a_host_fetches_an_image_whole_and_in_parts(world: SimulatedCloud) -> None:
    location: ImageLocation = await world.cloud.node.bus.call(LocateImage(world.image, world.zone))
    tls, whole = host_tls(world), (world.directory / "image.qcow2").read_bytes()
    assert await fetch(location.url, tls) == (200, whole)
    assert await fetch(location.url, tls, Range="bytes=100-199") == (206, whole[100:200])
    assert location.actual_size == len(whole)


async def test_nobody_fetches_without_a_hosts_certificate(world: SimulatedCloud, tmp_path: Path) -> None:
    location = await world.cloud.node.bus.call(LocateImage(world.image, world.zone))
    stranger = ssl.create_default_context(cafile=str(world.directory / "pki" / "ca.pem"))
    stranger.check_hostname = False
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await fetch(location.url, stranger)


async def test_nothing_but_images_is_served(world: SimulatedCloud) -> None:
    location = await world.cloud.node.bus.call(LocateImage(world.image, world.zone))
    tls, base = host_tls(world), location.url.split("/rootVolumeTemplates")[0]
    folder = location.url.rpartition("/")[0]
    root = Path((await storage(world)).url)
    await asyncio.to_thread((root / "half.part").write_text, "x")
    await asyncio.to_thread((root / "leak").symlink_to, "/etc/passwd")
    refused = [
        f"{base}/half.part", f"{base}/{MARK}", f"{folder}/image.json", f"{base}/leak", f"{base}/%2e%2e/image.qcow2",
        f"{base}/..%2fimage.qcow2", f"{base}//etc/passwd", f"{base}/nothing", f"{base.rpartition('/')[0]}/{'0' * 32}/x",
    ]  # fmt: skip
    for url in refused:
        status, body = await fetch(url, tls)
        assert status in (403, 404), url
        assert b"root:" not in body
