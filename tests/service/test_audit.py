"""The auditor finds nothing in a cloud in order, whatever was done to it, and leaves everything as it is."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.service.audit_clouds import AuditedCloud, audited_cloud

from caelum.cloud.audit.api import INFO, WARNING, RunAudit
from caelum.cloud.config.api import UpdateGlobalConfig
from caelum.cloud.image.api import DeleteImage, ExpungeImage
from caelum.cloud.l3.api import DeleteL3Network
from caelum.cloud.vm.api import (
    AttachL3NetworkToVm,
    DestroyVmInstance,
    DetachL3NetworkFromVm,
    ExpungeVmInstance,
    PauseVmInstance,
    RebootVmInstance,
    RecoverVmInstance,
    ResumeVmInstance,
    StartVmInstance,
    StopVmInstance,
)
from caelum.cloud.volume.api import AttachDataVolumeToVm, DeleteDataVolume, DetachDataVolumeFromVm, ExpungeDataVolume
from caelum.testing.dump import dump_database
from caelum.testing.simcloud import simulated_cloud


async def _life(cloud: AuditedCloud) -> list[Any]:
    """A VM's whole life, operation by operation."""
    vm, volume = cloud.vm.uuid, cloud.volume.uuid
    second = await cloud.made.add_l3(2)
    return [
        StopVmInstance(uuid=vm),
        StartVmInstance(uuid=vm),
        RebootVmInstance(uuid=vm),
        PauseVmInstance(uuid=vm),
        ResumeVmInstance(uuid=vm),
        AttachL3NetworkToVm(vm_instance_uuid=vm, l3_network_uuid=second),
        DetachDataVolumeFromVm(uuid=volume),
        AttachDataVolumeToVm(vm_instance_uuid=vm, volume_uuid=volume),
        DetachL3NetworkFromVm(vm_nic_uuid=cloud.vm.vm_nics[0].uuid),
        DestroyVmInstance(uuid=vm),
        RecoverVmInstance(uuid=vm),
        StartVmInstance(uuid=vm),
        DestroyVmInstance(uuid=vm),
        ExpungeVmInstance(uuid=vm),
        DeleteDataVolume(uuid=volume),
        ExpungeDataVolume(uuid=volume),
        StartVmInstance(uuid=cloud.idle.uuid),
        DeleteL3Network(uuid=second),
        DestroyVmInstance(uuid=cloud.idle.uuid),
        DeleteImage(uuid=cloud.made.image),
        ExpungeImage(image_uuid=cloud.made.image),
    ]


async def test_a_cloud_in_order_is_clean_after_each_operation() -> None:
    async with audited_cloud() as cloud:
        assert await cloud.wrong() == []
        for operation in await _life(cloud):
            await cloud.made.api(operation)
            assert await cloud.wrong() == [], operation


async def test_it_says_what_it_looked_at_and_changes_nothing() -> None:
    async with audited_cloud() as cloud:
        db = cloud.made.cloud.node.db
        before, hosts = await dump_database(db), cloud.made.hosts.dump()
        reply = await cloud.audit()
        assert reply.clean
        assert reply.findings == []
        assert reply.checked["vmInstance"] == 2
        assert reply.checked["volume"] == 3
        assert reply.checked["hostsAsked"] == 2
        assert reply.checked["hostFiles"] == 4  # the cached image, two root volumes, a data volume
        assert reply.checked["backupFiles"] == 1
        assert (await dump_database(db), cloud.made.hosts.dump()) == (before, hosts)


async def test_running_work_is_not_reported() -> None:
    """Audits while machines come and go: what is on its way is nobody's orphan."""
    async with simulated_cloud(hosts=2) as made:
        await made.api(UpdateGlobalConfig(category="audit", name="recheck.after", value="0"))
        working = True

        async def come_and_go(number: int) -> None:
            while working:
                vm = await made.create_vm(f"vm{number}")
                await made.api(DestroyVmInstance(uuid=vm.uuid))
                await made.api(ExpungeVmInstance(uuid=vm.uuid))

        workers = [asyncio.create_task(come_and_go(number)) for number in range(3)]
        try:
            for _ in range(8):
                reply = await made.api(RunAudit())
                assert [one for one in reply.findings if one.severity != INFO] == []
        finally:
            working = False
            await asyncio.gather(*workers)
        assert (await made.api(RunAudit())).findings == []


async def test_a_host_that_cannot_be_asked_is_a_warning() -> None:
    async with simulated_cloud(hosts=2) as made:
        lost = made.hosts[1]
        await lost.die()

        async def noticed() -> bool:
            return any(one.severity == WARNING for one in (await made.api(RunAudit())).findings)

        await made.cloud.until(noticed)
        reply = await made.api(RunAudit())
        assert [(one.kind, one.resource_uuid) for one in reply.findings] == [("NotReached", lost.uuid)]
        assert not reply.clean


def test_it_is_an_asynchronous_operation_for_administrators() -> None:
    declared = RunAudit.__api__
    assert (declared.method, declared.path, declared.kind) == ("POST", "/audits", "async")
    assert declared.java_class == "org.caelum.audit.APIRunAuditMsg"
    assert declared.admin_only
