"""Internal messages to the cluster service."""

from __future__ import annotations

import msgspec

from caelum.cloud.cluster.api import ClusterInventory
from caelum.kernel.message import Message, message


class ClustersReply(msgspec.Struct, frozen=True, rename="camel"):
    """Clusters."""

    clusters: list[ClusterInventory]


@message()
class GetCluster(Message[ClusterInventory], kw_only=True):
    """One cluster; raises when it does not exist."""

    cluster_uuid: str


@message()
class ListClusters(Message[ClustersReply], kw_only=True):
    """The clusters of a zone, or all."""

    zone_uuid: str | None = None
