"""L2 networks, as clients see them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from caelum.cloud.cluster.api import ClusterInventory
from caelum.kernel.message import (
    ApiMessage,
    ApiQuery,
    CreateMessage,
    DeleteMessage,
    Expand,
    Inventory,
    Param,
    Reply,
    WholeReply,
    inventory,
    rest,
)

_PACKAGE = "org.zstack.header.network.l2"


@inventory(
    _PACKAGE,
    vo="L2NetworkVO",
    expands=(
        Expand(field="zone", inventory="ZoneInventory", foreign_key="zoneUuid"),
        Expand(field="l3Network", inventory="L3NetworkInventory", foreign_key="uuid", key="l2NetworkUuid"),
        Expand(
            field="clusterRef",
            inventory="L2NetworkClusterRefInventory",
            foreign_key="uuid",
            key="l2NetworkUuid",
            hidden=True,
        ),
    ),
    aliases=(("cluster", "clusterRef.cluster"),),
)
class L2NetworkInventory(Inventory, kw_only=True):
    """An L2 network."""

    uuid: str
    name: str
    description: str | None = None
    zone_uuid: str
    physical_interface: str | None = None
    type: str
    v_switch_type: str
    virtual_network_id: int | None = None
    isolated: bool
    pvlan: str | None = None
    create_date: datetime
    last_op_date: datetime
    attached_cluster_uuids: list[str]


@inventory(
    _PACKAGE,
    vo="L2NetworkClusterRefVO",
    expands=(
        Expand(field="cluster", inventory="ClusterInventory", foreign_key="clusterUuid"),
        Expand(field="l2Network", inventory="L2NetworkInventory", foreign_key="l2NetworkUuid"),
    ),
)
class L2NetworkClusterRefInventory(Inventory, kw_only=True):
    """An attachment of an L2 network to a cluster."""

    cluster_uuid: str
    l2_network_uuid: str
    l2_provider_type: str | None = None
    create_date: datetime
    last_op_date: datetime


class L2NetworkData(Inventory, kw_only=True):
    """An L2 network that could be attached to a cluster."""

    uuid: str
    name: str
    pool_uuid: str | None = None
    zone_uuid: str
    description: str | None = None
    physical_interface: str | None = None
    type: str
    vni: str | None = None
    vlan: int | None = None
    create_date: datetime
    last_op_date: datetime


class TypesReply(Reply, kw_only=True):
    """The names of types."""

    types: list[str]


class CandidateClustersReply(WholeReply, kw_only=True):
    """Clusters that an L2 network could be attached to."""

    inventories: list[ClusterInventory]


class CandidateL2NetworksReply(WholeReply, kw_only=True):
    """L2 networks that could be attached to a cluster."""

    inventories: list[L2NetworkData]


@rest("POST /l2-networks/no-vlan", package=_PACKAGE, admin_only=True, tags_for="L2NetworkVO")
class CreateL2NoVlanNetwork(CreateMessage[L2NetworkInventory], kw_only=True):
    """Create an L2 network without VLAN on a physical interface.

    An interface whose name starts with `private` names no device: the network is a bridge without uplink, private to
    each host.
    """

    name: Annotated[str, Param(max_length=255)]
    description: Annotated[str | None, Param(max_length=2048)] = None
    zone_uuid: Annotated[str, Param(resource="ZoneVO")]
    physical_interface: Annotated[str, Param(max_length=1024)]
    type: str | None = None
    v_switch_type: Annotated[str | None, Param(max_length=1024, valid_values=("LinuxBridge", "OvsDpdk", "MacVlan"))] = (
        "LinuxBridge"
    )
    isolated: bool | None = False
    pvlan: Annotated[str | None, Param(empty_string=False)] = None


@rest("POST /l2-networks/{l2NetworkUuid}/clusters/{clusterUuid}", package=_PACKAGE, admin_only=True, body_key="null")
class AttachL2NetworkToCluster(ApiMessage[L2NetworkInventory], kw_only=True):
    """Attach an L2 network to a cluster: it is realised on each of the cluster's hosts, now and at their connects."""

    l2_network_uuid: Annotated[str, Param(resource="L2NetworkVO", check_account=True, target=True)]
    cluster_uuid: Annotated[str, Param(resource="ClusterVO")]
    l2_provider_type: Annotated[str | None, Param(valid_values=("LinuxBridge",))] = None


@rest("DELETE /l2-networks/{l2NetworkUuid}/clusters/{clusterUuid}", package=_PACKAGE, admin_only=True)
class DetachL2NetworkFromCluster(ApiMessage[L2NetworkInventory], kw_only=True):
    """Detach an L2 network from a cluster: the NICs on it there are detached, and it is removed from the hosts."""

    l2_network_uuid: Annotated[str, Param(resource="L2NetworkVO", check_account=True, target=True)]
    cluster_uuid: Annotated[str, Param(resource="ClusterVO")]


@rest("PUT /l2-networks/{uuid}/actions", package=_PACKAGE)
class UpdateL2Network(ApiMessage[L2NetworkInventory], kw_only=True):
    """Change an L2 network's name or description."""

    uuid: Annotated[str, Param(resource="L2NetworkVO", check_account=True, target=True)]
    name: Annotated[str | None, Param(max_length=255)] = None
    description: Annotated[str | None, Param(max_length=2048)] = None


@rest("DELETE /l2-networks/{uuid}", package=_PACKAGE, admin_only=True)
class DeleteL2Network(DeleteMessage[None], kw_only=True):
    """Delete an L2 network with the L3 networks on it."""

    uuid: Annotated[str, Param(resource="L2NetworkVO", success_if_missing=True, target=True)]


@rest("GET /l2-networks", package=_PACKAGE, also=("/l2-networks/{uuid}",))
class QueryL2Network(ApiQuery[L2NetworkInventory], kw_only=True):
    """Query L2 networks."""


@rest("GET /l2-networks/types", package=_PACKAGE)
class GetL2NetworkTypes(ApiMessage[TypesReply], kw_only=True):
    """Get the types of L2 networks that drivers offer."""


@rest("GET /l2-networks/vSwitchTypes", package=_PACKAGE)
class GetVSwitchTypes(ApiMessage[TypesReply], kw_only=True):
    """Get the types of virtual switches that drivers offer."""


@rest("GET /l2-networks/{l2NetworkUuid}/cluster-candidates", package=_PACKAGE, admin_only=True)
class GetCandidateClustersForAttachingL2Network(ApiMessage[CandidateClustersReply], kw_only=True):
    """Get the clusters that an L2 network could be attached to."""

    l2_network_uuid: Annotated[str, Param(resource="L2NetworkVO", check_account=True, target=True)]
    cluster_types: list[str] | None = None
    limit: Annotated[int | None, Param(minimum=0)] = 1000
    start: Annotated[int | None, Param(minimum=0)] = 0


@rest("GET /cluster/{clusterUuid}/l2-candidates", package=_PACKAGE, admin_only=True)
class GetCandidateL2NetworksForAttachingCluster(ApiMessage[CandidateL2NetworksReply], kw_only=True):
    """Get the L2 networks that could be attached to a cluster."""

    cluster_uuid: Annotated[str, Param(resource="ClusterVO")]
    limit: Annotated[int | None, Param(minimum=0)] = 1000
    start: Annotated[int | None, Param(minimum=0)] = 0
