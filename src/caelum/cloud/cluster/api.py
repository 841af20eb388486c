"""Clusters, as clients see them."""

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

_PACKAGE = "org.zstack.header.cluster"


@inventory(
    _PACKAGE,
    vo="ClusterVO",
    expands=(
        Expand(field="zone", inventory="ZoneInventory", foreign_key="zoneUuid"),
        Expand(field="host", inventory="HostInventory", foreign_key="uuid", key="clusterUuid"),
        Expand(field="vmInstance", inventory="VmInstanceInventory", foreign_key="uuid", key="clusterUuid"),
        Expand(
            field="l2NetworkRef",
            inventory="L2NetworkClusterRefInventory",
            foreign_key="uuid",
            key="clusterUuid",
            hidden=True,
        ),
        Expand(
            field="l2VlanNetworkRef",
            inventory="L2NetworkClusterRefInventory",
            foreign_key="uuid",
            key="clusterUuid",
            hidden=True,
        ),
        Expand(
            field="primaryStorageRef",
            inventory="PrimaryStorageClusterRefInventory",
            foreign_key="uuid",
            key="clusterUuid",
            hidden=True,
        ),
    ),
    aliases=(
        ("l2Network", "l2NetworkRef.l2Network"),
        ("l2VlanNetwork", "l2VlanNetworkRef.l2Network"),
        ("primaryStorage", "primaryStorageRef.primaryStorage"),
    ),
)
class ClusterInventory(Inventory, kw_only=True):
    """A cluster."""

    name: str
    uuid: str
    description: str | None = None
    state: str
    hypervisor_type: str
    create_date: datetime
    last_op_date: datetime
    zone_uuid: str
    type: str
    architecture: str | None = None


@rest("POST /clusters", package=_PACKAGE, admin_only=True, tags_for="ClusterVO")
class CreateCluster(CreateMessage[ClusterInventory], kw_only=True):
    """Create a cluster in a zone."""

    zone_uuid: Annotated[str, Param(resource="ZoneVO")]
    name: Annotated[str, Param(max_length=255)]
    description: Annotated[str | None, Param(max_length=2048)] = None
    hypervisor_type: Annotated[str, Param(valid_values=("KVM", "Simulator", "baremetal", "baremetal2", "xdragon"))]
    type: Annotated[str | None, Param(valid_values=("zstack", "baremetal", "baremetal2"))] = None
    architecture: Annotated[str | None, Param(valid_values=("x86_64", "aarch64", "mips64el", "loongarch64"))] = None


@rest("PUT /clusters/{uuid}/actions", package=_PACKAGE, admin_only=True)
class UpdateCluster(ApiMessage[ClusterInventory], kw_only=True):
    """Change a cluster's name or description."""

    uuid: Annotated[str, Param(resource="ClusterVO", target=True)]
    name: Annotated[str | None, Param(max_length=255)] = None
    description: Annotated[str | None, Param(max_length=2048)] = None


@rest("DELETE /clusters/{uuid}", package=_PACKAGE, admin_only=True)
class DeleteCluster(DeleteMessage[None], kw_only=True):
    """Delete a cluster with its hosts; networks and storage stay and are detached."""

    uuid: Annotated[str, Param(resource="ClusterVO", success_if_missing=True, target=True)]


@rest("PUT /clusters/{uuid}/actions", package=_PACKAGE, admin_only=True)
class ChangeClusterState(ApiMessage[ClusterInventory], kw_only=True):
    """Enable or disable a cluster; nothing new is placed in a disabled one."""

    uuid: Annotated[str, Param(resource="ClusterVO", target=True)]
    state_event: Annotated[str, Param(valid_values=("enable", "disable"))]


@rest("GET /clusters", package=_PACKAGE, also=("/clusters/{uuid}",))
class QueryCluster(ApiQuery[ClusterInventory], kw_only=True):
    """Query clusters."""
