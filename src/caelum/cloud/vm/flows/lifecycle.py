"""Start, stop, reboot, pause and resume.

Invariant: however an operation ends, the VM is in a stable state that its host agrees with; an undo asks the host
rather than guessing.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.allocator.messages import AllocateHost, DiskRequest, ReturnHost
from caelum.cloud.host.messages import (
    PauseVmOnHost,
    RebootVmOnHost,
    ResumeVmOnHost,
    StopVmOnHost,
)
from caelum.cloud.host.spec import VmSpec
from caelum.cloud.l3.messages import ReturnIp
from caelum.cloud.primary_storage.messages import GetVolumeHosts, ReleaseStorage
from caelum.cloud.vm import tags
from caelum.cloud.vm.flows.base import (
    LONG,
    VmContext,
    VmFlow,
    bring_isos,
    destroy_on_host,
    leave_host,
    plan_start,
    prepare_on,
    start_on,
    state_on_host,
)
from caelum.cloud.vm.flows.create import allocate_address
from caelum.cloud.vm.model import ON_HOST, VmInstanceModel, VmNicModel, VmState
from caelum.cloud.vm.records import (
    NO_ADDRESS,
    give_running_quota,
    move,
    require_state,
    set_state,
    take_running_quota,
)
from caelum.cloud.vm.specs import VmRecords, read_vm, records_of
from caelum.cloud.volume.messages import GetVolumes, InstantiateVolume
from caelum.kernel.errors import CloudError
from caelum.kernel.node import Node
from caelum.kernel.rows import update_rows
from caelum.kernel.views import view
from caelum.kernel.workflow import Run, step

STARTABLE = frozenset({VmState.CREATED, VmState.STOPPED, VmState.RUNNING, VmState.CRASHED})
"""What runs already, does; what crashed is started anew where it is."""
STOPPABLE = frozenset({*ON_HOST, VmState.STOPPED, VmState.UNKNOWN, VmState.CRASHED, VmState.NO_STATE})
STOP_GRACE = 60.0
"""Seconds that a guest has to shut down when it is asked to."""


class StartContext(VmContext, kw_only=True):
    """Where to start; None lets the allocator choose."""

    want_host: str | None = None
    want_cluster: str | None = None
    new_disks: dict[str, str] = {}
    """Volume UUID to primary storage, of volumes that have no bits yet."""
    new_nics: list[str] = []
    """NICs without an address, which get one for this start."""


class StartVmFlow(VmFlow[StartContext]):
    """Stopped (or Created) -> Starting -> Running."""

    name = "vm.start"
    rehearsal = "vm_start"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._vm: VmInstanceModel | None = None
        """The VM as it began, for nobody else changes it now; None after a crash."""
        self._planned: VmSpec | None = None
        """What is to be started."""

    async def begin(self, tx: AsyncSession, ctx: StartContext) -> None:
        vm = await read_vm(tx, ctx.vm_uuid, lock=True)
        require_state(vm, "StartVmInstance", STARTABLE)
        ctx.former_state = vm.state
        self._vm = await move(self.node, tx, vm, "starting", operation="StartVmInstance")
        await take_running_quota(tx, vm)

    @step(progress=20)
    async def allocate_host(self, run: Run[StartContext]) -> None:
        ctx, vm = run.ctx, await self._begun(run)
        volumes = (await run.bus.call(GetVolumes(vm_instance_uuid=ctx.vm_uuid))).volumes
        bound = (await run.bus.call(GetVolumeHosts(volume_uuids=[one.uuid for one in volumes]))).hosts
        place = await run.bus.call(
            AllocateHost(
                vm_uuid=ctx.vm_uuid,
                cpu_num=vm.cpu_num,
                memory=vm.memory_size,
                zone_uuid=vm.zone_uuid,
                cluster_uuid=ctx.want_cluster,
                host_uuid=ctx.want_host or next(iter(bound.values()), None),
                l3_network_uuids=[one.l3_network_uuid for one in vm.vm_nics],
                disks=[
                    DiskRequest(key=one.uuid, size=one.size, is_root=one.type == "Root")
                    for one in volumes
                    if not one.install_path
                ],
                image_uuid=vm.image_uuid,
                strategy=vm.allocator_strategy or "LeastVmPreferred",
                architecture=vm.architecture,
                volume_storage_uuids=sorted({one.primary_storage_uuid for one in volumes if one.primary_storage_uuid}),
                last_host_uuid=vm.last_host_uuid,
            )
        )
        ctx.host_uuid, ctx.new_disks = place.host_uuid, place.disks
        async with run.db.transaction() as tx:
            where = {"host_uuid": place.host_uuid, "cluster_uuid": place.cluster_uuid, "zone_uuid": place.zone_uuid}
            await update_rows(tx, VmInstanceModel, where, uuid=ctx.vm_uuid)

    @allocate_host.undo
    async def return_host(self, run: Run[StartContext]) -> None:
        await run.bus.call(ReturnHost(vm_uuid=run.ctx.vm_uuid))
        # Not by `new_disks`: an allocation that was cut short had no answer, but may have reserved.
        for one in (await run.bus.call(GetVolumes(vm_instance_uuid=run.ctx.vm_uuid))).volumes:
            if not one.install_path:
                await run.bus.call(ReleaseStorage(key=one.uuid))

    @step(timeout=LONG, progress=40, no_undo="a disk that has been made stays for the next start")
    async def make_disks(self, run: Run[StartContext]) -> None:
        for volume, storage in run.ctx.new_disks.items():
            await run.bus.call(
                InstantiateVolume(volume_uuid=volume, host_uuid=run.ctx.host_uuid, primary_storage_uuid=storage)
            )

    @step(timeout=LONG, no_undo="images stay in the cache")
    async def bring_isos(self, run: Run[StartContext]) -> None:
        await bring_isos(run.node, run.ctx.vm_uuid, host_of(run.ctx))

    @step(progress=50)
    async def allocate_addresses(self, run: Run[StartContext]) -> None:
        lacking = [one for one in (await self._begun(run)).vm_nics if one.ip is None]
        run.ctx.new_nics = [one.uuid for one in lacking]
        if not lacking:
            return
        async with run.db.read() as session:
            static = await tags.STATIC_IP.get_all(session, run.ctx.vm_uuid)
        wanted = {one["l3NetworkUuid"]: one["staticIp"] for one in static}
        for nic in lacking:
            await allocate_address(run, nic.uuid, nic.l3_network_uuid, wanted.get(nic.l3_network_uuid))

    async def _begun(self, run: Run[StartContext]) -> VmInstanceModel:
        if self._vm is not None:
            return self._vm
        async with run.db.read() as session:
            return await read_vm(session, run.ctx.vm_uuid)

    @allocate_addresses.undo
    async def return_addresses(self, run: Run[StartContext]) -> None:
        for nic in run.ctx.new_nics:
            await return_address(run, nic)

    @step(progress=60)
    async def prepare_host(self, run: Run[StartContext]) -> None:
        self._planned = await plan_start(run.node, run.ctx.vm_uuid, host_of(run.ctx))

    @prepare_host.undo
    async def release_host(self, run: Run[StartContext]) -> None:
        await leave_host(run.node, run.ctx.vm_uuid, host_of(run.ctx))

    @step(progress=95)
    async def start_on_host(self, run: Run[StartContext]) -> None:
        # After a crash it is planned again: the host may have been restarted since.
        planned = self._planned or await plan_start(run.node, run.ctx.vm_uuid, host_of(run.ctx))
        await start_on(run.node, host_of(run.ctx), planned)

    @start_on_host.undo
    async def destroy_domain(self, run: Run[StartContext]) -> None:
        await destroy_on_host(run.node, run.ctx.vm_uuid, host_of(run.ctx))

    async def complete(self, tx: AsyncSession, ctx: StartContext) -> None:
        place = {"host_uuid": ctx.host_uuid, "last_host_uuid": ctx.host_uuid}
        self.final = view(await move(self.node, tx, ctx.vm_uuid, "running", **place))

    async def abort(self, tx: AsyncSession, ctx: StartContext, error: CloudError) -> None:
        vm = await read_vm(tx, ctx.vm_uuid, lock=True)
        await set_state(self.node, tx, vm, ctx.former_state, host_uuid=None)
        await give_running_quota(tx, vm.uuid)


def host_of(ctx: VmContext) -> str:
    """The host that a step acts on."""
    if ctx.host_uuid is None:
        raise RuntimeError(f"VM {ctx.vm_uuid} has no host")
    return ctx.host_uuid


async def return_address(run: Run[Any], nic_uuid: str) -> None:
    """Give a NIC's address back and take it out of the NIC's row."""
    await run.bus.call(ReturnIp(vm_nic_uuid=nic_uuid))
    async with run.db.transaction() as tx:
        await update_rows(tx, VmNicModel, NO_ADDRESS, uuid=nic_uuid)


X = TypeVar("X", bound=VmContext)


class OnHostFlow(VmFlow[X], Generic[X], abstract=True):
    """An operation on a VM where it is. When it fails, the host says which state is true."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._vm: VmInstanceModel | None = None
        """The VM as it was at the beginning, for nobody else changes it now; None after a crash."""

    async def enter(
        self, tx: AsyncSession, ctx: X, event: str, operation: str, allowed: frozenset[VmState] | None = None
    ) -> None:
        """Remember the former state and move into the transitional one; `allowed` are fewer than the event's states."""
        vm = await read_vm(tx, ctx.vm_uuid, lock=True)
        if allowed is not None:
            require_state(vm, operation, allowed)
        ctx.former_state, ctx.host_uuid = vm.state, vm.host_uuid
        self._vm = await move(self.node, tx, vm, event, operation=operation)

    async def records(self, ctx: X) -> VmRecords:
        """What the VM's description is made of."""
        return await records_of(self.node, self._vm or ctx.vm_uuid)

    @step(idle=True)
    async def look_when_undone(self, run: Run[X]) -> None:
        """Does nothing; it is here for its undo, which runs last."""

    @look_when_undone.undo
    async def look_at_host(self, run: Run[X]) -> None:
        ctx = run.ctx
        if ctx.host_uuid is None:
            return
        ctx.seen = await state_on_host(run.node, ctx.vm_uuid, ctx.host_uuid)
        if ctx.seen not in ON_HOST and ctx.seen != VmState.UNKNOWN:
            await leave_host(run.node, ctx.vm_uuid, ctx.host_uuid)
            await run.bus.call(ReturnHost(vm_uuid=ctx.vm_uuid))

    async def abort(self, tx: AsyncSession, ctx: X, error: CloudError) -> None:
        vm = await read_vm(tx, ctx.vm_uuid, lock=True)
        seen, columns = ctx.seen or ctx.former_state, {}
        if seen not in ON_HOST and seen != VmState.UNKNOWN:
            columns = {"last_host_uuid": ctx.host_uuid or vm.last_host_uuid, "host_uuid": None}
            await give_running_quota(tx, vm.uuid)
        await set_state(self.node, tx, vm, seen, **columns)


class StopContext(VmContext, kw_only=True):
    """How to stop."""

    kind: str = "grace"


class StopVmFlow(OnHostFlow[StopContext]):
    """Running (Paused, Unknown ...) -> Stopping -> Stopped; addresses and disks stay the VM's."""

    name = "vm.stop"
    rehearsal = "vm_stop"
    pivot = "stop_on_host"

    async def begin(self, tx: AsyncSession, ctx: StopContext) -> None:
        await self.enter(tx, ctx, "stopping", "StopVmInstance", STOPPABLE)

    @step(timeout=STOP_GRACE * 3, progress=70, no_undo="the user wants it stopped; the host says what it is")
    async def stop_on_host(self, run: Run[StopContext]) -> None:
        ctx = run.ctx
        await run.bus.call(
            StopVmOnHost(host_uuid=host_of(ctx), vm_uuid=ctx.vm_uuid, kind=ctx.kind, grace_seconds=STOP_GRACE)
        )

    @step(progress=90, no_undo="a stopped VM needs nothing on a host")
    async def release_host(self, run: Run[StopContext]) -> None:
        await leave_host(run.node, run.ctx.vm_uuid, host_of(run.ctx), await self.records(run.ctx))
        await run.bus.call(ReturnHost(vm_uuid=run.ctx.vm_uuid))

    async def complete(self, tx: AsyncSession, ctx: StopContext) -> None:
        place = {"host_uuid": None, "last_host_uuid": ctx.host_uuid}
        self.final = view(await move(self.node, tx, ctx.vm_uuid, "stopped", **place))
        await give_running_quota(tx, ctx.vm_uuid)


class RebootVmFlow(OnHostFlow[VmContext]):
    """Running -> Rebooting -> Running on the same host."""

    name = "vm.reboot"
    rehearsal = "vm_reboot"
    pivot = "reboot_on_host"

    async def begin(self, tx: AsyncSession, ctx: VmContext) -> None:
        await self.enter(tx, ctx, "rebooting", "RebootVmInstance")

    @step(timeout=STOP_GRACE * 3, progress=90, no_undo="the host says whether it runs")
    async def reboot_on_host(self, run: Run[VmContext]) -> None:
        spec = await prepare_on(run.node, run.ctx.vm_uuid, host_of(run.ctx), await self.records(run.ctx))
        await run.bus.call(RebootVmOnHost(host_uuid=host_of(run.ctx), spec=spec))

    async def complete(self, tx: AsyncSession, ctx: VmContext) -> None:
        self.final = view(await move(self.node, tx, ctx.vm_uuid, "running"))


class PauseVmFlow(OnHostFlow[VmContext]):
    """Running -> Pausing -> Paused."""

    name = "vm.pause"
    rehearsal = "vm_pause"

    async def begin(self, tx: AsyncSession, ctx: VmContext) -> None:
        await self.enter(tx, ctx, "pausing", "PauseVmInstance")

    @step(progress=90)
    async def pause_on_host(self, run: Run[VmContext]) -> None:
        await run.bus.call(PauseVmOnHost(host_uuid=host_of(run.ctx), vm_uuid=run.ctx.vm_uuid))

    @pause_on_host.undo
    async def resume_again(self, run: Run[VmContext]) -> None:
        if await state_on_host(run.node, run.ctx.vm_uuid, host_of(run.ctx)) == VmState.PAUSED:
            await run.bus.call(ResumeVmOnHost(host_uuid=host_of(run.ctx), vm_uuid=run.ctx.vm_uuid))

    async def complete(self, tx: AsyncSession, ctx: VmContext) -> None:
        self.final = view(await move(self.node, tx, ctx.vm_uuid, "paused"))


class ResumeVmFlow(OnHostFlow[VmContext]):
    """Paused -> Resuming -> Running."""

    name = "vm.resume"
    rehearsal = "vm_resume"

    async def begin(self, tx: AsyncSession, ctx: VmContext) -> None:
        await self.enter(tx, ctx, "resuming", "ResumeVmInstance")

    @step(progress=90)
    async def resume_on_host(self, run: Run[VmContext]) -> None:
        await run.bus.call(ResumeVmOnHost(host_uuid=host_of(run.ctx), vm_uuid=run.ctx.vm_uuid))

    @resume_on_host.undo
    async def pause_again(self, run: Run[VmContext]) -> None:
        if await state_on_host(run.node, run.ctx.vm_uuid, host_of(run.ctx)) == VmState.RUNNING:
            await run.bus.call(PauseVmOnHost(host_uuid=host_of(run.ctx), vm_uuid=run.ctx.vm_uuid))

    async def complete(self, tx: AsyncSession, ctx: VmContext) -> None:
        self.final = view(await move(self.node, tx, ctx.vm_uuid, "running"))
