"""The scenarios of the storage services' workflows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from caelum.cloud.image.api import AddImage, DeleteImage, ExpungeImage
from caelum.cloud.primary_storage.api import AttachPrimaryStorageToCluster, DetachPrimaryStorageFromCluster
from caelum.cloud.volume.api import CreateDataVolume, DeleteDataVolume, ExpungeDataVolume
from caelum.cloud.volume.messages import CreateVolume, InstantiateVolume
from caelum.drivers.directory_backup.api import AddDirectoryBackupStorage
from caelum.drivers.local_storage.api import AddLocalPrimaryStorage
from caelum.kernel.context import ADMIN_ACCOUNT_UUID
from caelum.kernel.ids import new_uuid
from caelum.testing.rehearsals import Rehearsal, rehearsal
from caelum.testing.simcloud import MIB, SimulatedCloud, empty_qcow2, simulated_cloud


async def hosts_and_files(world: SimulatedCloud) -> Any:
    """What is on the hosts, and the files of the backup storages with their sizes."""
    files = await asyncio.to_thread(_files, world.directory)
    return {"hosts": await world.stage.dump_hosts(), "files": files}


def _files(directory: Path) -> list[str]:
    found = [one for one in directory.glob("backup*/**/*") if one.is_file()]
    return sorted(f"{one.relative_to(directory)} {one.stat().st_size}" for one in found)


def _play(world: SimulatedCloud, trigger: Callable[[], Awaitable[Any]]) -> Rehearsal:
    return world.rehearse(trigger, hosts=lambda: hosts_and_files(world))


def _of(world: SimulatedCloud, message: Any) -> Rehearsal:
    return _play(world, lambda: world.api(message))


@rehearsal("primary_storage_add")
@asynccontextmanager
async def primary_storage_add() -> AsyncIterator[Rehearsal]:
    """A second local storage."""
    async with simulated_cloud() as world:
        yield _of(world, AddLocalPrimaryStorage(name="second", url="/second_ps", zone_uuid=world.zone))


@rehearsal("primary_storage_attach")
@asynccontextmanager
async def primary_storage_attach() -> AsyncIterator[Rehearsal]:
    """A local storage comes to two hosts."""
    async with simulated_cloud(hosts=2) as world:
        ps = await world.api(AddLocalPrimaryStorage(name="second", url="/second_ps", zone_uuid=world.zone))
        yield _of(world, AttachPrimaryStorageToCluster(cluster_uuid=world.cluster, primary_storage_uuid=ps.uuid))


@rehearsal("primary_storage_detach")
@asynccontextmanager
async def primary_storage_detach() -> AsyncIterator[Rehearsal]:
    """A local storage leaves its cluster."""
    async with simulated_cloud(hosts=2) as world:
        ps = await world.api(AddLocalPrimaryStorage(name="second", url="/second_ps", zone_uuid=world.zone))
        await world.api(AttachPrimaryStorageToCluster(cluster_uuid=world.cluster, primary_storage_uuid=ps.uuid))
        yield _of(world, DetachPrimaryStorageFromCluster(cluster_uuid=world.cluster, primary_storage_uuid=ps.uuid))


@rehearsal("backup_storage_add")
@asynccontextmanager
async def backup_storage_add() -> AsyncIterator[Rehearsal]:
    """A second directory."""
    async with simulated_cloud() as world:
        (world.directory / "backup2").mkdir()
        yield _of(world, AddDirectoryBackupStorage(name="second", url=str(world.directory / "backup2")))


@rehearsal("image_add")
@asynccontextmanager
async def image_add() -> AsyncIterator[Rehearsal]:
    """A second image, from a file of the server."""
    async with simulated_cloud() as world:
        path = empty_qcow2(world.directory / "second.qcow2")
        yield _of(world, AddImage(name="second", url=f"file://{path}", backup_storage_uuids=[world.backup_storage]))


@rehearsal("image_expunge")
@asynccontextmanager
async def image_expunge() -> AsyncIterator[Rehearsal]:
    """An image that was deleted goes for good."""
    async with simulated_cloud() as world:
        await world.api(DeleteImage(uuid=world.image))
        yield _of(world, ExpungeImage(image_uuid=world.image))


def _data_volume(world: SimulatedCloud, host_uuid: str) -> CreateDataVolume:
    return CreateDataVolume(
        name="data",
        disk_size=64 * MIB,
        primary_storage_uuid=world.primary_storage,
        system_tags=[f"localStorage::hostUuid::{host_uuid}"],
    )


@rehearsal("volume_create_data")
@asynccontextmanager
async def volume_create_data() -> AsyncIterator[Rehearsal]:
    """A data volume with bits on a named host."""
    async with simulated_cloud() as world:
        yield _of(world, _data_volume(world, world.hosts.hosts[0].uuid))


@rehearsal("volume_instantiate")
@asynccontextmanager
async def volume_instantiate() -> AsyncIterator[Rehearsal]:
    """A root volume is cloned from an image that another volume has brought to the host."""
    async with simulated_cloud() as world:
        await world.create_vm("first")
        bus, host_uuid = world.cloud.node.bus, world.hosts.hosts[0].uuid
        uuid = new_uuid()
        await bus.call(CreateVolume(uuid, "root", "Root", 0, ADMIN_ACCOUNT_UUID, root_image_uuid=world.image))
        msg = InstantiateVolume(uuid, host_uuid, world.primary_storage)
        yield _play(world, lambda: world.cloud.node.bus.call(msg))


@rehearsal("volume_remove")
@asynccontextmanager
async def volume_remove() -> AsyncIterator[Rehearsal]:
    """A deleted data volume goes for good."""
    async with simulated_cloud() as world:
        volume = await world.api(_data_volume(world, world.hosts.hosts[0].uuid))
        await world.api(DeleteDataVolume(uuid=volume.uuid))
        yield _of(world, ExpungeDataVolume(uuid=volume.uuid))
