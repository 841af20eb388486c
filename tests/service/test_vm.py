"""The whole life of a virtual machine, by every operation of the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import Context
from pathlib import Path

import pytest
from sqlalchemy import select
from tests.service.vm_clouds import assert_nothing_wrong, chain, guests, owned, room, used, vm_of

from caelum.agent import protocol
from caelum.cloud.offering.api import CreateInstanceOffering
from caelum.cloud.vm.api import (
    AttachL3NetworkToVm,
    ChangeInstanceOffering,
    DeleteVmConsolePassword,
    DeleteVmHostname,
    DeleteVmSshKey,
    DeleteVmStaticIp,
    DestroyVmInstance,
    DetachL3NetworkFromVm,
    ExpungeVmInstance,
    GetVmAttachableDataVolume,
    GetVmAttachableL3Network,
    GetVmBootOrder,
    GetVmCapabilities,
    GetVmHostname,
    GetVmSshKey,
    GetVmStartingCandidateClustersHosts,
    PauseVmInstance,
    QueryVmCdRom,
    QueryVmInstance,
    QueryVmNic,
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
    VmStateChanged,
)
from caelum.cloud.vm.messages import DetachNicFromVm, DetachVolumeFromVm
from caelum.cloud.volume.api import AttachDataVolumeToVm, CreateDataVolume, DetachDataVolumeFromVm
from caelum.kernel.errors import INVALID_ARGUMENT, RESOURCE_NOT_FOUND, CloudError
from caelum.kernel.gc import DONE, GarbageCollectorModel
from caelum.kernel.message import QueryCondition
from caelum.testing.simcloud import GIB, MIB, SimulatedCloud, simulated_cloud


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SimulatedCloud]:
    async with simulated_cloud(tmp_path, hosts=2) as made:
        yield made


async def test_from_creation_to_nothing(world: SimulatedCloud) -> None:
    free, mine = await room(world), await owned(world)
    vm = await world.create_vm("web", data_disk_offering_uuids=[world.disk_offering], system_tags=["hostname::web"])
    assert (vm.state, vm.name, vm.cpu_num, vm.memory_size) == ("Running", "web", 1, 128 * MIB)
    assert guests(world) == {vm.uuid: "Running"}
    assert [(one.type, one.device_id, one.status) for one in vm.all_volumes] == [
        ("Root", 0, "Ready"),
        ("Data", 1, "Ready"),
    ]
    assert str(vm.vm_nics[0].ip).startswith("10.1.0.")
    assert await used(world) == {"vm.totalNum": 1, "vm.num": 1, "vm.cpuNum": 1, "vm.memorySize": 128 * MIB}
    cpu, memory, disk = await room(world)
    assert (free[0] - cpu, free[1] - memory) == (1, 128 * MIB)
    assert free[2] - disk >= GIB, "the data disk counts in full"
    address = vm.vm_nics[0].ip

    stopped = await world.api(StopVmInstance(uuid=vm.uuid))
    assert (stopped.state, stopped.host_uuid, stopped.last_host_uuid) == ("Stopped", None, vm.host_uuid)
    assert guests(world) == {}
    assert await used(world) == {"vm.totalNum": 1, "vm.num": 0, "vm.cpuNum": 0, "vm.memorySize": 0}
    assert (await room(world))[:2] == free[:2]
    started = await world.api(StartVmInstance(uuid=vm.uuid))
    assert (started.state, started.host_uuid) == ("Running", vm.host_uuid), "its disks are on that host"
    assert started.vm_nics[0].ip == address, "an address stays the VM's while it is stopped"
    assert (await world.api(RebootVmInstance(uuid=vm.uuid))).state == "Running"
    assert (await world.api(PauseVmInstance(uuid=vm.uuid))).state == "Paused"
    assert guests(world) == {vm.uuid: "Paused"}
    assert (await world.api(ResumeVmInstance(uuid=vm.uuid))).state == "Running"

    await world.api(DestroyVmInstance(uuid=vm.uuid))
    gone = await vm_of(world, vm.uuid)
    assert (gone.state, gone.host_uuid, gone.vm_nics[0].ip) == ("Destroyed", None, None)
    assert [one.type for one in gone.all_volumes] == ["Root"], "data disks outlive the VM"
    assert guests(world) == {}
    recovered = await world.api(RecoverVmInstance(uuid=vm.uuid))
    assert recovered.state == "Stopped"
    assert (await world.api(StartVmInstance(uuid=vm.uuid))).vm_nics[0].ip
    await assert_nothing_wrong(world)
    await world.api(DestroyVmInstance(uuid=vm.uuid))
    await world.api(ExpungeVmInstance(uuid=vm.uuid))
    with pytest.raises(CloudError) as missing:
        await vm_of(world, vm.uuid)
    assert missing.value.kind == RESOURCE_NOT_FOUND
    assert await used(world) == {"vm.totalNum": 0, "vm.num": 0, "vm.cpuNum": 0, "vm.memorySize": 0}
    left = [one for one in await owned(world) if one not in mine]
    assert [kind for kind, _ in left] == ["VolumeVO"]
    changes = [one.new_state for one in await world.cloud.seen(VmStateChanged) if one.vm_uuid == vm.uuid]
    assert changes[:8] == ["Running", "Stopping", "Stopped", "Starting", "Running", "Rebooting", "Running", "Pausing"]
    await assert_nothing_wrong(world)


async def test_devices_come_and_go(world: SimulatedCloud) -> None:
    second = await world.add_l3(2)
    vm = await world.create_vm()
    volume = await world.api(CreateDataVolume(name="data", disk_offering_uuid=world.disk_offering))
    assert [one.uuid for one in await world.api(GetVmAttachableDataVolume(vm_instance_uuid=vm.uuid))] == [volume.uuid]
    assert [one.uuid for one in await world.api(GetVmAttachableL3Network(vm_instance_uuid=vm.uuid))] == [second]
    await world.api(AttachDataVolumeToVm(vm_instance_uuid=vm.uuid, volume_uuid=volume.uuid))
    assert await world.api(GetVmAttachableDataVolume(vm_instance_uuid=vm.uuid)) == []
    attached = await world.api(
        AttachL3NetworkToVm(
            vm_instance_uuid=vm.uuid, l3_network_uuid=second, static_ip="10.2.0.77", custom_mac="FA:16:3E:00:00:01"
        )
    )
    nic = attached.vm_nics[1]
    assert (nic.ip, nic.mac, nic.device_id) == ("10.2.0.77", "fa:16:3e:00:00:01", 1)
    assert await world.api(GetVmAttachableL3Network(vm_instance_uuid=vm.uuid)) == []
    machine = world.hosts.by_uuid(vm.host_uuid or "").world.vms[vm.uuid].definition
    assert ([one.mac for one in machine.nics][1:], len(machine.disks)) == (["fa:16:3e:00:00:01"], 2)
    with pytest.raises(CloudError, match="already attached"):
        await world.api(AttachL3NetworkToVm(vm_instance_uuid=vm.uuid, l3_network_uuid=second))
    await world.api(DetachL3NetworkFromVm(vm_nic_uuid=vm.vm_nics[0].uuid))
    now = await vm_of(world, vm.uuid)
    assert (now.default_l3_network_uuid, [one.uuid for one in now.vm_nics]) == (second, [nic.uuid])
    await world.api(DetachDataVolumeFromVm(uuid=volume.uuid))
    machine = world.hosts.by_uuid(vm.host_uuid or "").world.vms[vm.uuid].definition
    assert (len(machine.nics), len(machine.disks)) == (1, 1)
    await assert_nothing_wrong(world)


async def test_a_guest_that_is_gone_gets_no_device_and_leaves_nothing_to_be_tried_on(world: SimulatedCloud) -> None:
    second = await world.add_l3(2)
    vm = await world.create_vm()
    volume = await world.api(CreateDataVolume(name="data", disk_offering_uuid=world.disk_offering))
    del world.hosts.by_uuid(vm.host_uuid or "").world.vms[vm.uuid]  # it shut itself down, and nobody has noticed yet
    for one in (
        AttachL3NetworkToVm(vm_instance_uuid=vm.uuid, l3_network_uuid=second),
        AttachDataVolumeToVm(vm_instance_uuid=vm.uuid, volume_uuid=volume.uuid),
    ):
        with pytest.raises(CloudError, match="there is no guest"):
            await world.api(one)
    async with world.cloud.node.db.read() as session:
        jobs = await session.scalars(select(GarbageCollectorModel.name).where(GarbageCollectorModel.status != DONE))
        assert list(jobs) == []


async def test_devices_are_taken_away_in_the_turn_of_their_vm_at_its_own_node(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    volume = await world.api(CreateDataVolume(name="data", disk_offering_uuid=world.disk_offering))
    await world.api(AttachDataVolumeToVm(vm_instance_uuid=vm.uuid, volume_uuid=volume.uuid))
    queues, queue = world.cloud.node.queues, f"vm-{vm.uuid}"
    async with queues.turn(queue):
        asked = [
            asyncio.create_task(world.api(one), context=Context())
            for one in (DetachL3NetworkFromVm(vm_nic_uuid=vm.vm_nics[0].uuid), DetachDataVolumeFromVm(uuid=volume.uuid))
        ]
        await world.cloud.until(lambda: len(queues.dump()[queue].pending) == 2)
        waiting = {one.name for one in queues.dump()[queue].pending}
    # NIC and volume have UUIDs of their own, which the ring may give to other nodes.
    assert waiting == {"DetachNicFromVm", "DetachVolumeFromVm"}
    assert {one.__meta__.route_by for one in (DetachNicFromVm, DetachVolumeFromVm)} == {"vm_uuid"}
    await asyncio.gather(*asked)


async def test_what_a_vm_is_told(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    await world.api(SetVmHostname(uuid=vm.uuid, hostname="db.example.org"))
    await world.api(SetVmSshKey(uuid=vm.uuid, ssh_key="ssh-ed25519 AAAA me"))
    await world.api(SetVmConsolePassword(uuid=vm.uuid, console_password="secret"))  # noqa: S106
    await world.api(SetVmBootOrder(uuid=vm.uuid, boot_order=["CdRom", "HardDisk"]))
    assert (await world.api(GetVmHostname(uuid=vm.uuid))).hostname == "db.example.org"
    assert (await world.api(GetVmSshKey(uuid=vm.uuid))).ssh_key == "ssh-ed25519 AAAA me"
    assert (await world.api(GetVmBootOrder(uuid=vm.uuid))).orders == ["CdRom", "HardDisk"]
    await world.api(StopVmInstance(uuid=vm.uuid, type="cold"))
    await world.api(StartVmInstance(uuid=vm.uuid))
    host = world.hosts.by_uuid(vm.host_uuid or "").world
    assert host.vms[vm.uuid].definition.console_password == "secret"  # noqa: S105
    assert [one.hostname for one in host.leases[world.l3].values()] == ["db.example.org"]
    for message in (DeleteVmHostname, DeleteVmSshKey, DeleteVmConsolePassword):
        await world.api(message(uuid=vm.uuid))
    await world.api(SetVmBootOrder(uuid=vm.uuid, boot_order=[]))
    assert (await world.api(GetVmHostname(uuid=vm.uuid))).hostname is None
    assert (await world.api(GetVmSshKey(uuid=vm.uuid))).ssh_key is None
    assert (await world.api(GetVmBootOrder(uuid=vm.uuid))).orders == ["HardDisk", "CdRom", "Network"]
    for wrong in (SetVmHostname(uuid=vm.uuid, hostname="-x"), SetVmBootOrder(uuid=vm.uuid, boot_order=["Tape"])):
        with pytest.raises(CloudError) as refused:
            await world.api(wrong)
        assert refused.value.kind == INVALID_ARGUMENT


async def test_a_stopped_vm_is_changed(world: SimulatedCloud) -> None:
    bigger = await world.api(CreateInstanceOffering(name="big", cpu_num=2, memory_size=256 * MIB))
    vm = await world.create_vm()
    await world.api(StopVmInstance(uuid=vm.uuid, type="cold"))
    candidates = await world.api(GetVmStartingCandidateClustersHosts(uuid=vm.uuid))
    assert vm.host_uuid in [one.uuid for one in candidates.hosts]
    address = await world.free_address()
    await world.api(SetVmStaticIp(vm_instance_uuid=vm.uuid, l3_network_uuid=world.l3, ip=address))
    await world.api(ChangeInstanceOffering(vm_instance_uuid=vm.uuid, instance_offering_uuid=bigger.uuid))
    await world.api(UpdateVmInstance(uuid=vm.uuid, name="renamed", description="d", guest_os_type="Debian"))
    started = await world.api(StartVmInstance(uuid=vm.uuid))
    assert (started.name, started.cpu_num, started.memory_size) == ("renamed", 2, 256 * MIB)
    assert started.vm_nics[0].ip == address
    assert (await used(world))["vm.cpuNum"] == 2
    await world.api(DeleteVmStaticIp(vm_instance_uuid=vm.uuid, l3_network_uuid=world.l3))
    await world.api(StopVmInstance(uuid=vm.uuid, type="cold"))
    smaller = await world.api(UpdateVmInstance(uuid=vm.uuid, cpu_num=1, memory_size=64 * MIB))
    assert (smaller.cpu_num, smaller.memory_size) == (1, 64 * MIB)
    assert await used(world) == {"vm.totalNum": 1, "vm.num": 0, "vm.cpuNum": 0, "vm.memorySize": 0}
    await assert_nothing_wrong(world)


async def test_queries(world: SimulatedCloud) -> None:
    vm = await world.create_vm("one")
    await world.create_vm("two", strategy="CreateStopped")
    running = await world.api(QueryVmInstance(conditions=[QueryCondition("state", "=", "Running")]))
    assert [one.uuid for one in running.inventories] == [vm.uuid]
    by_ip = await world.api(QueryVmInstance(conditions=[QueryCondition("vmNics.ip", "=", vm.vm_nics[0].ip)]))
    assert [one.name for one in by_ip.inventories] == ["one"]
    nics = await world.api(QueryVmNic(conditions=[QueryCondition("vmInstance.name", "=", "one")]))
    assert [one.uuid for one in nics.inventories] == [vm.vm_nics[0].uuid]
    drives = await world.api(QueryVmCdRom(conditions=[QueryCondition("vmInstanceUuid", "=", vm.uuid)]))
    assert len(drives.inventories) == 1
    assert (await world.api(GetVmCapabilities(uuid=vm.uuid))).capabilities["LiveMigration"] is False


@pytest.mark.parametrize(
    ("path", "operation", "code", "state"),
    [
        (protocol.StopVm.path, StopVmInstance, "VM.1002", "Running"),
        (protocol.PauseVm.path, PauseVmInstance, "VM.1012", "Running"),
        (protocol.RebootVm.path, RebootVmInstance, "VM.1003", "Running"),
    ],
)
async def test_a_host_that_fails_is_named_in_the_error(
    world: SimulatedCloud, path: str, operation: type, code: str, state: str
) -> None:
    vm = await world.create_vm()
    world.hosts.fault("error", path, code=protocol.LIBVIRT, details="the disk burns")
    with pytest.raises(CloudError) as failed:
        await world.api(operation(uuid=vm.uuid))
    errors = chain(failed.value)
    assert errors[0].code == code
    assert errors[0].elaboration, "no remedy"
    assert len(errors) >= 2
    assert "the disk burns" in errors[-1].details
    assert (await vm_of(world, vm.uuid)).state == state
    world.hosts.heal()
    await assert_nothing_wrong(world)


async def test_a_vm_that_cannot_start_leaves_nothing(world: SimulatedCloud) -> None:
    before = await room(world), await used(world), await owned(world)
    world.hosts.fault("error", protocol.StartVm.path, code=protocol.LIBVIRT, details="no KVM here")
    with pytest.raises(CloudError) as failed:
        await world.create_vm(data_disk_sizes=[GIB])
    assert [chain(failed.value)[0].code, "no KVM here" in chain(failed.value)[-1].details] == ["VM.1000", True]
    world.hosts.heal()
    now = await room(world), await used(world), await owned(world)
    assert now[1:] == before[1:]
    assert now[0][:2] == before[0][:2]
    assert guests(world) == {}
    assert (await world.api(QueryVmInstance())).inventories == []
    await assert_nothing_wrong(world)
