"""Workflows of images: adding one, and deleting its files for good."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.backup_storage.errors import DOWNLOAD_ERROR
from caelum.cloud.backup_storage.extension import StoredImage
from caelum.cloud.backup_storage.messages import DeleteImageFile, StoreImage
from caelum.cloud.image.api import IMAGE, ImageInventory
from caelum.cloud.image.events import ImageTracked
from caelum.cloud.image.model import DELETED, DOWNLOADING, READY, ImageBackupStorageRefModel, ImageModel
from caelum.cloud.ownership import disown, own
from caelum.cloud.quota import give, take
from caelum.kernel.database import after_commit
from caelum.kernel.errors import CloudError, not_found
from caelum.kernel.node import Node
from caelum.kernel.tag import drop_tags, save_system_tags, save_user_tags
from caelum.kernel.views import view
from caelum.kernel.workflow import BEGIN, Run, Workflow, db_step, step

Ref = ImageBackupStorageRefModel

ADD_TIMEOUT = 259200.0
"""Seconds that the fetching of an image may take: 72 hours, as in the original."""


async def get(session: AsyncSession, uuid: str) -> ImageModel:
    """The row of an image."""
    row = await session.get(ImageModel, uuid)
    if row is None:
        raise not_found(IMAGE, uuid)
    return row


async def find(node: Node, uuid: str) -> ImageInventory:
    """An image as it is now."""

    async def load(session: AsyncSession) -> ImageInventory:
        inventory: ImageInventory = view(await get(session, uuid))
        return inventory

    return await node.db.remember((ImageModel, uuid), load)


class AddImageContext(msgspec.Struct, kw_only=True):
    """What is added for whom, and what has been stored of it."""

    uuid: str
    account_uuid: str
    name: str
    url: str
    backup_storage_uuids: list[str]
    description: str | None
    media_type: str
    guest_os_type: str | None
    architecture: str | None
    system: bool
    format: str | None
    platform: str | None
    type: str
    virtio: bool
    system_tags: list[str] | None
    user_tags: list[str] | None
    tag_uuids: list[str] | None
    stored: dict[str, StoredImage] = {}


def _shown(url: str) -> str:
    """The address without the password that may be in it."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return parts._replace(netloc=f"{parts.username}:*****@{parts.netloc.rpartition('@')[2]}").geturl()


class AddImageFlow(Workflow[AddImageContext, ImageInventory]):
    """Downloading -> Ready, or nothing is left. Ready when at least one backup storage has it."""

    name = "image.add"
    rehearsal = "image_add"

    def subject(self, ctx: AddImageContext) -> str:
        return ctx.uuid

    def queue(self, ctx: AddImageContext) -> str | None:
        return f"image-{ctx.uuid}"

    async def begin(self, tx: AsyncSession, ctx: AddImageContext) -> None:
        names = ("uuid", "name", "description", "media_type", "guest_os_type", "architecture", "system", "format",
                 "platform", "type", "virtio")  # fmt: skip
        tx.add(ImageModel(**{name: getattr(ctx, name) for name in names}, url=_shown(ctx.url), status=DOWNLOADING))
        await tx.flush()
        tx.add_all([Ref(image_uuid=ctx.uuid, backup_storage_uuid=uuid) for uuid in ctx.backup_storage_uuids])
        await take(tx, ctx.account_uuid, "image.num", key=ctx.uuid)
        await own(tx, ctx.account_uuid, ctx.uuid, IMAGE)
        await save_system_tags(tx, ctx.system_tags, ctx.uuid, IMAGE)
        await save_user_tags(tx, ctx.user_tags, ctx.uuid, IMAGE, ctx.tag_uuids)

    async def complete(self, tx: AsyncSession, ctx: AddImageContext) -> None:
        row, image = await get(tx, ctx.uuid), next(iter(ctx.stored.values()))
        row.status, row.format, row.size, row.actual_size = READY, image.format, image.size, image.actual_size
        row.md5_sum, row.sha256 = image.md5, image.sha256
        for ref in (await tx.scalars(select(Ref).where(Ref.image_uuid == ctx.uuid))).all():
            stored = ctx.stored.get(ref.backup_storage_uuid)
            if stored is None:
                await tx.delete(ref)
            else:
                ref.status, ref.install_path = READY, stored.install_path
        await tx.flush()
        await tx.refresh(row, ["backup_storage_refs"])
        news = ImageTracked(uuid=ctx.uuid, success=True, inventory=view(row))
        after_commit(tx, lambda: self.node.bus.publish(news))

    async def abort(self, tx: AsyncSession, ctx: AddImageContext, error: CloudError) -> None:
        await remove_image(tx, ctx.uuid)
        news = ImageTracked(uuid=ctx.uuid, success=False, error=error.to_wire())
        after_commit(tx, lambda: self.node.bus.publish(news))

    async def result(self, ctx: AddImageContext) -> ImageInventory:
        return await find(self.node, ctx.uuid)

    @step(timeout=ADD_TIMEOUT, progress=95)
    async def store(self, run: Run[AddImageContext]) -> None:
        ctx = run.ctx
        answers = await run.bus.call_all(
            [
                StoreImage(uuid, ctx.uuid, ctx.account_uuid, ctx.url, ctx.media_type, ctx.format)
                for uuid in ctx.backup_storage_uuids
            ]
        )
        pairs = list(zip(ctx.backup_storage_uuids, answers, strict=True))
        ctx.stored = {uuid: one for uuid, one in pairs if not isinstance(one, CloudError)}
        if not ctx.stored:
            errors = {uuid: one for uuid, one in pairs if isinstance(one, CloudError)}
            first = next(iter(errors.values()))
            raise CloudError(
                DOWNLOAD_ERROR,
                f"none of {len(errors)} backup storages could take image[uuid:{ctx.uuid}, name:{ctx.name}]:"
                f" {first.details}",
                cause=first,
                causes=list(errors.values()),
            )

    @store.undo
    async def remove_files(self, run: Run[AddImageContext]) -> None:
        for uuid in run.ctx.backup_storage_uuids:
            await run.bus.call(DeleteImageFile(uuid, run.ctx.uuid))

    @db_step
    async def count(self, tx: AsyncSession, run: Run[AddImageContext]) -> None:
        size = next(iter(run.ctx.stored.values())).actual_size
        await take(tx, run.ctx.account_uuid, "image.size", size, key=run.ctx.uuid)

    @count.undo  # type: ignore[untyped-decorator]
    async def uncount(self, tx: AsyncSession, run: Run[AddImageContext]) -> None:
        await give(tx, run.ctx.account_uuid, "image.size", key=run.ctx.uuid)


async def remove_image(tx: AsyncSession, uuid: str) -> None:
    """Delete an image's rows, its owner, its tags, and what was counted for it."""
    for name in ("image.num", "image.size"):
        await give(tx, "", name, key=uuid)
    await drop_tags(tx, uuid)
    await disown(tx, uuid)
    await tx.execute(delete(ImageModel).where(ImageModel.uuid == uuid))


class ExpungeContext(msgspec.Struct):
    """An image and the backup storages whose copies go."""

    uuid: str
    backup_storage_uuids: list[str] = []


class ExpungeImageFlow(Workflow[ExpungeContext, None]):
    """Deleted -> nothing. It goes forward only."""

    name = "image.expunge"
    rehearsal = "image_expunge"
    pivot = BEGIN

    def subject(self, ctx: ExpungeContext) -> str:
        return ctx.uuid

    def queue(self, ctx: ExpungeContext) -> str | None:
        return f"image-{ctx.uuid}"

    async def begin(self, tx: AsyncSession, ctx: ExpungeContext) -> None:
        row = await get(tx, ctx.uuid)
        deleted = [one.backup_storage_uuid for one in row.backup_storage_refs if one.status == DELETED]
        ctx.backup_storage_uuids = [one for one in ctx.backup_storage_uuids or deleted if one in deleted]

    async def complete(self, tx: AsyncSession, ctx: ExpungeContext) -> None:
        await tx.execute(
            delete(Ref).where(Ref.image_uuid == ctx.uuid, Ref.backup_storage_uuid.in_(ctx.backup_storage_uuids))
        )
        if await tx.scalar(select(Ref.id).where(Ref.image_uuid == ctx.uuid).limit(1)) is None:
            await remove_image(tx, ctx.uuid)

    @step(no_undo="a file that is gone is gone")
    async def delete_files(self, run: Run[ExpungeContext]) -> None:
        for uuid in run.ctx.backup_storage_uuids:
            await run.bus.call(DeleteImageFile(uuid, run.ctx.uuid))
