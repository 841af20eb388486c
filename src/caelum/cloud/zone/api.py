"""Zones, as clients see them."""

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

_PACKAGE = "org.zstack.header.zone"
_NAME = r'^(?! )[\u4e00-\u9fa5a-zA-Z0-9\-_.():+" ]*(?<! )$'


@inventory(
    _PACKAGE,
    vo="ZoneVO",
    expands=(
        Expand(field="vmInstance", inventory="VmInstanceInventory", foreign_key="uuid", key="zoneUuid"),
        Expand(field="cluster", inventory="ClusterInventory", foreign_key="uuid", key="zoneUuid"),
        Expand(field="host", inventory="HostInventory", foreign_key="uuid", key="zoneUuid"),
        Expand(field="primaryStorage", inventory="PrimaryStorageInventory", foreign_key="uuid", key="zoneUuid"),
        Expand(field="l2Network", inventory="L2NetworkInventory", foreign_key="uuid", key="zoneUuid"),
        Expand(field="l3Network", inventory="L3NetworkInventory", foreign_key="uuid", key="zoneUuid"),
        Expand(
            field="backupStorageRef",
            inventory="BackupStorageZoneRefInventory",
            foreign_key="uuid",
            key="zoneUuid",
            hidden=True,
        ),
    ),
    aliases=(("backupStorage", "backupStorageRef.backupStorage"),),
)
class ZoneInventory(Inventory, kw_only=True):
    """A zone."""

    uuid: str
    name: str
    description: str | None = None
    state: str
    type: str
    is_default: bool
    create_date: datetime
    last_op_date: datetime


@rest("POST /zones", package=_PACKAGE, admin_only=True, tags_for="ZoneVO")
class CreateZone(CreateMessage[ZoneInventory], kw_only=True):
    """Create a zone."""

    name: Annotated[str, Param(max_length=255, regex=_NAME)]
    description: Annotated[str | None, Param(max_length=2048)] = None
    is_default: bool | None = None


@rest("PUT /zones/{uuid}/actions", package=_PACKAGE, admin_only=True)
class UpdateZone(ApiMessage[ZoneInventory], kw_only=True):
    """Change a zone's name or description, or make it the default zone."""

    uuid: Annotated[str, Param(resource="ZoneVO", target=True)]
    name: Annotated[str | None, Param(max_length=255, regex=_NAME)] = None
    description: Annotated[str | None, Param(max_length=2048)] = None
    is_default: bool | None = None


@rest("DELETE /zones/{uuid}", package=_PACKAGE, admin_only=True)
class DeleteZone(DeleteMessage[None], kw_only=True):
    """Delete a zone with everything in it."""

    uuid: Annotated[str, Param(resource="ZoneVO", success_if_missing=True, target=True)]


@rest("PUT /zones/{uuid}/actions", package=_PACKAGE, admin_only=True)
class ChangeZoneState(ApiMessage[ZoneInventory], kw_only=True):
    """Enable or disable a zone; nothing new is placed in a disabled one."""

    uuid: Annotated[str, Param(resource="ZoneVO", target=True)]
    state_event: Annotated[str, Param(valid_values=("enable", "disable"))]


@rest("GET /zones", package=_PACKAGE, also=("/zones/{uuid}",))
class QueryZone(ApiQuery[ZoneInventory], kw_only=True):
    """Query zones."""


@rest("GET /zones/{uuid}/info", package=_PACKAGE, admin_only=True)
class GetZone(ApiMessage[list[ZoneInventory]], kw_only=True):
    """Get one zone, or all without a UUID."""

    uuid: str | None = None
