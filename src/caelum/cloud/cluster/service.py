"""Clusters: one row each, in a zone. Deleting one deletes its hosts; networks and storage are detached."""

from __future__ import annotations

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.cluster import tags as tags  # declares them
from caelum.cloud.cluster.api import ChangeClusterState, ClusterInventory, CreateCluster, DeleteCluster, UpdateCluster
from caelum.cloud.cluster.messages import ClustersReply, GetCluster, ListClusters
from caelum.cloud.cluster.model import ClusterModel
from caelum.cloud.switch import ENABLED, switch
from caelum.kernel.cascade import CascadeExtension
from caelum.kernel.database import Database
from caelum.kernel.errors import not_found
from caelum.kernel.ids import new_uuid
from caelum.kernel.node import Node
from caelum.kernel.service import Service, handles
from caelum.kernel.tag import drop_tags, save_tags
from caelum.kernel.views import view, views

CLUSTER_STATES = switch("Cluster")
TYPE = "zstack"
"""The type of clusters of hypervisors, as clients know it."""


class ClusterCascade(CascadeExtension):
    """Clusters go with their zone."""

    resource = "ClusterVO"
    parents = ("ZoneVO",)

    def __init__(self, db: Database) -> None:
        self._db = db

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:  # noqa: ARG002 - one parent type
        async with self._db.read() as session:
            return list(await session.scalars(select(ClusterModel.uuid).where(ClusterModel.zone_uuid.in_(uuids))))

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:  # noqa: ARG002 - the row is all there is
        async with self._db.transaction() as tx:
            await tx.execute(delete(ClusterModel).where(ClusterModel.uuid.in_(uuids)))
            for uuid in uuids:
                await drop_tags(tx, uuid)


class ClusterService(Service):
    """Owns clusters."""

    name = "cluster"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.extensions.add(ClusterCascade(node.db))

    @handles(CreateCluster)
    async def create(self, msg: CreateCluster) -> ClusterInventory:
        """Create a cluster."""
        async with self.node.db.transaction() as tx:
            cluster = ClusterModel(
                uuid=msg.resource_uuid or new_uuid(),
                zone_uuid=msg.zone_uuid,
                name=msg.name,
                description=msg.description,
                state=ENABLED,
                hypervisor_type=msg.hypervisor_type,
                type=msg.type or TYPE,
                architecture=msg.architecture,
            )
            tx.add(cluster)
            await tx.flush()
            await save_tags(tx, msg, cluster.uuid)
        return view(cluster)  # type: ignore[no-any-return]

    @handles(UpdateCluster, queue="cluster-{uuid}")
    async def update(self, msg: UpdateCluster) -> ClusterInventory:
        """Change name and description."""
        async with self.node.db.transaction() as tx:
            cluster = await _cluster(tx, msg.uuid)
            cluster.name = msg.name or cluster.name
            cluster.description = cluster.description if msg.description is None else msg.description
            await tx.flush()
        return view(cluster)  # type: ignore[no-any-return]

    @handles(ChangeClusterState, queue="cluster-{uuid}")
    async def change_state(self, msg: ChangeClusterState) -> ClusterInventory:
        """Enable or disable a cluster."""
        async with self.node.db.transaction() as tx:
            cluster = await _cluster(tx, msg.uuid)
            cluster.state = CLUSTER_STATES.next(cluster.state, msg.state_event)
            await tx.flush()
        return view(cluster)  # type: ignore[no-any-return]

    @handles(DeleteCluster, queue="cluster-{uuid}")
    async def delete(self, msg: DeleteCluster) -> None:
        """Delete a cluster and its hosts."""
        await self.node.cascade.delete("ClusterVO", [msg.uuid], mode=msg.delete_mode)

    @handles(GetCluster)
    async def get(self, msg: GetCluster) -> ClusterInventory:
        """One cluster."""
        async with self.node.db.read() as session:
            return view(await _cluster(session, msg.cluster_uuid))  # type: ignore[no-any-return]

    @handles(ListClusters)
    async def list_clusters(self, msg: ListClusters) -> ClustersReply:
        """The clusters of a zone."""
        only: list[ColumnElement[bool]] = [] if msg.zone_uuid is None else [ClusterModel.zone_uuid == msg.zone_uuid]
        async with self.node.db.read() as session:
            rows = await session.scalars(select(ClusterModel).where(*only).order_by(ClusterModel.create_date))
            return ClustersReply(views(rows))


async def _cluster(session: AsyncSession, uuid: str) -> ClusterModel:
    cluster = await session.get(ClusterModel, uuid)
    if cluster is None:
        raise not_found("Cluster", uuid)
    return cluster
