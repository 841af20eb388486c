"""The internal half of the volume service: what virtual machines and cascades ask."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.image.messages import GetImage
from caelum.cloud.interruptible import Interruptible
from caelum.cloud.offering.messages import GetDiskOffering
from caelum.cloud.ownership import AccountResourceRefModel, owner_of
from caelum.cloud.primary_storage.messages import CreateVolumeOnStorage
from caelum.cloud.volume.api import VOLUME, VolumeInventory
from caelum.cloud.volume.errors import VOLUME_IN_USE
from caelum.cloud.volume.flows import InstantiateContext, InstantiateFlow, RemoveContext, RemoveVolumeFlow
from caelum.cloud.volume.messages import (
    CreateVolume,
    DeleteVolume,
    ExpungeVolume,
    FillVolume,
    GetVolumes,
    InstantiateVolume,
    RecoverVolume,
    SetVolumeAttachment,
    VolumesReply,
)
from caelum.cloud.volume.model import DELETED, NOT_INSTANTIATED, READY, ROOT, STATUSES, VolumeModel
from caelum.cloud.volume.records import add_volume, find, get, let_go, move, remove_volume, tell_status
from caelum.cloud.volume.settings import DELETION_POLICY
from caelum.kernel.database import unique, utcnow
from caelum.kernel.errors import OPERATION_ERROR, CloudError, not_found
from caelum.kernel.journal import refuse_late
from caelum.kernel.node import Node
from caelum.kernel.rows import update_row
from caelum.kernel.service import Service, handles
from caelum.kernel.tag import save_system_tags
from caelum.kernel.views import view

Work = Callable[..., Coroutine[Any, Any, None]]

_FACTS = (
    select(
        VolumeModel.type,
        VolumeModel.size,
        VolumeModel.root_image_uuid,
        VolumeModel.status,
        AccountResourceRefModel.account_uuid,
    )
    .outerjoin(AccountResourceRefModel, AccountResourceRefModel.resource_uuid == VolumeModel.uuid)
    .where(VolumeModel.uuid == bindparam("uuid"))
)
"""What the making and the deletion of a volume must know of it."""


class VolumeRecordsService(Service):
    """The handlers of other services' messages, and what they share with the public operations."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._filling = Interruptible()

    @handles(CreateVolume, queue="volume-{volume_uuid}")
    async def create_volume(self, msg: CreateVolume) -> VolumeInventory:
        row = VolumeModel(
            uuid=msg.volume_uuid,
            name=msg.name,
            description=msg.description,
            type=msg.type,
            size=await self._size_of(msg),
            primary_storage_uuid=msg.primary_storage_uuid,
            vm_instance_uuid=msg.vm_instance_uuid,
            device_id=msg.device_id,
            root_image_uuid=msg.root_image_uuid,
            disk_offering_uuid=msg.disk_offering_uuid,
            status=NOT_INSTANTIATED,
        )
        async with self.db.transaction() as tx:
            await refuse_late(tx)
            if added := await add_volume(tx, row, msg.account_uuid):
                await save_system_tags(tx, msg.system_tags, row.uuid, VOLUME)
        return view(row) if added else await find(self.node, msg.volume_uuid)

    async def _size_of(self, msg: CreateVolume) -> int:
        """What was asked for, but never less than the image."""
        size = msg.size
        if size == 0 and msg.disk_offering_uuid is not None:
            size = (await self.bus.call(GetDiskOffering(msg.disk_offering_uuid))).disk_size
        if msg.root_image_uuid is not None:
            size = max(size, (await self.bus.call(GetImage(msg.root_image_uuid))).size or 0)
        return size

    @handles(InstantiateVolume, queue="volume-{volume_uuid}")
    async def instantiate(self, msg: InstantiateVolume) -> VolumeInventory:
        volume = await find(self.node, msg.volume_uuid)
        if volume.status == READY:
            return volume
        ctx = InstantiateContext(
            uuid=msg.volume_uuid, host_uuid=msg.host_uuid, primary_storage_uuid=msg.primary_storage_uuid
        )
        return await self.node.workflows.run(InstantiateFlow, ctx)

    @handles(FillVolume, queue="volume-{volume_uuid}")
    async def fill(self, msg: FillVolume) -> VolumeInventory:
        return await self._filling.run(msg.volume_uuid, self._fill(msg))

    async def _fill(self, msg: FillVolume) -> VolumeInventory:
        async with self.db.read() as session:
            known = (await session.execute(_FACTS, {"uuid": msg.volume_uuid})).one_or_none()
        if known is None:
            raise not_found(VOLUME, msg.volume_uuid)
        if known.status == READY:
            return await find(self.node, msg.volume_uuid)
        bits = await self.bus.call(
            CreateVolumeOnStorage(
                primary_storage_uuid=msg.primary_storage_uuid,
                host_uuid=msg.host_uuid,
                volume_uuid=msg.volume_uuid,
                size=known.size,
                image_uuid=known.root_image_uuid,
                account_uuid=known.account_uuid,
                volume_type=known.type,
            )
        )
        status = STATUSES.next(known.status, "instantiated")
        async with self.db.transaction() as tx:
            return await self._enter(
                tx,
                msg.volume_uuid,
                known,
                status,
                primary_storage_uuid=msg.primary_storage_uuid,
                install_path=bits.install_path,
                format=bits.format,
                size=bits.size,
                actual_size=bits.actual_size,
            )

    @handles(DeleteVolume)
    async def delete_volume(self, msg: DeleteVolume) -> None:
        self.call_off(msg.volume_uuid)
        await self.in_queue(msg.volume_uuid, self.delete_by_policy, msg.policy)

    def call_off(self, uuid: str) -> None:
        """Stop the making of a volume's bits: what is to be deleted need not be finished first."""
        self._filling.call_off(uuid)
        for one in self.node.workflows.dump():
            if (one["name"], one["subject"]) == (InstantiateFlow.name, uuid):
                self.node.workflows.cancel(one["uuid"], "the volume is deleted")

    async def delete_by_policy(self, uuid: str, policy: str | None, answers: bool = False) -> None:
        """Delete a volume, in its queue. One without bits has nothing to keep."""
        usual = await self.node.settings.get_for(DELETION_POLICY, uuid)
        policy = policy or usual
        async with self.db.read() as session:
            known = (await session.execute(_FACTS, {"uuid": uuid})).one_or_none()
        if known is None:
            return
        if policy == "Direct" or known.status == NOT_INSTANTIATED:
            await self.remove_now(uuid, answers)
            return
        async with self.db.transaction() as tx:
            if policy == "Never":
                await remove_volume(tx, uuid)
            elif known.type == ROOT:  # it stays with its machine, which may be recovered
                await self._enter(tx, uuid, known, STATUSES.next(known.status, "delete"))
            else:
                row = await get(tx, uuid)
                await move(self.node, tx, row, "delete")
                let_go(row)

    async def _enter(self, tx: AsyncSession, uuid: str, known: Any, status: str, **values: Any) -> VolumeInventory:
        """Take a volume from the status that was found in its queue into another one."""
        row = await update_row(tx, VolumeModel, uuid, {**values, "status": status}, status=[known.status])
        if row is None:
            raise CloudError(OPERATION_ERROR, f"volume[uuid:{uuid}] is not {known.status} any more")
        volume: VolumeInventory = view(row)
        if status != known.status:
            tell_status(self.node, tx, volume, known.status, known.account_uuid)
        return volume

    async def remove_now(self, uuid: str, answers: bool = False) -> None:
        """Delete bits, record and reservation, in the volume's queue."""
        await self.node.workflows.run(RemoveVolumeFlow, RemoveContext(uuid), answers=answers)

    async def in_queue(self, uuid: str, work: Work, *args: Any, **named: Any) -> None:
        """Do something in the volume's queue."""
        async with self.node.queues.turn(f"volume-{uuid}", name=work.__name__):
            await work(uuid, *args, **named)

    @handles(RecoverVolume, queue="volume-{volume_uuid}")
    async def recover_volume(self, msg: RecoverVolume) -> VolumeInventory:
        volume = await find(self.node, msg.volume_uuid)
        return volume if volume.status == READY else await self.recover_now(msg.volume_uuid)

    async def recover_now(self, uuid: str) -> VolumeInventory:
        """Take back a deletion, in the volume's queue."""
        async with self.db.transaction() as tx:
            await move(self.node, tx, await get(tx, uuid), "recover")
        return await find(self.node, uuid)

    @handles(ExpungeVolume, queue="volume-{volume_uuid}")
    async def expunge_volume(self, msg: ExpungeVolume) -> None:
        volume = await self.lookup(msg.volume_uuid)
        if volume is None:
            return
        if volume.status != DELETED:
            raise CloudError(OPERATION_ERROR, f"volume[uuid:{volume.uuid}] is {volume.status}, only a deleted one goes")
        await self.remove_now(msg.volume_uuid)

    @handles(SetVolumeAttachment, queue="volume-{volume_uuid}")
    async def set_attachment(self, msg: SetVolumeAttachment) -> VolumeInventory:
        async with self.db.transaction() as tx:
            row = await get(tx, msg.volume_uuid)
            if msg.vm_instance_uuid is None:
                let_go(row)
            elif row.vm_instance_uuid != msg.vm_instance_uuid or row.device_id != msg.device_id:
                self._check_attachable(row, msg)
                details = f"VM[uuid:{msg.vm_instance_uuid}] has another volume as device {msg.device_id}"
                async with unique(tx, VOLUME_IN_USE, details):
                    row.vm_instance_uuid, row.device_id, row.last_attach_date = (
                        msg.vm_instance_uuid,
                        msg.device_id,
                        utcnow(),
                    )
                    await tx.flush()
        return await find(self.node, msg.volume_uuid)

    def _check_attachable(self, row: VolumeModel, msg: SetVolumeAttachment) -> None:
        if row.vm_instance_uuid not in (None, msg.vm_instance_uuid):
            raise CloudError(
                VOLUME_IN_USE, f"volume[uuid:{row.uuid}] is attached to VM[uuid:{row.vm_instance_uuid}]", uuid=row.uuid
            )
        if row.status == DELETED:
            raise CloudError(OPERATION_ERROR, f"volume[uuid:{row.uuid}] is {DELETED}, it cannot be attached")

    @handles(GetVolumes)
    async def get_volumes(self, msg: GetVolumes) -> VolumesReply:
        query = select(VolumeModel).order_by(VolumeModel.device_id, VolumeModel.uuid)
        if msg.uuids is not None:
            query = query.where(VolumeModel.uuid.in_(msg.uuids))
        else:
            query = query.where(VolumeModel.status != DELETED)
        if msg.vm_instance_uuid is not None:
            query = query.where(VolumeModel.vm_instance_uuid == msg.vm_instance_uuid)
        async with self.db.read() as session:
            return VolumesReply(volumes=[view(row) for row in await session.scalars(query)])

    # --- shared -------------------------------------------------------------------------------------------------------

    async def lookup(self, uuid: str) -> VolumeInventory | None:
        """A volume, or None when there is none."""
        async with self.db.read() as session:
            row = await session.get(VolumeModel, uuid)
        return None if row is None else view(row)

    async def of_same_owner(self, volume_uuid: str, uuids: list[str]) -> set[str]:
        """Those of `uuids` that belong to the volume's owner."""
        ref = AccountResourceRefModel
        async with self.db.read() as session:
            owner = await owner_of(session, volume_uuid)
            query = select(ref.resource_uuid).where(ref.account_uuid == owner, ref.resource_uuid.in_(uuids))
            return set(await session.scalars(query))
