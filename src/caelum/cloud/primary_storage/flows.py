"""Workflows of primary storages: adding one, giving it to a cluster, taking it away."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.host.messages import AwaitHost, ListHosts
from caelum.cloud.primary_storage import capacity
from caelum.cloud.primary_storage.api import PRIMARY_STORAGE, PrimaryStorageInventory
from caelum.cloud.primary_storage.errors import ATTACH_ERROR
from caelum.cloud.primary_storage.extension import PrimaryStorageBeforeDetach
from caelum.cloud.primary_storage.model import (
    ATTACHED,
    CONNECTED,
    CONNECTING,
    DETACHING,
    PrimaryStorageCapacityModel,
    PrimaryStorageClusterRefModel,
    PrimaryStorageModel,
)
from caelum.cloud.primary_storage.storages import Storages, get
from caelum.cloud.switch import ENABLED
from caelum.kernel.database import unique, update_where
from caelum.kernel.errors import RESOURCE_NOT_FOUND, CloudError, as_cloud_error
from caelum.kernel.tag import drop_tags, save_system_tags, save_user_tags
from caelum.kernel.workflow import Run, Workflow, step

ClusterRef = PrimaryStorageClusterRefModel

CONNECT_PARALLELISM = 10


class AddStorageContext(msgspec.Struct):
    """What is added."""

    uuid: str
    type: str
    name: str
    url: str
    zone_uuid: str
    description: str | None = None
    system_tags: list[str] | None = None
    user_tags: list[str] | None = None
    tag_uuids: list[str] | None = None


class AddStorageFlow(Workflow[AddStorageContext, PrimaryStorageInventory]):
    """Connecting -> Connected. A storage that its driver cannot prepare is not added."""

    name = "primary-storage.add"
    rehearsal = "primary_storage_add"

    def subject(self, ctx: AddStorageContext) -> str:
        return ctx.uuid

    def queue(self, ctx: AddStorageContext) -> str | None:
        return f"primary-storage-{ctx.uuid}"

    async def begin(self, tx: AsyncSession, ctx: AddStorageContext) -> None:
        tx.add(
            PrimaryStorageModel(
                uuid=ctx.uuid,
                name=ctx.name,
                description=ctx.description,
                url=ctx.url,
                type=ctx.type,
                zone_uuid=ctx.zone_uuid,
                status=CONNECTING,
            )
        )
        await tx.flush()
        tx.add(PrimaryStorageCapacityModel(uuid=ctx.uuid))
        await save_system_tags(tx, ctx.system_tags, ctx.uuid, PRIMARY_STORAGE)
        await save_user_tags(tx, ctx.user_tags, ctx.uuid, PRIMARY_STORAGE, ctx.tag_uuids)

    async def complete(self, tx: AsyncSession, ctx: AddStorageContext) -> None:
        await Storages(self.node).set_status(tx, await get(tx, ctx.uuid), CONNECTED)

    async def abort(self, tx: AsyncSession, ctx: AddStorageContext, error: CloudError) -> None:
        await remove_storage(tx, ctx.uuid)

    async def result(self, ctx: AddStorageContext) -> PrimaryStorageInventory:
        return await Storages(self.node).find(ctx.uuid)

    @step(timeout=300)
    async def prepare(self, run: Run[AddStorageContext]) -> None:
        ps = _described(run.ctx)
        await Storages(self.node).driver(ps).add(ps)

    @prepare.undo
    async def retire(self, run: Run[AddStorageContext]) -> None:
        ps = _described(run.ctx)
        await Storages(self.node).driver(ps).remove(ps)


def _described(ctx: AddStorageContext) -> PrimaryStorageInventory:
    """The storage as it is added: an undo may run when its row is gone."""
    return PrimaryStorageInventory(
        uuid=ctx.uuid,
        zone_uuid=ctx.zone_uuid,
        name=ctx.name,
        url=ctx.url,
        type=ctx.type,
        state=ENABLED,
        status=CONNECTING,
    )


async def remove_storage(tx: AsyncSession, uuid: str) -> None:
    """Delete a storage's rows, its tags among them."""
    await drop_tags(tx, uuid)
    await tx.execute(delete(PrimaryStorageModel).where(PrimaryStorageModel.uuid == uuid))


class AttachContext(msgspec.Struct):
    """A storage, a cluster, and the hosts that were asked to prepare it."""

    uuid: str
    cluster_uuid: str
    host_uuids: list[str] = []
    reference: int | None = None


class AttachFlow(Workflow[AttachContext, PrimaryStorageInventory]):
    """Give a storage to a cluster: it is prepared on every connected host, or it is not attached."""

    name = "primary-storage.attach"
    rehearsal = "primary_storage_attach"

    def subject(self, ctx: AttachContext) -> str:
        return ctx.uuid

    def queue(self, ctx: AttachContext) -> str | None:
        return f"primary-storage-{ctx.uuid}"

    async def begin(self, tx: AsyncSession, ctx: AttachContext) -> None:
        await get(tx, ctx.uuid)
        details = f"primary storage[uuid:{ctx.uuid}] is attached to cluster[uuid:{ctx.cluster_uuid}] already"
        reference = ClusterRef(primary_storage_uuid=ctx.uuid, cluster_uuid=ctx.cluster_uuid)
        async with unique(tx, ATTACH_ERROR, details):
            tx.add(reference)
            await tx.flush()
        ctx.reference = reference.id

    async def complete(self, tx: AsyncSession, ctx: AttachContext) -> None:
        """The reference is there since the beginning, so that hosts that connect meanwhile prepare the storage too."""

    async def abort(self, tx: AsyncSession, ctx: AttachContext, error: CloudError) -> None:
        await drop_reference(tx, ctx.uuid, ctx.cluster_uuid)

    async def result(self, ctx: AttachContext) -> PrimaryStorageInventory:
        return await Storages(self.node).find(ctx.uuid)

    @step(no_undo="it only reads")
    async def find_hosts(self, run: Run[AttachContext]) -> None:
        found = await run.bus.call(ListHosts(cluster_uuids=[run.ctx.cluster_uuid]))
        # One that is being connected may have looked before the reference was there.
        late = [AwaitHost(host_uuid=one.uuid) for one in found.hosts if one.status == CONNECTING]
        if late:
            await run.bus.call_all(late)
            found = await run.bus.call(ListHosts(cluster_uuids=[run.ctx.cluster_uuid]))
        run.ctx.host_uuids = [one.uuid for one in found.hosts if one.status == CONNECTED]

    @step(timeout=600)
    async def connect_hosts(self, run: Run[AttachContext]) -> None:
        storages = Storages(self.node)
        ps = await storages.find(run.ctx.uuid)
        errors = await on_hosts(run.ctx.host_uuids, lambda host_uuid: storages.connect(ps, host_uuid))
        if errors:
            host_uuid, first = next(iter(errors.items()))
            raise CloudError(
                ATTACH_ERROR,
                f"{len(errors)} of {len(run.ctx.host_uuids)} hosts cannot prepare primary storage[uuid:{ps.uuid},"
                f" name:{ps.name}]; host[uuid:{host_uuid}] says: {first.details}",
                cause=first,
                causes=list(errors.values()),
            )

    @connect_hosts.undo
    async def disconnect_hosts(self, run: Run[AttachContext]) -> None:
        if not await self._attached_anew(run.ctx):
            # A host that connects would prepare the storage again as long as the reference is there.
            async with self.node.db.transaction() as tx:
                await drop_reference(tx, run.ctx.uuid, run.ctx.cluster_uuid)
            await run.bus.call_all([AwaitHost(host_uuid=one) for one in run.ctx.host_uuids])
            await leave_hosts(Storages(self.node), run.ctx.uuid, run.ctx.host_uuids)

    async def _attached_anew(self, ctx: AttachContext) -> bool:
        """Whether this undo comes late (from the garbage collector), when the storage serves the cluster again."""
        query = select(ClusterRef.id).where(
            ClusterRef.primary_storage_uuid == ctx.uuid, ClusterRef.cluster_uuid == ctx.cluster_uuid
        )
        async with self.node.db.read() as session:
            return await session.scalar(query) not in (None, ctx.reference)


class DetachFlow(Workflow[AttachContext, PrimaryStorageInventory]):
    """Take a storage from a cluster, once what used it there has stopped. The bits stay on the hosts.

    Attached -> Detaching -> nothing: hosts that connect meanwhile do not prepare the storage again.
    """

    name = "primary-storage.detach"
    rehearsal = "primary_storage_detach"

    def subject(self, ctx: AttachContext) -> str:
        return ctx.uuid

    def queue(self, ctx: AttachContext) -> str | None:
        return f"primary-storage-{ctx.uuid}"

    async def begin(self, tx: AsyncSession, ctx: AttachContext) -> None:
        await get(tx, ctx.uuid)
        await mark_reference(tx, ctx, DETACHING)

    async def complete(self, tx: AsyncSession, ctx: AttachContext) -> None:
        await drop_reference(tx, ctx.uuid, ctx.cluster_uuid)
        await drop_hosts(Storages(self.node), tx, ctx.uuid, ctx.host_uuids)

    async def abort(self, tx: AsyncSession, ctx: AttachContext, error: CloudError) -> None:
        await mark_reference(tx, ctx, ATTACHED)

    async def result(self, ctx: AttachContext) -> PrimaryStorageInventory:
        return await Storages(self.node).find(ctx.uuid)

    @step(no_undo="what was stopped stays stopped; the user asked for it")
    async def empty(self, run: Run[AttachContext]) -> None:
        ps = await Storages(self.node).find(run.ctx.uuid)
        await self.node.extensions.each(PrimaryStorageBeforeDetach, "before_detach", ps, run.ctx.cluster_uuid)
        found = await run.bus.call(ListHosts(cluster_uuids=[run.ctx.cluster_uuid]))
        run.ctx.host_uuids = [one.uuid for one in found.hosts]

    @step(timeout=600)
    async def leave_hosts(self, run: Run[AttachContext]) -> None:
        storages = Storages(self.node)
        ps = await storages.find(run.ctx.uuid)
        # A connect that is under way may have read, before the mark was set, that the storage serves the cluster.
        await run.bus.call_all([AwaitHost(host_uuid=one) for one in run.ctx.host_uuids])
        # A host that cannot be reached keeps a directory that nobody uses.
        await on_hosts(run.ctx.host_uuids, lambda host_uuid: storages.disconnect(ps, host_uuid))

    @leave_hosts.undo
    async def return_to_hosts(self, run: Run[AttachContext]) -> None:
        storages = Storages(self.node)
        ps = await storages.find(run.ctx.uuid)
        if run.ctx.cluster_uuid in ps.attached_cluster_uuids:
            # First the mark: a host that connects from here on prepares the storage by itself.
            async with self.node.db.transaction() as tx:
                await mark_reference(tx, run.ctx, ATTACHED)
            await on_hosts(run.ctx.host_uuids, lambda host_uuid: storages.driver(ps).connect(ps, host_uuid, first=True))


async def mark_reference(tx: AsyncSession, ctx: AttachContext, state: str) -> None:
    """Say whether the storage is leaving the cluster."""
    mine = (ClusterRef.primary_storage_uuid == ctx.uuid, ClusterRef.cluster_uuid == ctx.cluster_uuid)
    await update_where(tx, ClusterRef, {"state": state}, *mine)


async def drop_reference(tx: AsyncSession, uuid: str, cluster_uuid: str) -> None:
    """The storage no longer serves the cluster."""
    await tx.execute(
        delete(ClusterRef).where(ClusterRef.primary_storage_uuid == uuid, ClusterRef.cluster_uuid == cluster_uuid)
    )


async def leave_hosts(storages: Storages, uuid: str, host_uuids: list[str]) -> None:
    """Let hosts forget a storage that they were being given. Those that cannot be reached keep a useless directory."""
    try:
        ps = await storages.find(uuid)
    except CloudError as error:
        if error.code == RESOURCE_NOT_FOUND.code:
            return
        raise
    await on_hosts(host_uuids, lambda host_uuid: storages.disconnect(ps, host_uuid))
    async with storages.node.db.transaction() as tx:
        await drop_hosts(storages, tx, uuid, host_uuids)


async def drop_hosts(storages: Storages, tx: AsyncSession, uuid: str, host_uuids: list[str]) -> None:
    """Take hosts, and what they add to its capacity, from a storage."""
    await capacity.drop_hosts(tx, uuid, host_uuids, storages.driver(await get(tx, uuid)).host_bound)


async def on_hosts(host_uuids: list[str], work: Any) -> dict[str, CloudError]:
    """Do something for each host, some at a time; the errors by host."""
    room = asyncio.Semaphore(CONNECT_PARALLELISM)

    async def one(host_uuid: str) -> CloudError | None:
        async with room:
            try:
                await work(host_uuid)
            except Exception as error:
                return as_cloud_error(error)
        return None

    results = await asyncio.gather(*(one(host_uuid) for host_uuid in host_uuids))
    return {uuid: error for uuid, error in zip(host_uuids, results, strict=True) if error is not None}
