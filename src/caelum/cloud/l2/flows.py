"""Attaching L2 networks to clusters, detaching and deleting them, host by host.

Invariant: the attachment's row exists from the beginning of an attach to the end of a detach, in a state that a host
which connects meanwhile can act on; so no host is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import and_, delete, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.host.messages import ListHosts
from caelum.cloud.l2.api import L2NetworkInventory
from caelum.cloud.l2.errors import ATTACH_ERROR
from caelum.cloud.l2.extension import L2BeforeDetach
from caelum.cloud.l2.messages import CheckL2, RealiseL2, RemoveL2
from caelum.cloud.l2.model import ATTACHED, ATTACHING, DETACHING, L2NetworkClusterRefModel, L2NetworkModel
from caelum.cloud.l2.rows import attachment, inventory, l2_network
from caelum.cloud.ownership import disown
from caelum.kernel.bus import Bus
from caelum.kernel.database import update_where
from caelum.kernel.errors import OPERATION_ERROR, CloudError
from caelum.kernel.message import Message
from caelum.kernel.tag import drop_tags
from caelum.kernel.workflow import Run, Workflow, step

PARALLELISM = 50
"""Hosts that are changed at once."""


class ClusterContext(msgspec.Struct):
    """An L2 network, a cluster, and the cluster's hosts that are changed."""

    l2_network_uuid: str
    cluster_uuid: str
    l2_provider_type: str | None = None
    force: bool = False
    host_uuids: list[str] = []


class AttachL2Flow(Workflow[ClusterContext, L2NetworkInventory]):
    """Check every connected host of the cluster, then realise the network on each."""

    name = "l2.attach"
    rehearsal = "l2_attach"

    def subject(self, ctx: ClusterContext) -> str:
        return ctx.l2_network_uuid

    def queue(self, ctx: ClusterContext) -> str:
        return f"l2-{ctx.l2_network_uuid}"

    async def begin(self, tx: AsyncSession, ctx: ClusterContext) -> None:
        """The attachment exists from here on, so that a host that connects now takes part."""
        l2 = await l2_network(tx, ctx.l2_network_uuid)
        await _refuse_conflict(tx, l2, ctx.cluster_uuid)
        tx.add(
            L2NetworkClusterRefModel(
                l2_network_uuid=l2.uuid,
                cluster_uuid=ctx.cluster_uuid,
                l2_provider_type=ctx.l2_provider_type,
                state=ATTACHING,
            )
        )

    @step(timeout=60, no_undo="it only looks")
    async def check_hosts(self, run: Run[ClusterContext]) -> None:
        """Find the hosts that are there, and ask them all before any is changed."""
        run.ctx.host_uuids = await _hosts(run.bus, run.ctx.cluster_uuid, connected_only=True)
        await _on_all(run.bus, run.ctx, lambda host: CheckL2(l2_network_uuid=run.ctx.l2_network_uuid, host_uuid=host))

    @step(timeout=600, progress=80)
    async def realise(self, run: Run[ClusterContext]) -> None:
        """Make the bridges."""
        await _on_all(run.bus, run.ctx, lambda host: RealiseL2(l2_network_uuid=run.ctx.l2_network_uuid, host_uuid=host))

    @realise.undo
    async def remove(self, run: Run[ClusterContext]) -> None:
        """Take the bridges away, where another network does not use them."""
        async with run.db.transaction() as tx:
            # From here on a host that connects does not realise it any more.
            await _set_state(tx, run.ctx, DETACHING)
        await _on_all(
            run.bus,
            run.ctx,
            lambda host: RemoveL2(l2_network_uuid=run.ctx.l2_network_uuid, host_uuid=host, force=True),
        )

    async def complete(self, tx: AsyncSession, ctx: ClusterContext) -> None:
        """The network counts for placement."""
        await _set_state(tx, ctx, ATTACHED)

    async def abort(self, tx: AsyncSession, ctx: ClusterContext, error: CloudError) -> None:  # noqa: ARG002
        """There is no attachment."""
        await _drop_ref(tx, ctx)

    async def result(self, ctx: ClusterContext) -> L2NetworkInventory:
        """The network with its clusters."""
        async with self.node.db.read() as session:
            return await inventory(session, ctx.l2_network_uuid)


class DetachL2Flow(Workflow[ClusterContext, L2NetworkInventory]):
    """Detach what uses the network in the cluster, then remove it from the cluster's hosts."""

    name = "l2.detach"
    rehearsal = "l2_detach"

    def subject(self, ctx: ClusterContext) -> str:
        return ctx.l2_network_uuid

    def queue(self, ctx: ClusterContext) -> str:
        return f"l2-{ctx.l2_network_uuid}"

    async def begin(self, tx: AsyncSession, ctx: ClusterContext) -> None:
        """From here on nothing is placed on it there, and a host that connects does not realise it."""
        ref = await attachment(tx, ctx.l2_network_uuid, ctx.cluster_uuid)
        if ref is None:
            raise CloudError(
                OPERATION_ERROR,
                f"L2 network[uuid:{ctx.l2_network_uuid}] is not attached to cluster[uuid:{ctx.cluster_uuid}]",
            )
        ref.state = DETACHING

    @step(timeout=600, progress=50, no_undo="NICs stay detached: their machines may have been changed since")
    async def leave(self, run: Run[ClusterContext]) -> None:
        """Detach NICs and services."""
        async with run.db.read() as session:
            l2 = await inventory(session, run.ctx.l2_network_uuid)
        tell = run.node.extensions.notify if run.ctx.force else run.node.extensions.each
        await tell(L2BeforeDetach, "before_detach", l2, run.ctx.cluster_uuid)

    @step(timeout=600, progress=90)
    async def remove(self, run: Run[ClusterContext]) -> None:
        """Take the bridges away; hosts that are away do it later."""
        ctx = run.ctx
        ctx.host_uuids = await _hosts(run.bus, ctx.cluster_uuid, connected_only=False)
        await _on_all(
            run.bus,
            ctx,
            lambda host: RemoveL2(l2_network_uuid=ctx.l2_network_uuid, host_uuid=host, force=ctx.force),
        )

    @remove.undo
    async def realise_again(self, run: Run[ClusterContext]) -> None:
        """Make the bridges again, on the hosts that are there."""
        ctx = run.ctx
        ctx.host_uuids = await _hosts(run.bus, ctx.cluster_uuid, connected_only=True)
        await _on_all(run.bus, ctx, lambda host: RealiseL2(l2_network_uuid=ctx.l2_network_uuid, host_uuid=host))

    async def complete(self, tx: AsyncSession, ctx: ClusterContext) -> None:
        """There is no attachment."""
        await _drop_ref(tx, ctx)

    async def abort(self, tx: AsyncSession, ctx: ClusterContext, error: CloudError) -> None:  # noqa: ARG002
        """It is attached as before."""
        await _set_state(tx, ctx, ATTACHED)

    async def result(self, ctx: ClusterContext) -> L2NetworkInventory:
        """The network with its clusters."""
        async with self.node.db.read() as session:
            return await inventory(session, ctx.l2_network_uuid)


class DeleteL2Context(msgspec.Struct):
    """Which network; by force, what resists is left to the garbage collector."""

    l2_network_uuid: str
    force: bool = False
    cluster_uuids: list[str] = []
    host_uuids: list[str] = []


class DeleteL2Flow(Workflow[DeleteL2Context, None]):
    """Remove the network from the hosts of all its clusters, then from the database."""

    name = "l2.delete"
    rehearsal = "l2_delete"

    def subject(self, ctx: DeleteL2Context) -> str:
        return ctx.l2_network_uuid

    def queue(self, ctx: DeleteL2Context) -> str:
        return f"l2-{ctx.l2_network_uuid}"

    async def begin(self, tx: AsyncSession, ctx: DeleteL2Context) -> None:
        """Nothing is placed on it any more."""
        row = L2NetworkClusterRefModel
        mine = row.l2_network_uuid == ctx.l2_network_uuid
        ctx.cluster_uuids = list(await tx.scalars(select(row.cluster_uuid).where(mine)))
        await update_where(tx, row, {"state": DETACHING}, mine)

    @step(timeout=600, progress=80, skip=lambda ctx: not ctx.cluster_uuids)
    async def remove(self, run: Run[DeleteL2Context]) -> None:
        """Take the bridges away; hosts that are away do it later."""
        ctx = run.ctx
        ctx.host_uuids = await _hosts(run.bus, *ctx.cluster_uuids, connected_only=False)
        await _on_all(
            run.bus,
            ctx,
            lambda host: RemoveL2(l2_network_uuid=ctx.l2_network_uuid, host_uuid=host, force=ctx.force),
        )

    @remove.undo
    async def realise_again(self, run: Run[DeleteL2Context]) -> None:
        """Make the bridges again, on the hosts that are there."""
        ctx = run.ctx
        ctx.host_uuids = await _hosts(run.bus, *ctx.cluster_uuids, connected_only=True)
        await _on_all(run.bus, ctx, lambda host: RealiseL2(l2_network_uuid=ctx.l2_network_uuid, host_uuid=host))

    async def complete(self, tx: AsyncSession, ctx: DeleteL2Context) -> None:
        """The rows go."""
        await tx.execute(delete(L2NetworkModel).where(L2NetworkModel.uuid == ctx.l2_network_uuid))
        await disown(tx, ctx.l2_network_uuid)
        await drop_tags(tx, ctx.l2_network_uuid)

    async def abort(self, tx: AsyncSession, ctx: DeleteL2Context, error: CloudError) -> None:  # noqa: ARG002
        """It is attached as before."""
        row = L2NetworkClusterRefModel
        await update_where(tx, row, {"state": ATTACHED}, row.l2_network_uuid == ctx.l2_network_uuid)


async def conflicting(session: AsyncSession, l2: L2NetworkModel, cluster_uuid: str) -> L2NetworkModel | None:
    """A network of the cluster that is this one, or is on its interface: two would share a bridge."""
    ref, row = L2NetworkClusterRefModel, L2NetworkModel
    same = and_(
        row.type == l2.type,
        row.physical_interface == l2.physical_interface,
        row.virtual_network_id.is_not_distinct_from(l2.virtual_network_id),
    )
    query = select(row).join(ref, ref.l2_network_uuid == row.uuid).where(ref.cluster_uuid == cluster_uuid)
    found: L2NetworkModel | None = await session.scalar(query.where(or_(row.uuid == l2.uuid, same)).limit(1))
    return found


async def _refuse_conflict(tx: AsyncSession, l2: L2NetworkModel, cluster_uuid: str) -> None:
    other = await conflicting(tx, l2, cluster_uuid)
    if other is None:
        return
    text = f"l2Network[uuid:{l2.uuid}] has attached to cluster[uuid:{cluster_uuid}], can't attach again"
    if other.uuid != l2.uuid:
        text = (
            f"There has been a l2Network[uuid:{other.uuid}, name:{other.name}] attached to cluster[uuid:{cluster_uuid}]"
            f" that has physical interface[{l2.physical_interface}]. Failed to attach l2Network[uuid:{l2.uuid}]"
        )
    raise CloudError(ATTACH_ERROR, text, l2NetworkUuid=other.uuid)


async def _hosts(bus: Bus, *cluster_uuids: str, connected_only: bool) -> list[str]:
    reply = await bus.call(ListHosts(cluster_uuids=list(cluster_uuids)))
    return [one.uuid for one in reply.hosts if one.status == "Connected" or not connected_only]


async def _on_all(bus: Bus, ctx: ClusterContext | DeleteL2Context, request: Callable[[str], Message[Any]]) -> None:
    """Ask every host; the first error counts, once all have answered."""
    answers: Sequence[object] = await bus.call_all([request(one) for one in ctx.host_uuids], parallelism=PARALLELISM)
    errors = [one for one in answers if isinstance(one, CloudError)]
    if errors:
        raise CloudError(
            ATTACH_ERROR if isinstance(ctx, ClusterContext) else OPERATION_ERROR,
            f"{len(errors)} of {len(answers)} hosts refuse: {errors[0].details}",
            cause=errors[0],
            failed=len(errors),
            hosts=len(answers),
        )


async def _set_state(tx: AsyncSession, ctx: ClusterContext, state: str) -> None:
    row = L2NetworkClusterRefModel
    mine = (row.l2_network_uuid == ctx.l2_network_uuid, row.cluster_uuid == ctx.cluster_uuid)
    await update_where(tx, row, {"state": state}, *mine)


async def _drop_ref(tx: AsyncSession, ctx: ClusterContext) -> None:
    row = L2NetworkClusterRefModel
    await tx.execute(
        delete(row).where(row.l2_network_uuid == ctx.l2_network_uuid, row.cluster_uuid == ctx.cluster_uuid)
    )
