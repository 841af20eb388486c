"""Adding a host: the row, the first connect, and nothing left of it when that fails."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.allocator.messages import DropHost
from caelum.cloud.host import records
from caelum.cloud.host.api import HostInventory
from caelum.cloud.host.connect import CONNECT_TIMEOUT
from caelum.cloud.host.extension import HostBeforeDelete
from caelum.cloud.host.messages import ReconnectHostInternal
from caelum.cloud.host.model import HostModel, model_of
from caelum.cloud.host.states import CONNECTING, ENABLED
from caelum.kernel.database import unique
from caelum.kernel.errors import INVALID_ARGUMENT, CloudError
from caelum.kernel.tag import save_system_tags, save_user_tags
from caelum.kernel.workflow import Run, Workflow, step


class AddHostContext(msgspec.Struct, kw_only=True):
    """What is known of the new host."""

    host_uuid: str
    hypervisor_type: str
    name: str
    description: str | None
    management_ip: str
    cluster_uuid: str
    zone_uuid: str
    details: dict[str, Any] = {}
    system_tags: list[str] | None = None
    user_tags: list[str] | None = None
    tag_uuids: list[str] | None = None


class AddHostFlow(Workflow[AddHostContext, HostInventory]):
    """(nothing) -> Connecting -> Connected, or nothing again."""

    name = "host.add"
    rehearsal = "host_add"

    def subject(self, ctx: AddHostContext) -> str:
        return ctx.host_uuid

    async def begin(self, tx: AsyncSession, ctx: AddHostContext) -> None:
        """The row; its management address and its UUID must be new."""
        values = msgspec.structs.asdict(ctx)
        for name in ("host_uuid", "details", "system_tags", "user_tags", "tag_uuids"):
            values.pop(name)
        row = model_of(ctx.hypervisor_type)(
            uuid=ctx.host_uuid, state=ENABLED, status=CONNECTING, **values, **ctx.details
        )
        taken = f"there is a host with uuid[{ctx.host_uuid}] or managementIp[{ctx.management_ip}] already"
        async with unique(tx, INVALID_ARGUMENT, taken, managementIp=ctx.management_ip):
            tx.add(row)
        await save_system_tags(tx, ctx.system_tags, ctx.host_uuid, "HostVO")
        await save_user_tags(tx, ctx.user_tags, ctx.host_uuid, "HostVO", ctx.tag_uuids)

    @step(timeout=CONNECT_TIMEOUT, progress=90)
    async def connect(self, run: Run[AddHostContext]) -> None:
        await run.bus.call(ReconnectHostInternal(host_uuid=run.ctx.host_uuid, reason="it is being added"))

    @connect.undo
    async def let_go(self, run: Run[AddHostContext]) -> None:
        async with run.db.read() as session:
            known = await session.get(HostModel, run.ctx.host_uuid) is not None
        if known:
            host = await records.get(run.node, run.ctx.host_uuid)
            await run.node.extensions.notify(HostBeforeDelete, "before_delete", host, True)
        async with run.db.transaction() as tx:
            await records.remove(tx, run.ctx.host_uuid)
        await run.bus.call(DropHost(host_uuid=run.ctx.host_uuid))

    async def abort(self, tx: AsyncSession, ctx: AddHostContext, error: CloudError) -> None:  # noqa: ARG002
        """No row is left, also when no step had begun."""
        await records.remove(tx, ctx.host_uuid)

    async def result(self, ctx: AddHostContext) -> HostInventory:
        return await records.get(self.node, ctx.host_uuid)
