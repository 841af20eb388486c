"""The internal half of the volume service: what virtual machines and cascades ask."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, cast

from sqlalchemy import Table, bindparam, select

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
from caelum.cloud.volume.records import (
    change,
    columns_of,
    enter,
    find,
    get,
    move,
    record_volume,
    remove_volume,
    without_vm,
)
from caelum.cloud.volume.settings import DELETION_POLICY
from caelum.kernel.database import unique, utcnow
from caelum.kernel.errors import OPERATION_ERROR, CloudError, not_found
from caelum.kernel.journal import refuse_late
from caelum.kernel.node import Node
from caelum.kernel.prepared import Prepared
from caelum.kernel.rows import read_row, read_rows
from caelum.kernel.service import Service, handles
from caelum.kernel.views import view, views

Work = Callable[..., Coroutine[Any, Any, None]]

_NOT_DELETED = [one for one in STATUSES.states if one != DELETED]
_VOLUME, _OWNER = cast("Table", VolumeModel.__table__).c, cast("Table", AccountResourceRefModel.__table__).c
_FACTS = Prepared(
    select(_VOLUME.type, _VOLUME.size, _VOLUME.root_image_uuid, _VOLUME.status, _OWNER.account_uuid)
    .outerjoin(AccountResourceRefModel.__table__, _OWNER.resource_uuid == _VOLUME.uuid)
    .where(_VOLUME.uuid == bindparam("of_volume"))
)


class _Facts(NamedTuple):
    """What the making and the deletion of a volume must know of it."""

    type: str
    size: int
    root_image_uuid: str | None
    status: str
    account_uuid: str | None


class VolumeRecordsService(Service):
    """The handlers of other services' messages, and what they share with the public operations."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._filling = Interruptible()

    @handles(CreateVolume, queue="volume-{volume_uuid}")
    async def create_volume(self, msg: CreateVolume) -> VolumeInventory:
        size = await self._size_of(msg)
        async with self.db.transaction() as tx:
            await refuse_late(tx)
            added = await record_volume(tx, msg, size)
        return added or await find(self.node, msg.volume_uuid)

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
        known = await self._facts(msg.volume_uuid)
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
            return await enter(
                self.node,
                tx,
                msg.volume_uuid,
                known.status,
                status,
                known.account_uuid,
                primary_storage_uuid=msg.primary_storage_uuid,
                **columns_of(bits),
            )

    @handles(DeleteVolume)
    async def delete_volume(self, msg: DeleteVolume) -> None:
        self.call_off(msg.volume_uuid)
        await self.in_queue(msg.volume_uuid, self.delete_by_policy, msg.policy)

    def call_off(self, uuid: str) -> None:
        """Stop the making of a volume's bits: what is to be deleted need not be finished first."""
        self._filling.call_off(uuid)
        for run in self.node.workflows.runs_of(InstantiateFlow.name, uuid):
            self.node.workflows.cancel(run, "the volume is deleted")

    async def delete_by_policy(self, uuid: str, policy: str | None, answers: bool = False) -> None:
        """Delete a volume, in its queue. One without bits has nothing to keep."""
        usual = await self.node.settings.get_for(DELETION_POLICY, uuid)
        policy = policy or usual
        known = await self._facts(uuid)
        if known is None:
            return
        if policy == "Direct" or known.status == NOT_INSTANTIATED:
            await self.remove_now(uuid, answers)
            return
        async with self.db.transaction() as tx:
            if policy == "Never":
                await remove_volume(tx, uuid)
            elif known.type == ROOT:  # it stays with its machine, which may be recovered
                await enter(
                    self.node, tx, uuid, known.status, STATUSES.next(known.status, "delete"), known.account_uuid
                )
            else:
                row = await get(tx, uuid, lock=True)
                await move(self.node, tx, row, "delete", **without_vm(row))

    async def _facts(self, uuid: str) -> _Facts | None:
        found = await _FACTS.rows(self.db.once, of_volume=uuid)
        return _Facts(*found[0]) if found else None

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
            return await move(self.node, tx, await get(tx, uuid, lock=True), "recover")

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
            row = await get(tx, msg.volume_uuid, lock=True)
            device = None if msg.vm_instance_uuid is None else msg.device_id
            if (row.vm_instance_uuid, row.device_id) == (msg.vm_instance_uuid, device):
                return view(row)  # type: ignore[no-any-return]
            if msg.vm_instance_uuid is None:
                return await change(tx, row.uuid, **without_vm(row))
            self._check_attachable(row, msg)
            place = {"vm_instance_uuid": msg.vm_instance_uuid, "device_id": msg.device_id}
            details = f"VM[uuid:{msg.vm_instance_uuid}] has another volume as device {msg.device_id}"
            async with unique(tx, VOLUME_IN_USE, details):
                return await change(tx, row.uuid, **place, last_attach_date=utcnow())

    def _check_attachable(self, row: VolumeModel, msg: SetVolumeAttachment) -> None:
        if row.vm_instance_uuid not in (None, msg.vm_instance_uuid):
            raise CloudError(
                VOLUME_IN_USE, f"volume[uuid:{row.uuid}] is attached to VM[uuid:{row.vm_instance_uuid}]", uuid=row.uuid
            )
        if row.status == DELETED:
            raise CloudError(OPERATION_ERROR, f"volume[uuid:{row.uuid}] is {DELETED}, it cannot be attached")

    @handles(GetVolumes, reads=True)
    async def get_volumes(self, msg: GetVolumes) -> VolumesReply:
        only: dict[str, Any] = {"status": _NOT_DELETED} if msg.uuids is None else {"uuid": msg.uuids}
        if msg.vm_instance_uuid is not None:
            only["vm_instance_uuid"] = msg.vm_instance_uuid
        rows = await read_rows(self.db.once, VolumeModel, order=("device_id", "uuid"), **only)
        return VolumesReply(volumes=views(rows))

    # --- shared -------------------------------------------------------------------------------------------------------

    async def lookup(self, uuid: str) -> VolumeInventory | None:
        """A volume, or None when there is none."""
        row = await read_row(self.db.once, VolumeModel, uuid)
        return None if row is None else view(row)

    async def of_same_owner(self, volume_uuid: str, uuids: list[str]) -> set[str]:
        """Those of `uuids` that belong to the volume's owner."""
        ref = AccountResourceRefModel
        async with self.db.read() as session:
            owner = await owner_of(session, volume_uuid)
            query = select(ref.resource_uuid).where(ref.account_uuid == owner, ref.resource_uuid.in_(uuids))
            return set(await session.scalars(query))
