"""The records of volumes: made, moved from status to status, and removed, with what belongs to them."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.ownership import disown, own, owner_of
from caelum.cloud.primary_storage.messages import VolumeBits
from caelum.cloud.quota import give_all, take_all
from caelum.cloud.volume.api import VOLUME, VolumeInventory
from caelum.cloud.volume.events import VolumeStatusChanged
from caelum.cloud.volume.extension import CAPACITY, NUMBER, VolumeRecords, counted
from caelum.cloud.volume.messages import CreateVolume
from caelum.cloud.volume.model import NOT_INSTANTIATED, READY, ROOT, STATUSES, VolumeModel
from caelum.kernel.database import after_commit, insert_new, utcnow
from caelum.kernel.errors import OPERATION_ERROR, CloudError, not_found
from caelum.kernel.node import Node
from caelum.kernel.rows import delete_rows, new_row, read_row, update_row, values_of
from caelum.kernel.tag import drop_tags, save_system_tags
from caelum.kernel.views import view


async def get(session: AsyncSession, uuid: str, *, lock: bool = False) -> VolumeModel:
    """The row of a volume; with `lock` it stays as it is until the transaction ends, but for what that changes."""
    row = await read_row(session, VolumeModel, uuid, lock=lock)
    if row is None:
        raise not_found(VOLUME, uuid)
    return row


async def find(node: Node, uuid: str) -> VolumeInventory:
    """A volume as it is now."""
    async with node.db.read() as session:
        inventory: VolumeInventory = view(await get(session, uuid))
    return inventory


async def add_volume(tx: AsyncSession, row: VolumeModel, account_uuid: str, *, is_counted: bool = False) -> bool:
    """Record a new volume, its owner, and what is counted for it unless it is; False when it is recorded already."""
    if not await insert_new(tx, VolumeModel, **values_of(row)):
        return False
    if not is_counted:
        await take_all(tx, account_uuid, counted(row.type, row.size), key=row.uuid)
    await own(tx, account_uuid, row.uuid, VOLUME)
    return True


async def move(node: Node, tx: AsyncSession, row: VolumeModel, event: str, **values: Any) -> VolumeInventory:
    """The status that `event` leads to, and new values of other attributes; its news goes out with the commit."""
    owner = await owner_of(tx, row.uuid)
    return await enter(node, tx, row.uuid, row.status, STATUSES.next(row.status, event), owner, **values)


async def enter(
    node: Node, tx: AsyncSession, uuid: str, old: str, status: str, owner: str | None, **values: Any
) -> VolumeInventory:
    """Enter a status from the old one, which the volume must be in; its news goes out with the commit."""
    row = await update_row(tx, VolumeModel, uuid, {**values, "status": status}, status=old)
    if row is None:
        raise CloudError(OPERATION_ERROR, f"volume[uuid:{uuid}] is not {old} any more")
    volume: VolumeInventory = view(row)
    if status != old:
        _tell_status(node, tx, volume, old, owner)
    return volume


async def change(tx: AsyncSession, uuid: str, **values: Any) -> VolumeInventory:
    """Set attributes other than the status."""
    row = await update_row(tx, VolumeModel, uuid, values)
    if row is None:
        raise not_found(VOLUME, uuid)
    volume: VolumeInventory = view(row)
    return volume


def _tell_status(node: Node, tx: AsyncSession, volume: VolumeInventory, old: str, account_uuid: str | None) -> None:
    """Tell, once it is committed, that a volume has entered its status."""
    news = VolumeStatusChanged(
        volume_uuid=volume.uuid,
        old_status=old,
        new_status=volume.status,
        inventory=volume,
        date=utcnow(),
        account_uuid=account_uuid,
    )
    after_commit(tx, lambda: node.bus.publish(news))


async def remove_volume(tx: AsyncSession, uuid: str) -> None:
    """Delete a volume's row, its owner, its tags, and what was counted for it."""
    await give_all(tx, [NUMBER, CAPACITY], uuid)
    await drop_tags(tx, uuid)
    await disown(tx, uuid)
    await delete_rows(tx, VolumeModel, uuid=uuid)


def without_vm(row: VolumeModel) -> dict[str, Any]:
    """The values of a volume that no virtual machine has any more."""
    values: dict[str, Any] = {"vm_instance_uuid": None, "device_id": None}
    if row.vm_instance_uuid is not None:
        values |= {"last_vm_instance_uuid": row.vm_instance_uuid, "last_detach_date": utcnow()}
    return values


async def record_volume(
    tx: AsyncSession, msg: CreateVolume, size: int, *, is_counted: bool = False
) -> VolumeInventory | None:
    """Record a volume as the message says, with its owner and tags; None when it is recorded already."""
    row = new_row(
        VolumeModel,
        uuid=msg.volume_uuid,
        name=msg.name,
        description=msg.description,
        type=msg.type,
        size=size,
        primary_storage_uuid=msg.primary_storage_uuid,
        vm_instance_uuid=msg.vm_instance_uuid,
        device_id=msg.device_id,
        root_image_uuid=msg.root_image_uuid,
        disk_offering_uuid=msg.disk_offering_uuid,
        status=NOT_INSTANTIATED,
    )
    if not await add_volume(tx, row, msg.account_uuid, is_counted=is_counted):
        return None
    await save_system_tags(tx, msg.system_tags, row.uuid, VOLUME)
    volume: VolumeInventory = view(row)
    return volume


def columns_of(bits: VolumeBits) -> dict[str, Any]:
    """What a volume's row says of its bits."""
    return {
        "install_path": bits.install_path,
        "format": bits.format,
        "size": bits.size,
        "actual_size": bits.actual_size,
    }


class RecordsOfVolumes(VolumeRecords):
    """What others record of volumes in their transactions."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def add(self, tx: AsyncSession, msg: CreateVolume) -> VolumeInventory:
        """Record a volume."""
        added = await record_volume(tx, msg, msg.size, is_counted=True)
        volume: VolumeInventory = added or view(await get(tx, msg.volume_uuid))
        return volume

    async def filled(self, tx: AsyncSession, uuid: str, account_uuid: str, bits: VolumeBits) -> VolumeInventory:
        """A volume has got its bits."""
        made = columns_of(bits)
        status = STATUSES.next(NOT_INSTANTIATED, "instantiated")
        try:
            return await enter(self._node, tx, uuid, NOT_INSTANTIATED, status, account_uuid, **made)
        except CloudError:
            if (await get(tx, uuid, lock=True)).status != READY:
                raise
        return await change(tx, uuid, **made)  # it was filled before a crash

    async def delete_root(self, tx: AsyncSession, uuid: str) -> VolumeInventory | None:
        """It stays with its machine, which may be recovered."""
        deleted = {"status": STATUSES.next(READY, "delete")}
        row = await update_row(tx, VolumeModel, uuid, deleted, type=ROOT, status=READY)
        if row is None:
            return None
        volume: VolumeInventory = view(row)
        _tell_status(self._node, tx, volume, READY, await owner_of(tx, uuid))
        return volume
