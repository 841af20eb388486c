"""What other services ask of volumes. Every message may be repeated: the UUID makes it the same one."""

from __future__ import annotations

from caelum.cloud.volume.api import VolumeInventory
from caelum.kernel.message import Message, Reply, message


class VolumesReply(Reply, kw_only=True):
    """Volumes."""

    volumes: list[VolumeInventory]


@message(route_by="volume_uuid")
class CreateVolume(Message[VolumeInventory]):
    """Record a volume, NotInstantiated, and its owner. `size` 0 means the size of the root image or disk offering."""

    volume_uuid: str
    name: str
    type: str
    size: int
    account_uuid: str
    primary_storage_uuid: str | None = None
    vm_instance_uuid: str | None = None
    device_id: int | None = None
    root_image_uuid: str | None = None
    disk_offering_uuid: str | None = None
    description: str | None = None
    system_tags: list[str] | None = None


@message(route_by="volume_uuid")
class InstantiateVolume(Message[VolumeInventory]):
    """Make a volume's bits on a host's storage; Ready then. Its space is reserved under its UUID, if not before."""

    volume_uuid: str
    host_uuid: str | None
    primary_storage_uuid: str


@message(route_by="volume_uuid")
class FillVolume(Message[VolumeInventory]):
    """Make the bits of a volume that its caller's workflow makes as a whole: on space that is reserved under its UUID.

    That workflow repeats this until it holds, or deletes the volume with whatever there is of its bits: so it needs no
    workflow of its own, and the volume no status in between.
    """

    volume_uuid: str
    host_uuid: str | None
    primary_storage_uuid: str


@message(route_by="volume_uuid")
class DeleteVolume(Message[None]):
    """Delete a volume by `policy` (Direct, Delay, Never; None: the setting). Done if it is gone. Detaches first."""

    volume_uuid: str
    policy: str | None = None


@message(route_by="volume_uuid")
class RecoverVolume(Message[VolumeInventory]):
    """Take back a deletion."""

    volume_uuid: str


@message(route_by="volume_uuid")
class ExpungeVolume(Message[None]):
    """Delete a deleted volume's bits, record and reservation. Done if it is gone."""

    volume_uuid: str


@message(route_by="volume_uuid")
class SetVolumeAttachment(Message[VolumeInventory]):
    """Say which virtual machine has the volume, and as which device; None: no one. Refused when another one has it."""

    volume_uuid: str
    vm_instance_uuid: str | None
    device_id: int | None = None


@message()
class GetVolumes(Message[VolumesReply]):
    """Volumes of a virtual machine (by device id), or by UUID. Deleted ones only when asked for by UUID."""

    vm_instance_uuid: str | None = None
    uuids: list[str] | None = None
