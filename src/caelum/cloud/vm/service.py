"""The VM service: it owns virtual machines, their NICs and CD-ROM drives.

Every change of a VM runs in that VM's queue and, when it has more than one step, as a durable workflow.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

from sqlalchemy import select

from caelum.cloud.host.messages import DestroyVmOnHost
from caelum.cloud.offering.messages import GetInstanceOffering
from caelum.cloud.ownership import owner_of
from caelum.cloud.vm import tags
from caelum.cloud.vm.api import (
    ATTACH_NETWORK_FAILED,
    ATTACH_VOLUME_FAILED,
    CREATE_FAILED,
    DESTROY_FAILED,
    DETACH_VOLUME_FAILED,
    PAUSE_FAILED,
    REBOOT_FAILED,
    RESUME_FAILED,
    START_FAILED,
    STOP_FAILED,
    AttachL3NetworkToVm,
    ChangeInstanceOffering,
    CreateVmInstance,
    DeleteVmConsolePassword,
    DeleteVmHostname,
    DeleteVmSshKey,
    DeleteVmStaticIp,
    DestroyVmInstance,
    DetachL3NetworkFromVm,
    ExpungeVmInstance,
    PauseVmInstance,
    RebootVmInstance,
    RecoverVmInstance,
    ResumeVmInstance,
    SetVmBootOrder,
    SetVmConsolePassword,
    SetVmHostname,
    SetVmSshKey,
    SetVmStaticIp,
    StartVmInstance,
    StopVmInstance,
    UpdateVmInstance,
    VmInstanceInventory,
)
from caelum.cloud.vm.flows.base import VmContext, inventory_of
from caelum.cloud.vm.flows.create import CreateVmFlow, NicPlan
from caelum.cloud.vm.flows.destroy import DestroyContext, DestroyVmFlow, ExpungeVmFlow, RecoverVmFlow
from caelum.cloud.vm.flows.devices import (
    ATTACHABLE,
    AttachNicFlow,
    AttachVolumeFlow,
    ChangeIpContext,
    ChangeIpFlow,
    DetachNicContext,
    DetachNicFlow,
    DetachVolumeFlow,
    NicContext,
    VolumeContext,
)
from caelum.cloud.vm.flows.lifecycle import (
    PauseVmFlow,
    RebootVmFlow,
    ResumeVmFlow,
    StartContext,
    StartVmFlow,
    StopContext,
    StopVmFlow,
)
from caelum.cloud.vm.messages import (
    DestroyLeftover,
    DestroyVm,
    DetachNicFromVm,
    DetachVmNic,
    DetachVolumeFromVm,
    StopVm,
)
from caelum.cloud.vm.model import TRANSITIONAL, VmInstanceModel, VmNicModel, VmState
from caelum.cloud.vm.plans import plan_create
from caelum.cloud.vm.questions import VmQuestions
from caelum.cloud.vm.records import new_mac, require_state
from caelum.cloud.vm.settings import (
    DELETE_DATA_VOLUMES,
    DELETION_POLICY,
    EXPUNGE_INTERVAL,
    EXPUNGE_PERIOD,
)
from caelum.cloud.vm.specs import load_vm, read_vm, volume_of
from caelum.cloud.volume.api import AttachDataVolumeToVm, DetachDataVolumeFromVm, VolumeInventory
from caelum.cloud.volume.messages import GetVolumes
from caelum.kernel.context import ADMIN_ACCOUNT_UUID
from caelum.kernel.database import utcnow
from caelum.kernel.errors import CloudError, ErrorType, not_found
from caelum.kernel.ids import new_uuid
from caelum.kernel.rows import read_row
from caelum.kernel.service import handles
from caelum.kernel.tag import SystemTag
from caelum.kernel.workflow import Workflow

QUEUE = "vm-{uuid}"

C = TypeVar("C", bound=VmContext)
R = TypeVar("R")


class VmService(VmQuestions):
    """Owns virtual machines."""

    name = "vm"

    async def start(self) -> None:
        self.node.timers.every(EXPUNGE_INTERVAL, self._expunge_old, name="expunge destroyed VMs")

    # --- life ---------------------------------------------------------------------------------------------------------

    @handles(CreateVmInstance, repeatable=True)
    async def create(self, msg: CreateVmInstance) -> VmInstanceInventory:
        ctx = await plan_create(self.node, msg)
        return await self._run(CreateVmFlow, ctx, CREATE_FAILED)

    @handles(StartVmInstance, queue=QUEUE, repeatable=True)
    async def start_vm(self, msg: StartVmInstance) -> VmInstanceInventory:
        state = await self._state(msg.uuid)
        if state == VmState.RUNNING:
            return await inventory_of(self.node, msg.uuid)
        if state == VmState.CRASHED:
            return await self._run(RebootVmFlow, VmContext(vm_uuid=msg.uuid), START_FAILED)
        ctx = StartContext(vm_uuid=msg.uuid, want_host=msg.host_uuid, want_cluster=msg.cluster_uuid)
        return await self._run(StartVmFlow, ctx, START_FAILED)

    @handles(StopVmInstance, queue=QUEUE, repeatable=True)
    async def stop_vm(self, msg: StopVmInstance) -> VmInstanceInventory:
        if await self._state(msg.uuid) == VmState.STOPPED:
            return await inventory_of(self.node, msg.uuid)
        return await self._run(StopVmFlow, StopContext(vm_uuid=msg.uuid, kind=msg.type or "grace"), STOP_FAILED)

    @handles(StopVm, queue="vm-{vm_uuid}")
    async def stop_quietly(self, msg: StopVm) -> None:
        if not await self.node.resources.exists("VmInstanceVO", msg.vm_uuid):
            return  # a VM that went meanwhile does not run
        if await self._state(msg.vm_uuid) != VmState.STOPPED:
            await self._run(StopVmFlow, StopContext(vm_uuid=msg.vm_uuid, kind=msg.kind), STOP_FAILED, answers=False)

    @handles(RebootVmInstance, queue=QUEUE, repeatable=True)
    async def reboot(self, msg: RebootVmInstance) -> VmInstanceInventory:
        return await self._run(RebootVmFlow, VmContext(vm_uuid=msg.uuid), REBOOT_FAILED)

    @handles(PauseVmInstance, queue=QUEUE, repeatable=True)
    async def pause(self, msg: PauseVmInstance) -> VmInstanceInventory:
        return await self._run(PauseVmFlow, VmContext(vm_uuid=msg.uuid), PAUSE_FAILED)

    @handles(ResumeVmInstance, queue=QUEUE, repeatable=True)
    async def resume(self, msg: ResumeVmInstance) -> VmInstanceInventory:
        return await self._run(ResumeVmFlow, VmContext(vm_uuid=msg.uuid), RESUME_FAILED)

    # --- end ----------------------------------------------------------------------------------------------------------

    @handles(DestroyVmInstance, queue=QUEUE, repeatable=True)
    async def destroy(self, msg: DestroyVmInstance) -> None:
        await self._destroy(msg.uuid, None, answers=True)

    @handles(DestroyVm, queue="vm-{vm_uuid}")
    async def destroy_quietly(self, msg: DestroyVm) -> None:
        vm = await read_row(self.db.once, VmInstanceModel, msg.vm_uuid)
        if vm is not None and vm.state == VmState.DESTROYED and msg.policy == "Direct":
            await self._run(ExpungeVmFlow, VmContext(vm_uuid=msg.vm_uuid), DESTROY_FAILED, answers=False)
        elif vm is not None and vm.state != VmState.DESTROYED:
            await self._destroy(msg.vm_uuid, msg.policy, answers=False)

    async def _destroy(self, vm_uuid: str, policy: str | None, *, answers: bool) -> None:
        default = await self.node.settings.get_for(DELETION_POLICY, vm_uuid)
        chosen = policy or default
        ctx = DestroyContext(vm_uuid=vm_uuid, policy=chosen, delete_data=self.node.settings.get(DELETE_DATA_VOLUMES))
        await self._run(DestroyVmFlow, ctx, DESTROY_FAILED, answers=answers)

    @handles(DestroyLeftover, queue="vm-{vm_uuid}")
    async def destroy_leftover(self, msg: DestroyLeftover) -> bool:
        vm = await read_row(self.db.once, VmInstanceModel, msg.vm_uuid)
        if vm is not None and vm.host_uuid == msg.host_uuid:
            return vm.state not in TRANSITIONAL
        await self.bus.call(DestroyVmOnHost(host_uuid=msg.host_uuid, vm_uuid=msg.vm_uuid))
        return True

    @handles(RecoverVmInstance, queue=QUEUE, repeatable=True)
    async def recover(self, msg: RecoverVmInstance) -> VmInstanceInventory:
        return await self._run(RecoverVmFlow, VmContext(vm_uuid=msg.uuid), DESTROY_FAILED)

    @handles(ExpungeVmInstance, queue=QUEUE, repeatable=True)
    async def expunge(self, msg: ExpungeVmInstance) -> None:
        async with self.db.read() as session:
            require_state(await read_vm(session, msg.uuid), "ExpungeVmInstance", {VmState.DESTROYED})
        await self._run(ExpungeVmFlow, VmContext(vm_uuid=msg.uuid), DESTROY_FAILED)

    async def _expunge_old(self) -> None:
        """Expunge what was destroyed longer ago than the setting says; each node sees to its own VMs."""
        before = utcnow() - timedelta(seconds=self.node.settings.get(EXPUNGE_PERIOD))
        async with self.db.read() as session:
            query = select(VmInstanceModel.uuid).where(
                VmInstanceModel.state == VmState.DESTROYED, VmInstanceModel.last_op_date < before
            )
            due = [one for one in await session.scalars(query) if self.node.ring.owns(one)]
        for uuid in due:
            if await self.node.settings.get_for(DELETION_POLICY, uuid) != "Never":
                self.bus.send(DestroyVm(vm_uuid=uuid, policy="Direct"))

    # --- devices ------------------------------------------------------------------------------------------------------

    @handles(AttachDataVolumeToVm, queue="vm-{vm_instance_uuid}", repeatable=True)
    async def attach_volume(self, msg: AttachDataVolumeToVm) -> VolumeInventory:
        async with self.db.read() as session:
            require_state(await read_vm(session, msg.vm_instance_uuid), "AttachDataVolumeToVm", ATTACHABLE)
        volume = await volume_of(self.node, msg.volume_uuid)
        ctx = VolumeContext(vm_uuid=msg.vm_instance_uuid, volume_uuid=msg.volume_uuid)
        if not volume.install_path:
            ctx.instantiate_on = volume.primary_storage_uuid or await self._storage_of(msg.vm_instance_uuid)
        return await self._run(AttachVolumeFlow, ctx, ATTACH_VOLUME_FAILED)

    async def _storage_of(self, vm_uuid: str) -> str:
        """The primary storage of a VM's root disk: where its data disks go when nothing else is said."""
        volumes = (await self.bus.call(GetVolumes(vm_instance_uuid=vm_uuid))).volumes
        root = next((one.primary_storage_uuid for one in volumes if one.type == "Root"), None)
        if root is None:
            raise CloudError(ATTACH_VOLUME_FAILED, f"vm[uuid:{vm_uuid}] has no root volume on any primary storage")
        return root

    @handles(DetachDataVolumeFromVm, repeatable=True)
    async def detach_volume(self, msg: DetachDataVolumeFromVm) -> VolumeInventory:
        volume = await volume_of(self.node, msg.uuid)
        if volume.vm_instance_uuid is None:
            raise _is_free(msg.uuid)
        return await self.bus.call(DetachVolumeFromVm(vm_uuid=volume.vm_instance_uuid, volume_uuid=msg.uuid))

    @handles(DetachVolumeFromVm, queue="vm-{vm_uuid}")
    async def detach_volume_in_turn(self, msg: DetachVolumeFromVm) -> VolumeInventory:
        volume = await volume_of(self.node, msg.volume_uuid)
        if volume.vm_instance_uuid != msg.vm_uuid:
            raise _is_free(msg.volume_uuid)
        ctx = VolumeContext(vm_uuid=msg.vm_uuid, volume_uuid=msg.volume_uuid, device_id=volume.device_id or 0)
        return await self._run(DetachVolumeFlow, ctx, DETACH_VOLUME_FAILED, answers=msg.answers)

    @handles(AttachL3NetworkToVm, queue="vm-{vm_instance_uuid}", repeatable=True)
    async def attach_nic(self, msg: AttachL3NetworkToVm) -> VmInstanceInventory:
        async with self.db.read() as session:
            account = await owner_of(session, msg.vm_instance_uuid) or ADMIN_ACCOUNT_UUID
            static = await tags.STATIC_IP.get_all(session, msg.vm_instance_uuid)
        wanted = {one["l3NetworkUuid"]: one["staticIp"] for one in static}
        plan = NicPlan(
            nic_uuid=new_uuid(),
            l3_network_uuid=msg.l3_network_uuid,
            device_id=0,
            mac=(msg.custom_mac or new_mac()).lower(),
            required_ip=msg.static_ip or wanted.get(msg.l3_network_uuid),
        )
        ctx = NicContext(vm_uuid=msg.vm_instance_uuid, account_uuid=account, plan=plan)
        return await self._run(AttachNicFlow, ctx, ATTACH_NETWORK_FAILED)

    @handles(DetachL3NetworkFromVm, repeatable=True)
    async def detach_nic(self, msg: DetachL3NetworkFromVm) -> VmInstanceInventory:
        vm_uuid = await self._vm_of(msg.vm_nic_uuid)
        return await self.bus.call(DetachNicFromVm(vm_uuid=vm_uuid, vm_nic_uuid=msg.vm_nic_uuid))

    @handles(DetachNicFromVm, queue="vm-{vm_uuid}")
    async def detach_nic_in_turn(self, msg: DetachNicFromVm) -> VmInstanceInventory:
        return await self._detach_nic(msg.vm_uuid, msg.vm_nic_uuid)

    @handles(DetachVmNic, queue="vm-{vm_uuid}")
    async def detach_nic_quietly(self, msg: DetachVmNic) -> None:
        await self._detach_nic(msg.vm_uuid, msg.vm_nic_uuid, answers=False)

    async def _vm_of(self, nic_uuid: str) -> str:
        async with self.db.read() as session:
            nic = await session.get(VmNicModel, nic_uuid)
        if nic is None:
            raise not_found("VmNicVO", nic_uuid)
        return nic.vm_instance_uuid

    async def _detach_nic(self, vm_uuid: str, nic_uuid: str, answers: bool = True) -> VmInstanceInventory:
        async with self.db.read() as session:
            nic = await session.get(VmNicModel, nic_uuid)
            if nic is None:
                return await inventory_of(self.node, vm_uuid)
            if answers:
                require_state(await read_vm(session, vm_uuid), "DetachL3NetworkFromVm", ATTACHABLE)
        ctx = DetachNicContext(vm_uuid=vm_uuid, nic_uuid=nic_uuid, l3_network_uuid=nic.l3_network_uuid, ip=nic.ip)
        return await self._run(DetachNicFlow, ctx, ATTACH_NETWORK_FAILED, answers=answers)

    # --- description --------------------------------------------------------------------------------------------------

    @handles(UpdateVmInstance, queue=QUEUE)
    async def update(self, msg: UpdateVmInstance) -> VmInstanceInventory:
        async with self.db.transaction() as tx:
            vm = await load_vm(tx, msg.uuid)
            if msg.cpu_num is not None or msg.memory_size is not None:
                require_state(vm, "UpdateVmInstance (cpuNum, memorySize)", {VmState.STOPPED, VmState.CREATED})
            for field in _UPDATABLE:
                value = getattr(msg, field)
                if value is not None:
                    setattr(vm, field, value)
        return await inventory_of(self.node, msg.uuid)

    @handles(ChangeInstanceOffering, queue="vm-{vm_instance_uuid}")
    async def change_offering(self, msg: ChangeInstanceOffering) -> VmInstanceInventory:
        offering = await self.bus.call(GetInstanceOffering(uuid=msg.instance_offering_uuid, enabled=True))
        async with self.db.transaction() as tx:
            vm = await load_vm(tx, msg.vm_instance_uuid)
            require_state(vm, "ChangeInstanceOffering", {VmState.STOPPED})
            vm.instance_offering_uuid, vm.cpu_num = offering.uuid, offering.cpu_num
            vm.memory_size, vm.cpu_speed = offering.memory_size, offering.cpu_speed or 0
            vm.allocator_strategy = offering.allocator_strategy
        return await inventory_of(self.node, msg.vm_instance_uuid)

    @handles(SetVmHostname, queue=QUEUE)
    async def set_hostname(self, msg: SetVmHostname) -> None:
        await self._set_tag(tags.HOSTNAME, msg.uuid, hostname=msg.hostname)

    @handles(DeleteVmHostname, queue=QUEUE)
    async def delete_hostname(self, msg: DeleteVmHostname) -> None:
        await self._drop_tag(tags.HOSTNAME, msg.uuid)

    @handles(SetVmSshKey, queue=QUEUE)
    async def set_ssh_key(self, msg: SetVmSshKey) -> VmInstanceInventory:
        await self._set_tag(tags.SSHKEY, msg.uuid, sshkey=msg.ssh_key)
        return await inventory_of(self.node, msg.uuid)

    @handles(DeleteVmSshKey, queue=QUEUE)
    async def delete_ssh_key(self, msg: DeleteVmSshKey) -> None:
        await self._drop_tag(tags.SSHKEY, msg.uuid or "")

    @handles(SetVmConsolePassword, queue=QUEUE)
    async def set_console_password(self, msg: SetVmConsolePassword) -> VmInstanceInventory:
        await self._set_tag(tags.CONSOLE_PASSWORD, msg.uuid, consolePassword=msg.console_password)
        return await inventory_of(self.node, msg.uuid)

    @handles(DeleteVmConsolePassword, queue=QUEUE)
    async def delete_console_password(self, msg: DeleteVmConsolePassword) -> None:
        await self._drop_tag(tags.CONSOLE_PASSWORD, msg.uuid)

    @handles(SetVmBootOrder, queue=QUEUE)
    async def set_boot_order(self, msg: SetVmBootOrder) -> VmInstanceInventory:
        if msg.boot_order:
            await self._set_tag(tags.BOOT_ORDER, msg.uuid, bootOrder=",".join(msg.boot_order))
        else:
            await self._drop_tag(tags.BOOT_ORDER, msg.uuid)
        return await inventory_of(self.node, msg.uuid)

    @handles(SetVmStaticIp, queue="vm-{vm_instance_uuid}", repeatable=True)
    async def set_static_ip(self, msg: SetVmStaticIp) -> None:
        async with self.db.read() as session:
            vm = await read_vm(session, msg.vm_instance_uuid)
        require_state(vm, "SetVmStaticIp", {VmState.STOPPED})
        nic = next((one for one in vm.vm_nics if one.l3_network_uuid == msg.l3_network_uuid), None)
        if nic is None:
            raise not_found("VmNicVO on the network", msg.l3_network_uuid)
        await self.node.workflows.run(
            ChangeIpFlow,
            ChangeIpContext(
                vm_uuid=vm.uuid,
                nic_uuid=nic.uuid,
                l3_network_uuid=nic.l3_network_uuid,
                old_ip=nic.ip,
                new_ip=msg.ip or "",
            ),
            answers=True,
        )

    @handles(DeleteVmStaticIp, queue="vm-{vm_instance_uuid}")
    async def delete_static_ip(self, msg: DeleteVmStaticIp) -> None:
        async with self.db.transaction() as tx:
            require_state(await read_vm(tx, msg.vm_instance_uuid, lock=True), "DeleteVmStaticIp", ATTACHABLE)
            await tags.STATIC_IP.delete(tx, msg.vm_instance_uuid, l3NetworkUuid=msg.l3_network_uuid)

    # --- helpers ------------------------------------------------------------------------------------------------------

    async def _run(self, flow: type[Workflow[C, R]], ctx: C, failure: ErrorType, answers: bool = True) -> R:
        """Run a workflow; its error becomes the cause of the operation's own one."""
        try:
            return await self.node.workflows.run(flow, ctx, answers=answers)
        except CloudError as error:
            raise CloudError(failure, error.details, cause=error, vmUuid=ctx.vm_uuid) from error

    async def _state(self, vm_uuid: str) -> str:
        vm = await read_row(self.db.once, VmInstanceModel, vm_uuid)
        if vm is None:
            raise not_found("VmInstanceVO", vm_uuid)
        return vm.state

    async def _set_tag(self, tag: SystemTag, uuid: str, **tokens: str) -> None:
        async with self.db.transaction() as tx:
            await read_vm(tx, uuid, lock=True)
            await tag.set(tx, uuid, **tokens)

    async def _drop_tag(self, tag: SystemTag, uuid: str) -> None:
        async with self.db.transaction() as tx:
            await read_vm(tx, uuid, lock=True)
            await tag.delete(tx, uuid)


_UPDATABLE = (
    "name",
    "description",
    "default_l3_network_uuid",
    "platform",
    "cpu_num",
    "memory_size",
    "reserved_memory_size",
    "guest_os_type",
)


def _is_free(volume_uuid: str) -> CloudError:
    return CloudError(DETACH_VOLUME_FAILED, f"volume[uuid:{volume_uuid}] is not attached to any vm")
