"""Destroy, recover and expunge.

Invariant: a destroyed VM has no place, no address and nothing on any host; what a host that is away still has, the
garbage collector removes.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.allocator.messages import ReturnHost
from caelum.cloud.l3.messages import ReturnIp
from caelum.cloud.vm.api import DESTROY_FAILED, VmInstanceInventory
from caelum.cloud.vm.flows.base import (
    LONG,
    VmContext,
    VmFlow,
    VmWork,
    destroy_and_release,
    destroy_on_host,
    release_from,
)
from caelum.cloud.vm.model import VmInstanceModel, VmNicModel, VmState
from caelum.cloud.vm.records import forget_vm, give_running_quota, move, require_state
from caelum.cloud.vm.specs import VmRecords, read_vm, records_of, volumes_of
from caelum.cloud.volume.api import VolumeInventory
from caelum.cloud.volume.messages import (
    DeleteVolume,
    ExpungeVolume,
    GetVolumes,
    RecoverVolume,
    SetVolumeAttachment,
)
from caelum.kernel.errors import CloudError
from caelum.kernel.node import Node
from caelum.kernel.rows import read_rows, update_rows
from caelum.kernel.views import view
from caelum.kernel.workflow import BEGIN, Run, db_step, step


class DestroyContext(VmContext, kw_only=True):
    """`policy` Direct leaves nothing; Delay and Never leave a record and a root disk that can be recovered."""

    policy: str = "Delay"
    delete_data: bool = False
    vm: VmInstanceInventory | None = None


class DestroyVmFlow(VmWork[DestroyContext, None]):
    """Any stable state -> Destroying -> Destroyed, or nothing at all. It goes forward only: destroyed is destroyed."""

    name = "vm.destroy"
    rehearsal = "vm_destroy"
    pivot = BEGIN

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._vm: VmInstanceModel | None = None
        """The VM as it was at the beginning, for nobody else changes it now; None after a crash."""
        self._left = False
        """Whether nothing of it is on its host any more."""

    async def begin(self, tx: AsyncSession, ctx: DestroyContext) -> None:
        vm = await read_vm(tx, ctx.vm_uuid, lock=True)
        ctx.former_state, ctx.host_uuid = vm.state, vm.host_uuid
        self._vm = await move(self.node, tx, vm, "destroying", operation="DestroyVmInstance")

    @step(progress=30, no_undo="the machine is gone, or the garbage collector will see to it")
    async def destroy_domain(self, run: Run[DestroyContext]) -> None:
        vm_uuid, host_uuid = run.ctx.vm_uuid, run.ctx.host_uuid
        if host_uuid is None:
            return
        self._left = await destroy_and_release(run.node, vm_uuid, host_uuid, await self._records(run))
        if not self._left:
            await destroy_on_host(run.node, vm_uuid, host_uuid)

    async def _records(self, run: Run[DestroyContext]) -> VmRecords:
        return await records_of(run.node, self._vm or run.ctx.vm_uuid)

    @step(progress=50, no_undo="a destroyed VM needs nothing on a host")
    async def release_host(self, run: Run[DestroyContext]) -> None:
        """What it had on its host, and its room there."""
        if run.ctx.host_uuid is not None and not self._left:
            await release_from(run.node, run.ctx.vm_uuid, run.ctx.host_uuid, await self._records(run))
        await run.bus.call(ReturnHost(vm_uuid=run.ctx.vm_uuid))

    @step(progress=60, no_undo="a recovered VM gets addresses at its next start")
    async def return_addresses(self, run: Run[DestroyContext]) -> None:
        """Behind the release and not with it: from here on they may be another guest's, on the same host."""
        for uuid in await self._nics(run):
            await run.bus.call(ReturnIp(vm_nic_uuid=uuid))

    async def _nics(self, run: Run[DestroyContext]) -> list[str]:
        if self._vm is not None:
            return [one.uuid for one in self._vm.vm_nics]
        return [one.uuid for one in await read_rows(run.db.once, VmNicModel, vm_instance_uuid=run.ctx.vm_uuid)]

    @db_step(no_undo="a recovered VM gets addresses at its next start")  # type: ignore[untyped-decorator]
    async def forget_addresses(self, tx: AsyncSession, run: Run[DestroyContext]) -> None:
        nothing = dict.fromkeys(("used_ip_uuid", "ip", "netmask", "gateway"))
        await update_rows(tx, VmNicModel, nothing, vm_instance_uuid=run.ctx.vm_uuid)

    @step(timeout=LONG, progress=90, no_undo="deleting a volume by policy Delay can be taken back by recovering the VM")
    async def release_volumes(self, run: Run[DestroyContext]) -> None:
        ctx = run.ctx
        for volume in await self._volumes(run):
            if volume.type == "Root" or ctx.delete_data:
                await run.bus.call(DeleteVolume(volume_uuid=volume.uuid, policy=ctx.policy))
            else:
                await run.bus.call(SetVolumeAttachment(volume_uuid=volume.uuid, vm_instance_uuid=None))

    async def _volumes(self, run: Run[DestroyContext]) -> list[VolumeInventory]:
        """What it has now. A root disk alone, which nobody else takes away, need not be looked for again."""
        known = [] if self._vm is None else volumes_of(self._vm)
        if known and all(one.type == "Root" for one in known):
            return known
        return (await run.bus.call(GetVolumes(vm_instance_uuid=run.ctx.vm_uuid))).volumes

    async def complete(self, tx: AsyncSession, ctx: DestroyContext) -> None:
        columns = {"host_uuid": None} | ({} if ctx.host_uuid is None else {"last_host_uuid": ctx.host_uuid})
        await move(self.node, tx, ctx.vm_uuid, "destroyed", **columns)
        await give_running_quota(tx, ctx.vm_uuid)
        if ctx.policy == "Direct":
            await forget_vm(tx, ctx.vm_uuid)


class RecoverVmFlow(VmFlow[VmContext]):
    """Destroyed -> Stopped, with its root disk."""

    name = "vm.recover"
    rehearsal = "vm_recover"

    async def begin(self, tx: AsyncSession, ctx: VmContext) -> None:
        vm = await read_vm(tx, ctx.vm_uuid, lock=True)
        require_state(vm, "RecoverVmInstance", {VmState.DESTROYED})
        ctx.former_state = vm.state

    @step()
    async def recover_root(self, run: Run[VmContext]) -> None:
        await run.bus.call(RecoverVolume(volume_uuid=await root_of(run)))

    @recover_root.undo
    async def delete_root_again(self, run: Run[VmContext]) -> None:
        await run.bus.call(DeleteVolume(volume_uuid=await root_of(run), policy="Delay"))

    async def complete(self, tx: AsyncSession, ctx: VmContext) -> None:
        self.final = view(await move(self.node, tx, ctx.vm_uuid, "stopped"))

    async def abort(self, tx: AsyncSession, ctx: VmContext, error: CloudError) -> None:
        """Nothing was changed."""


async def root_of(run: Run[VmContext]) -> str:
    """The UUID of the VM's root volume."""
    async with run.db.read() as session:
        vm = await read_vm(session, run.ctx.vm_uuid)
    if vm.root_volume_uuid is None:
        raise CloudError(DESTROY_FAILED, f"VM[uuid:{vm.uuid}] has no root volume")
    return vm.root_volume_uuid


class ExpungeVmFlow(VmWork[VmContext, None]):
    """Destroyed -> nothing. It goes forward only."""

    name = "vm.expunge"
    rehearsal = "vm_expunge"
    pivot = BEGIN

    async def begin(self, tx: AsyncSession, ctx: VmContext) -> None:
        vm = await tx.get_one(VmInstanceModel, ctx.vm_uuid)
        ctx.former_state = vm.state

    @step(timeout=LONG, no_undo="a disk that is gone is gone; the VM can be expunged again")
    async def expunge_root(self, run: Run[VmContext]) -> None:
        async with run.db.read() as session:
            vm = await read_vm(session, run.ctx.vm_uuid)
        if vm.root_volume_uuid is not None:
            await run.bus.call(ExpungeVolume(volume_uuid=vm.root_volume_uuid))

    async def complete(self, tx: AsyncSession, ctx: VmContext) -> None:
        await forget_vm(tx, ctx.vm_uuid)
