"""How a machine's description becomes a command, and what settings and progress do on the way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
from tests.service.host_clouds import HostCloud, host_cloud

from caelum.agent import protocol as p
from caelum.agent.news import TaskProgress
from caelum.cloud.host.messages import AttachNicOnHost, GetConsoleOnHost, RebootVmOnHost, StartVmOnHost, StopVmOnHost
from caelum.cloud.host.spec import CdromSpec, NicIp, NicSpec, VmSpec, VolumeSpec
from caelum.drivers.kvm.remote import on_host
from caelum.drivers.kvm.settings import CACHE_MODE, CPU_MODE
from caelum.drivers.kvm.translate import Choices, start_command
from caelum.kernel import context
from caelum.kernel.ids import new_uuid


def full_spec() -> VmSpec:
    nics = [
        NicSpec(
            nic_uuid=new_uuid(), l3_network_uuid=new_uuid(), device_id=device, mac=f"fa:00:00:00:00:0{device}",
            bridge="br0", ips=[NicIp(ip=f"10.0.0.{device}", netmask="255.255.255.0")],
        )
        for device in (1, 0)
    ]  # fmt: skip
    volumes = [
        VolumeSpec(volume_uuid=new_uuid(), install_path=f"/ps/{device}.qcow2", device_id=device, type=kind)
        for device, kind in ((1, "Data"), (0, "Root"))
    ]
    return VmSpec(
        vm_uuid=new_uuid(), name="web", internal_id=123456789, cpu_num=2, memory=1 << 30, nics=nics, volumes=volumes,
        cdroms=[CdromSpec(device_id=2)], boot_mode="UEFI", console_password="secret", hostname="web1",
    )  # fmt: skip


def test_a_description_becomes_a_command() -> None:
    spec = full_spec()
    command = start_command(spec, Choices(cache_mode="writeback", cpu_mode="Haswell"))
    assert [disk.device_id for disk in command.disks] == [0, 1]
    assert {disk.cache_mode for disk in command.disks} == {"writeback"}
    assert [nic.name for nic in command.nics] == ["vnic123456789.0", "vnic123456789.1"]
    assert [nic.ips for nic in command.nics] == [["10.0.0.0"], ["10.0.0.1"]]
    assert (command.cpu_mode, command.boot_mode, command.console_password) == ("Haswell", "UEFI", "secret")
    assert command.cdroms == [p.Cdrom(device_id=2)]
    assert start_command(spec, Choices()).cpu_mode == "host-model"
    long = msgspec.structs.replace(spec, internal_id=12345678901234)
    assert all(len(nic.name) <= 15 for nic in start_command(long, Choices()).nics)


async def _furnish(cloud: HostCloud, spec: VmSpec) -> str:
    host = await cloud.add_host()
    await on_host(cloud.node.bus, host.uuid, p.InitStorage(storage_uuid=new_uuid(), storage_path="/ps", first=True))
    await on_host(cloud.node.bus, host.uuid, p.CreateBridge(l2_uuid=new_uuid(), bridge="br0", interface="eth0"))
    for volume in spec.volumes:
        create = p.CreateVolume(
            storage_path="/ps", volume_uuid=volume.volume_uuid, install_path=volume.install_path, size=1 << 30
        )
        await on_host(cloud.node.bus, host.uuid, create)
    return host.uuid


async def test_a_machines_life_on_a_host(tmp_path: Path) -> None:
    async with host_cloud(tmp_path, 1) as cloud:
        spec, bus = full_spec(), cloud.node.bus
        host_uuid = await _furnish(cloud, spec)
        await cloud.node.settings.set_for(CPU_MODE, spec.vm_uuid, "VmInstanceVO", "host-passthrough")
        root = next(one for one in spec.volumes if one.device_id == 0)
        await cloud.node.settings.set_for(CACHE_MODE, spec.vm_uuid, "VmInstanceVO", "writethrough")
        started = await bus.call(StartVmOnHost(host_uuid=host_uuid, spec=spec))
        assert (started.vnc_port, started.accelerated) == (5900, True)
        assert await bus.call(StartVmOnHost(host_uuid=host_uuid, spec=spec)) == started
        definition = cloud.sim[0].world.vms[spec.vm_uuid].definition
        assert (definition.cpu_mode, definition.disks[0].cache_mode) == ("host-passthrough", "writethrough")
        assert definition.disks[0].volume_uuid == root.volume_uuid
        extra = msgspec.structs.replace(spec.nics[0], nic_uuid=new_uuid(), device_id=2, internal_name="vnic1.2")
        await bus.call(AttachNicOnHost(host_uuid=host_uuid, vm_uuid=spec.vm_uuid, nic=extra))
        assert cloud.sim[0].world.vms[spec.vm_uuid].definition.nics[-1].name == "vnic1.2"
        console = await bus.call(GetConsoleOnHost(host_uuid=host_uuid, vm_uuid=spec.vm_uuid))
        assert console.url == f"wss://{cloud.sim[0].ip}:{cloud.sim.port}/console/vnc/{spec.vm_uuid}"
        await bus.call(RebootVmOnHost(host_uuid=host_uuid, spec=spec))
        assert len(cloud.sim[0].world.vms[spec.vm_uuid].definition.nics) == 2
        await bus.call(StopVmOnHost(host_uuid=host_uuid, vm_uuid=spec.vm_uuid, kind="cold"))
        assert cloud.sim.dump()[host_uuid]["vms"] == {}


async def test_progress_of_a_command_is_progress_of_its_job(tmp_path: Path) -> None:
    async with host_cloud(tmp_path, 1) as cloud:
        host = await cloud.add_host()
        job = new_uuid()
        await cloud.node.jobs.create(job, "APIAddImageMsg", context.SYSTEM, "{}")
        cloud.sim.fault("hang", p.CheckInterface.path)
        with context.use(context.TaskContext(job_uuid=job)):
            work = asyncio.create_task(on_host(cloud.node.bus, host.uuid, p.CheckInterface(name="eth0")))
        await cloud.until(lambda: cloud.sim[0].journal.running())
        task_uuid = next(iter(cloud.node.services["kvm"].agents.client.pending))
        cloud.sim[0].report("progress", TaskProgress(task_uuid=task_uuid, percent=42, text="copying"))

        async def told() -> bool:
            found = await cloud.node.jobs.get(job)
            return found is not None and found.percent == 42

        await cloud.until(told)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
