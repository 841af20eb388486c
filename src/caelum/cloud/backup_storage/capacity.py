"""The books of backup storages.

Invariant: space is taken by one conditional statement, so two images at once cannot both get the last byte; a look at
the storage's true free space corrects the books, less what is promised and not yet written.
"""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.backup_storage.errors import ALLOCATE_ERROR
from caelum.cloud.backup_storage.extension import BackupCapacity
from caelum.cloud.backup_storage.model import BackupReservationModel, BackupStorageModel
from caelum.kernel.database import update_where
from caelum.kernel.errors import CloudError

Storage = BackupStorageModel
Reservation = BackupReservationModel


async def reserve(tx: AsyncSession, bs_uuid: str, image_uuid: str, size: int, reserved: int) -> None:
    """Promise space to an image; the same image again only adjusts the size. Refused with BS.1003 and the numbers."""
    known = await tx.get(Reservation, (bs_uuid, image_uuid))
    more = size - (known.size if known else 0)
    fits = [Storage.available_capacity - more >= reserved] if more > 0 else []
    values = {"available_capacity": Storage.available_capacity - more}
    if not await update_where(tx, Storage, values, Storage.uuid == bs_uuid, *fits):
        free = await tx.scalar(select(Storage.available_capacity).where(Storage.uuid == bs_uuid))
        raise CloudError(
            ALLOCATE_ERROR,
            f"backup storage[uuid:{bs_uuid}] has {free} bytes available, of which {reserved} stay reserved; the image"
            f" needs {size}",
            available=free,
            reserved=reserved,
            required=size,
        )
    if known is None:
        tx.add(Reservation(backup_storage_uuid=bs_uuid, image_uuid=image_uuid, size=size))
    else:
        known.size = size


async def written(tx: AsyncSession, bs_uuid: str, image_uuid: str, size: int) -> None:
    """The image is on the storage, and so big."""
    known = await tx.get(Reservation, (bs_uuid, image_uuid))
    if known is not None and not known.written:
        values = {"available_capacity": Storage.available_capacity + known.size - size}
        await update_where(tx, Storage, values, Storage.uuid == bs_uuid)
        known.size, known.written = size, True


async def release(tx: AsyncSession, bs_uuid: str, image_uuid: str) -> None:
    """Give an image's space back; nothing when it has none."""
    known = await tx.get(Reservation, (bs_uuid, image_uuid))
    if known is not None:
        values = {"available_capacity": Storage.available_capacity + known.size}
        await update_where(tx, Storage, values, Storage.uuid == bs_uuid)
        await tx.delete(known)


async def record(tx: AsyncSession, row: BackupStorageModel, seen: BackupCapacity) -> None:
    """Enter what is free now."""
    promised = select(func.coalesce(func.sum(Reservation.size), 0)).where(
        Reservation.backup_storage_uuid == row.uuid, Reservation.written.is_(False)
    )
    row.total_capacity = seen.total
    row.available_capacity = seen.available - int((await tx.execute(promised)).scalar_one())
