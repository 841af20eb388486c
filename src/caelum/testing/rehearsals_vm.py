"""The scenarios of the VM service's workflows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from caelum.cloud.vm.api import (
    AttachL3NetworkToVm,
    CreateVmInstance,
    DestroyVmInstance,
    DetachL3NetworkFromVm,
    ExpungeVmInstance,
    PauseVmInstance,
    RebootVmInstance,
    RecoverVmInstance,
    ResumeVmInstance,
    SetVmStaticIp,
    StartVmInstance,
    StopVmInstance,
    VmInstanceInventory,
)
from caelum.cloud.vm.messages import VmStateSeen
from caelum.cloud.volume.api import AttachDataVolumeToVm, CreateDataVolume, DetachDataVolumeFromVm
from caelum.testing.rehearsals import Rehearsal, rehearsal
from caelum.testing.simcloud import SimulatedCloud, simulated_cloud

Prepare = Callable[[SimulatedCloud, VmInstanceInventory], Awaitable[Any]]


@rehearsal("vm_create")
@asynccontextmanager
async def vm_create() -> AsyncIterator[Rehearsal]:
    """The first VM of an image: the image cache is filled too, and stays filled when the creation is undone."""
    async with simulated_cloud() as world:
        # A VM that came and went fills the caches, so that "as before" can be compared.
        first = await world.create_vm("first")
        await world.api(DestroyVmInstance(uuid=first.uuid))
        await world.api(ExpungeVmInstance(uuid=first.uuid))
        msg = CreateVmInstance(
            name="vm",
            image_uuid=world.image,
            instance_offering_uuid=world.offering,
            l3_network_uuids=[world.l3],
            data_disk_offering_uuids=[world.disk_offering],
            system_tags=["hostname::vm"],
        )
        yield world.rehearse(lambda: world.api(msg))


def _of_running_vm(name: str, trigger: Callable[[str], Any], prepare: Prepare | None = None) -> None:
    """Declare a rehearsal of an operation on a VM that runs, after `prepare`."""

    @rehearsal(name)
    @asynccontextmanager
    async def scene() -> AsyncIterator[Rehearsal]:
        async with simulated_cloud() as world:
            vm = await world.create_vm()
            if prepare is not None:
                await prepare(world, vm)
            yield world.rehearse(lambda: world.api(trigger(vm.uuid)))


async def _stop(world: SimulatedCloud, vm: VmInstanceInventory) -> None:
    await world.api(StopVmInstance(uuid=vm.uuid, type="cold"))


async def _pause(world: SimulatedCloud, vm: VmInstanceInventory) -> None:
    await world.api(PauseVmInstance(uuid=vm.uuid))


async def _destroy(world: SimulatedCloud, vm: VmInstanceInventory) -> None:
    await world.api(DestroyVmInstance(uuid=vm.uuid))


_of_running_vm("vm_start", lambda uuid: StartVmInstance(uuid=uuid), _stop)
_of_running_vm("vm_stop", lambda uuid: StopVmInstance(uuid=uuid))
_of_running_vm("vm_reboot", lambda uuid: RebootVmInstance(uuid=uuid))
_of_running_vm("vm_pause", lambda uuid: PauseVmInstance(uuid=uuid))
_of_running_vm("vm_resume", lambda uuid: ResumeVmInstance(uuid=uuid), _pause)
_of_running_vm("vm_destroy", lambda uuid: DestroyVmInstance(uuid=uuid))
_of_running_vm("vm_recover", lambda uuid: RecoverVmInstance(uuid=uuid), _destroy)
_of_running_vm("vm_expunge", lambda uuid: ExpungeVmInstance(uuid=uuid), _destroy)


@rehearsal("vm_gone")
@asynccontextmanager
async def vm_gone() -> AsyncIterator[Rehearsal]:
    """The guest of a running VM has ended by itself, and the host says so."""
    async with simulated_cloud() as world:
        vm = await world.create_vm()
        seen = VmStateSeen(vm_uuid=vm.uuid, host_uuid=vm.host_uuid or "", state="Stopped")

        async def end() -> None:
            world.hosts[0].world.vms.pop(vm.uuid)
            await world.cloud.node.bus.call(seen)

        yield world.rehearse(end)


@rehearsal("vm_attach_volume")
@asynccontextmanager
async def vm_attach_volume() -> AsyncIterator[Rehearsal]:
    """A volume that has its bits already is attached to a running VM."""
    async with simulated_cloud() as world:
        vm, volume = await _vm_and_volume(world)
        await world.api(DetachDataVolumeFromVm(uuid=volume))
        msg = AttachDataVolumeToVm(vm_instance_uuid=vm, volume_uuid=volume)
        yield world.rehearse(lambda: world.api(msg), _TIMES)


@rehearsal("vm_detach_volume")
@asynccontextmanager
async def vm_detach_volume() -> AsyncIterator[Rehearsal]:
    """An attached volume leaves a running VM."""
    async with simulated_cloud() as world:
        _, volume = await _vm_and_volume(world)
        yield world.rehearse(lambda: world.api(DetachDataVolumeFromVm(uuid=volume)), _TIMES)


_TIMES = frozenset({"volume.last_vm_instance_uuid", "volume.last_attach_date", "volume.last_detach_date"})
"""A volume remembers its last attachment even when that was taken back."""


async def _vm_and_volume(world: SimulatedCloud) -> tuple[str, str]:
    vm = await world.create_vm()
    volume = await world.api(CreateDataVolume(name="data", disk_offering_uuid=world.disk_offering))
    await world.api(AttachDataVolumeToVm(vm_instance_uuid=vm.uuid, volume_uuid=volume.uuid))
    return vm.uuid, volume.uuid


@rehearsal("vm_attach_nic")
@asynccontextmanager
async def vm_attach_nic() -> AsyncIterator[Rehearsal]:
    """A running VM gets a second NIC, on a network that has been in use before."""
    async with simulated_cloud() as world:
        second = await world.add_l3(2)
        vm = await world.create_vm()
        nic = await _attach_nic(world, vm.uuid, second)
        await world.api(DetachL3NetworkFromVm(vm_nic_uuid=nic))
        msg = AttachL3NetworkToVm(vm_instance_uuid=vm.uuid, l3_network_uuid=second)
        yield world.rehearse(lambda: world.api(msg))


@rehearsal("vm_detach_nic")
@asynccontextmanager
async def vm_detach_nic() -> AsyncIterator[Rehearsal]:
    """A running VM loses its second NIC."""
    async with simulated_cloud() as world:
        second = await world.add_l3(2)
        vm = await world.create_vm()
        nic = await _attach_nic(world, vm.uuid, second)
        yield world.rehearse(lambda: world.api(DetachL3NetworkFromVm(vm_nic_uuid=nic)))


async def _attach_nic(world: SimulatedCloud, vm_uuid: str, l3_uuid: str) -> str:
    vm = await world.api(AttachL3NetworkToVm(vm_instance_uuid=vm_uuid, l3_network_uuid=l3_uuid))
    return next(str(one.uuid) for one in vm.vm_nics if one.l3_network_uuid == l3_uuid)


@rehearsal("vm_change_ip")
@asynccontextmanager
async def vm_change_ip() -> AsyncIterator[Rehearsal]:
    """A stopped VM gets a fixed address."""
    async with simulated_cloud() as world:
        vm = await world.create_vm()
        await _stop(world, vm)
        msg = SetVmStaticIp(vm_instance_uuid=vm.uuid, l3_network_uuid=world.l3, ip=await world.free_address())
        yield world.rehearse(lambda: world.api(msg))
