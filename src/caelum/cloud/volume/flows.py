"""Workflows of volumes: a new data volume, its bits, and their end."""

from __future__ import annotations

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.ownership import owner_of
from caelum.cloud.primary_storage.messages import (
    CreateVolumeOnStorage,
    DeleteBitsOnStorage,
    ReleaseStorage,
    ReserveStorage,
    VolumeBits,
)
from caelum.cloud.volume.api import VOLUME, VolumeInventory
from caelum.cloud.volume.messages import DeleteVolume, InstantiateVolume
from caelum.cloud.volume.model import CREATING, DATA, NOT_INSTANTIATED, VolumeModel
from caelum.cloud.volume.records import add_volume, find, get, move, remove_volume
from caelum.kernel.errors import CloudError, invalid
from caelum.kernel.rows import read_row
from caelum.kernel.tag import save_system_tags, save_user_tags
from caelum.kernel.workflow import BEGIN, Retry, Run, Workflow, step

BITS_TIMEOUT = 5 * 3600.0
"""Seconds for a volume's bits, with the download of its image."""


class CreateDataContext(msgspec.Struct, kw_only=True):
    """A new data volume, and where it gets its bits at once, if anywhere."""

    uuid: str
    account_uuid: str
    name: str
    description: str | None
    size: int
    disk_offering_uuid: str | None
    primary_storage_uuid: str | None
    host_uuid: str | None
    system_tags: list[str] | None
    user_tags: list[str] | None
    tag_uuids: list[str] | None


class CreateDataVolumeFlow(Workflow[CreateDataContext, VolumeInventory]):
    """NotInstantiated, and Ready at once when a primary storage is named."""

    name = "volume.create-data"
    rehearsal = "volume_create_data"

    def subject(self, ctx: CreateDataContext) -> str:
        return ctx.uuid

    async def begin(self, tx: AsyncSession, ctx: CreateDataContext) -> None:
        row = VolumeModel(
            uuid=ctx.uuid,
            name=ctx.name,
            description=ctx.description,
            type=DATA,
            size=ctx.size,
            disk_offering_uuid=ctx.disk_offering_uuid,
            status=NOT_INSTANTIATED,
        )
        if not await add_volume(tx, row, ctx.account_uuid):
            raise invalid("resourceUuid", f"{ctx.uuid} is that of a volume that exists")
        await save_system_tags(tx, ctx.system_tags, ctx.uuid, VOLUME)
        await save_user_tags(tx, ctx.user_tags, ctx.uuid, VOLUME, ctx.tag_uuids)

    async def complete(self, tx: AsyncSession, ctx: CreateDataContext) -> None:
        """The volume is what its last step made of it."""

    async def abort(self, tx: AsyncSession, ctx: CreateDataContext, error: CloudError) -> None:
        row = await read_row(tx, VolumeModel, ctx.uuid, lock=True)
        if row is None or row.install_path is None:
            await remove_volume(tx, ctx.uuid)
        else:
            await move(self.node, tx, row, "delete")  # its bits could not be deleted yet; the record goes with them

    async def result(self, ctx: CreateDataContext) -> VolumeInventory:
        return await find(self.node, ctx.uuid)

    @step(timeout=BITS_TIMEOUT, skip=lambda ctx: ctx.primary_storage_uuid is None)
    async def instantiate(self, run: Run[CreateDataContext]) -> None:
        ctx = run.ctx
        await run.bus.call(InstantiateVolume(ctx.uuid, ctx.host_uuid, ctx.primary_storage_uuid or ""))

    @instantiate.undo
    async def delete_again(self, run: Run[CreateDataContext]) -> None:
        await run.bus.call(DeleteVolume(run.ctx.uuid, "Direct"))


class InstantiateContext(msgspec.Struct, kw_only=True):
    """A volume and the place where it gets its bits."""

    uuid: str
    host_uuid: str | None
    primary_storage_uuid: str
    type: str = DATA
    size: int = 0
    image_uuid: str | None = None
    account_uuid: str | None = None
    bits: VolumeBits | None = None


class InstantiateFlow(Workflow[InstantiateContext, VolumeInventory]):
    """NotInstantiated -> Creating -> Ready."""

    name = "volume.instantiate"
    rehearsal = "volume_instantiate"

    def subject(self, ctx: InstantiateContext) -> str:
        return ctx.uuid

    def queue(self, ctx: InstantiateContext) -> str | None:
        return f"volume-{ctx.uuid}"

    async def begin(self, tx: AsyncSession, ctx: InstantiateContext) -> None:
        row = await get(tx, ctx.uuid, lock=True)
        await move(self.node, tx, row, "instantiate")
        ctx.type, ctx.size, ctx.image_uuid = row.type, row.size, row.root_image_uuid
        ctx.account_uuid = await owner_of(tx, ctx.uuid)

    async def complete(self, tx: AsyncSession, ctx: InstantiateContext) -> None:
        row, bits = await get(tx, ctx.uuid, lock=True), ctx.bits
        if bits is None:
            raise RuntimeError(f"volume {ctx.uuid} has no bits at the end of its instantiation")
        made = {"install_path": bits.install_path, "format": bits.format}
        sizes = {"size": bits.size, "actual_size": bits.actual_size}
        place = {"primary_storage_uuid": ctx.primary_storage_uuid}
        await move(self.node, tx, row, "instantiated", **place, **made, **sizes)

    async def abort(self, tx: AsyncSession, ctx: InstantiateContext, error: CloudError) -> None:
        row = await get(tx, ctx.uuid, lock=True)
        if row.status == CREATING:
            await move(self.node, tx, row, "give up")

    async def result(self, ctx: InstantiateContext) -> VolumeInventory:
        return await find(self.node, ctx.uuid)

    @step(timeout=60)
    async def reserve(self, run: Run[InstantiateContext]) -> None:
        ctx = run.ctx
        await run.bus.call(ReserveStorage(ctx.uuid, ctx.primary_storage_uuid, ctx.host_uuid, ctx.size))

    @reserve.undo
    async def release(self, run: Run[InstantiateContext]) -> None:
        await run.bus.call(ReleaseStorage(run.ctx.uuid))

    @step(timeout=BITS_TIMEOUT, retry=Retry(times=2))
    async def make_bits(self, run: Run[InstantiateContext]) -> None:
        ctx = run.ctx
        ctx.bits = await run.bus.call(
            CreateVolumeOnStorage(
                primary_storage_uuid=ctx.primary_storage_uuid,
                host_uuid=ctx.host_uuid,
                volume_uuid=ctx.uuid,
                size=ctx.size,
                image_uuid=ctx.image_uuid,
                account_uuid=ctx.account_uuid,
                volume_type=ctx.type,
                maker=run.uuid,
            )
        )

    @make_bits.undo
    async def delete_bits(self, run: Run[InstantiateContext]) -> None:
        ctx = run.ctx
        await run.bus.call(
            DeleteBitsOnStorage(ctx.primary_storage_uuid, ctx.host_uuid, None, key=ctx.uuid, maker=run.uuid)
        )


class RemoveContext(msgspec.Struct):
    """A volume that goes for good."""

    uuid: str
    primary_storage_uuid: str | None = None
    install_path: str | None = None


class RemoveVolumeFlow(Workflow[RemoveContext, None]):
    """Any status -> nothing: bits, record and reservation. It goes forward only."""

    name = "volume.remove"
    rehearsal = "volume_remove"
    pivot = BEGIN

    def subject(self, ctx: RemoveContext) -> str:
        return ctx.uuid

    def queue(self, ctx: RemoveContext) -> str | None:
        return f"volume-{ctx.uuid}"

    async def begin(self, tx: AsyncSession, ctx: RemoveContext) -> None:
        row = await get(tx, ctx.uuid, lock=True)
        ctx.primary_storage_uuid, ctx.install_path = row.primary_storage_uuid, row.install_path
        await move(self.node, tx, row, "delete")

    async def complete(self, tx: AsyncSession, ctx: RemoveContext) -> None:
        await remove_volume(tx, ctx.uuid)

    @step(no_undo="bits that are gone are gone")
    async def delete_bits(self, run: Run[RemoveContext]) -> None:
        ctx = run.ctx
        if ctx.primary_storage_uuid is not None:
            await run.bus.call(DeleteBitsOnStorage(ctx.primary_storage_uuid, None, ctx.install_path, key=ctx.uuid))
        else:
            await run.bus.call(ReleaseStorage(ctx.uuid))
