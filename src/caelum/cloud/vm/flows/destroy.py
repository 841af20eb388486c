"""Destroy, recover and expunge.

Invariant: a destroyed VM has no place, no address and nothing on any host; what a host that is away still has, the
garbage collector removes.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.allocator.extension import RoomRecords
from caelum.cloud.l3.extension import AddressRecords
from caelum.cloud.parts import part
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
from caelum.cloud.vm.records import (
    NO_ADDRESS,
    announce,
    forget_vm,
    give_running_quota,
    move,
    move_unseen,
    require_state,
    with_related,
)
from caelum.cloud.vm.specs import VmRecords, read_vm, records_of, records_to_leave, volumes_of
from caelum.cloud.volume.api import VolumeInventory
from caelum.cloud.volume.extension import VolumeRecords
from caelum.cloud.volume.messages import (
    DeleteVolume,
    ExpungeVolume,
    GetVolumes,
    RecoverVolume,
    SetVolumeAttachment,
)
from caelum.kernel.database import after_commit
from caelum.kernel.errors import CloudError
from caelum.kernel.node import Node
from caelum.kernel.rows import read_related, read_rows, related, update_row
from caelum.kernel.views import view
from caelum.kernel.workflow import BEGIN, Run, db_step, step


class DestroyContext(VmContext, kw_only=True):
    """`policy` Direct leaves nothing; Delay and Never leave a record and a root disk that can be recovered."""

    policy: str = "Delay"
    delete_data: bool = False
    left: bool = False
    """Whether nothing of it is on its host any more."""
    has_volumes: bool = True
    """Whether there may be volumes to be released."""


class DestroyVmFlow(VmWork[DestroyContext, None]):
    """Any stable state -> Destroying -> Destroyed, or nothing at all. It goes forward only: destroyed is destroyed.

    Of a VM with a root disk alone everything behind its end on the host is in records, and commits as one.
    """

    name = "vm.destroy"
    rehearsal = "vm_destroy"
    pivot = BEGIN

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._vm: VmInstanceModel | None = None
        """The VM as it was at the beginning, for nobody else changes it now; None after a crash."""
        self._nics: list[VmNicModel] = []
        """Its NICs without their addresses."""
        self._deleted: list[VolumeInventory] = []
        """Its volumes that went with it."""

    async def begin(self, tx: AsyncSession, ctx: DestroyContext) -> None:
        self._vm = await self._end_running(tx, ctx) or await self._end(tx, ctx)
        ctx.host_uuid = self._vm.host_uuid

    async def _end_running(self, tx: AsyncSession, ctx: DestroyContext) -> VmInstanceModel | None:
        """Most run: for those it takes no look before."""
        ctx.former_state = former = VmState.RUNNING
        row = await move_unseen(tx, ctx.vm_uuid, former, "destroying")
        if row is None:
            return None
        vm = await read_related(tx, row)
        after_commit(tx, lambda: announce(self.node, view(vm), former))
        return vm

    async def _end(self, tx: AsyncSession, ctx: DestroyContext) -> VmInstanceModel:
        vm = await read_vm(tx, ctx.vm_uuid, lock=True)
        ctx.former_state = vm.state
        return await move(self.node, tx, vm, "destroying", operation="DestroyVmInstance")

    @step(progress=30, no_undo="the machine is gone, or the garbage collector will see to it")
    async def destroy_domain(self, run: Run[DestroyContext]) -> None:
        ctx = run.ctx
        if ctx.host_uuid is None:
            ctx.left = True
            return
        ctx.left = await destroy_and_release(run.node, ctx.vm_uuid, ctx.host_uuid, await self._records(run))
        if not ctx.left:
            await destroy_on_host(run.node, ctx.vm_uuid, ctx.host_uuid)

    async def _records(self, run: Run[DestroyContext]) -> VmRecords:
        return await records_of(run.node, run.ctx.vm_uuid) if self._vm is None else records_to_leave(self._vm)

    @step(progress=50, skip=lambda ctx: ctx.left, no_undo="a destroyed VM needs nothing on a host")
    async def release_host(self, run: Run[DestroyContext]) -> None:
        """What it had on its host."""
        if run.ctx.host_uuid is not None:
            await release_from(run.node, run.ctx.vm_uuid, run.ctx.host_uuid, await self._records(run))

    @db_step(progress=60, no_undo="a recovered VM gets it anew, and its root disk again")  # type: ignore[untyped-decorator]
    async def give_back(self, tx: AsyncSession, run: Run[DestroyContext]) -> None:
        """What records alone say that it has. Behind the release and not with it: from here on its addresses may be
        another guest's, on the same host.
        """
        await self._give_addresses_back(tx, run.ctx)
        self._deleted = await self._delete_root(tx, run.ctx)
        # A root disk alone, which nobody else takes away, need not be looked for again.
        known = self._known_volumes()
        run.ctx.has_volumes = not known or len(self._deleted) < len(known)
        await part(run.node, RoomRecords).give_back(tx, run.ctx.vm_uuid)

    async def _give_addresses_back(self, tx: AsyncSession, ctx: DestroyContext) -> None:
        if self._vm is None:
            nics = await read_rows(tx, VmNicModel, vm_instance_uuid=ctx.vm_uuid)
        else:
            nics = self._vm.vm_nics
        if nics:
            await part(self.node, AddressRecords).give_back(tx, [one.uuid for one in nics])
        now = [await update_row(tx, VmNicModel, one.uuid, NO_ADDRESS) for one in nics]
        self._nics = [related(one, used_ips=[]) for one in now if one is not None]

    async def _delete_root(self, tx: AsyncSession, ctx: DestroyContext) -> list[VolumeInventory]:
        """Its root disk, where that takes no more than a change of the record."""
        if ctx.policy != "Delay":
            return []
        roots = [one.uuid for one in self._known_volumes() if one.type == "Root"]
        now = [await part(self.node, VolumeRecords).delete_root(tx, one) for one in roots]
        return [one for one in now if one is not None]

    def _known_volumes(self) -> list[VolumeInventory]:
        return [] if self._vm is None else volumes_of(self._vm)

    @step(
        timeout=LONG, progress=90, skip=lambda ctx: not ctx.has_volumes,
        no_undo="deleting a volume by policy Delay can be taken back by recovering the VM",
    )  # fmt: skip
    async def release_volumes(self, run: Run[DestroyContext]) -> None:
        ctx = run.ctx
        for volume in (await run.bus.call(GetVolumes(vm_instance_uuid=ctx.vm_uuid))).volumes:
            if volume.type == "Root" or ctx.delete_data:
                await run.bus.call(DeleteVolume(volume_uuid=volume.uuid, policy=ctx.policy))
            else:
                await run.bus.call(SetVolumeAttachment(volume_uuid=volume.uuid, vm_instance_uuid=None))

    async def complete(self, tx: AsyncSession, ctx: DestroyContext) -> None:
        columns = {"host_uuid": None} | ({} if ctx.host_uuid is None else {"last_host_uuid": ctx.host_uuid})
        if not await self._enter(tx, ctx, columns):
            await move(self.node, tx, ctx.vm_uuid, "destroyed", **columns)
        if ctx.policy == "Direct":
            await forget_vm(tx, ctx.vm_uuid)
        else:
            await give_running_quota(tx, ctx.vm_uuid)

    async def _enter(self, tx: AsyncSession, ctx: DestroyContext, columns: dict[str, str | None]) -> bool:
        """The same as `move` without a look at what is known; False when that is not all."""
        if self._vm is None or ctx.has_volumes:
            return False
        former = VmState.DESTROYING
        row = await move_unseen(tx, ctx.vm_uuid, former, "destroyed", **columns)
        if row is None:
            return False
        final: VmInstanceInventory = view(related(with_related(row, self._vm), vm_nics=self._nics))
        final.all_volumes = self._deleted
        after_commit(tx, lambda: announce(self.node, final, former))
        return True


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
