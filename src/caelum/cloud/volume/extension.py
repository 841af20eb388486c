"""What the volume service records in the transactions of others."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.primary_storage.messages import VolumeBits
from caelum.cloud.volume.api import VolumeInventory
from caelum.cloud.volume.messages import CreateVolume
from caelum.kernel.extension import ExtensionPoint

NUMBER, CAPACITY = "volume.data.num", "volume.capacity"
"""The quotas that volumes are counted for."""


def counted(volume_type: str, size: int) -> dict[str, int]:
    """What a volume is counted for, by quota."""
    return {NUMBER: 1, CAPACITY: size} if volume_type == "Data" else {CAPACITY: size}


class VolumeRecords(ExtensionPoint):
    """The records of volumes that a workflow of their virtual machine changes: they commit with its progress.

    The same as messages would do, for a workflow that lets nobody else have the volumes before it ends.
    """

    async def add(self, tx: AsyncSession, msg: CreateVolume) -> VolumeInventory:
        """What the message would do, for a size that is neither 0 nor less than the image's. The caller takes
        `counted` of its owner's quotas under its UUID, and gives that back if there will be no volume.
        """
        raise NotImplementedError

    async def filled(self, tx: AsyncSession, uuid: str, account_uuid: str, bits: VolumeBits) -> VolumeInventory:
        """A volume has got its bits on the storage that it was recorded with: Ready. `account_uuid` owns it."""
        raise NotImplementedError

    async def delete_root(self, tx: AsyncSession, uuid: str) -> VolumeInventory | None:
        """What `DeleteVolume` by policy Delay would do to a machine's root disk, where that only changes its record.
        None, and nothing is done, when it is not Ready: then it takes that message, and its turn in the volume's queue.
        """
        raise NotImplementedError
