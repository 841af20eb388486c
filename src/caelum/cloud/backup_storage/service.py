"""The backup storage service.

Invariant: an image's file is on a storage, or its space is not taken: both are made and unmade together, later by the
garbage collector when the storage is away.
"""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import delete, func, select

from caelum.cloud.backup_storage import (
    tags,  # noqa: F401 - declares the tags
)
from caelum.cloud.backup_storage.api import (
    BACKUP_STORAGE,
    AttachBackupStorageToZone,
    BackupStorageCapacityReply,
    BackupStorageInventory,
    BackupStorageTypesReply,
    ChangeBackupStorageState,
    DeleteBackupStorage,
    DetachBackupStorageFromZone,
    GetBackupStorageCapacity,
    GetBackupStorageTypes,
    ReconnectBackupStorage,
    UpdateBackupStorage,
)
from caelum.cloud.backup_storage.capacity import release, reserve, written
from caelum.cloud.backup_storage.errors import ATTACH_ERROR, CONNECT_ERROR, DETACH_ERROR
from caelum.cloud.backup_storage.extension import BackupStorageDriver, ImageSource, StoredImage
from caelum.cloud.backup_storage.flows import (
    AddBackupContext,
    AddBackupStorageFlow,
    BackupStorages,
    get,
    remove_storage,
)
from caelum.cloud.backup_storage.messages import (
    AddBackupStorage,
    BackupFiles,
    BackupStoragesReply,
    CheckImageSource,
    DeleteImageFile,
    FindBackupStorages,
    GetBackupStorage,
    GetImageFileSize,
    GetImageUrl,
    ImageFileSize,
    ImageUrl,
    ListBackupFiles,
    StoreImage,
)
from caelum.cloud.backup_storage.model import (
    CONNECTED,
    STATES,
    BackupStorageModel,
    BackupStorageZoneRefModel,
)
from caelum.cloud.backup_storage.settings import PING_INTERVAL, RESERVED_CAPACITY
from caelum.cloud.image.messages import DropImagesOfBackupStorage, GetImage
from caelum.cloud.interruptible import Interruptible
from caelum.cloud.switch import ENABLED
from caelum.kernel import context
from caelum.kernel.cascade import CascadeExtension
from caelum.kernel.database import unique
from caelum.kernel.errors import OPERATION_ERROR, RESOURCE_NOT_FOUND, CloudError, invalid
from caelum.kernel.gc import gc_runner
from caelum.kernel.node import Node
from caelum.kernel.service import Service, handles

log = logging.getLogger(__name__)

ZoneRef = BackupStorageZoneRefModel
DELETE_RUNNER = "backup-storage.delete-image"
GC_INTERVAL = 600.0


class BackupStorageService(Service):
    """Owns backup storages and the files of images on them."""

    name = "backup_storage"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.storages = BackupStorages(node)
        self._fetching = Interruptible()
        node.extensions.add(BackupStorageCascade(node, self.storages))
        node.extensions.add(BackupStorageOfZoneCascade(node))

    async def start(self) -> None:
        self.node.timers.every(PING_INTERVAL, self.ping, name="backup-storage.ping")

    async def ping(self) -> None:
        """Look whether the storages that this node serves are there, and how much is free."""
        for bs in await self.storages.all():
            if self.node.ring.owns(bs.uuid):
                try:
                    await self.storages.connect(bs.uuid)
                except CloudError as error:
                    log.warning("backup storage %s: %s", bs.uuid, error.details)

    # --- public operations --------------------------------------------------------------------------------------------

    @handles(AddBackupStorage, queue="backup-storage-{uuid}")
    async def add(self, msg: AddBackupStorage) -> BackupStorageInventory:
        self.node.drivers.get(BackupStorageDriver, msg.type).check_url(msg.url)
        query = select(BackupStorageModel.uuid).where(
            BackupStorageModel.type == msg.type, BackupStorageModel.url == msg.url
        )
        async with self.db.read() as session:
            known = await session.scalar(query)
        if known is not None:
            raise invalid("url", f"backup storage[uuid:{known}] has the url[{msg.url}] already", uuid=known)
        ctx = AddBackupContext(
            uuid=msg.uuid,
            type=msg.type,
            name=msg.name,
            url=msg.url,
            description=msg.description,
            system_tags=msg.system_tags,
            user_tags=msg.user_tags,
            tag_uuids=msg.tag_uuids,
        )
        return await self.node.workflows.run(AddBackupStorageFlow, ctx, answers=True)

    @handles(UpdateBackupStorage, queue="backup-storage-{uuid}")
    async def update(self, msg: UpdateBackupStorage) -> BackupStorageInventory:
        async with self.db.transaction() as tx:
            row = await get(tx, msg.uuid)
            row.name = msg.name if msg.name is not None else row.name
            row.description = msg.description if msg.description is not None else row.description
        return await self.storages.find(msg.uuid)

    @handles(ChangeBackupStorageState, queue="backup-storage-{uuid}")
    async def change_state(self, msg: ChangeBackupStorageState) -> BackupStorageInventory:
        async with self.db.transaction() as tx:
            row = await get(tx, msg.uuid)
            row.state = STATES.next(row.state, msg.state_event)
        return await self.storages.find(msg.uuid)

    @handles(ReconnectBackupStorage, queue="backup-storage-{uuid}")
    async def reconnect(self, msg: ReconnectBackupStorage) -> BackupStorageInventory:
        return await self.storages.connect(msg.uuid)

    @handles(DeleteBackupStorage, queue="backup-storage-{uuid}")
    async def delete(self, msg: DeleteBackupStorage) -> None:
        await self.node.cascade.delete(BACKUP_STORAGE, [msg.uuid], msg.delete_mode)

    @handles(AttachBackupStorageToZone, queue="backup-storage-{backup_storage_uuid}")
    async def attach(self, msg: AttachBackupStorageToZone) -> BackupStorageInventory:
        details = f"backup storage[uuid:{msg.backup_storage_uuid}] is attached to zone[uuid:{msg.zone_uuid}] already"
        async with self.db.transaction() as tx, unique(tx, ATTACH_ERROR, details):
            tx.add(ZoneRef(backup_storage_uuid=msg.backup_storage_uuid, zone_uuid=msg.zone_uuid))
        return await self.storages.find(msg.backup_storage_uuid)

    @handles(DetachBackupStorageFromZone, queue="backup-storage-{backup_storage_uuid}")
    async def detach(self, msg: DetachBackupStorageFromZone) -> BackupStorageInventory:
        async with self.db.transaction() as tx:
            row = await get(tx, msg.backup_storage_uuid)
            if msg.zone_uuid not in [one.zone_uuid for one in row.zone_refs]:
                raise CloudError(
                    DETACH_ERROR, f"backup storage[uuid:{row.uuid}] is not attached to zone[uuid:{msg.zone_uuid}]"
                )
            await tx.execute(
                delete(ZoneRef).where(ZoneRef.backup_storage_uuid == row.uuid, ZoneRef.zone_uuid == msg.zone_uuid)
            )
        return await self.storages.find(msg.backup_storage_uuid)

    @handles(GetBackupStorageCapacity)
    async def get_capacity(self, msg: GetBackupStorageCapacity) -> BackupStorageCapacityReply:
        if not (msg.all or msg.zone_uuids or msg.backup_storage_uuids):
            raise invalid("backupStorageUuids", "name backup storages or zones, or say all=true")
        row = BackupStorageModel
        query: Any = select(func.sum(row.total_capacity), func.sum(row.available_capacity))
        if msg.backup_storage_uuids:
            query = query.where(row.uuid.in_(msg.backup_storage_uuids))
        if msg.zone_uuids:
            query = query.where(
                row.uuid.in_(select(ZoneRef.backup_storage_uuid).where(ZoneRef.zone_uuid.in_(msg.zone_uuids)))
            )
        async with self.db.read() as session:
            total, available = (await session.execute(query)).one()
        return BackupStorageCapacityReply(total_capacity=total or 0, available_capacity=available or 0)

    @handles(GetBackupStorageTypes)
    async def get_types(self, _msg: GetBackupStorageTypes) -> BackupStorageTypesReply:
        return BackupStorageTypesReply(types=self.node.drivers.types(BackupStorageDriver))

    # --- what other services ask --------------------------------------------------------------------------------------

    @handles(GetBackupStorage)
    async def get_one(self, msg: GetBackupStorage) -> BackupStorageInventory:
        return await self.storages.find(msg.uuid)

    @handles(FindBackupStorages)
    async def find(self, msg: FindBackupStorages) -> BackupStoragesReply:
        reserved = int(self.node.settings.get(RESERVED_CAPACITY))
        found = [
            bs
            for bs in await self.storages.all()
            if bs.state == ENABLED
            and bs.status == CONNECTED
            and (msg.uuids is None or bs.uuid in msg.uuids)
            and (msg.zone_uuid is None or msg.zone_uuid in bs.attached_zone_uuids)
            and (not msg.size or (bs.available_capacity or 0) - msg.size >= reserved)
        ]
        found.sort(key=lambda bs: -(bs.available_capacity or 0))
        return BackupStoragesReply(storages=found)

    @handles(CheckImageSource)
    async def check_source(self, msg: CheckImageSource) -> None:
        bs = await self._usable(msg.backup_storage_uuid)
        self.storages.driver(bs).check_source(msg.url, msg.is_admin)

    async def _usable(self, uuid: str) -> BackupStorageInventory:
        bs = await self.storages.find(uuid)
        if bs.state != ENABLED or bs.status != CONNECTED:
            kind = CONNECT_ERROR if bs.status != CONNECTED else OPERATION_ERROR
            raise CloudError(
                kind, f"backup storage[uuid:{uuid}, name:{bs.name}] is {bs.state} and {bs.status}", uuid=uuid
            )
        return bs

    @handles(StoreImage, queue="image-file-{backup_storage_uuid}-{image_uuid}")
    async def store(self, msg: StoreImage) -> StoredImage:
        bs = await self._usable(msg.backup_storage_uuid)
        driver, reserved = self.storages.driver(bs), int(self.node.settings.get(RESERVED_CAPACITY))
        source = ImageSource(
            msg.image_uuid,
            msg.account_uuid,
            msg.url,
            msg.media_type,
            msg.format,
            (bs.available_capacity or 0) - reserved,
        )
        size = await driver.probe(bs, source)
        async with self.db.transaction() as tx:
            await reserve(tx, bs.uuid, msg.image_uuid, size or 0, reserved)
        try:
            fetch = driver.add_image(bs, source, self._tell_progress)
            stored = await self._fetching.run(f"{bs.uuid}-{msg.image_uuid}", fetch)
            async with self.db.transaction() as tx:
                await written(tx, bs.uuid, msg.image_uuid, stored.actual_size)
        except Exception:
            async with self.db.transaction() as tx:
                await release(tx, bs.uuid, msg.image_uuid)
            raise
        return stored

    async def _tell_progress(self, percent: int, text: str) -> None:
        job_uuid = context.current().job_uuid
        if job_uuid is not None:
            await self.node.jobs.progress(job_uuid, percent, text)

    @handles(DeleteImageFile)
    async def delete_image(self, msg: DeleteImageFile) -> None:
        key = f"{msg.backup_storage_uuid}-{msg.image_uuid}"
        self._fetching.call_off(key)
        async with self.node.queues.turn(f"image-file-{key}", name="delete image file"):
            await self._delete_file(msg)

    async def _delete_file(self, msg: DeleteImageFile) -> None:
        try:
            await delete_file(self.node, msg.backup_storage_uuid, msg.image_uuid, msg.install_path)
        except CloudError as error:
            log.warning("image %s is deleted later: %s", msg.image_uuid, error.details)
            job = {
                "backup_storage_uuid": msg.backup_storage_uuid,
                "image_uuid": msg.image_uuid,
                "install_path": msg.install_path,
            }
            name = f"delete image {msg.image_uuid} of backup storage {msg.backup_storage_uuid}"
            async with self.db.transaction() as tx:
                await self.node.gc.submit(tx, name, DELETE_RUNNER, job, interval=GC_INTERVAL)

    @handles(GetImageUrl)
    async def get_url(self, msg: GetImageUrl) -> ImageUrl:
        bs = await self._usable(msg.backup_storage_uuid)
        return ImageUrl(await self.storages.driver(bs).url_for(bs, msg.install_path))

    @handles(GetImageFileSize)
    async def get_size(self, msg: GetImageFileSize) -> ImageFileSize:
        bs = await self._usable(msg.backup_storage_uuid)
        return ImageFileSize(await self.storages.driver(bs).image_size(bs, msg.install_path))

    @handles(ListBackupFiles)
    async def list_files(self, msg: ListBackupFiles) -> BackupFiles:
        bs = await self.storages.find(msg.backup_storage_uuid)
        return BackupFiles(await self.storages.driver(bs).files(bs))


async def delete_file(node: Node, bs_uuid: str, image_uuid: str, install_path: str | None) -> None:
    """Delete an image's file, then give its space back; done when the storage is gone."""
    storages = BackupStorages(node)
    try:
        bs = await storages.find(bs_uuid)
    except CloudError as error:
        if error.code == RESOURCE_NOT_FOUND.code:
            return
        raise
    await storages.driver(bs).delete_image(bs, image_uuid, install_path)
    async with node.db.transaction() as tx:
        await release(tx, bs_uuid, image_uuid)


@gc_runner(DELETE_RUNNER)
async def delete_later(node: Node, job: dict[str, Any]) -> bool:
    """Delete the file of an image whose storage was away, unless an image of that UUID was added there again."""
    try:
        image = await node.bus.call(GetImage(job["image_uuid"]))
    except CloudError as error:
        if error.code != RESOURCE_NOT_FOUND.code:
            raise
    else:
        there = [
            one.status for one in image.backup_storage_refs if one.backup_storage_uuid == job["backup_storage_uuid"]
        ]
        if there and there[0] != "Deleted":
            return True
    await delete_file(node, job["backup_storage_uuid"], job["image_uuid"], job["install_path"])
    return True


class BackupStorageCascade(CascadeExtension):
    """Deletes backup storages, and the records of what was on them. The files stay where they are."""

    resource = BACKUP_STORAGE

    def __init__(self, node: Node, storages: BackupStorages) -> None:
        self._node, self._storages = node, storages

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:
        return []

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:
        for bs in await self._storages.all():
            if bs.uuid in uuids:
                await self._node.bus.call(DropImagesOfBackupStorage(bs.uuid))
                await self._storages.driver(bs).remove(bs)
                async with self._node.db.transaction() as tx:
                    await remove_storage(tx, bs.uuid)


class BackupStorageOfZoneCascade(CascadeExtension):
    """A zone that goes leaves its backup storages."""

    resource = "BackupStorageZoneRefVO"
    parents = ("ZoneVO",)

    def __init__(self, node: Node) -> None:
        self._node = node

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:
        query = select(ZoneRef.zone_uuid).where(ZoneRef.zone_uuid.in_(uuids)).distinct()
        async with self._node.db.read() as session:
            return list((await session.scalars(query)).all())

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:
        async with self._node.db.transaction() as tx:
            await tx.execute(delete(ZoneRef).where(ZoneRef.zone_uuid.in_(uuids)))
