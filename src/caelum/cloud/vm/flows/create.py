"""Create a VM: record it, find a place, make its disks, give it addresses, start it.

Invariant: a VM row exists exactly while the VM does or a workflow is making it; whatever was reserved for a VM that
does not come to be is given back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.allocator.messages import AllocateHost, DiskRequest, ReturnHost
from caelum.cloud.host.messages import StartVmOnHost
from caelum.cloud.host.spec import VmSpec, nic_name
from caelum.cloud.l3.messages import AllocateIp, ReturnIp
from caelum.cloud.ownership import own
from caelum.cloud.primary_storage.messages import ReleaseStorage
from caelum.cloud.vm.api import CreateVmInstance, VmInstanceInventory
from caelum.cloud.vm.flows.base import LONG, VmContext, VmFlow, bring_isos, destroy_on_host, leave_host, prepare_on
from caelum.cloud.vm.model import VmCdRomModel, VmInstanceModel, VmNicModel, VmState
from caelum.cloud.vm.records import forget_vm, give_running_quota, internal_id, move, new_mac, take_quota
from caelum.cloud.volume.messages import CreateVolume, DeleteVolume, InstantiateVolume
from caelum.kernel.database import update_where
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import Message
from caelum.kernel.tag import save_tags
from caelum.kernel.views import view
from caelum.kernel.workflow import Run, db_step, step

DEFAULT_STRATEGY = "LeastVmPreferred"


class DiskPlan(msgspec.Struct, kw_only=True):
    """A disk to make. `size` 0: the image's."""

    volume_uuid: str
    name: str
    type: str
    size: int
    device_id: int
    image_uuid: str | None = None
    disk_offering_uuid: str | None = None
    primary_storage_uuid: str | None = None
    system_tags: list[str] = []


class NicPlan(msgspec.Struct, kw_only=True):
    """A NIC to make."""

    nic_uuid: str
    l3_network_uuid: str
    device_id: int
    mac: str
    required_ip: str | None = None


class CreateVmContext(VmContext, kw_only=True):
    """What the creation needs; fixed but for the place, which the allocator fills in."""

    msg: CreateVmInstance
    account_uuid: str
    zone_uuid: str
    cpu_num: int
    memory: int
    cpu_speed: int = 0
    platform: str = "Linux"
    architecture: str = "x86_64"
    guest_os_type: str | None = None
    allocator_strategy: str = DEFAULT_STRATEGY
    disks: list[DiskPlan]
    nics: list[NicPlan]
    isos: list[str | None] = []
    default_l3_uuid: str | None = None
    cluster_uuid: str | None = None
    starts: bool = True


def plan_nics(l3_uuids: list[str], static: dict[str, str], macs: dict[str, str]) -> list[NicPlan]:
    """A NIC for each network, in order."""
    return [
        NicPlan(
            nic_uuid=new_uuid(),
            l3_network_uuid=l3,
            device_id=number,
            mac=macs.get(l3, "").lower() or new_mac(),
            required_ip=static.get(l3),
        )
        for number, l3 in enumerate(l3_uuids)
    ]


class CreateVmFlow(VmFlow[CreateVmContext]):
    """Nothing -> Starting -> Running (or Stopped, when it was only to be created)."""

    name = "vm.create"
    rehearsal = "vm_create"
    _prepared: VmSpec | None = None
    """What this node has prepared the host for, in this attempt."""
    _final: VmInstanceModel | None = None

    async def begin(self, tx: AsyncSession, ctx: CreateVmContext) -> None:
        vm = _row(ctx, await internal_id(tx, ctx.vm_uuid))
        tx.add(vm)
        await tx.flush()
        await own(tx, ctx.account_uuid, vm.uuid, "VmInstanceVO")
        await save_tags(tx, ctx.msg, vm.uuid)
        await take_quota(tx, vm, ctx.account_uuid)
        for plan in ctx.nics:
            tx.add(nic_row(ctx.vm_uuid, vm.internal_id, plan))
            await own(tx, ctx.account_uuid, plan.nic_uuid, "VmNicVO")
        for number, iso in enumerate(ctx.isos):
            tx.add(
                VmCdRomModel(
                    uuid=new_uuid(),
                    vm_instance_uuid=vm.uuid,
                    device_id=number,
                    iso_uuid=iso,
                    name=f"vm-{vm.uuid}-cdRom",
                )
            )

    @step(progress=10)
    async def allocate_host(self, run: Run[CreateVmContext]) -> None:
        ctx = run.ctx
        place = await run.bus.call(
            AllocateHost(
                vm_uuid=ctx.vm_uuid,
                cpu_num=ctx.cpu_num,
                memory=ctx.memory,
                zone_uuid=ctx.msg.zone_uuid,
                cluster_uuid=ctx.msg.cluster_uuid,
                host_uuid=ctx.msg.host_uuid,
                l3_network_uuids=[one.l3_network_uuid for one in ctx.nics],
                disks=[_request(one) for one in ctx.disks],
                image_uuid=ctx.msg.image_uuid,
                strategy=ctx.allocator_strategy,
                system_tags=ctx.msg.system_tags or [],
                architecture=ctx.architecture,
            )
        )
        ctx.host_uuid, ctx.cluster_uuid, ctx.zone_uuid = place.host_uuid, place.cluster_uuid, place.zone_uuid
        for disk in ctx.disks:
            disk.primary_storage_uuid = place.disks[disk.volume_uuid]

    @allocate_host.undo
    async def return_host(self, run: Run[CreateVmContext]) -> None:
        await run.bus.call(ReturnHost(vm_uuid=run.ctx.vm_uuid))
        await _all(run, [ReleaseStorage(key=one.volume_uuid) for one in run.ctx.disks])

    @step(progress=20)
    async def record_volumes(self, run: Run[CreateVmContext]) -> None:
        ctx = run.ctx
        await _all(
            run,
            [
                CreateVolume(
                    volume_uuid=one.volume_uuid,
                    name=one.name,
                    type=one.type,
                    size=one.size,
                    account_uuid=ctx.account_uuid,
                    primary_storage_uuid=one.primary_storage_uuid,
                    vm_instance_uuid=ctx.vm_uuid,
                    device_id=one.device_id,
                    root_image_uuid=one.image_uuid,
                    disk_offering_uuid=one.disk_offering_uuid,
                    description=f"{one.type} volume for VM[uuid:{ctx.vm_uuid}]",
                    system_tags=one.system_tags,
                )
                for one in ctx.disks
            ],
        )

    @record_volumes.undo
    async def delete_volumes(self, run: Run[CreateVmContext]) -> None:
        await _all(run, [DeleteVolume(volume_uuid=one.volume_uuid, policy="Direct") for one in run.ctx.disks])

    @step(progress=25)
    async def allocate_addresses(self, run: Run[CreateVmContext]) -> None:
        for nic in run.ctx.nics:
            await allocate_address(run, nic.nic_uuid, nic.l3_network_uuid, nic.required_ip)

    @allocate_addresses.undo
    async def return_addresses(self, run: Run[CreateVmContext]) -> None:
        await _all(run, [ReturnIp(vm_nic_uuid=one.nic_uuid) for one in run.ctx.nics])

    @db_step(no_undo="the row goes when the creation is undone")  # type: ignore[untyped-decorator]
    async def record_place(self, tx: AsyncSession, run: Run[CreateVmContext]) -> None:
        ctx = run.ctx
        place = {
            "cluster_uuid": ctx.cluster_uuid,
            "zone_uuid": ctx.zone_uuid,
            "last_host_uuid": ctx.host_uuid,
            "host_uuid": ctx.host_uuid if ctx.starts else None,
            "root_volume_uuid": ctx.disks[0].volume_uuid,
        }
        await update_where(tx, VmInstanceModel, place, VmInstanceModel.uuid == ctx.vm_uuid)

    @step(timeout=LONG, progress=70, no_undo="deleting the volumes deletes their bits")
    async def make_disks(self, run: Run[CreateVmContext]) -> None:
        await _all(
            run,
            [
                InstantiateVolume(
                    volume_uuid=one.volume_uuid,
                    host_uuid=run.ctx.host_uuid,
                    primary_storage_uuid=one.primary_storage_uuid or "",
                )
                for one in run.ctx.disks
            ],
        )

    @step(timeout=LONG, skip=lambda ctx: not ctx.starts or not any(ctx.isos), no_undo="images stay in the cache")
    async def bring_isos(self, run: Run[CreateVmContext]) -> None:
        await bring_isos(run.node, run.ctx.vm_uuid, _host(run.ctx))

    @step(progress=80, skip=lambda ctx: not ctx.starts)
    async def prepare_host(self, run: Run[CreateVmContext]) -> None:
        self._prepared = await prepare_on(run.node, run.ctx.vm_uuid, _host(run.ctx))

    @prepare_host.undo
    async def release_host(self, run: Run[CreateVmContext]) -> None:
        await leave_host(run.node, run.ctx.vm_uuid, _host(run.ctx))

    @step(progress=95, skip=lambda ctx: not ctx.starts)
    async def start_on_host(self, run: Run[CreateVmContext]) -> None:
        # After a crash the host is prepared again: it may have been restarted since.
        spec = self._prepared or await prepare_on(run.node, run.ctx.vm_uuid, _host(run.ctx))
        await run.bus.call(StartVmOnHost(host_uuid=_host(run.ctx), spec=spec))

    @start_on_host.undo
    async def destroy_domain(self, run: Run[CreateVmContext]) -> None:
        await destroy_on_host(run.node, run.ctx.vm_uuid, _host(run.ctx))

    @step(skip=lambda ctx: ctx.starts, no_undo="the capacity is given back either way")
    async def leave_host(self, run: Run[CreateVmContext]) -> None:
        await run.bus.call(ReturnHost(vm_uuid=run.ctx.vm_uuid))

    async def complete(self, tx: AsyncSession, ctx: CreateVmContext) -> None:
        vm = await move(self.node, tx, ctx.vm_uuid, "running" if ctx.starts else "stopped")
        if not ctx.starts:
            await give_running_quota(tx, vm)
        self._final = vm

    async def result(self, ctx: CreateVmContext) -> VmInstanceInventory:
        """The VM as it was completed; after a crash, as it is now."""
        return await super().result(ctx) if self._final is None else view(self._final)

    async def abort(self, tx: AsyncSession, ctx: CreateVmContext, error: CloudError) -> None:
        await forget_vm(tx, ctx.vm_uuid)


def _row(ctx: CreateVmContext, number: int) -> VmInstanceModel:
    msg = ctx.msg
    return VmInstanceModel(
        uuid=ctx.vm_uuid,
        name=msg.name,
        description=msg.description,
        zone_uuid=ctx.zone_uuid,
        image_uuid=msg.image_uuid,
        instance_offering_uuid=msg.instance_offering_uuid,
        default_l3_network_uuid=ctx.default_l3_uuid,
        platform=ctx.platform,
        architecture=ctx.architecture,
        guest_os_type=ctx.guest_os_type,
        type=msg.type or "UserVm",
        cpu_num=ctx.cpu_num,
        cpu_speed=ctx.cpu_speed,
        memory_size=ctx.memory,
        reserved_memory_size=msg.reserved_memory_size or 0,
        allocator_strategy=ctx.allocator_strategy,
        internal_id=number,
        state=VmState.STARTING,
    )


def nic_row(vm_uuid: str, vm_internal_id: int, plan: NicPlan) -> VmNicModel:
    """A NIC's row, without an address yet."""
    return VmNicModel(
        uuid=plan.nic_uuid,
        vm_instance_uuid=vm_uuid,
        l3_network_uuid=plan.l3_network_uuid,
        device_id=plan.device_id,
        mac=plan.mac,
        internal_name=nic_name(vm_internal_id, plan.device_id),
        hypervisor_type="KVM",
    )


async def allocate_address(run: Run[Any], nic_uuid: str, l3_uuid: str, required_ip: str | None) -> None:
    """Take an address for a NIC and write it into the NIC's row."""
    used = await run.bus.call(
        AllocateIp(l3_network_uuid=l3_uuid, vm_nic_uuid=nic_uuid, required_ip=required_ip, used_for="Vm")
    )
    async with run.db.transaction() as tx:
        await tx.execute(
            update(VmNicModel)
            .where(VmNicModel.uuid == nic_uuid)
            .values(
                used_ip_uuid=used.uuid,
                ip=used.ip,
                netmask=used.netmask,
                gateway=used.gateway,
                ip_version=used.ip_version,
            )
        )


def _request(disk: DiskPlan) -> DiskRequest:
    return DiskRequest(
        key=disk.volume_uuid,
        size=disk.size,
        primary_storage_uuid=disk.primary_storage_uuid,
        is_root=disk.type == "Root",
    )


def _host(ctx: VmContext) -> str:
    if ctx.host_uuid is None:
        raise RuntimeError("no host has been allocated yet")
    return ctx.host_uuid


async def _all(run: Run[CreateVmContext], messages: Sequence[Message[Any]]) -> None:
    """Send all and wait for all; the first error is raised after every one has answered."""
    for answer in await run.bus.call_all(messages):
        if isinstance(answer, CloudError):
            raise answer
