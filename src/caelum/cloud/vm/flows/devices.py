"""Attach and detach volumes and NICs, of running and of stopped VMs.

Invariant: what the records say is attached is what a running guest sees.
"""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.host.messages import (
    AttachNicOnHost,
    AttachVolumeOnHost,
    AwaitHost,
    DetachNicOnHost,
    DetachVolumeOnHost,
)
from caelum.cloud.host.spec import NicSpec, VmSpec
from caelum.cloud.ownership import disown, own
from caelum.cloud.vm import tags
from caelum.cloud.vm.api import ATTACH_VOLUME_FAILED
from caelum.cloud.vm.extension import VmResourceProvider
from caelum.cloud.vm.flows.base import LONG, VmContext, VmFlow, VmWork, state_on_host
from caelum.cloud.vm.flows.create import NicPlan, allocate_address, nic_row
from caelum.cloud.vm.flows.lifecycle import host_of, return_address
from caelum.cloud.vm.model import NIC_LEAVING, NIC_THERE, ON_HOST, VmNicModel, VmState
from caelum.cloud.vm.records import require_state
from caelum.cloud.vm.specs import build_spec, load_vm, read_vm, volume_of, volume_spec
from caelum.cloud.volume.api import VolumeInventory
from caelum.cloud.volume.messages import GetVolumes, InstantiateVolume, SetVolumeAttachment
from caelum.kernel.errors import RESOURCE_NOT_FOUND, CloudError, not_found
from caelum.kernel.workflow import Run, Workflow, step

ATTACHABLE = frozenset({VmState.RUNNING, VmState.STOPPED, VmState.PAUSED})
"""States in which devices may come and go."""
MAX_DATA_VOLUMES = 24


class DeviceContext(VmContext, kw_only=True):
    """`live`: the VM is on a host, so the guest must see the change."""

    live: bool = False


D = TypeVar("D", bound=DeviceContext)


class VolumeContext(DeviceContext, kw_only=True):
    """Which volume."""

    volume_uuid: str
    device_id: int = 0
    instantiate_on: str | None = None
    """The primary storage where a volume without bits gets them."""


class VolumeFlow(Workflow[VolumeContext, VolumeInventory], abstract=True):
    """A workflow about a volume of a VM, in the VM's queue; its result is the volume."""

    def subject(self, ctx: VolumeContext) -> str:
        return ctx.vm_uuid

    def queue(self, ctx: VolumeContext) -> str:
        return f"vm-{ctx.vm_uuid}"

    async def enter(self, tx: AsyncSession, ctx: VolumeContext, operation: str) -> None:
        """Check the VM's state and remember where it is."""
        vm = await read_vm(tx, ctx.vm_uuid, lock=True)
        require_state(vm, operation, ATTACHABLE)
        ctx.live = vm.state in ON_HOST
        ctx.host_uuid = vm.host_uuid if ctx.live else vm.last_host_uuid

    async def result(self, ctx: VolumeContext) -> VolumeInventory:
        return await volume_of(self.node, ctx.volume_uuid)

    async def complete(self, tx: AsyncSession, ctx: VolumeContext) -> None:
        """The steps have done all."""

    async def abort(self, tx: AsyncSession, ctx: VolumeContext, error: CloudError) -> None:
        """The undos have done all."""


class AttachVolumeFlow(VolumeFlow):
    """A volume becomes a VM's next free device."""

    name = "vm.attach-volume"
    rehearsal = "vm_attach_volume"

    async def begin(self, tx: AsyncSession, ctx: VolumeContext) -> None:
        await self.enter(tx, ctx, "AttachDataVolumeToVm")

    @step(timeout=LONG, no_undo="a volume that has its bits keeps them; they are counted as before")
    async def make_bits(self, run: Run[VolumeContext]) -> None:
        ctx = run.ctx
        if ctx.instantiate_on is not None:
            await run.bus.call(
                InstantiateVolume(
                    volume_uuid=ctx.volume_uuid, host_uuid=ctx.host_uuid, primary_storage_uuid=ctx.instantiate_on
                )
            )

    @step(progress=50)
    async def record(self, run: Run[VolumeContext]) -> None:
        ctx = run.ctx
        ctx.device_id = await self._device_id(run)
        await run.bus.call(
            SetVolumeAttachment(volume_uuid=ctx.volume_uuid, vm_instance_uuid=ctx.vm_uuid, device_id=ctx.device_id)
        )

    async def _device_id(self, run: Run[VolumeContext]) -> int:
        """The volume's device id, or the lowest free one: operations on a VM's devices run one after another."""
        volumes = (await run.bus.call(GetVolumes(vm_instance_uuid=run.ctx.vm_uuid))).volumes
        taken = {one.device_id: one.uuid for one in volumes}
        mine = [number for number, uuid in taken.items() if uuid == run.ctx.volume_uuid]
        if mine and mine[0] is not None:
            return mine[0]
        if len(taken) > MAX_DATA_VOLUMES:
            raise CloudError(
                ATTACH_VOLUME_FAILED, f"hypervisor allows at most {MAX_DATA_VOLUMES} data volumes, VM has all of them"
            )
        return next(number for number in range(1, len(taken) + 2) if number not in taken)

    @record.undo
    async def forget(self, run: Run[VolumeContext]) -> None:
        volume = (await run.bus.call(GetVolumes(uuids=[run.ctx.volume_uuid]))).volumes
        if volume and volume[0].vm_instance_uuid == run.ctx.vm_uuid:
            await run.bus.call(SetVolumeAttachment(volume_uuid=run.ctx.volume_uuid, vm_instance_uuid=None))

    @step(progress=90, skip=lambda ctx: not ctx.live)
    async def plug(self, run: Run[VolumeContext]) -> None:
        await plug_volume(run)

    @plug.undo
    async def unplug_again(self, run: Run[VolumeContext]) -> None:
        await unplug_volume(run)


class DetachVolumeFlow(VolumeFlow):
    """A volume leaves its VM."""

    name = "vm.detach-volume"
    rehearsal = "vm_detach_volume"

    async def begin(self, tx: AsyncSession, ctx: VolumeContext) -> None:
        await self.enter(tx, ctx, "DetachDataVolumeFromVm")

    @step(progress=70, skip=lambda ctx: not ctx.live)
    async def unplug(self, run: Run[VolumeContext]) -> None:
        await unplug_volume(run)

    @unplug.undo
    async def plug_again(self, run: Run[VolumeContext]) -> None:
        if await may_run(run):
            await plug_volume(run)

    @step(progress=90)
    async def forget(self, run: Run[VolumeContext]) -> None:
        await run.bus.call(SetVolumeAttachment(volume_uuid=run.ctx.volume_uuid, vm_instance_uuid=None))

    @forget.undo
    async def record_again(self, run: Run[VolumeContext]) -> None:
        ctx = run.ctx
        await run.bus.call(
            SetVolumeAttachment(volume_uuid=ctx.volume_uuid, vm_instance_uuid=ctx.vm_uuid, device_id=ctx.device_id)
        )


async def plug_volume(run: Run[VolumeContext]) -> None:
    """Have the guest see the volume."""
    volume = await volume_of(run.node, run.ctx.volume_uuid)
    spec = volume_spec(volume)
    spec.device_id = run.ctx.device_id
    await run.bus.call(AttachVolumeOnHost(host_uuid=host_of(run.ctx), vm_uuid=run.ctx.vm_uuid, volume=spec))


async def unplug_volume(run: Run[VolumeContext]) -> None:
    """Have the guest lose the volume."""
    volume = await volume_of(run.node, run.ctx.volume_uuid)
    spec = volume_spec(volume)
    spec.device_id = run.ctx.device_id
    await run.bus.call(DetachVolumeOnHost(host_uuid=host_of(run.ctx), vm_uuid=run.ctx.vm_uuid, volume=spec))


class NicContext(DeviceContext, kw_only=True):
    """Which NIC; `sets_default` when its network becomes the VM's default one."""

    account_uuid: str
    plan: NicPlan
    sets_default: bool = False
    nic: NicSpec | None = None
    """The NIC as the host was told, for an undo that comes when its row is gone."""


class AttachNicFlow(VmFlow[NicContext]):
    """A VM gets a NIC on an L3 network."""

    name = "vm.attach-nic"
    rehearsal = "vm_attach_nic"

    async def begin(self, tx: AsyncSession, ctx: NicContext) -> None:
        vm = await load_vm(tx, ctx.vm_uuid)
        require_state(vm, "AttachL3NetworkToVm", ATTACHABLE)
        ctx.live, ctx.host_uuid = vm.state in ON_HOST, vm.host_uuid
        taken = {one.device_id for one in vm.vm_nics}
        ctx.plan.device_id = next(number for number in range(len(taken) + 1) if number not in taken)
        tx.add(nic_row(vm.uuid, vm.internal_id, ctx.plan))
        await own(tx, ctx.account_uuid, ctx.plan.nic_uuid, "VmNicVO")
        if vm.default_l3_network_uuid is None:
            vm.default_l3_network_uuid, ctx.sets_default = ctx.plan.l3_network_uuid, True

    @step(progress=30)
    async def allocate_address(self, run: Run[NicContext]) -> None:
        plan = run.ctx.plan
        await allocate_address(run, plan.nic_uuid, plan.l3_network_uuid, plan.required_ip)

    @allocate_address.undo
    async def return_address(self, run: Run[NicContext]) -> None:
        await return_address(run, run.ctx.plan.nic_uuid)

    @step(progress=60, skip=lambda ctx: not ctx.live)
    async def prepare(self, run: Run[NicContext]) -> None:
        spec, run.ctx.nic = await described(run, run.ctx.plan.nic_uuid)
        await run.node.extensions.each(VmResourceProvider, "prepare_nic", spec, run.ctx.nic, host_of(run.ctx))

    @prepare.undo
    async def release(self, run: Run[NicContext]) -> None:
        async with run.db.transaction() as tx:
            await mark_leaving(tx, run.ctx.plan.nic_uuid)
        nic = await self._nic(run)
        if nic is not None and await run.node.resources.exists("VmInstanceVO", run.ctx.vm_uuid):
            spec = await build_spec(run.node, run.ctx.vm_uuid)
            await run.node.extensions.each(VmResourceProvider, "release_nic", spec, nic, host_of(run.ctx))

    @step(progress=90, skip=lambda ctx: not ctx.live)
    async def plug(self, run: Run[NicContext]) -> None:
        _, nic = await described(run, run.ctx.plan.nic_uuid)
        await run.bus.call(AttachNicOnHost(host_uuid=host_of(run.ctx), vm_uuid=run.ctx.vm_uuid, nic=nic))

    @plug.undo
    async def unplug(self, run: Run[NicContext]) -> None:
        nic = await self._nic(run)
        if nic is not None:
            await run.bus.call(DetachNicOnHost(host_uuid=host_of(run.ctx), vm_uuid=run.ctx.vm_uuid, nic=nic))

    async def _nic(self, run: Run[NicContext]) -> NicSpec | None:
        """The NIC as the host may have it; None when it cannot have it, and nothing is left to undo."""
        if run.ctx.nic is None:
            try:
                _, run.ctx.nic = await described(run, run.ctx.plan.nic_uuid)
            except CloudError as error:
                if error.kind != RESOURCE_NOT_FOUND:
                    raise
        return run.ctx.nic

    async def complete(self, tx: AsyncSession, ctx: NicContext) -> None:
        """The row says all."""

    async def abort(self, tx: AsyncSession, ctx: NicContext, error: CloudError) -> None:
        await forget_nic(tx, ctx.vm_uuid, ctx.plan.nic_uuid)


class DetachNicContext(DeviceContext, kw_only=True):
    """Which NIC, and what it takes to put it back."""

    nic_uuid: str
    l3_network_uuid: str
    ip: str | None = None


class DetachNicFlow(VmFlow[DetachNicContext]):
    """A NIC leaves its VM, and its address goes back."""

    name = "vm.detach-nic"
    rehearsal = "vm_detach_nic"

    async def begin(self, tx: AsyncSession, ctx: DetachNicContext) -> None:
        vm = await read_vm(tx, ctx.vm_uuid, lock=True)
        require_state(vm, "DetachL3NetworkFromVm", ATTACHABLE | {VmState.DESTROYED})
        ctx.live, ctx.host_uuid = vm.state in ON_HOST, vm.host_uuid

    @step(progress=50, skip=lambda ctx: not ctx.live)
    async def unplug(self, run: Run[DetachNicContext]) -> None:
        _, nic = await described(run, run.ctx.nic_uuid)
        await run.bus.call(DetachNicOnHost(host_uuid=host_of(run.ctx), vm_uuid=run.ctx.vm_uuid, nic=nic))

    @unplug.undo
    async def plug_again(self, run: Run[DetachNicContext]) -> None:
        if not await may_run(run):
            return
        _, nic = await described(run, run.ctx.nic_uuid)
        await run.bus.call(AttachNicOnHost(host_uuid=host_of(run.ctx), vm_uuid=run.ctx.vm_uuid, nic=nic))

    @step(progress=70, skip=lambda ctx: not ctx.live)
    async def release(self, run: Run[DetachNicContext]) -> None:
        async with run.db.transaction() as tx:
            await mark_leaving(tx, run.ctx.nic_uuid)
        spec, nic = await described(run, run.ctx.nic_uuid)
        await run.node.extensions.each(VmResourceProvider, "release_nic", spec, nic, host_of(run.ctx))

    @release.undo
    async def prepare_again(self, run: Run[DetachNicContext]) -> None:
        async with run.db.transaction() as tx:
            await mark_leaving(tx, run.ctx.nic_uuid, False)
        spec, nic = await described(run, run.ctx.nic_uuid)
        await run.node.extensions.each(VmResourceProvider, "prepare_nic", spec, nic, host_of(run.ctx))

    @step(progress=90)
    async def return_address(self, run: Run[DetachNicContext]) -> None:
        await return_address(run, run.ctx.nic_uuid)

    @return_address.undo
    async def take_address_again(self, run: Run[DetachNicContext]) -> None:
        await allocate_address(run, run.ctx.nic_uuid, run.ctx.l3_network_uuid, run.ctx.ip)

    async def complete(self, tx: AsyncSession, ctx: DetachNicContext) -> None:
        await forget_nic(tx, ctx.vm_uuid, ctx.nic_uuid)

    async def abort(self, tx: AsyncSession, ctx: DetachNicContext, error: CloudError) -> None:
        """The undos have done all."""


class ChangeIpContext(VmContext, kw_only=True):
    """Which NIC gets which address instead of which."""

    nic_uuid: str
    l3_network_uuid: str
    new_ip: str
    old_ip: str | None = None


class ChangeIpFlow(VmWork[ChangeIpContext, None]):
    """A stopped VM's NIC gets another, fixed address."""

    name = "vm.change-ip"
    rehearsal = "vm_change_ip"

    async def begin(self, tx: AsyncSession, ctx: ChangeIpContext) -> None:
        require_state(await read_vm(tx, ctx.vm_uuid, lock=True), "SetVmStaticIp", {VmState.STOPPED})

    @step()
    async def exchange(self, run: Run[ChangeIpContext]) -> None:
        ctx = run.ctx
        await return_address(run, ctx.nic_uuid)
        await allocate_address(run, ctx.nic_uuid, ctx.l3_network_uuid, ctx.new_ip)

    @exchange.undo
    async def exchange_back(self, run: Run[ChangeIpContext]) -> None:
        ctx = run.ctx
        await return_address(run, ctx.nic_uuid)
        if ctx.old_ip is not None:
            await allocate_address(run, ctx.nic_uuid, ctx.l3_network_uuid, ctx.old_ip)

    async def complete(self, tx: AsyncSession, ctx: ChangeIpContext) -> None:
        await tags.STATIC_IP.delete(tx, ctx.vm_uuid, l3NetworkUuid=ctx.l3_network_uuid)
        await tags.STATIC_IP.add(tx, ctx.vm_uuid, l3NetworkUuid=ctx.l3_network_uuid, staticIp=ctx.new_ip)

    async def abort(self, tx: AsyncSession, ctx: ChangeIpContext, error: CloudError) -> None:
        """The undo has done all."""


async def may_run(run: Run[D]) -> bool:
    """Whether the guest is on its host, as far as anybody can tell; one that is not gets its devices at its start."""
    return await state_on_host(run.node, run.ctx.vm_uuid, host_of(run.ctx)) != VmState.STOPPED


async def mark_leaving(tx: AsyncSession, nic_uuid: str, leaving: bool = True) -> None:
    """Have a host that connects meanwhile get nothing for a NIC that is taken away."""
    nic = await tx.get(VmNicModel, nic_uuid)
    if nic is not None:
        nic.state = NIC_LEAVING if leaving else NIC_THERE


async def described(run: Run[D], nic_uuid: str) -> tuple[VmSpec, NicSpec]:
    """The VM's description and its NIC's."""
    await run.bus.call(AwaitHost(host_uuid=host_of(run.ctx)))
    spec = await build_spec(run.node, run.ctx.vm_uuid, realise_on=host_of(run.ctx))
    nic = next((one for one in spec.nics if one.nic_uuid == nic_uuid), None)
    if nic is None:
        raise not_found("VmNicVO", nic_uuid)
    return spec, nic


async def forget_nic(tx: AsyncSession, vm_uuid: str, nic_uuid: str) -> None:
    """Delete a NIC's row; the VM's default network moves to its next NIC when it was this one's."""
    nic = await tx.get(VmNicModel, nic_uuid)
    if nic is None:
        return
    network = nic.l3_network_uuid
    await disown(tx, nic_uuid)
    await tx.delete(nic)
    await tx.flush()
    vm = await load_vm(tx, vm_uuid)
    remaining = [one.l3_network_uuid for one in vm.vm_nics]
    if vm.default_l3_network_uuid == network and network not in remaining:
        vm.default_l3_network_uuid = next(iter(remaining), None)
