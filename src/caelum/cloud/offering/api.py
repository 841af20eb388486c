"""Public operations on instance offerings and disk offerings.

An offering is a template of numbers: changing or deleting one never changes what was created from it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from caelum.kernel.message import (
    ApiMessage,
    ApiQuery,
    CreateMessage,
    DeleteMessage,
    Expand,
    Inventory,
    Param,
    inventory,
    rest,
)

PACKAGE = "org.zstack.header.configuration"
INSTANCE_OFFERING = "InstanceOfferingVO"
DISK_OFFERING = "DiskOfferingVO"


@inventory(
    PACKAGE,
    vo=INSTANCE_OFFERING,
    expands=(
        Expand(field="vmInstance", inventory="VmInstanceInventory", foreign_key="uuid", key="instanceOfferingUuid"),
    ),
)
class InstanceOfferingInventory(Inventory, kw_only=True):
    """CPU and memory of virtual machines."""

    uuid: str
    name: str
    description: str | None = None
    cpu_num: int
    cpu_speed: int | None = None
    memory_size: int
    reserved_memory_size: int | None = None
    type: str
    allocator_strategy: str | None = None
    sort_key: int
    create_date: datetime | None = None
    last_op_date: datetime | None = None
    state: str


@inventory(
    PACKAGE,
    vo=DISK_OFFERING,
    expands=(Expand(field="volume", inventory="VolumeInventory", foreign_key="uuid", key="diskOfferingUuid"),),
)
class DiskOfferingInventory(Inventory, kw_only=True):
    """The size of volumes."""

    uuid: str
    name: str
    description: str | None = None
    disk_size: int
    sort_key: int
    state: str
    type: str
    create_date: datetime | None = None
    last_op_date: datetime | None = None
    allocator_strategy: str | None = None


@rest("POST /instance-offerings", package=PACKAGE, admin_only=True, tags_for=INSTANCE_OFFERING)
class CreateInstanceOffering(CreateMessage[InstanceOfferingInventory]):
    """Create an instance offering: a number of CPUs and an amount of memory, in bytes."""

    name: Annotated[str, Param(max_length=255)]
    cpu_num: Annotated[int, Param(minimum=1, maximum=1024)]
    memory_size: Annotated[int, Param(minimum=1)]
    description: Annotated[str | None, Param(max_length=2048)] = None
    reserved_memory_size: Annotated[int, Param(minimum=0)] = 0
    allocator_strategy: Annotated[str | None, Param()] = None
    sort_key: Annotated[int, Param()] = 0
    type: Annotated[str | None, Param()] = None


@rest("PUT /instance-offerings/{uuid}/actions", package=PACKAGE, admin_only=True)
class UpdateInstanceOffering(ApiMessage[InstanceOfferingInventory]):
    """Change an instance offering's name, description or allocator strategy."""

    uuid: Annotated[str, Param(resource=INSTANCE_OFFERING, check_account=True, target=True)]
    name: Annotated[str | None, Param(max_length=255)] = None
    description: Annotated[str | None, Param(max_length=2048)] = None
    allocator_strategy: Annotated[str | None, Param()] = None


@rest("DELETE /instance-offerings/{uuid}", package=PACKAGE, admin_only=True)
class DeleteInstanceOffering(DeleteMessage[None]):
    """Delete an instance offering. Virtual machines made from it keep their size."""

    uuid: Annotated[str, Param(resource=INSTANCE_OFFERING, check_account=True, target=True, success_if_missing=True)]


@rest("PUT /instance-offerings/{uuid}/actions", package=PACKAGE, admin_only=True)
class ChangeInstanceOfferingState(ApiMessage[InstanceOfferingInventory]):
    """Enable or disable an instance offering. Disabled ones refuse new virtual machines."""

    uuid: Annotated[str, Param(resource=INSTANCE_OFFERING, check_account=True, target=True)]
    state_event: Annotated[str, Param(valid_values=("enable", "disable"))]


@rest("GET /instance-offerings", package=PACKAGE, also=("/instance-offerings/{uuid}",))
class QueryInstanceOffering(ApiQuery[InstanceOfferingInventory]):
    """Query instance offerings."""


@rest("POST /disk-offerings", package=PACKAGE, tags_for=DISK_OFFERING)
class CreateDiskOffering(CreateMessage[DiskOfferingInventory]):
    """Create a disk offering: a size in bytes."""

    name: Annotated[str, Param(max_length=255)]
    disk_size: Annotated[int, Param(minimum=1)]
    description: Annotated[str | None, Param(max_length=2048)] = None
    sort_key: Annotated[int, Param()] = 0
    allocation_strategy: Annotated[str | None, Param()] = None
    type: Annotated[str | None, Param(valid_values=("zstack",))] = None


@rest("PUT /disk-offerings/{uuid}/actions", package=PACKAGE, admin_only=True)
class UpdateDiskOffering(ApiMessage[DiskOfferingInventory]):
    """Change a disk offering's name or description."""

    uuid: Annotated[str, Param(resource=DISK_OFFERING, check_account=True, target=True)]
    name: Annotated[str | None, Param(max_length=255)] = None
    description: Annotated[str | None, Param(max_length=2048)] = None


@rest("DELETE /disk-offerings/{uuid}", package=PACKAGE, admin_only=True)
class DeleteDiskOffering(DeleteMessage[None]):
    """Delete a disk offering. Volumes made from it keep their size."""

    uuid: Annotated[str, Param(resource=DISK_OFFERING, success_if_missing=True)]


@rest("PUT /disk-offerings/{uuid}/actions", package=PACKAGE, admin_only=True)
class ChangeDiskOfferingState(ApiMessage[DiskOfferingInventory]):
    """Enable or disable a disk offering. Disabled ones refuse new volumes."""

    uuid: Annotated[str, Param(resource=DISK_OFFERING, check_account=True, target=True)]
    state_event: Annotated[str, Param(valid_values=("enable", "disable"))]


@rest("GET /disk-offerings", package=PACKAGE, also=("/disk-offerings/{uuid}",))
class QueryDiskOffering(ApiQuery[DiskOfferingInventory]):
    """Query disk offerings."""
