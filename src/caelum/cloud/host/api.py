"""Public operations on hosts of any hypervisor, and how a host looks from outside.

How a host is added is for its driver to declare.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from caelum.kernel.message import (
    ApiMessage,
    ApiQuery,
    DeleteMessage,
    Expand,
    Inventory,
    Param,
    Reply,
    inventory,
    rest,
)

_PACKAGE = "org.zstack.header.host"


@inventory(
    _PACKAGE,
    vo="HostVO",
    expands=(
        Expand(field="zone", inventory="ZoneInventory", foreign_key="zoneUuid"),
        Expand(field="cluster", inventory="ClusterInventory", foreign_key="clusterUuid"),
        Expand(field="vmInstance", inventory="VmInstanceInventory", foreign_key="uuid", key="hostUuid"),
    ),
)
class HostInventory(Inventory, kw_only=True):
    """A machine that runs virtual machines."""

    zone_uuid: str
    name: str
    uuid: str
    cluster_uuid: str
    description: str | None = None
    management_ip: str
    hypervisor_type: str
    state: str
    status: str
    total_cpu_capacity: int | None = None
    available_cpu_capacity: int | None = None
    cpu_sockets: int | None = None
    total_memory_capacity: int | None = None
    available_memory_capacity: int | None = None
    cpu_num: int | None = None
    architecture: str | None = None
    create_date: datetime | None = None
    last_op_date: datetime | None = None


@rest("PUT /hosts/{uuid}/actions", package=_PACKAGE, admin_only=True)
class UpdateHost(ApiMessage[HostInventory], kw_only=True):
    """Change a host's name, description or management address; a new address takes effect at the next connect."""

    uuid: Annotated[str, Param(resource="HostVO")]
    name: Annotated[str | None, Param(max_length=255)] = None
    description: Annotated[str | None, Param(max_length=2048)] = None
    management_ip: Annotated[str | None, Param(max_length=255, empty_string=False)] = None


@rest("DELETE /hosts/{uuid}", package=_PACKAGE, admin_only=True)
class DeleteHost(DeleteMessage[None], kw_only=True):
    """Delete a host. Its virtual machines are stopped first; what is lost is what lives on its own disks."""

    uuid: Annotated[str, Param(target=True)]


@rest("PUT /hosts/{uuid}/actions", package=_PACKAGE, admin_only=True)
class ChangeHostState(ApiMessage[HostInventory], kw_only=True):
    """Enable or disable a host for new virtual machines, or empty it for maintenance."""

    uuid: Annotated[str, Param(resource="HostVO")]
    state_event: Annotated[str, Param(valid_values=("enable", "disable", "maintain"))]


@rest("PUT /hosts/{uuid}/actions", package=_PACKAGE, admin_only=True)
class ReconnectHost(ApiMessage[HostInventory], kw_only=True):
    """Connect a host anew and bring it to what the database says."""

    uuid: Annotated[str, Param(resource="HostVO")]


@rest("GET /hosts", package=_PACKAGE, also=("/hosts/{uuid}",))
class QueryHost(ApiQuery[HostInventory], kw_only=True):
    """Query hosts."""


@rest("GET /hosts/hypervisor-types", package=_PACKAGE, admin_only=True, reply_key="hypervisorTypes")
class GetHypervisorTypes(ApiMessage[list[str]], kw_only=True):
    """List the hypervisor types that this system has drivers for."""


class HostTaskReply(Reply, kw_only=True):
    """Running and pending tasks of hosts, by queue."""

    results: dict[str, dict[str, Any]]
    success: bool = True


@rest("GET /hosts/task-details", package=_PACKAGE, admin_only=True)
class GetHostTask(ApiMessage[HostTaskReply], kw_only=True):
    """Show what runs and what waits in the queues of hosts."""

    host_uuids: Annotated[list[str], Param(resource="HostVO", nonempty=True)]
    sync_signatures: Annotated[list[str] | None, Param()] = None
