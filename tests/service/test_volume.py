"""Volumes: created, given bits, attached, deleted, recovered, expunged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import Context
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from caelum.agent import protocol
from caelum.cloud.host.api import DeleteHost
from caelum.cloud.identity.api import CreateAccount, DeleteAccount, UpdateQuota
from caelum.cloud.offering.api import ChangeDiskOfferingState, DeleteDiskOffering
from caelum.cloud.ownership import owner_of
from caelum.cloud.primary_storage.api import GetPrimaryStorageCapacity
from caelum.cloud.primary_storage.messages import GetVolumeHosts
from caelum.cloud.quota import QUOTA_EXCEEDING, usage
from caelum.cloud.vm.api import QueryVmInstance
from caelum.cloud.volume.api import (
    AttachDataVolumeToVm,
    ChangeVolumeState,
    CreateDataVolume,
    DeleteDataVolume,
    DetachDataVolumeFromVm,
    ExpungeDataVolume,
    GetVolumeCapabilities,
    GetVolumeFormat,
    QueryVolume,
    RecoverDataVolume,
    SyncVolumeSize,
    UpdateVolume,
    VolumeInventory,
)
from caelum.cloud.volume.attach_api import GetDataVolumeAttachableVm
from caelum.cloud.volume.errors import VOLUME_IN_USE
from caelum.cloud.volume.events import VolumeStatusChanged
from caelum.cloud.volume.messages import (
    CreateVolume,
    DeleteVolume,
    ExpungeVolume,
    GetVolumes,
    InstantiateVolume,
    RecoverVolume,
    SetVolumeAttachment,
)
from caelum.cloud.volume.model import VolumeModel
from caelum.cloud.volume.settings import DELETION_POLICY, EXPUNGE_PERIOD
from caelum.kernel import context
from caelum.kernel.context import ADMIN_ACCOUNT_UUID, Actor
from caelum.kernel.crashpoints import Plan, ProcessDied
from caelum.kernel.database import utcnow
from caelum.kernel.errors import INVALID_ARGUMENT, RESOURCE_NOT_FOUND, CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.jobs import MANAGEMENT_NODE_UNAVAILABLE
from caelum.kernel.message import QueryCondition
from caelum.testing.dump import unfinished
from caelum.testing.harness import kill
from caelum.testing.simcloud import GIB, IMAGE_SIZE, SimulatedCloud, simulated_cloud


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SimulatedCloud]:
    async with simulated_cloud(tmp_path, hosts=2) as made:
        yield made


def place(world: SimulatedCloud, number: int = 0, **fields: Any) -> CreateDataVolume:
    """A data volume with bits on a host."""
    tag = f"localStorage::hostUuid::{world.hosts[number].uuid}"
    values = {"disk_size": GIB, "primary_storage_uuid": world.primary_storage, "system_tags": [tag], **fields}
    return CreateDataVolume(name="data", **values)


async def free(world: SimulatedCloud) -> int:
    return (await world.api(GetPrimaryStorageCapacity(all=True))).available_capacity


async def volumes(world: SimulatedCloud, *conditions: QueryCondition) -> list[VolumeInventory]:
    return (await world.api(QueryVolume(conditions=list(conditions)))).inventories or []


async def one(world: SimulatedCloud, uuid: str) -> VolumeInventory:
    return (await world.cloud.node.bus.call(GetVolumes(uuids=[uuid]))).volumes[0]


async def used(world: SimulatedCloud, name: str, account: str = ADMIN_ACCOUNT_UUID) -> int:
    async with world.cloud.node.db.read() as session:
        return {name: taken for name, taken, _ in await usage(session, account)}[name]


def on_hosts(world: SimulatedCloud) -> list[str]:
    return sorted(path for host in world.hosts.hosts for path in host.world.files)


async def test_a_volume_without_a_storage_waits_for_its_bits(world: SimulatedCloud) -> None:
    volume = await world.api(CreateDataVolume(name="data", disk_offering_uuid=world.disk_offering, user_tags=["db"]))
    assert (volume.status, volume.state, volume.type) == ("NotInstantiated", "Enabled", "Data")
    assert (volume.size, volume.install_path, volume.disk_offering_uuid) == (GIB, None, world.disk_offering)
    assert [one.uuid for one in await volumes(world, QueryCondition("diskOffering.name", "=", "disk"))] == [volume.uuid]
    assert [one.uuid for one in await volumes(world, QueryCondition("__userTag__", "=", "db"))] == [volume.uuid]
    assert (await used(world, "volume.data.num"), await used(world, "volume.capacity")) == (1, GIB)
    await world.api(DeleteDataVolume(uuid=volume.uuid))
    assert await volumes(world) == [], "there is nothing to keep"
    assert (await used(world, "volume.data.num"), await used(world, "volume.capacity")) == (0, 0)


async def test_a_volume_is_made_once_under_its_uuid(world: SimulatedCloud) -> None:
    volume = await world.api(CreateDataVolume(name="data", disk_size=GIB))
    with pytest.raises(CloudError, match="is that of a volume that exists"):
        await world.api(place(world, resource_uuid=volume.uuid))
    assert await one(world, volume.uuid) == volume
    assert await used(world, "volume.data.num") == 1


async def test_a_volume_gets_its_bits_on_a_named_host(world: SimulatedCloud) -> None:
    before = await free(world)
    volume = await world.api(place(world, 1))
    assert (volume.status, volume.format, volume.primary_storage_uuid) == ("Ready", "qcow2", world.primary_storage)
    assert volume.install_path in world.hosts[1].world.files
    assert await free(world) == before - GIB
    found = await volumes(world, QueryCondition("localStorageHostRef.hostUuid", "=", world.hosts[1].uuid))
    assert [one.uuid for one in found] == [volume.uuid]
    changes = [(one.old_status, one.new_status) for one in await world.cloud.seen(VolumeStatusChanged)]
    assert changes == [("NotInstantiated", "Creating"), ("Creating", "Ready")]
    with pytest.raises(CloudError, match="a host must be named"):
        await world.api(CreateDataVolume(name="x", disk_size=GIB, primary_storage_uuid=world.primary_storage))
    assert len(await volumes(world)) == 1


async def test_a_volume_that_cannot_be_made_leaves_nothing(world: SimulatedCloud) -> None:
    before = await free(world)
    world.hosts.fault("error", protocol.CreateVolume.path, code=protocol.STORAGE, details="no such luck")
    with pytest.raises(CloudError, match="no such luck"):
        await world.api(place(world))
    world.hosts.heal()
    with pytest.raises(CloudError, match="bytes available"):
        await world.api(place(world, disk_size=1 << 50))
    assert (await volumes(world), on_hosts(world), await free(world)) == ([], [], before)
    assert (await used(world, "volume.data.num"), await used(world, "volume.capacity")) == (0, 0)


async def test_checks_come_first(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    await world.api(ChangeDiskOfferingState(uuid=world.disk_offering, state_event="disable"))
    wrong = [
        CreateDataVolume(name="none"),
        CreateDataVolume(name="both", disk_size=1, disk_offering_uuid=world.disk_offering),
        DeleteDataVolume(uuid=vm.root_volume_uuid or ""),
    ]
    for msg in wrong:
        with pytest.raises(CloudError) as refused:
            await world.api(msg)
        assert refused.value.kind is INVALID_ARGUMENT
    with pytest.raises(CloudError, match="Disabled"):
        await world.api(CreateDataVolume(name="off", disk_offering_uuid=world.disk_offering))


async def test_a_deleted_volume_waits_to_be_recovered_or_expunged(world: SimulatedCloud) -> None:
    before, volume = await free(world), await world.api(place(world))
    with pytest.raises(CloudError, match="must be a deleted"):
        await world.api(ExpungeDataVolume(uuid=volume.uuid))
    await world.api(DeleteDataVolume(uuid=volume.uuid))
    assert (await one(world, volume.uuid)).status == "Deleted"
    assert await free(world) == before - GIB
    with pytest.raises(CloudError):
        await world.cloud.node.bus.call(SetVolumeAttachment(volume.uuid, new_uuid(), 1))
    assert (await world.api(RecoverDataVolume(uuid=volume.uuid))).status == "Ready"
    with pytest.raises(CloudError, match="must be a deleted"):
        await world.api(RecoverDataVolume(uuid=volume.uuid))
    await world.api(DeleteDataVolume(uuid=volume.uuid))
    await world.api(ExpungeDataVolume(uuid=volume.uuid))
    assert (await volumes(world), on_hosts(world), await free(world)) == ([], [], before)
    async with world.cloud.node.db.read() as session:
        assert await owner_of(session, volume.uuid) is None


async def test_policies(world: SimulatedCloud) -> None:
    before, node = await free(world), world.cloud.node
    direct, never = await world.api(place(world)), await world.api(place(world))
    await node.settings.set(DELETION_POLICY, "Direct")
    await world.api(DeleteDataVolume(uuid=direct.uuid))
    await node.settings.set(DELETION_POLICY, "Never")
    await world.api(DeleteDataVolume(uuid=never.uuid))
    assert (await volumes(world), on_hosts(world)) == ([], [never.install_path])
    assert await free(world) == before - GIB, "what is kept takes its space"


async def test_old_deletions_are_expunged_by_themselves(world: SimulatedCloud) -> None:
    volume = await world.api(place(world))
    await world.api(DeleteDataVolume(uuid=volume.uuid))
    service: Any = world.cloud.node.services["volume"]
    await service.expunge_old()
    assert len(await volumes(world)) == 1
    long_ago = utcnow() - timedelta(seconds=world.cloud.node.settings.get(EXPUNGE_PERIOD) + 1)
    async with world.cloud.node.db.transaction() as tx:
        await tx.execute(update(VolumeModel).values(last_op_date=long_ago))
    await service.expunge_old()
    assert (await volumes(world), on_hosts(world)) == ([], [])


async def test_a_volume_goes_to_a_machine_and_comes_back(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    volume = await world.api(CreateDataVolume(name="data", disk_size=GIB))
    candidates = await world.api(GetDataVolumeAttachableVm(volume_uuid=volume.uuid))
    assert [one.uuid for one in candidates] == [vm.uuid]
    attached = await world.api(AttachDataVolumeToVm(vm_instance_uuid=vm.uuid, volume_uuid=volume.uuid))
    assert (attached.status, attached.vm_instance_uuid, attached.device_id) == ("Ready", vm.uuid, 1)
    assert await world.api(GetDataVolumeAttachableVm(volume_uuid=volume.uuid)) == []
    with pytest.raises(CloudError) as refused:
        await world.cloud.node.bus.call(SetVolumeAttachment(volume.uuid, new_uuid(), 1))
    assert refused.value.kind is VOLUME_IN_USE
    # Deleting an attached volume detaches it first.
    await world.api(DeleteDataVolume(uuid=volume.uuid))
    gone = await one(world, volume.uuid)
    assert (gone.status, gone.vm_instance_uuid, gone.last_vm_instance_uuid) == ("Deleted", None, vm.uuid)
    assert gone.last_detach_date is not None
    machine = (await world.api(QueryVmInstance(conditions=[QueryCondition("uuid", "=", vm.uuid)]))).inventories[0]
    assert [one.type for one in machine.all_volumes] == ["Root"]


async def attached(world: SimulatedCloud) -> VolumeInventory:
    """A data volume that a running machine has."""
    vm = await world.create_vm()
    volume = await world.api(CreateDataVolume(name="data", disk_size=GIB))
    found: VolumeInventory = await world.api(AttachDataVolumeToVm(vm_instance_uuid=vm.uuid, volume_uuid=volume.uuid))
    return found


@pytest.mark.parametrize("death", ["vm.detach-volume/forget/before", "vm.detach-volume/end", "before the deletion"])
async def test_a_deletion_that_died_after_its_detachment_is_no_success(world: SimulatedCloud, death: str) -> None:
    volume, job, node = await attached(world), new_uuid(), world.cloud.node
    await node.jobs.create(job, "DeleteDataVolume")
    reached = asyncio.Event()

    async def delete_by_policy(*_: Any, **__: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    def die() -> None:
        node.db.sever(ProcessDied(death))
        reached.set()

    service: Any = node.services["volume"]
    service.delete_by_policy = delete_by_policy
    plan = Plan(death=death, on_death=die)
    node.workflows.crashpoints.plan = plan
    with context.use(context.TaskContext(job_uuid=job, api="DeleteDataVolume")):
        deleting = asyncio.create_task(node.bus.call(DeleteDataVolume(uuid=volume.uuid)))
    await asyncio.wait_for(reached.wait(), 20)
    assert plan.dead == ("/" in death)
    await kill(node)
    deleting.cancel()
    await asyncio.wait([deleting])
    await world.stage.reboot()

    async def ended() -> bool:
        return not await unfinished(world.cloud.node.db)

    await world.cloud.until(ended, 20)
    found = await world.cloud.node.jobs.get(job)
    assert found is not None
    assert found.done
    assert found.error is not None
    assert found.error.code == MANAGEMENT_NODE_UNAVAILABLE.code
    left = await one(world, volume.uuid)
    assert (left.status, left.vm_instance_uuid) == ("Ready", None)
    assert await world.cloud.node.workflows.answer_of_job(job) is None


@pytest.mark.parametrize("policy", ["Delay", "Direct"])
async def test_an_attached_volume_may_be_deleted_twice_at_once(world: SimulatedCloud, policy: str) -> None:
    volume, node = await attached(world), world.cloud.node
    await node.settings.set(DELETION_POLICY, policy)
    queue = f"vm-{volume.vm_instance_uuid}"
    delete, detach = DeleteDataVolume(uuid=volume.uuid), DetachDataVolumeFromVm(uuid=volume.uuid)
    async with node.queues.turn(queue):
        asked = [asyncio.create_task(world.api(one), context=Context()) for one in (delete, delete, detach)]
        await world.cloud.until(lambda: len(node.queues.dump()[queue].pending) == 3)
    *deleted, detached = await asyncio.gather(*asked, return_exceptions=True)
    assert deleted == [None, None]
    assert isinstance(detached, CloudError)
    if policy == "Delay":
        assert (await one(world, volume.uuid)).status == "Deleted"
        return
    assert await volumes(world, QueryCondition("uuid", "=", volume.uuid)) == []
    attach = AttachDataVolumeToVm(vm_instance_uuid=volume.vm_instance_uuid or "", volume_uuid=volume.uuid)
    for msg in (attach, detach):
        with pytest.raises(CloudError) as refused:
            await node.bus.call(msg)
        assert refused.value.kind is RESOURCE_NOT_FOUND


async def test_a_volume_on_a_host_goes_to_machines_of_that_host_only(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    index = next(number for number, host in enumerate(world.hosts.hosts) if host.uuid == vm.host_uuid)
    there, elsewhere = await world.api(place(world, index)), await world.api(place(world, 1 - index))
    assert [one.uuid for one in await world.api(GetDataVolumeAttachableVm(volume_uuid=there.uuid))] == [vm.uuid]
    assert await world.api(GetDataVolumeAttachableVm(volume_uuid=elsewhere.uuid)) == []


async def test_what_is_as_it_was_is_not_written_again(world: SimulatedCloud) -> None:
    volume, vm, node = await world.api(place(world)), new_uuid(), world.cloud.node
    service: Any = node.services["volume"]
    await service.refresh_sizes()
    measured = await one(world, volume.uuid)
    await service.refresh_sizes()
    assert await one(world, volume.uuid) == measured, "also the date of its last change"
    world.hosts[0].world.files[volume.install_path].actual_size = 12345
    await service.refresh_sizes()
    changed = await one(world, volume.uuid)
    assert changed.actual_size == 12345
    assert changed.last_op_date > measured.last_op_date
    for wanted in (SetVolumeAttachment(volume.uuid, vm, 1), SetVolumeAttachment(volume.uuid, None)):
        first = await node.bus.call(wanted)
        assert await node.bus.call(wanted) == await one(world, volume.uuid) == first


async def test_a_volume_changes(world: SimulatedCloud) -> None:
    volume = await world.api(place(world))
    assert (await world.api(UpdateVolume(uuid=volume.uuid, name="new"))).name == "new"
    assert (await world.api(ChangeVolumeState(uuid=volume.uuid, state_event="disable"))).state == "Disabled"
    world.hosts[0].world.files[volume.install_path].actual_size = 12345
    assert (await world.api(SyncVolumeSize(uuid=volume.uuid))).actual_size == 12345
    formats = (await world.api(GetVolumeFormat())).formats
    assert [one.format for one in formats] == ["qcow2", "raw"]
    capabilities = (await world.api(GetVolumeCapabilities(uuid=volume.uuid))).capabilities
    assert capabilities["MigrationToOtherPrimaryStorage"] is False


# --- what machines ask ------------------------------------------------------------------------------------------------


async def test_a_root_volume_and_every_message_twice(world: SimulatedCloud) -> None:
    bus, uuid, vm, before = world.cloud.node.bus, new_uuid(), new_uuid(), await free(world)
    create = CreateVolume(
        uuid, "root", "Root", 0, ADMIN_ACCOUNT_UUID, vm_instance_uuid=vm, device_id=0, root_image_uuid=world.image
    )
    make = InstantiateVolume(uuid, world.hosts[0].uuid, world.primary_storage)
    for _ in range(2):
        assert (await bus.call(create)).size == IMAGE_SIZE, "as large as its image"
    for _ in range(2):
        volume = await bus.call(make)
        assert (volume.status, volume.root_image_uuid) == ("Ready", world.image)
    assert world.hosts[0].done[protocol.CreateVolume.path] == 1
    assert (await bus.call(GetVolumeHosts([uuid]))).hosts == {uuid: world.hosts[0].uuid}
    for _ in range(2):
        await bus.call(DeleteVolume(uuid, "Delay"))
    assert (await bus.call(GetVolumes(vm_instance_uuid=vm))).volumes == []
    assert (await one(world, uuid)).vm_instance_uuid == vm, "a recovered machine finds it"
    for _ in range(2):
        assert (await bus.call(RecoverVolume(uuid))).status == "Ready"
    with pytest.raises(CloudError, match="only a deleted one"):
        await bus.call(ExpungeVolume(uuid))
    await bus.call(DeleteVolume(uuid, "Delay"))
    for _ in range(2):
        await bus.call(ExpungeVolume(uuid))
    for _ in range(2):
        await bus.call(DeleteVolume(uuid, "Direct"))
    image_size = (world.directory / "image.qcow2").stat().st_size  # noqa: ASYNC240
    assert await free(world) == before - image_size


async def test_a_device_of_a_machine_is_one_volume(world: SimulatedCloud) -> None:
    bus, vm = world.cloud.node.bus, new_uuid()
    first, second = await world.api(place(world)), await world.api(place(world))
    for _ in range(2):
        assert (await bus.call(SetVolumeAttachment(first.uuid, vm, 1))).device_id == 1
    with pytest.raises(CloudError) as refused:
        await bus.call(SetVolumeAttachment(second.uuid, vm, 1))
    assert refused.value.kind is VOLUME_IN_USE
    await bus.call(SetVolumeAttachment(second.uuid, vm, 2))
    assert [one.uuid for one in (await bus.call(GetVolumes(vm_instance_uuid=vm))).volumes] == [first.uuid, second.uuid]
    for _ in range(2):
        await bus.call(SetVolumeAttachment(first.uuid, None))
    assert (await one(world, first.uuid)).last_vm_instance_uuid == vm


async def test_a_creation_that_is_called_off_leaves_nothing(world: SimulatedCloud) -> None:
    before = await free(world)
    world.hosts.fault("hang", protocol.CreateVolume.path)
    making = asyncio.create_task(world.api(place(world)))

    async def hangs() -> bool:
        return world.hosts[0].arrived[protocol.CreateVolume.path] > 0

    await world.cloud.until(hangs)
    (running,) = [one for one in world.cloud.node.workflows.dump() if one["name"] == "volume.create-data"]
    assert world.cloud.node.workflows.cancel(running["uuid"])
    with pytest.raises(CloudError):
        await making
    world.hosts.heal()
    assert (await volumes(world), on_hosts(world), await free(world)) == ([], [], before)


# --- what takes volumes along -----------------------------------------------------------------------------------------


async def test_a_deleted_offering_is_forgotten(world: SimulatedCloud) -> None:
    volume = await world.api(CreateDataVolume(name="data", disk_offering_uuid=world.disk_offering))
    await world.api(DeleteDiskOffering(uuid=world.disk_offering))
    assert (await one(world, volume.uuid)).disk_offering_uuid is None


async def test_a_deleted_host_takes_what_was_on_it(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    index = next(number for number, host in enumerate(world.hosts.hosts) if host.uuid == vm.host_uuid)
    lost, kept = await world.api(place(world, index)), await world.api(place(world, 1 - index))
    await world.api(DeleteHost(uuid=vm.host_uuid))
    assert {one.uuid for one in await volumes(world)} == {kept.uuid}
    assert (await world.api(QueryVmInstance())).inventories == []
    assert lost.uuid != kept.uuid


async def test_an_account_has_a_quota_and_takes_its_volumes_along(world: SimulatedCloud) -> None:
    account = await world.api(CreateAccount(name="dev", password="x" * 128))
    actor = Actor(account.uuid, account.uuid, None, False)
    await world.api(UpdateQuota(identity_uuid=account.uuid, name="volume.data.num", value=1))
    volume = await world.api(CreateDataVolume(name="one", disk_size=GIB), actor=actor)
    with pytest.raises(CloudError) as refused:
        await world.api(CreateDataVolume(name="two", disk_size=GIB), actor=actor)
    assert refused.value.kind is QUOTA_EXCEEDING
    assert await used(world, "volume.capacity", account.uuid) == GIB
    await world.api(DeleteAccount(uuid=account.uuid))
    assert volume.uuid not in [one.uuid for one in await volumes(world)]
