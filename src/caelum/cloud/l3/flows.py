"""Deleting an L3 network: off the hosts, then out of the database."""

from __future__ import annotations

import msgspec
from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud import quota
from caelum.cloud.l3.extension import L3BeforeDelete, L3Changed
from caelum.cloud.l3.model import IpRangeModel, L3NetworkModel, ReservedIpRangeModel, UsedIpModel
from caelum.cloud.l3.rows import inventory, network
from caelum.cloud.ownership import disown
from caelum.cloud.switch import DISABLED
from caelum.kernel.cascade import DELETE_FAILED
from caelum.kernel.database import update_where
from caelum.kernel.errors import CloudError
from caelum.kernel.tag import drop_tags
from caelum.kernel.workflow import Run, Workflow, step


class DeleteL3Context(msgspec.Struct):
    """Which network, whether errors on hosts may stop it, and the state to go back to."""

    l3_network_uuid: str
    force: bool = False
    former_state: str = DISABLED


class DeleteL3Flow(Workflow[DeleteL3Context, None]):
    """Close the network for new addresses, take it off the hosts, delete its rows."""

    name = "l3.delete"
    rehearsal = "l3_delete"

    def subject(self, ctx: DeleteL3Context) -> str:
        return ctx.l3_network_uuid

    def queue(self, ctx: DeleteL3Context) -> str:
        return f"l3-{ctx.l3_network_uuid}"

    async def begin(self, tx: AsyncSession, ctx: DeleteL3Context) -> None:
        """A disabled network gives out no addresses, so nobody comes while it goes."""
        l3 = await network(tx, ctx.l3_network_uuid)
        ctx.former_state, l3.state = l3.state, DISABLED
        held = (UsedIpModel.l3_network_uuid == l3.uuid, UsedIpModel.vm_nic_uuid.is_not(None))
        nics = await tx.scalar(select(func.count()).where(*held))
        if nics and not ctx.force:
            raise CloudError(
                DELETE_FAILED, f"L3 network[{l3.uuid}, {l3.name}] has addresses of {nics} NICs", addresses=nics
            )

    @step(timeout=600, progress=80)
    async def leave_hosts(self, run: Run[DeleteL3Context]) -> None:
        """DHCP, metadata, translation go."""
        async with run.db.read() as session:
            l3 = await inventory(session, run.ctx.l3_network_uuid)
        tell = run.node.extensions.notify if run.ctx.force else run.node.extensions.each
        await tell(L3BeforeDelete, "before_delete_l3", l3)

    @leave_hosts.undo
    async def return_to_hosts(self, run: Run[DeleteL3Context]) -> None:
        """Machines that still run on it are served again."""
        async with run.db.read() as session:
            l3 = await inventory(session, run.ctx.l3_network_uuid)
        await run.node.extensions.notify(L3Changed, "l3_changed", l3)

    async def complete(self, tx: AsyncSession, ctx: DeleteL3Context) -> None:
        """Everything that belongs to the network goes with its row."""
        uuid = ctx.l3_network_uuid
        for model in (IpRangeModel, ReservedIpRangeModel):
            for child in (await tx.scalars(select(model.uuid).where(model.l3_network_uuid == uuid))).all():
                await disown(tx, child)
                await drop_tags(tx, child)
        await disown(tx, uuid)
        await drop_tags(tx, uuid)
        await quota.give(tx, "", "l3.num", key=uuid)
        await tx.execute(delete(L3NetworkModel).where(L3NetworkModel.uuid == uuid))

    async def abort(self, tx: AsyncSession, ctx: DeleteL3Context, error: CloudError) -> None:  # noqa: ARG002
        """The network is as it was."""
        await update_where(tx, L3NetworkModel, {"state": ctx.former_state}, L3NetworkModel.uuid == ctx.l3_network_uuid)
