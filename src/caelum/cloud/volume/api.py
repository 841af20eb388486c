"""Public operations on volumes. Attaching and detaching are the virtual machine's work: service `vm` handles them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec

from caelum.kernel.message import (
    ApiMessage,
    ApiQuery,
    CreateMessage,
    DeleteMessage,
    Expand,
    Inventory,
    Param,
    Reply,
    inventory,
    rest,
)

PACKAGE = "org.zstack.header.volume"
VOLUME = "VolumeVO"


@inventory(
    PACKAGE,
    vo=VOLUME,
    expands=(
        Expand(field="vmInstance", inventory="VmInstanceInventory", foreign_key="vmInstanceUuid"),
        Expand(field="snapshot", inventory="VolumeSnapshotInventory", foreign_key="uuid", key="volumeUuid"),
        Expand(field="diskOffering", inventory="DiskOfferingInventory", foreign_key="diskOfferingUuid"),
        Expand(field="primaryStorage", inventory="PrimaryStorageInventory", foreign_key="primaryStorageUuid"),
        Expand(field="image", inventory="ImageInventory", foreign_key="rootImageUuid"),
        Expand(
            field="localStorageHostRef",
            inventory="LocalStorageResourceRefInventory",
            foreign_key="uuid",
            key="resourceUuid",
        ),
    ),
)
class VolumeInventory(Inventory, kw_only=True):
    """A disk. It has bits (`install_path`) from its first use on."""

    uuid: str
    name: str
    description: str | None = None
    primary_storage_uuid: str | None = None
    vm_instance_uuid: str | None = None
    disk_offering_uuid: str | None = None
    root_image_uuid: str | None = None
    install_path: str | None = None
    type: str
    format: str | None = None
    size: int
    actual_size: int | None = None
    device_id: int | None = None
    state: str
    status: str
    create_date: datetime | None = None
    last_op_date: datetime | None = None
    is_shareable: bool | None = None
    volume_qos: str | None = None
    last_detach_date: datetime | None = None
    last_vm_instance_uuid: str | None = None
    last_attach_date: datetime | None = None
    protocol: str | None = None


class VolumeFormat(msgspec.Struct, rename="camel", frozen=True):
    """A volume format and the hypervisors that run it."""

    format: str
    master_hypervisor_type: str
    supporting_hypervisor_types: list[str]


class VolumeFormatsReply(Reply, kw_only=True):
    """The formats of volumes."""

    formats: list[VolumeFormat]


class VolumeCapabilitiesReply(Reply, kw_only=True):
    """What can be done with a volume, by the names that clients know."""

    capabilities: dict[str, Any]


@rest("POST /volumes/data", package=PACKAGE, tags_for=VOLUME, timeout=10800.0)
class CreateDataVolume(CreateMessage[VolumeInventory]):
    """Create a data volume of a disk offering's size, or of `diskSize` bytes.

    Without a primary storage it gets its bits at its first attachment, with one at once. On a host-bound storage
    the system tag `localStorage::hostUuid::{hostUuid}` names the host.
    """

    name: Annotated[str, Param(max_length=255)]
    description: Annotated[str | None, Param(max_length=2048)] = None
    disk_offering_uuid: Annotated[str | None, Param(resource="DiskOfferingVO", check_account=True)] = None
    disk_size: Annotated[int, Param()] = 0
    primary_storage_uuid: Annotated[str | None, Param(resource="PrimaryStorageVO")] = None


@rest("PUT /volumes/{uuid}/actions", package=PACKAGE)
class UpdateVolume(ApiMessage[VolumeInventory]):
    """Change a volume's name or description."""

    uuid: Annotated[str, Param(resource=VOLUME, check_account=True, target=True)]
    name: Annotated[str | None, Param(max_length=255)] = None
    description: Annotated[str | None, Param(max_length=2048)] = None


@rest("PUT /volumes/{uuid}/actions", package=PACKAGE)
class ChangeVolumeState(ApiMessage[VolumeInventory]):
    """Enable or disable a volume. A disabled one cannot be attached."""

    uuid: Annotated[str, Param(resource=VOLUME, check_account=True, target=True)]
    state_event: Annotated[str, Param(valid_values=("enable", "disable"))]


@rest("DELETE /volumes/{uuid}", package=PACKAGE)
class DeleteDataVolume(DeleteMessage[None]):
    """Detach and delete a data volume. Policy Delay keeps its bits until it is expunged."""

    uuid: Annotated[str, Param(resource=VOLUME, success_if_missing=True)]


@rest("PUT /volumes/{uuid}/actions", package=PACKAGE)
class RecoverDataVolume(ApiMessage[VolumeInventory]):
    """Take back the deletion of a data volume."""

    uuid: Annotated[str, Param(resource=VOLUME, check_account=True, target=True)]


@rest("PUT /volumes/{uuid}/actions", package=PACKAGE)
class ExpungeDataVolume(ApiMessage[None]):
    """Delete the bits of a deleted data volume for good."""

    uuid: Annotated[str, Param(resource=VOLUME, check_account=True, target=True, success_if_missing=True)]


@rest("GET /volumes", package=PACKAGE, also=("/volumes/{uuid}",))
class QueryVolume(ApiQuery[VolumeInventory]):
    """Query volumes."""


@rest("PUT /volumes/{uuid}/actions", package=PACKAGE)
class SyncVolumeSize(ApiMessage[VolumeInventory]):
    """Read a volume's true size from its primary storage."""

    uuid: Annotated[str, Param(resource=VOLUME, check_account=True, target=True)]


@rest("GET /volumes/formats", package=PACKAGE)
class GetVolumeFormat(ApiMessage[VolumeFormatsReply]):
    """The volume formats and the hypervisors that run them."""


@rest("GET /volumes/{uuid}/capabilities", package=PACKAGE)
class GetVolumeCapabilities(ApiMessage[VolumeCapabilitiesReply]):
    """What can be done with a volume."""

    uuid: Annotated[str, Param(resource=VOLUME, check_account=True)]


@rest(
    "POST /volumes/{volumeUuid}/vm-instances/{vmInstanceUuid}",
    package=PACKAGE,
    service="vm",
    route_by="vm_instance_uuid",
)
class AttachDataVolumeToVm(ApiMessage[VolumeInventory]):
    """Attach a data volume to a virtual machine, running or stopped."""

    vm_instance_uuid: Annotated[str, Param(resource="VmInstanceVO", check_account=True, target=True)]
    volume_uuid: Annotated[str, Param(resource=VOLUME, check_account=True, target=True)]


@rest("DELETE /volumes/{uuid}/vm-instances", package=PACKAGE, service="vm", route_by="uuid")
class DetachDataVolumeFromVm(ApiMessage[VolumeInventory]):
    """Detach a data volume from its virtual machine."""

    uuid: Annotated[str, Param(resource=VOLUME, check_account=True, target=True)]
    vm_uuid: Annotated[str | None, Param(resource="VmInstanceVO", check_account=True, target=True)] = None
