"""Create a VM: record it, find a place, make its disks, give it addresses, start it.

Invariant: a VM row exists exactly while the VM does or a workflow is making it; whatever was reserved for a VM that
does not come to be is given back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.allocator.messages import AllocateHost, DiskRequest, ReturnHost
from caelum.cloud.host.messages import PrepareAndStartVmOnHost
from caelum.cloud.host.spec import nic_name
from caelum.cloud.l3.api import UsedIpInventory
from caelum.cloud.l3.extension import AddressRecords
from caelum.cloud.l3.messages import AllocateIp, ReturnIp
from caelum.cloud.ownership import own_all
from caelum.cloud.parts import part
from caelum.cloud.primary_storage.extension import BitsRecords
from caelum.cloud.primary_storage.messages import PlanVolumeOnStorage, ReleaseStorage, VolumePlan
from caelum.cloud.quota import take_under
from caelum.cloud.vm.api import CreateVmInstance, VmInstanceInventory
from caelum.cloud.vm.flows.base import (
    LONG,
    VmContext,
    VmFlow,
    bring_isos,
    destroy_on_host,
    leave_host,
    plan_start,
    start_on,
)
from caelum.cloud.vm.model import VmCdRomModel, VmInstanceModel, VmNicModel, VmState
from caelum.cloud.vm.records import (
    announce,
    forget_vm,
    give_running_quota,
    internal_id,
    move,
    move_unseen,
    new_mac,
    take_quota,
    with_related,
)
from caelum.cloud.vm.specs import VmRecords, records_of, tag_texts
from caelum.cloud.volume.api import VolumeInventory
from caelum.cloud.volume.extension import VolumeRecords, counted
from caelum.cloud.volume.messages import CreateVolume, DeleteVolume, FillVolume
from caelum.kernel.database import after_commit
from caelum.kernel.errors import UNDELIVERABLE, CloudError, to_wire
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import Message
from caelum.kernel.node import Node
from caelum.kernel.rows import insert_rows, new_row, related, update_row, update_rows
from caelum.kernel.tag import save_tags
from caelum.kernel.views import view
from caelum.kernel.workflow import Retry, Run, db_step, step

R = TypeVar("R")
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
    """What the creation needs; fixed but for the place and the addresses, which are found."""

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
    """The root disk first."""
    nics: list[NicPlan]
    isos: list[str | None] = []
    default_l3_uuid: str | None = None
    cluster_uuid: str | None = None
    addresses: dict[str, UsedIpInventory] = {}
    """By NIC."""
    starts: bool = True
    are_disks_counted: bool = False
    """Whether its disks are counted for the account since the beginning; else it is done when they are recorded."""
    root: VolumePlan | None = None
    """How the host makes the root disk with the start; None: it is made before."""
    made: dict[str, Any] | None = None
    """What the host says of the root disk that it has made so."""


def plan_nics(node: Node, l3_uuids: list[str], static: dict[str, str], macs: dict[str, str]) -> list[NicPlan]:
    """A NIC for each network, in order."""
    return [
        NicPlan(
            nic_uuid=node.ring.new_uuid(),
            l3_network_uuid=l3,
            device_id=number,
            mac=macs.get(l3, "").lower() or new_mac(),
            required_ip=static.get(l3),
        )
        for number, l3 in enumerate(l3_uuids)
    ]


class CreateVmFlow(VmFlow[CreateVmContext]):
    """Nothing -> Starting -> Running (or Stopped, when it was only to be created).

    What was written since the beginning is known, and not read again; after a crash it is read.
    """

    name = "vm.create"
    rehearsal = "vm_create"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._vm: VmInstanceModel | None = None
        """The VM's row as it began, with its NICs and drives as they are; None after a crash."""
        self._volumes: list[VolumeInventory] = []
        """As they are; none after a crash."""
        self._has_asked = False
        """Whether a place was asked for by this node."""

    async def begin(self, tx: AsyncSession, ctx: CreateVmContext) -> None:
        vm = self._vm = _row(ctx, await internal_id(tx, ctx.vm_uuid))
        nics = [nic_row(ctx.vm_uuid, vm.internal_id, plan) for plan in ctx.nics]
        drives = [_drive(ctx.vm_uuid, number, iso) for number, iso in enumerate(ctx.isos)]
        related(vm, vm_nics=nics, vm_cd_roms=drives)
        await insert_rows(tx, [vm, *vm.vm_nics, *vm.vm_cd_roms])
        types = {plan.nic_uuid: "VmNicVO" for plan in ctx.nics}
        await own_all(tx, ctx.account_uuid, {ctx.vm_uuid: "VmInstanceVO", **types})
        await save_tags(tx, ctx.msg, vm.uuid)
        # A node of the version before, which may go on with this run in a cluster, would not give back what is counted
        # for disks that have no record yet.
        ctx.are_disks_counted = not self.node.membership.clustered
        await take_quota(tx, vm, ctx.account_uuid, _counted(ctx.disks) if ctx.are_disks_counted else {})

    # --- what it gets -------------------------------------------------------------------------------------------------

    @step(progress=20)
    async def reserve(self, run: Run[CreateVmContext]) -> None:
        """A host with room for it and its disks."""
        ctx = run.ctx
        is_new, self._has_asked = self._vm is not None and not self._has_asked, True
        place = await run.bus.call(_wanted_place(ctx, is_new))
        ctx.host_uuid, ctx.cluster_uuid, ctx.zone_uuid = place.host_uuid, place.cluster_uuid, place.zone_uuid
        for disk in ctx.disks:
            disk.primary_storage_uuid = place.disks[disk.volume_uuid]
        ctx.root = await run.bus.call(_planned(ctx, ctx.disks[0])) if ctx.starts else None

    @reserve.undo
    async def give_back(self, run: Run[CreateVmContext]) -> None:
        ctx = run.ctx
        await _all(run, [ReturnIp(vm_nic_uuid=one.nic_uuid) for one in ctx.nics])
        await _all(run, [DeleteVolume(volume_uuid=one.volume_uuid, policy="Direct") for one in ctx.disks])
        await run.bus.call(ReturnHost(vm_uuid=ctx.vm_uuid))
        await _all(run, [ReleaseStorage(key=one.volume_uuid) for one in ctx.disks])

    @db_step(no_undo="the undo of reserve is that of both", retry=Retry(times=2, delay=0.1))  # type: ignore[untyped-decorator]
    async def record_place(self, tx: AsyncSession, run: Run[CreateVmContext]) -> None:
        """Its addresses, its place and its disks."""
        ctx = run.ctx
        taken = await part(self.node, AddressRecords).take(tx, [_address(one) for one in ctx.nics])
        ctx.addresses = {plan.nic_uuid: one for plan, one in zip(ctx.nics, taken, strict=True)}
        place = {
            "cluster_uuid": ctx.cluster_uuid,
            "zone_uuid": ctx.zone_uuid,
            "last_host_uuid": ctx.host_uuid,
            "host_uuid": ctx.host_uuid if ctx.starts else None,
            "root_volume_uuid": ctx.disks[0].volume_uuid,
        }
        await update_rows(tx, VmInstanceModel, place, uuid=ctx.vm_uuid)
        nics = [await update_row(tx, VmNicModel, uuid, address_columns(ip)) for uuid, ip in ctx.addresses.items()]
        if self._vm is not None:
            related(self._vm, vm_nics=[one for one in nics if one is not None])
        if ctx.root is not None and not await part(self.node, BitsRecords).pin(tx, ctx.root):
            ctx.root = None
        self._volumes = [await part(self.node, VolumeRecords).add(tx, _volume(ctx, one)) for one in ctx.disks]
        if not ctx.are_disks_counted:
            await take_under(tx, ctx.account_uuid, _counted(ctx.disks))

    # --- on its host --------------------------------------------------------------------------------------------------

    @step(idle=True)
    async def prepare_host(self, run: Run[CreateVmContext]) -> None:
        """What is done on the host is done by the next step. This one, which after a crash may be the last that counts
        as begun, has the undo of both.
        """

    @prepare_host.undo
    async def leave_host_again(self, run: Run[CreateVmContext]) -> None:
        if run.ctx.starts:
            await destroy_on_host(run.node, run.ctx.vm_uuid, _host(run.ctx))
            await leave_host(run.node, run.ctx.vm_uuid, _host(run.ctx))

    @step(timeout=LONG, retry=Retry(times=2), progress=95)
    async def start_on_host(self, run: Run[CreateVmContext]) -> None:
        """Make its disks and what else it needs, and start it; only the disks of one that is only created."""
        ctx = run.ctx
        if ctx.root is None or len(ctx.disks) > 1:
            await self._fill(run)
        if not ctx.starts:
            return
        if any(ctx.isos):
            await bring_isos(run.node, ctx.vm_uuid, _host(ctx))
        if ctx.root is not None:
            ctx.made = await self._start_with_root(run, ctx.root)
            if ctx.made is not None:
                return
            ctx.root = None
            await self._fill(run)
        planned = await plan_start(run.node, ctx.vm_uuid, _host(ctx), await self._records(run))
        await start_on(run.node, _host(ctx), planned)

    @start_on_host.undo
    async def destroy_domain(self, run: Run[CreateVmContext]) -> None:
        """What the collector may have to do for a version before, whose undo of `prepare_host` did not destroy."""
        if run.ctx.starts:
            await destroy_on_host(run.node, run.ctx.vm_uuid, _host(run.ctx))

    async def _fill(self, run: Run[CreateVmContext]) -> None:
        """Have the disks made, but for the root disk when it is made with the start."""
        ctx = run.ctx
        before = ctx.disks if ctx.root is None else ctx.disks[1:]
        filled = await _all(run, [_fill(ctx, one) for one in before])
        self._volumes = filled if ctx.root is None else [*self._volumes[:1], *filled]

    async def _start_with_root(self, run: Run[CreateVmContext], root: VolumePlan) -> dict[str, Any] | None:
        """Start it, the root disk being made in the same go. What the host says of the disk; None when it could not
        make it, or was not asked in this way: then nothing was started, or it is repeated.
        """
        planned = await plan_start(run.node, run.ctx.vm_uuid, root.host_uuid, await self._records(run))
        planned.before.insert(0, root.order)
        try:
            started = await run.bus.call(PrepareAndStartVmOnHost(host_uuid=root.host_uuid, spec=planned))
        except CloudError as error:
            if error.kind is UNDELIVERABLE or _failed(error) == root.order.path:
                return None
            raise
        return started.before[0] if started.before else None

    async def _records(self, run: Run[CreateVmContext]) -> VmRecords:
        """What the VM's description is made of, with the root disk as it will be."""
        ctx = run.ctx
        if self._vm is None or any(ctx.isos):
            records = await records_of(run.node, ctx.vm_uuid)
        else:
            # Whatever tags it gets while it is made by others are of its next start.
            texts = await tag_texts(run.db.once, ctx.vm_uuid) if ctx.msg.system_tags else {}
            records = VmRecords(self._vm, self._volumes, texts, ctx.account_uuid)
        if ctx.root is None:
            return records
        return records._replace(volumes=[_as_planned(one, ctx.root) for one in records.volumes])

    @step(skip=lambda ctx: ctx.starts, no_undo="the capacity is given back either way")
    async def leave_host(self, run: Run[CreateVmContext]) -> None:
        await run.bus.call(ReturnHost(vm_uuid=run.ctx.vm_uuid))

    # --- its end ------------------------------------------------------------------------------------------------------

    async def complete(self, tx: AsyncSession, ctx: CreateVmContext) -> None:
        event = "running" if ctx.starts else "stopped"
        if ctx.root is not None and ctx.made is not None:
            bits = await part(self.node, BitsRecords).made(tx, ctx.root, ctx.made)
            root = await part(self.node, VolumeRecords).filled(tx, ctx.root.volume_uuid, ctx.account_uuid, bits)
            self._volumes = [root, *self._volumes[1:]]
        self.final = await self._enter(tx, ctx, event) or view(await move(self.node, tx, ctx.vm_uuid, event))
        if not ctx.starts:
            await give_running_quota(tx, ctx.vm_uuid)

    async def _enter(self, tx: AsyncSession, ctx: CreateVmContext, event: str) -> VmInstanceInventory | None:
        """The same as `move` without a look at what is known; None when that is not all."""
        if self._vm is None:
            return None
        row = await move_unseen(tx, ctx.vm_uuid, VmState.STARTING, event)
        if row is None:
            return None
        final: VmInstanceInventory = view(with_related(row, self._vm))
        for nic in final.vm_nics:
            nic.used_ips = [ctx.addresses[nic.uuid]]
        final.all_volumes = self._volumes
        after_commit(tx, lambda: announce(self.node, final, VmState.STARTING))
        return final

    async def abort(self, tx: AsyncSession, ctx: CreateVmContext, error: CloudError) -> None:
        await forget_vm(tx, ctx.vm_uuid, *(one.volume_uuid for one in ctx.disks))


def _row(ctx: CreateVmContext, number: int) -> VmInstanceModel:
    msg = ctx.msg
    return new_row(
        VmInstanceModel,
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
    return new_row(
        VmNicModel,
        uuid=plan.nic_uuid,
        vm_instance_uuid=vm_uuid,
        l3_network_uuid=plan.l3_network_uuid,
        device_id=plan.device_id,
        mac=plan.mac,
        internal_name=nic_name(vm_internal_id, plan.device_id),
        hypervisor_type="KVM",
    )


def _drive(vm_uuid: str, number: int, iso_uuid: str | None) -> VmCdRomModel:
    return new_row(
        VmCdRomModel,
        uuid=new_uuid(),
        vm_instance_uuid=vm_uuid,
        device_id=number,
        iso_uuid=iso_uuid,
        name=f"vm-{vm_uuid}-cdRom",
    )


async def allocate_address(run: Run[Any], nic_uuid: str, l3_uuid: str, required_ip: str | None) -> None:
    """Take an address for a NIC and write it into the NIC's row."""
    used = await run.bus.call(
        AllocateIp(l3_network_uuid=l3_uuid, vm_nic_uuid=nic_uuid, required_ip=required_ip, used_for="Vm")
    )
    async with run.db.transaction() as tx:
        await update_rows(tx, VmNicModel, address_columns(used), uuid=nic_uuid)


def address_columns(used: UsedIpInventory) -> dict[str, Any]:
    """What a NIC's row says of its address."""
    return {
        "used_ip_uuid": used.uuid,
        "ip": used.ip,
        "netmask": used.netmask,
        "gateway": used.gateway,
        "ip_version": used.ip_version,
    }


# --- what it asks others for ----------------------------------------------------------------------------------------


def _wanted_place(ctx: CreateVmContext, is_new: bool) -> AllocateHost:
    return AllocateHost(
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
        is_new=is_new,
    )


def _request(disk: DiskPlan) -> DiskRequest:
    return DiskRequest(
        key=disk.volume_uuid,
        size=disk.size,
        primary_storage_uuid=disk.primary_storage_uuid,
        is_root=disk.type == "Root",
    )


def _counted(disks: list[DiskPlan]) -> dict[str, dict[str, int]]:
    """What an account is counted for, by disk."""
    return {one.volume_uuid: counted(one.type, one.size) for one in disks}


def _volume(ctx: CreateVmContext, disk: DiskPlan) -> CreateVolume:
    return CreateVolume(
        volume_uuid=disk.volume_uuid,
        name=disk.name,
        type=disk.type,
        size=disk.size,
        account_uuid=ctx.account_uuid,
        primary_storage_uuid=disk.primary_storage_uuid,
        vm_instance_uuid=ctx.vm_uuid,
        device_id=disk.device_id,
        root_image_uuid=disk.image_uuid,
        disk_offering_uuid=disk.disk_offering_uuid,
        description=f"{disk.type} volume for VM[uuid:{ctx.vm_uuid}]",
        system_tags=disk.system_tags,
    )


def _fill(ctx: CreateVmContext, disk: DiskPlan) -> FillVolume:
    return FillVolume(
        volume_uuid=disk.volume_uuid, host_uuid=ctx.host_uuid, primary_storage_uuid=disk.primary_storage_uuid or ""
    )


def _planned(ctx: CreateVmContext, root: DiskPlan) -> PlanVolumeOnStorage:
    return PlanVolumeOnStorage(
        primary_storage_uuid=root.primary_storage_uuid or "",
        host_uuid=_host(ctx),
        volume_uuid=root.volume_uuid,
        size=root.size,
        image_uuid=root.image_uuid,
        account_uuid=ctx.account_uuid,
        volume_type=root.type,
    )


def _as_planned(volume: VolumeInventory, root: VolumePlan) -> VolumeInventory:
    """A volume as it will be: the root disk is where and what it is planned."""
    if volume.uuid != root.volume_uuid:
        return volume
    return msgspec.structs.replace(volume, install_path=root.install_path, format=root.format, size=root.size)


def _failed(error: CloudError) -> str | None:
    """Which command failed on the host."""
    if error.cause is None:
        return None
    facts = to_wire(error.cause).opaque or {}
    failed: str | None = facts.get("order", facts.get("command"))
    return failed


def _address(nic: NicPlan) -> AllocateIp:
    return AllocateIp(
        l3_network_uuid=nic.l3_network_uuid, vm_nic_uuid=nic.nic_uuid, required_ip=nic.required_ip, used_for="Vm"
    )


def _host(ctx: VmContext) -> str:
    if ctx.host_uuid is None:
        raise RuntimeError("no host has been allocated yet")
    return ctx.host_uuid


async def _all(run: Run[CreateVmContext], messages: Sequence[Message[R]]) -> list[R]:
    """Send all and wait for all; the first error is raised after every one has answered."""
    answers = []
    for answer in await run.bus.call_all(messages):
        if isinstance(answer, CloudError):
            raise answer
        answers.append(answer)
    return answers
