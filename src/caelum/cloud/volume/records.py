"""The records of volumes: made, moved from status to status, and removed, with what belongs to them."""

from __future__ import annotations

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.ownership import disown, own, owner_of
from caelum.cloud.quota import give_all, take_all
from caelum.cloud.volume.api import VOLUME, VolumeInventory
from caelum.cloud.volume.events import VolumeStatusChanged
from caelum.cloud.volume.model import DATA, STATUSES, VolumeModel
from caelum.kernel.database import after_commit, insert_new, utcnow
from caelum.kernel.errors import not_found
from caelum.kernel.node import Node
from caelum.kernel.rows import values_of
from caelum.kernel.tag import drop_tags
from caelum.kernel.views import view


async def get(session: AsyncSession, uuid: str) -> VolumeModel:
    """The row of a volume."""
    row = await session.get(VolumeModel, uuid)
    if row is None:
        raise not_found(VOLUME, uuid)
    return row


async def find(node: Node, uuid: str) -> VolumeInventory:
    """A volume as it is now."""
    async with node.db.read() as session:
        inventory: VolumeInventory = view(await get(session, uuid))
    return inventory


async def add_volume(tx: AsyncSession, row: VolumeModel, account_uuid: str) -> bool:
    """Record a new volume, its owner, and what is counted for it; False when it is recorded already."""
    if not await insert_new(tx, VolumeModel, **values_of(row)):
        return False
    counted = {"volume.data.num": 1} if row.type == DATA else {}
    await take_all(tx, account_uuid, {**counted, "volume.capacity": row.size}, key=row.uuid)
    await own(tx, account_uuid, row.uuid, VOLUME)
    return True


async def move(node: Node, tx: AsyncSession, row: VolumeModel, event: str) -> None:
    """The status that `event` leads to; its news goes out with the commit."""
    await enter(node, tx, row, STATUSES.next(row.status, event))


async def enter(node: Node, tx: AsyncSession, row: VolumeModel, status: str) -> None:
    """Enter a status; its news goes out with the commit."""
    old, row.status, row.last_op_date = row.status, status, utcnow()
    if old == status:
        return
    await tx.flush()
    tell_status(node, tx, view(row), old, await owner_of(tx, row.uuid))


def tell_status(node: Node, tx: AsyncSession, volume: VolumeInventory, old: str, account_uuid: str | None) -> None:
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
    await give_all(tx, ["volume.data.num", "volume.capacity"], uuid)
    await drop_tags(tx, uuid)
    await disown(tx, uuid)
    await tx.execute(delete(VolumeModel).where(VolumeModel.uuid == uuid))


def let_go(row: VolumeModel) -> None:
    """No virtual machine has the volume any more."""
    if row.vm_instance_uuid is not None:
        row.last_vm_instance_uuid, row.last_detach_date = row.vm_instance_uuid, utcnow()
    row.vm_instance_uuid = row.device_id = None
