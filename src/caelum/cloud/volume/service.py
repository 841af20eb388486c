"""The volume service.

Invariant: all work on a volume runs in its queue; a volume has space reserved, bits and a record, or is on its way
between having all of them and none in a durable workflow.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from sqlalchemy import select

from caelum.cloud.offering.messages import GetDiskOffering
from caelum.cloud.primary_storage.messages import GetBitsOnStorage, GetPrimaryStorage, GetVolumeHosts
from caelum.cloud.switch import ENABLED
from caelum.cloud.vm.api import VmInstanceInventory
from caelum.cloud.vm.messages import DetachVolumeFromVm, ListVms
from caelum.cloud.volume import tags
from caelum.cloud.volume.api import (
    ChangeVolumeState,
    CreateDataVolume,
    DeleteDataVolume,
    ExpungeDataVolume,
    GetVolumeCapabilities,
    GetVolumeFormat,
    RecoverDataVolume,
    SyncVolumeSize,
    UpdateVolume,
    VolumeCapabilitiesReply,
    VolumeFormat,
    VolumeFormatsReply,
    VolumeInventory,
)
from caelum.cloud.volume.attach_api import GetDataVolumeAttachableVm
from caelum.cloud.volume.cascade import ForgetDeletedOffering, VolumeCascade
from caelum.cloud.volume.contents import VolumeRecordsService
from caelum.cloud.volume.events import VolumeConfigChanged
from caelum.cloud.volume.flows import CreateDataContext, CreateDataVolumeFlow
from caelum.cloud.volume.messages import ExpungeVolume
from caelum.cloud.volume.model import DATA, DELETED, READY, STATES, VolumeModel
from caelum.cloud.volume.records import RecordsOfVolumes, change, find, get
from caelum.cloud.volume.settings import EXPUNGE_INTERVAL, EXPUNGE_PERIOD, REFRESH_SIZE_INTERVAL
from caelum.kernel import context
from caelum.kernel.database import utcnow
from caelum.kernel.errors import OPERATION_ERROR, CloudError, invalid
from caelum.kernel.ids import new_uuid
from caelum.kernel.node import Node
from caelum.kernel.rows import read_row
from caelum.kernel.service import handles, intercepts

log = logging.getLogger(__name__)

FORMATS = [VolumeFormat("qcow2", "KVM", ["KVM"]), VolumeFormat("raw", "KVM", ["KVM"])]
SYNC_PARALLELISM = 10


class VolumeService(VolumeRecordsService):
    """Owns volumes: the public operations."""

    name = "volume"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.extensions.add(VolumeCascade(node))
        node.extensions.add(ForgetDeletedOffering(node))
        node.extensions.add(RecordsOfVolumes(node))

    async def start(self) -> None:
        self.node.timers.every(EXPUNGE_INTERVAL, self.expunge_old, name="volume.expunge")
        self.node.timers.every(REFRESH_SIZE_INTERVAL, self.refresh_sizes, name="volume.sizes")

    # --- life ---------------------------------------------------------------------------------------------------------

    @intercepts(CreateDataVolume)
    async def check_create(self, msg: CreateDataVolume) -> None:
        if (msg.disk_offering_uuid is None) == (msg.disk_size <= 0):
            raise invalid("diskSize", "give either a disk offering or a size in bytes greater than 0")

    @handles(CreateDataVolume, repeatable=True)
    async def create(self, msg: CreateDataVolume) -> VolumeInventory:
        size = msg.disk_size
        if msg.disk_offering_uuid is not None:
            size = (await self.bus.call(GetDiskOffering(msg.disk_offering_uuid, enabled=True))).disk_size
        place = tags.HOST.find(msg.system_tags)
        ctx = CreateDataContext(
            uuid=msg.resource_uuid or new_uuid(),
            account_uuid=context.current().actor.account_uuid,
            name=msg.name,
            description=msg.description,
            size=size,
            disk_offering_uuid=msg.disk_offering_uuid,
            primary_storage_uuid=msg.primary_storage_uuid,
            host_uuid=None if place is None else place["hostUuid"],
            system_tags=msg.system_tags,
            user_tags=msg.user_tags,
            tag_uuids=msg.tag_uuids,
        )
        return await self.node.workflows.run(CreateDataVolumeFlow, ctx, answers=True)

    @intercepts(DeleteDataVolume)
    async def check_delete(self, msg: DeleteDataVolume) -> None:
        async with self.db.read() as session:
            row = await read_row(session, VolumeModel, msg.uuid)
        if row is not None and row.type != DATA:
            raise invalid("uuid", f"volume[uuid:{msg.uuid}] is a {row.type} volume: it goes with its virtual machine")

    @handles(DeleteDataVolume)
    async def delete(self, msg: DeleteDataVolume) -> None:
        volume = await self.lookup(msg.uuid)
        if volume is None:
            return
        self.call_off(msg.uuid)
        if volume.vm_instance_uuid is not None:
            # Outside of the volume's queue: the virtual machine tells this service of the detachment.
            await self._detach(msg.uuid, volume.vm_instance_uuid)
        await self.in_queue(msg.uuid, self.delete_by_policy, None, answers=True)

    async def _detach(self, uuid: str, vm_uuid: str) -> None:
        """Take a volume from its machine; done as well when others detach or delete it at the same time."""
        try:
            await self.bus.call(DetachVolumeFromVm(vm_uuid=vm_uuid, volume_uuid=uuid, answers=False))
        except CloudError:
            volume = await self.lookup(uuid)
            if volume is not None and volume.vm_instance_uuid is not None:
                raise

    @handles(RecoverDataVolume, queue="volume-{uuid}")
    async def recover(self, msg: RecoverDataVolume) -> VolumeInventory:
        await self._require_deleted(msg.uuid)
        return await self.recover_now(msg.uuid)

    @handles(ExpungeDataVolume, queue="volume-{uuid}", repeatable=True)
    async def expunge(self, msg: ExpungeDataVolume) -> None:
        if await self.lookup(msg.uuid) is not None:
            await self._require_deleted(msg.uuid)
            await self.remove_now(msg.uuid, answers=True)

    async def _require_deleted(self, uuid: str) -> None:
        volume = await find(self.node, uuid)
        if volume.type != DATA or volume.status != DELETED:
            raise CloudError(
                OPERATION_ERROR,
                f"volume[uuid:{uuid}, type:{volume.type}] is {volume.status}, it must be a deleted data volume",
                status=volume.status,
            )

    async def expunge_old(self) -> None:
        """Expunge data volumes that were deleted longer ago than the period. Root volumes go with their machines."""
        before = utcnow() - timedelta(seconds=self.node.settings.get(EXPUNGE_PERIOD))
        row = VolumeModel
        query = select(row.uuid).where(row.status == DELETED, row.type == DATA, row.last_op_date < before)
        async with self.db.read() as session:
            old = (await session.scalars(query)).all()
        for uuid in old:
            if self.node.ring.owns(uuid):
                try:
                    await self.bus.call(ExpungeVolume(uuid))
                except CloudError as error:
                    log.warning("volume %s is not expunged: %s", uuid, error.details)

    # --- changing -----------------------------------------------------------------------------------------------------

    @handles(UpdateVolume, queue="volume-{uuid}")
    async def update(self, msg: UpdateVolume) -> VolumeInventory:
        async with self.db.transaction() as tx:
            row = await get(tx, msg.uuid, lock=True)
            name = row.name if msg.name is None else msg.name
            description = row.description if msg.description is None else msg.description
            volume = await change(tx, msg.uuid, name=name, description=description)
        self.bus.publish(VolumeConfigChanged(inventory=volume, date=utcnow()))
        return volume

    @handles(ChangeVolumeState, queue="volume-{uuid}")
    async def change_state(self, msg: ChangeVolumeState) -> VolumeInventory:
        async with self.db.transaction() as tx:
            row = await get(tx, msg.uuid, lock=True)
            return await change(tx, msg.uuid, state=STATES.next(row.state, msg.state_event))

    @handles(SyncVolumeSize, queue="volume-{uuid}")
    async def sync_size(self, msg: SyncVolumeSize) -> VolumeInventory:
        volume = await find(self.node, msg.uuid)
        if volume.status != READY or volume.primary_storage_uuid is None or volume.install_path is None:
            raise CloudError(OPERATION_ERROR, f"volume[uuid:{volume.uuid}] is {volume.status}: nothing to measure")
        bits = await self.bus.call(
            GetBitsOnStorage(volume.primary_storage_uuid, None, volume.install_path, volume_uuid=volume.uuid)
        )
        if (bits.size, bits.actual_size) == (volume.size, volume.actual_size):
            return volume
        async with self.db.transaction() as tx:
            return await change(tx, msg.uuid, size=bits.size, actual_size=bits.actual_size)

    async def refresh_sizes(self) -> None:
        """Measure every ready volume. One that cannot be measured now is measured next time."""
        async with self.db.read() as session:
            ready = (await session.scalars(select(VolumeModel.uuid).where(VolumeModel.status == READY))).all()
        mine = [SyncVolumeSize(uuid=uuid) for uuid in ready if self.node.ring.owns(uuid)]
        await self.bus.call_all(mine, SYNC_PARALLELISM)

    # --- questions ----------------------------------------------------------------------------------------------------

    @handles(GetVolumeFormat)
    async def get_formats(self, _msg: GetVolumeFormat) -> VolumeFormatsReply:
        return VolumeFormatsReply(formats=FORMATS)

    @handles(GetVolumeCapabilities)
    async def get_capabilities(self, msg: GetVolumeCapabilities) -> VolumeCapabilitiesReply:
        await find(self.node, msg.uuid)
        no = {"MigrationInCurrentPrimaryStorage": False, "MigrationToOtherPrimaryStorage": False}
        return VolumeCapabilitiesReply(capabilities=no)

    @handles(GetDataVolumeAttachableVm)
    async def get_attachable_vms(self, msg: GetDataVolumeAttachableVm) -> list[VmInstanceInventory]:
        volume = await find(self.node, msg.volume_uuid)
        if volume.vm_instance_uuid is not None or volume.state != ENABLED or volume.status == DELETED:
            return []
        vms = (await self.bus.call(ListVms(states=["Running", "Stopped"]))).vms
        owned = await self.of_same_owner(volume.uuid, [one.uuid for one in vms])
        vms = [one for one in vms if one.uuid in owned]
        if volume.primary_storage_uuid is None:
            return vms
        ps = await self.bus.call(GetPrimaryStorage(volume.primary_storage_uuid))
        place = (await self.bus.call(GetVolumeHosts([volume.uuid]))).hosts.get(volume.uuid)
        return [
            one
            for one in vms
            if one.cluster_uuid in ps.attached_cluster_uuids
            and (place is None or place == (one.host_uuid or one.last_host_uuid))
        ]
