"""The image service.

Invariant: an image that is being added can be seen (Downloading), but not be used before every byte of it was checked;
when its addition fails, nothing of it is left.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from sqlalchemy import delete, select

from caelum.cloud.backup_storage.api import BACKUP_STORAGE, BackupStorageInventory
from caelum.cloud.backup_storage.messages import (
    CheckImageSource,
    FindBackupStorages,
    GetBackupStorage,
    GetImageFileSize,
    GetImageUrl,
)
from caelum.cloud.image import (
    tags,  # noqa: F401 - declares the tags
)
from caelum.cloud.image.api import (
    IMAGE,
    AddImage,
    ChangeImageState,
    DeleteImage,
    ExpungeImage,
    GetCandidateBackupStorageForCreatingImage,
    ImageInventory,
    RecoverImage,
    SyncImageSize,
    UpdateImage,
)
from caelum.cloud.image.errors import IMAGE_NOT_USABLE, NO_COPY
from caelum.cloud.image.flows import (
    AddImageContext,
    AddImageFlow,
    ExpungeContext,
    ExpungeImageFlow,
    find,
    get,
    remove_image,
)
from caelum.cloud.image.messages import DropImagesOfBackupStorage, GetImage, ImageLocation, LocateImage
from caelum.cloud.image.model import DELETED, READY, STATES, ImageBackupStorageRefModel, ImageModel
from caelum.cloud.image.settings import DELETION_POLICY, EXPUNGE_INTERVAL, EXPUNGE_PERIOD
from caelum.cloud.ownership import owned_by
from caelum.cloud.primary_storage.messages import GetPrimaryStorage
from caelum.cloud.switch import ENABLED
from caelum.cloud.volume.messages import GetVolumes
from caelum.kernel import context
from caelum.kernel.cascade import CascadeExtension
from caelum.kernel.database import utcnow
from caelum.kernel.errors import OPERATION_ERROR, RESOURCE_NOT_FOUND, CloudError, invalid, not_found
from caelum.kernel.ids import new_uuid
from caelum.kernel.node import Node
from caelum.kernel.service import Service, handles, intercepts

log = logging.getLogger(__name__)

Ref = ImageBackupStorageRefModel
FORMATS = ("qcow2", "raw", "iso")
CANCEL_TIMEOUT = 60.0
DEFAULT_ARCHITECTURE = "x86_64"


class ImageService(Service):
    """Owns images."""

    name = "image"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.extensions.add(ImageCascade(self))

    async def start(self) -> None:
        self.node.timers.every(EXPUNGE_INTERVAL, self.expunge_old, name="image.expunge")

    # --- adding -------------------------------------------------------------------------------------------------------

    @intercepts(AddImage)
    async def check_add(self, msg: AddImage) -> None:
        if msg.format is not None and msg.format not in FORMATS:
            raise invalid("format", f"{msg.format!r} is none of {list(FORMATS)}")
        if msg.media_type == "ISO" and msg.format not in (None, "iso"):
            raise invalid("format", f"an ISO has the format iso, not {msg.format}")
        if msg.media_type not in (None, "ISO") and msg.format == "iso":
            raise invalid("mediaType", f"an image of format iso is an ISO, not a {msg.media_type}")
        if len(set(msg.backup_storage_uuids)) != len(msg.backup_storage_uuids):
            raise invalid("backupStorageUuids", "a backup storage is named twice")
        actor = context.current().actor
        for uuid in msg.backup_storage_uuids:
            await self.bus.call(CheckImageSource(uuid, msg.url, actor.is_admin))

    @handles(AddImage, repeatable=True)
    async def add(self, msg: AddImage) -> ImageInventory:
        is_iso = msg.media_type == "ISO" or msg.format == "iso"
        ctx = AddImageContext(
            uuid=msg.resource_uuid or new_uuid(),
            account_uuid=context.current().actor.account_uuid,
            name=msg.name,
            url=msg.url,
            backup_storage_uuids=msg.backup_storage_uuids,
            description=msg.description,
            media_type="ISO" if is_iso else msg.media_type or "RootVolumeTemplate",
            guest_os_type=msg.guest_os_type,
            architecture=msg.architecture or DEFAULT_ARCHITECTURE,
            system=msg.system,
            format=msg.format,
            platform=msg.platform or "Linux",
            type=msg.type or "zstack",
            virtio=msg.virtio,
            system_tags=msg.system_tags,
            user_tags=msg.user_tags,
            tag_uuids=msg.tag_uuids,
        )
        return await self.node.workflows.run(AddImageFlow, ctx, answers=True)

    # --- changing -----------------------------------------------------------------------------------------------------

    @handles(UpdateImage, queue="image-{uuid}")
    async def update(self, msg: UpdateImage) -> ImageInventory:
        names = ("name", "description", "guest_os_type", "media_type", "format", "system", "platform", "architecture",
                 "virtio")  # fmt: skip
        async with self.db.transaction() as tx:
            row = await get(tx, msg.uuid)
            for name in names:
                if getattr(msg, name) is not None:
                    setattr(row, name, getattr(msg, name))
        return await find(self.node, msg.uuid)

    @handles(ChangeImageState, queue="image-{uuid}")
    async def change_state(self, msg: ChangeImageState) -> ImageInventory:
        async with self.db.transaction() as tx:
            row = await get(tx, msg.uuid)
            row.state = STATES.next(row.state, msg.state_event)
        return await find(self.node, msg.uuid)

    @handles(SyncImageSize, queue="image-{uuid}")
    async def sync_size(self, msg: SyncImageSize) -> ImageInventory:
        image = await find(self.node, msg.uuid)
        ready = [one for one in image.backup_storage_refs if one.status == READY and one.install_path is not None]
        if not ready:
            raise CloudError(
                NO_COPY, f"image[uuid:{msg.uuid}] has no ready copy on {len(image.backup_storage_refs)} storages"
            )
        seen = await self.bus.call(GetImageFileSize(ready[0].backup_storage_uuid, ready[0].install_path or ""))
        async with self.db.transaction() as tx:
            (await get(tx, msg.uuid)).actual_size = seen.actual_size
        return await find(self.node, msg.uuid)

    # --- deleting -----------------------------------------------------------------------------------------------------

    @handles(DeleteImage)
    async def delete(self, msg: DeleteImage) -> None:
        await self._stop_adding(msg.uuid)
        if msg.backup_storage_uuids is None:
            await self.node.cascade.delete(IMAGE, [msg.uuid], msg.delete_mode)
        else:
            await self.remove(msg.uuid, msg.backup_storage_uuids)

    async def _stop_adding(self, uuid: str) -> None:
        """Cancel the addition of an image that is still being fetched, and wait until nothing is left of it."""
        running = self.node.workflows.runs_of(AddImageFlow.name, uuid)
        for run in running:
            self.node.workflows.cancel(run, "the image is deleted")
        end = asyncio.get_running_loop().time() + CANCEL_TIMEOUT
        while running and await self.node.resources.exists(IMAGE, uuid):
            if asyncio.get_running_loop().time() > end:
                raise CloudError(OPERATION_ERROR, f"image[uuid:{uuid}] is still being fetched after {CANCEL_TIMEOUT} s")
            await asyncio.sleep(0.1)

    async def remove(self, uuid: str, backup_storage_uuids: list[str] | None = None) -> None:
        """Delete an image, or its copies on some storages, as its policy says. Done if it is gone."""
        await self.node.queues.run(f"image-{uuid}", 1, self._remove, uuid, backup_storage_uuids, name="delete image")

    async def _remove(self, uuid: str, backup_storage_uuids: list[str] | None) -> None:
        policy = await self.node.settings.get_for(DELETION_POLICY, uuid)
        async with self.db.transaction() as tx:
            row = await tx.get(ImageModel, uuid)
            if row is None:
                return
            going = [one for one in row.backup_storage_refs
                     if backup_storage_uuids is None or one.backup_storage_uuid in backup_storage_uuids]  # fmt: skip
            for ref in going:
                ref.status = DELETED
            if all(one.status == DELETED for one in row.backup_storage_refs):
                row.status, row.last_op_date = DELETED, utcnow()
            if policy == "Never" and row.status == DELETED:
                await remove_image(tx, uuid)
        if policy == "Direct":
            storages = [one.backup_storage_uuid for one in going]
            await self.node.workflows.run(ExpungeImageFlow, ExpungeContext(uuid, storages))

    @handles(ExpungeImage, queue="image-{image_uuid}", repeatable=True)
    async def expunge(self, msg: ExpungeImage) -> None:
        image = await find(self.node, msg.image_uuid)
        deleted = [one.backup_storage_uuid for one in image.backup_storage_refs if one.status == DELETED]
        missing = [one for one in msg.backup_storage_uuids or () if one not in deleted]
        if missing or not deleted:
            raise CloudError(
                OPERATION_ERROR,
                f"image[uuid:{image.uuid}, status:{image.status}] is not deleted on backup storages"
                f" {missing or [one.backup_storage_uuid for one in image.backup_storage_refs]}; delete it before",
            )
        ctx = ExpungeContext(image.uuid, msg.backup_storage_uuids or deleted)
        await self.node.workflows.run(ExpungeImageFlow, ctx, answers=True)

    @handles(RecoverImage, queue="image-{image_uuid}")
    async def recover(self, msg: RecoverImage) -> ImageInventory:
        async with self.db.transaction() as tx:
            row = await get(tx, msg.image_uuid)
            wanted = msg.backup_storage_uuids
            chosen = [
                one
                for one in row.backup_storage_refs
                if one.status == DELETED and (wanted is None or one.backup_storage_uuid in wanted)
            ]
            if not chosen:
                raise CloudError(OPERATION_ERROR, f"image[uuid:{row.uuid}, status:{row.status}] is not deleted there")
            for ref in chosen:
                ref.status = READY
            row.status = READY
        return await find(self.node, msg.image_uuid)

    async def expunge_old(self) -> None:
        """Expunge what was deleted longer ago than the period."""
        before = utcnow() - timedelta(seconds=self.node.settings.get(EXPUNGE_PERIOD))
        query = select(ImageModel.uuid).where(ImageModel.status == DELETED, ImageModel.last_op_date < before)
        async with self.db.read() as session:
            old = (await session.scalars(query)).all()
        for uuid in old:
            if self.node.ring.owns(uuid):
                try:
                    await self.bus.call(ExpungeImage(image_uuid=uuid))
                except CloudError as error:
                    log.warning("image %s is not expunged: %s", uuid, error.details)

    # --- what other services ask --------------------------------------------------------------------------------------

    @handles(GetImage, reads=True)
    async def get_one(self, msg: GetImage) -> ImageInventory:
        image = await find(self.node, msg.image_uuid)
        if msg.usable and (image.state != ENABLED or image.status != READY):
            raise CloudError(
                IMAGE_NOT_USABLE,
                f"image[uuid:{image.uuid}, name:{image.name}] is {image.state} and {image.status}, it must be Enabled"
                " and Ready",
                state=image.state,
                status=image.status,
            )
        return image

    @handles(LocateImage)
    async def locate(self, msg: LocateImage) -> ImageLocation:
        async with self.db.read() as session:
            row = await get(session, msg.image_uuid)
        ready = {
            one.backup_storage_uuid: one.install_path or "" for one in row.backup_storage_refs if one.status == READY
        }
        found = await self.bus.call(FindBackupStorages(zone_uuid=msg.zone_uuid, uuids=list(ready)))
        if not found.storages:
            raise CloudError(NO_COPY, await self._why_no_copy(row, ready, msg.zone_uuid), uuid=row.uuid)
        bs_uuid = found.storages[0].uuid
        url = (await self.bus.call(GetImageUrl(bs_uuid, ready[bs_uuid]))).url
        return ImageLocation(
            image_uuid=row.uuid,
            url=url,
            sha256=row.sha256,
            size=row.size,
            actual_size=row.actual_size,
            format=row.format or "qcow2",
            backup_storage_uuid=bs_uuid,
            media_type=row.media_type,
            md5=row.md5_sum,
        )

    async def _why_no_copy(self, row: ImageModel, ready: dict[str, str], zone_uuid: str | None) -> str:
        if not ready:
            return f"image[uuid:{row.uuid}, name:{row.name}] is {row.status}: none of its copies is Ready"
        storages = [await self.bus.call(GetBackupStorage(uuid)) for uuid in ready]
        states = [f"backup storage[uuid:{one.uuid}] is {one.state}, {one.status}, attached to {one.attached_zone_uuids}"
                  for one in storages]  # fmt: skip
        return f"image[uuid:{row.uuid}, name:{row.name}] is wanted in zone[uuid:{zone_uuid}], but {'; '.join(states)}"

    @handles(GetCandidateBackupStorageForCreatingImage)
    async def get_candidates(self, msg: GetCandidateBackupStorageForCreatingImage) -> list[BackupStorageInventory]:
        if msg.volume_uuid is None:
            raise invalid("volumeUuid", "name the volume that the image shall be made of")
        volumes = (await self.bus.call(GetVolumes(uuids=[msg.volume_uuid]))).volumes
        if not volumes:
            raise not_found("VolumeVO", msg.volume_uuid)
        volume = volumes[0]
        if volume.primary_storage_uuid is None:
            return []
        ps = await self.bus.call(GetPrimaryStorage(volume.primary_storage_uuid))
        size = volume.actual_size or volume.size
        return (await self.bus.call(FindBackupStorages(zone_uuid=ps.zone_uuid, size=size))).storages

    @handles(DropImagesOfBackupStorage)
    async def drop_of_storage(self, msg: DropImagesOfBackupStorage) -> None:
        async with self.db.transaction() as tx:
            here = Ref.backup_storage_uuid == msg.backup_storage_uuid
            uuids = (await tx.scalars(select(Ref.image_uuid).where(here))).all()
            await tx.execute(delete(Ref).where(here))
            left = set(await tx.scalars(select(Ref.image_uuid).where(Ref.image_uuid.in_(uuids))))
            for uuid in set(uuids) - left:
                await remove_image(tx, uuid)


class ImageCascade(CascadeExtension):
    """Deletes images. With their backup storage only their records go: the files stay on it."""

    resource = IMAGE
    parents = (BACKUP_STORAGE, "AccountVO")

    def __init__(self, service: ImageService) -> None:
        self._service = service

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:
        query = owned_by(uuids, IMAGE)
        if parent_type == BACKUP_STORAGE:
            query = select(Ref.image_uuid).where(Ref.backup_storage_uuid.in_(uuids)).distinct()
        async with self._service.db.read() as session:
            return list((await session.scalars(query)).all())

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:
        if issuer == BACKUP_STORAGE:
            return  # the storage tells the image service itself: only copies on it are forgotten
        for uuid in uuids:
            try:
                await self._service.remove(uuid)
            except CloudError as error:
                if error.code != RESOURCE_NOT_FOUND.code:
                    raise
