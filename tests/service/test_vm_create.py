"""Virtual machines created with every choice that the API gives."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.service.vm_clouds import assert_nothing_wrong, chain, guests, owned, room, used, vm_of

from caelum.agent.protocol import StartVm
from caelum.cloud.allocator.messages import AllocateHost, DiskRequest, ReturnHost
from caelum.cloud.allocator.model import HostReservationModel
from caelum.cloud.identity.api import CreateAccount, ShareResource, UpdateQuota
from caelum.cloud.image.api import AddImage
from caelum.cloud.l3.model import UsedIpModel
from caelum.cloud.offering.api import CreateInstanceOffering
from caelum.cloud.primary_storage.messages import ReleaseStorage, ReserveStorage
from caelum.cloud.primary_storage.model import StorageReservationModel
from caelum.cloud.quota import QUOTA_EXCEEDING, take, take_under, usage
from caelum.cloud.vm.api import (
    CreateVmInstance,
    DestroyVmInstance,
    ExpungeVmInstance,
    QueryVmInstance,
    StartVmInstance,
    StopVmInstance,
    VmInstanceInventory,
)
from caelum.cloud.vm.records import forget_vm
from caelum.cloud.volume.api import QueryVolume
from caelum.kernel.context import ADMIN_ACCOUNT_UUID, Actor
from caelum.kernel.errors import CANCELED, INVALID_ARGUMENT, CloudError
from caelum.kernel.ids import derived_uuid, new_uuid
from caelum.testing.simcloud import GIB, MIB, SimulatedCloud, empty_qcow2, simulated_cloud


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SimulatedCloud]:
    async with simulated_cloud(tmp_path, hosts=2) as made:
        yield made


def machine(world: SimulatedCloud, uuid: str) -> Any:
    """What a host was told to start."""
    return next(host.world.vms[uuid].definition for host in world.hosts.hosts if uuid in host.world.vms)


async def test_sizes(world: SimulatedCloud) -> None:
    by_numbers = await world.create_vm("numbers", instance_offering_uuid=None, cpu_num=2, memory_size=64 * MIB)
    assert (by_numbers.cpu_num, by_numbers.memory_size, by_numbers.instance_offering_uuid) == (2, 64 * MIB, None)
    with_zeros = await world.create_vm(
        "zeros", cpu_num=0, memory_size=0, root_disk_size=0, reserved_memory_size=0, data_disk_sizes=[]
    )
    assert (with_zeros.cpu_num, with_zeros.memory_size) == (1, 128 * MIB), "Go clients send zeros beside an offering"
    assert with_zeros.instance_offering_uuid == world.offering
    for wrong in ({"cpu_num": 0, "memory_size": MIB}, {"cpu_num": 1, "memory_size": 0}, {"cpu_num": 5000}):
        with pytest.raises(CloudError) as refused:
            await world.create_vm("wrong", instance_offering_uuid=None, **wrong)
        assert refused.value.kind == INVALID_ARGUMENT
    assert len(guests(world)) == 2


async def counted(world: SimulatedCloud) -> dict[str, int]:
    """What the administrator is counted for of every quota."""
    async with world.cloud.node.db.read() as session:
        return {name: taken for name, taken, _ in await usage(session, ADMIN_ACCOUNT_UUID)}


async def test_what_a_creation_is_counted_for_is_given_back_wherever_it_fails(world: SimulatedCloud) -> None:
    vm = await world.create_vm("vm", data_disk_sizes=[GIB])
    both = sum(one.size for one in vm.all_volumes)
    before = await counted(world)
    assert (before["volume.capacity"], before["volume.data.num"], before["vm.num"]) == (both, 1, 1)
    too_large = {"instance_offering_uuid": None, "cpu_num": 1, "memory_size": 1 << 50}
    with pytest.raises(CloudError, match="no host"):
        await world.create_vm("before it has a place", data_disk_sizes=[GIB], **too_large)
    tag = f"staticIp::{world.l3}::{vm.vm_nics[0].ip}"
    with pytest.raises(CloudError, match="is in use"):
        await world.create_vm("where it gets its addresses", data_disk_sizes=[GIB], system_tags=[tag])
    world.hosts.fault("error", StartVm.path)
    with pytest.raises(CloudError):
        await world.create_vm("on its host", data_disk_sizes=[GIB])
    world.hosts.heal()
    assert await counted(world) == before
    await world.api(DestroyVmInstance(uuid=vm.uuid))
    await world.api(ExpungeVmInstance(uuid=vm.uuid))
    assert (await counted(world))["volume.capacity"] == GIB, "the data disk stays"
    await assert_nothing_wrong(world)


async def test_in_a_cluster_disks_are_counted_when_they_are_recorded(world: SimulatedCloud) -> None:
    """Until then a node of the version before may take the creation over, which undoes it by the records."""
    node, seen = world.cloud.node, list[dict[str, int]]()
    call = node.bus.call

    async def looked(msg: Any, timeout: float | None = None) -> Any:
        if isinstance(msg, AllocateHost):
            seen.append(await counted(world))
        return await call(msg, timeout)

    node.bus.call = looked  # type: ignore[method-assign]
    vm = await world.create_vm("vm", data_disk_sizes=[GIB])
    in_cluster = node.membership.clustered
    (before,) = seen
    assert before["vm.num"] == 1
    assert (before["volume.capacity"] == 0, before["volume.data.num"] == 0) == (in_cluster, in_cluster)
    after = await counted(world)
    assert (after["volume.capacity"], after["volume.data.num"]) == (sum(one.size for one in vm.all_volumes), 1)


async def test_whoever_counts_several_things_of_an_account_waits_in_one_order(world: SimulatedCloud) -> None:
    names = ("volume.capacity", "volume.data.num", "vm.totalNum", "vm.num", "vm.cpuNum", "vm.memorySize")

    def order(account: str) -> list[str]:
        return sorted(names, key=lambda name: derived_uuid("quota", account, name))

    mine = next(one for one in iter(new_uuid, "") if order(one)[0] == "volume.capacity")
    await world.api(CreateAccount(name="dev", password="x" * 128, resource_uuid=mine))
    await world.api(ShareResource(account_uuids=[mine], resource_uuids=[world.image, world.offering, world.l3]))
    create = CreateVmInstance(
        name="vm", image_uuid=world.image, instance_offering_uuid=world.offering, l3_network_uuids=[world.l3],
        data_disk_sizes=[GIB],
    )  # fmt: skip
    vm, db = await world.api(create, actor=Actor(mine, mine, None, False)), world.cloud.node.db

    async def begin() -> None:
        async with db.transaction() as tx:
            await take_under(tx, mine, {"vm": dict.fromkeys(names[2:], 1), "disk": {"volume.capacity": 1}})

    async def abort() -> None:
        async with db.transaction() as tx:
            await forget_vm(tx, vm.uuid, *(one.uuid for one in vm.all_volumes))

    async with asyncio.TaskGroup() as tasks, db.transaction() as tx:
        await take(tx, mine, "volume.capacity")  # so that both are on their way at the same time
        for one in (begin, abort):
            tasks.create_task(one(), context=Context())
            await asyncio.sleep(0.3)
    async with db.read() as session:
        assert {name: used for name, used, _ in await usage(session, mine) if name in names} == {
            **dict.fromkeys(names, 1), "volume.capacity": 2, "volume.data.num": 0,
        }  # fmt: skip


async def reservations(world: SimulatedCloud) -> list[tuple[str, str]]:
    """What is taken of hosts, storage and networks: who has it, and where."""
    host, storage, ip = HostReservationModel, StorageReservationModel, UsedIpModel
    async with world.cloud.node.db.read() as session:
        found = [
            *await session.execute(select(host.vm_uuid, host.host_uuid)),
            *await session.execute(select(storage.key, storage.primary_storage_uuid)),
            *await session.execute(select(ip.holder, ip.ip)),
        ]
    return sorted((one[0], one[1]) for one in found)


async def cancel_in_the_queue(world: SimulatedCloud, flow: str, begin: Callable[[], Awaitable[object]]) -> None:
    """Begin an operation, cancel it while its allocation waits for its turn, and let the turn come afterwards."""
    node = world.cloud.node

    def runs(name: str) -> list[Any]:
        return [one for one in node.workflows.dump() if one["name"] == name]

    async def waits() -> bool:
        queue = node.queues.dump().get("host-allocator")
        return queue is not None and len(queue.pending) == 1

    async def nobody_waits() -> bool:
        return "host-allocator" not in node.queues.dump()

    turn = asyncio.Event()
    before = asyncio.ensure_future(node.queues.run("host-allocator", 1, turn.wait, name="the one before"))
    work = asyncio.ensure_future(begin())
    await world.cloud.until(waits)
    (run,) = runs(flow)
    assert node.workflows.cancel(run["uuid"], "by its user")
    with pytest.raises(CloudError) as refused:
        await work
    assert CANCELED.code in [one.code for one in chain(refused.value)]
    assert runs(flow) == []
    turn.set()
    await before
    await world.cloud.until(nobody_waits)


async def test_what_is_cancelled_while_it_waits_for_a_host_takes_none(world: SimulatedCloud) -> None:
    before, free = await reservations(world), await room(world)
    await cancel_in_the_queue(world, "vm.create", lambda: world.create_vm("cancelled", data_disk_sizes=[GIB]))
    assert (await reservations(world), await room(world)) == (before, free)
    await assert_nothing_wrong(world)

    vm = await world.create_vm("stopped")
    await world.api(StopVmInstance(uuid=vm.uuid))
    before, free = await reservations(world), await room(world)
    await cancel_in_the_queue(world, "vm.start", lambda: world.api(StartVmInstance(uuid=vm.uuid)))
    assert (await reservations(world), await room(world)) == (before, free)
    assert (await vm_of(world, vm.uuid)).state == "Stopped"
    await assert_nothing_wrong(world)
    assert (await world.api(StartVmInstance(uuid=vm.uuid))).state == "Running"


async def test_a_disk_that_a_dead_attempt_reserved_elsewhere_moves_to_the_only_host(world: SimulatedCloud) -> None:
    bus, key = world.cloud.node.bus, new_uuid()
    here, elsewhere = (one.uuid for one in world.hosts.hosts)
    before = await room(world)
    await bus.call(ReserveStorage(key, world.primary_storage, elsewhere, GIB))
    disks = [DiskRequest(key=key, size=GIB)]
    ask = AllocateHost(vm_uuid=new_uuid(), cpu_num=1, memory=MIB, host_uuid=here, disks=disks)
    assert (await bus.call(ask)).disks == {key: world.primary_storage}
    async with world.cloud.node.db.read() as session:
        (reserved,) = await session.scalars(select(StorageReservationModel))
    assert (reserved.key, reserved.host_uuid) == (key, here)
    await bus.call(ReturnHost(vm_uuid=ask.vm_uuid))
    await bus.call(ReleaseStorage(key))
    assert await room(world) == before


async def test_disks(world: SimulatedCloud) -> None:
    vm = await world.create_vm(
        "disks",
        root_disk_size=2 * GIB,
        data_disk_offering_uuids=[world.disk_offering],
        data_disk_sizes=[3 * GIB, 4 * GIB],
    )
    found = [(one.device_id, one.type, one.size, one.disk_offering_uuid) for one in vm.all_volumes]
    assert found == [
        (0, "Root", 2 * GIB, None),
        (1, "Data", GIB, world.disk_offering),
        (2, "Data", 3 * GIB, None),
        (3, "Data", 4 * GIB, None),
    ]
    assert len(machine(world, vm.uuid).disks) == 4
    for wrong in ({"data_disk_sizes": [0]}, {"root_disk_size": 1}):
        with pytest.raises(CloudError) as refused:
            await world.create_vm("wrong", **wrong)
        assert INVALID_ARGUMENT.code in [one.code for one in chain(refused.value)]
    await assert_nothing_wrong(world)


async def test_networks(world: SimulatedCloud) -> None:
    second = await world.add_l3(2)
    user_data = base64.b64encode(b"#cloud-config\n").decode()
    vm = await world.create_vm(
        "nets",
        l3_network_uuids=[world.l3, second],
        default_l3_network_uuid=second,
        system_tags=[
            f"staticIp::{second}::10.2.0.50",
            f"customMac::{world.l3}::fa:16:3e:12:34:56",
            "hostname::front",
            f"userdata::{user_data}",
        ],
    )
    first, other = vm.vm_nics
    assert (first.mac, other.ip, vm.default_l3_network_uuid) == ("fa:16:3e:12:34:56", "10.2.0.50", second)
    host = world.hosts.by_uuid(vm.host_uuid or "").world
    assert [one.hostname for one in host.leases[second].values()] == ["front"]
    assert host.metadata[second]["10.2.0.50"].user_data == "#cloud-config\n"
    assert [one.mac for one in machine(world, vm.uuid).nics] == [first.mac, other.mac]
    taken = {"system_tags": [f"staticIp::{second}::10.2.0.50"], "l3_network_uuids": [second]}
    with pytest.raises(CloudError) as refused:
        await world.create_vm("same address", **taken)
    assert "10.2.0.50" in chain(refused.value)[-1].details
    wrong: list[dict[str, Any]] = [
        {"l3_network_uuids": [world.l3, world.l3]},
        {"default_l3_network_uuid": second},
        {"system_tags": [f"staticIp::{second}::10.2.0.51"]},
    ]
    for one in wrong:
        with pytest.raises(CloudError) as refused:
            await world.create_vm("wrong", **one)
        assert refused.value.kind == INVALID_ARGUMENT
    assert list(guests(world)) == [vm.uuid]
    lonely = await world.create_vm("lonely", l3_network_uuids=[])
    assert (lonely.vm_nics, lonely.default_l3_network_uuid) == ([], None)
    await assert_nothing_wrong(world)


async def test_places(world: SimulatedCloud) -> None:
    for host in world.hosts.hosts:
        vm = await world.create_vm("there", host_uuid=host.uuid, cluster_uuid=world.cluster, zone_uuid=world.zone)
        assert (vm.host_uuid, vm.cluster_uuid, vm.zone_uuid) == (host.uuid, world.cluster, world.zone)
        assert vm.uuid in host.world.vms
    chosen = await world.create_vm(
        "named", resource_uuid="c" * 32, primary_storage_uuid_for_root_volume=world.primary_storage
    )
    assert (chosen.uuid, chosen.all_volumes[0].primary_storage_uuid) == ("c" * 32, world.primary_storage)


@pytest.mark.parametrize("strategy", ["CreateStopped", "JustCreate"])
async def test_created_but_not_started(world: SimulatedCloud, strategy: str) -> None:
    free = await room(world)
    vm = await world.create_vm("later", strategy=strategy)
    assert (vm.state, vm.host_uuid) == ("Stopped", None)
    assert guests(world) == {}
    assert (await room(world))[:2] == free[:2]
    assert await used(world) == {"vm.totalNum": 1, "vm.num": 0, "vm.cpuNum": 0, "vm.memorySize": 0}
    assert (await world.api(StartVmInstance(uuid=vm.uuid))).state == "Running"
    await assert_nothing_wrong(world)


async def test_from_an_iso(world: SimulatedCloud) -> None:
    path = empty_qcow2(world.directory / "install.iso")
    path.write_bytes(b"\0" * 32769 + b"CD001" + b"\0" * 40000)
    iso = await world.api(
        AddImage(
            name="iso",
            url=f"file://{path}",
            backup_storage_uuids=[world.backup_storage],
            media_type="ISO",
            format="iso",
        )
    )
    with pytest.raises(CloudError) as refused:
        await world.create_vm("rootless", image_uuid=iso.uuid)
    assert refused.value.kind == INVALID_ARGUMENT
    vm = await world.create_vm("installed", image_uuid=iso.uuid, root_disk_size=2 * GIB)
    assert (vm.state, vm.all_volumes[0].size, vm.vm_cd_roms[0].iso_uuid) == ("Running", 2 * GIB, iso.uuid)
    assert vm.all_volumes[0].root_image_uuid is None
    drive = machine(world, vm.uuid).cdroms[0]
    assert drive.install_path, "the drive is empty on the host"
    assert drive.install_path in world.hosts.by_uuid(vm.host_uuid or "").world.files
    await assert_nothing_wrong(world)


async def test_vms_and_running_vms_are_counted_apart(world: SimulatedCloud) -> None:
    account = await world.api(CreateAccount(name="dev", password="x" * 128))
    actor = Actor(account.uuid, account.uuid, None, False)
    await world.api(ShareResource(to_public=True, resource_uuids=[world.image, world.offering, world.l3]))
    for name, value in (("vm.totalNum", 2), ("vm.num", 1)):
        await world.api(UpdateQuota(identity_uuid=account.uuid, name=name, value=value))

    async def create(**more: Any) -> VmInstanceInventory:
        values = {
            "image_uuid": world.image, "instance_offering_uuid": world.offering, "l3_network_uuids": [world.l3], **more,
        }  # fmt: skip
        return await world.api(CreateVmInstance(name="vm", **values), actor=actor)

    async def refusal(work: Any) -> str:
        with pytest.raises(CloudError) as refused:
            await work
        return chain(refused.value)[-1].details

    first = await create()
    assert "vm.num, value: 1" in await refusal(create())
    await world.api(StopVmInstance(uuid=first.uuid, type="cold"), actor=actor)
    assert await used(world, account.uuid) == {"vm.totalNum": 1, "vm.num": 0, "vm.cpuNum": 0, "vm.memorySize": 0}
    second = await create()
    assert "vm.num, value: 1" in await refusal(world.api(StartVmInstance(uuid=first.uuid), actor=actor))
    assert "vm.totalNum, value: 2" in await refusal(create())
    await world.api(StopVmInstance(uuid=second.uuid, type="cold"), actor=actor)
    assert (await world.api(StartVmInstance(uuid=first.uuid), actor=actor)).state == "Running"
    assert await used(world, account.uuid) == {
        "vm.totalNum": 2, "vm.num": 1, "vm.cpuNum": 1, "vm.memorySize": 128 * MIB,
    }  # fmt: skip
    await assert_nothing_wrong(world)


async def test_an_account_works_with_what_is_shared_within_its_quota(world: SimulatedCloud) -> None:
    account = await world.api(CreateAccount(name="dev", password="x" * 128))
    actor = Actor(account.uuid, account.uuid, None, False)
    await world.api(ShareResource(account_uuids=[account.uuid], resource_uuids=[world.image, world.offering, world.l3]))
    await world.api(UpdateQuota(identity_uuid=account.uuid, name="vm.num", value=2))

    def create(name: str) -> CreateVmInstance:
        return CreateVmInstance(
            name=name,
            image_uuid=world.image,
            instance_offering_uuid=world.offering,
            l3_network_uuids=[world.l3],
        )

    before = await owned(world)
    answers = await asyncio.gather(
        *(world.api(create(f"vm{number}"), actor=actor) for number in range(4)), return_exceptions=True
    )
    made = [one for one in answers if not isinstance(one, BaseException)]
    refused = [one for one in answers if isinstance(one, CloudError)]
    assert (len(made), len(refused)) == (2, 2)
    for error in refused:
        assert QUOTA_EXCEEDING.code in [one.code for one in chain(error)]
        assert "2" in chain(error)[-1].details
    assert len(guests(world)) == 2
    assert await used(world, account.uuid) == {
        "vm.totalNum": 2,
        "vm.num": 2,
        "vm.cpuNum": 2,
        "vm.memorySize": 256 * MIB,
    }
    mine = await world.api(QueryVmInstance(), actor=actor)
    assert {one.uuid for one in mine.inventories} == {one.uuid for one in made}
    other = await world.create_vm("of the administrator")
    assert other.uuid not in {one.uuid for one in (await world.api(QueryVmInstance(), actor=actor)).inventories}
    for one in made:
        await world.api(DestroyVmInstance(uuid=one.uuid), actor=actor)
        await world.api(ExpungeVmInstance(uuid=one.uuid))
    assert await used(world, account.uuid) == {"vm.totalNum": 0, "vm.num": 0, "vm.cpuNum": 0, "vm.memorySize": 0}
    left = [one for one in await owned(world) if one not in before]
    assert sorted(kind for kind, _ in left) == ["VmInstanceVO", "VmNicVO", "VolumeVO"]
    await assert_nothing_wrong(world)


@pytest.mark.timeout(180)
async def test_a_hundred_at_once_where_sixty_have_room(tmp_path: Path) -> None:
    async with simulated_cloud(tmp_path, hosts=5) as world:
        # 64 GiB less 1 GiB of each host: 12 guests of 5 GiB, and 60 on all of them.
        offering = await world.api(CreateInstanceOffering(name="huge", cpu_num=1, memory_size=5 * GIB))
        before, mine = await room(world), await owned(world)
        answers = await asyncio.gather(
            *(
                world.api(
                    CreateVmInstance(
                        name=f"vm{number}",
                        image_uuid=world.image,
                        instance_offering_uuid=offering.uuid,
                        l3_network_uuids=[world.l3],
                    ),
                    timeout=150,
                )
                for number in range(100)
            ),
            return_exceptions=True,
        )
        made = [one for one in answers if not isinstance(one, BaseException)]
        refused = [one for one in answers if isinstance(one, CloudError)]
        assert (len(made), len(refused)) == (60, 40)
        assert all(one.state == "Running" for one in made)
        assert [len(host.world.vms) for host in world.hosts.hosts] == [12] * 5
        assert len({one.vm_nics[0].ip for one in made}) == 60
        for error in refused:
            codes = [one.code for one in chain(error)]
            assert codes[0] == "VM.1000"
            assert "HOST_ALLOCATION.1000" in codes
            assert any(str(5 * GIB) in one.details for one in chain(error)), "no numbers"
        assert len((await world.api(QueryVmInstance(limit=1000))).inventories) == 60
        assert len((await world.api(QueryVolume(limit=1000))).inventories) == 60
        assert (await used(world))["vm.num"] == 60
        assert before[1] - (await room(world))[1] == 60 * 5 * GIB
        await assert_nothing_wrong(world)
        gone = await asyncio.gather(*(_end(world, one.uuid) for one in made), return_exceptions=True)
        assert [one for one in gone if one is not None] == []
        assert (await room(world))[:2] == before[:2]
        assert await owned(world) == mine
        assert guests(world) == {}
        await assert_nothing_wrong(world)


async def _end(world: SimulatedCloud, uuid: str) -> None:
    await world.api(DestroyVmInstance(uuid=uuid), timeout=150)
    await world.api(ExpungeVmInstance(uuid=uuid), timeout=150)


async def test_twenty_starts_and_stops_at_once_run_in_order(world: SimulatedCloud) -> None:
    vm = await world.create_vm()
    messages = [
        StopVmInstance(uuid=vm.uuid, type="cold") if number % 2 == 0 else StartVmInstance(uuid=vm.uuid)
        for number in range(20)
    ]
    answers = await asyncio.gather(*(world.api(one) for one in messages))
    assert [one.state for one in answers] == ["Stopped", "Running"] * 10
    assert (await vm_of(world, vm.uuid)).state == "Running"
    host = world.hosts.by_uuid(vm.host_uuid or "")
    assert (host.done["/vm/start"], host.done["/vm/stop"]) == (11, 10)
    await assert_nothing_wrong(world)
