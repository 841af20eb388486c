"""Primary storages on simulated hosts: attach, capacity, image cache, deletions."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest

from caelum.agent import protocol
from caelum.cloud.cluster.api import CreateCluster
from caelum.cloud.host.api import DeleteHost
from caelum.cloud.image.api import DeleteImage, ExpungeImage
from caelum.cloud.parts import part
from caelum.cloud.primary_storage import cache
from caelum.cloud.primary_storage.api import (
    AttachPrimaryStorageToCluster,
    ChangePrimaryStorageState,
    CleanUpImageCacheOnPrimaryStorage,
    DeletePrimaryStorage,
    DetachPrimaryStorageFromCluster,
    GetPrimaryStorageCapacity,
    GetPrimaryStorageTypes,
    PrimaryStorageInventory,
    QueryImageCache,
    QueryPrimaryStorage,
    ReconnectPrimaryStorage,
    SyncPrimaryStorageCapacity,
    UpdatePrimaryStorage,
)
from caelum.cloud.primary_storage.errors import ALLOCATE_ERROR, ATTACH_ERROR
from caelum.cloud.primary_storage.events import PrimaryStorageStatusChanged
from caelum.cloud.primary_storage.extension import BitsRecords
from caelum.cloud.primary_storage.messages import (
    CacheImage,
    CreateVolumeOnStorage,
    DeleteBitsOnStorage,
    FindStorage,
    GetPrimaryStorage,
    GetVolumeHosts,
    PlanVolumeOnStorage,
    ReleaseStorage,
    ReserveStorage,
    VolumeBits,
)
from caelum.cloud.primary_storage.settings import OVER_PROVISIONING
from caelum.cloud.zone.api import CreateZone, DeleteZone
from caelum.drivers.local_storage.api import (
    AddLocalPrimaryStorage,
    GetLocalStorageHostDiskCapacity,
    QueryLocalStorageResourceRef,
)
from caelum.kernel.errors import INVALID_ARGUMENT, CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import QueryCondition
from caelum.testing.simcloud import GIB, IMAGE_SIZE, SimulatedCloud, simulated_cloud

DISK = 1024 * GIB
CREATE, DELETE, DOWNLOAD = protocol.CreateVolume.path, protocol.DeleteFile.path, protocol.DownloadToCache.path


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SimulatedCloud]:
    async with simulated_cloud(tmp_path, hosts=2) as made:
        yield made


async def storage(world: SimulatedCloud) -> PrimaryStorageInventory:
    return await world.cloud.node.bus.call(GetPrimaryStorage(world.primary_storage))


async def share(world: SimulatedCloud, number: int) -> Any:
    uuid = world.hosts[number].uuid
    reply = await world.api(GetLocalStorageHostDiskCapacity(primary_storage_uuid=world.primary_storage, host_uuid=uuid))
    return reply.inventories[0]


async def make(
    world: SimulatedCloud, size: int = GIB, host: int = 0, image: str | None = None
) -> tuple[str, VolumeBits]:
    """Reserve space and make a volume's bits."""
    uuid, bus, host_uuid = new_uuid(), world.cloud.node.bus, world.hosts[host].uuid
    await bus.call(ReserveStorage(uuid, world.primary_storage, host_uuid, size))
    message = CreateVolumeOnStorage(world.primary_storage, host_uuid, uuid, size, image_uuid=image, account_uuid="acc")
    return uuid, await bus.call(message)


async def query(world: SimulatedCloud, cls: type[Any], *conditions: QueryCondition) -> list[Any]:
    return (await world.api(cls(conditions=list(conditions)))).inventories or []


async def test_a_storage_is_the_sum_of_its_hosts(world: SimulatedCloud) -> None:
    ps = await storage(world)
    assert (ps.status, ps.state, ps.type) == ("Connected", "Enabled", "LocalStorage")
    assert ps.total_capacity == ps.total_physical_capacity == 2 * DISK
    assert ps.attached_cluster_uuids == [world.cluster]
    reply = await world.api(GetLocalStorageHostDiskCapacity(primary_storage_uuid=ps.uuid))
    assert {one.host_uuid for one in reply.inventories} == {host.uuid for host in world.hosts.hosts}
    assert [one.total_capacity for one in reply.inventories] == [DISK, DISK]
    sums = await world.api(GetPrimaryStorageCapacity(cluster_uuids=[world.cluster]))
    assert sums.total_capacity == 2 * DISK
    assert (await world.api(GetPrimaryStorageTypes())).types == ["LocalStorage"]
    found = await query(world, QueryPrimaryStorage, QueryCondition("cluster.uuid", "=", world.cluster),
                        QueryCondition("totalCapacity", "=", str(2 * DISK)))  # fmt: skip
    assert [one.uuid for one in found] == [ps.uuid]
    for op, value in (("=", world.cluster), ("in", f"{world.cluster},{world.zone}")):
        found = await query(world, QueryPrimaryStorage, QueryCondition("attachedClusterUuids", op, value))
        assert [one.uuid for one in found] == [ps.uuid]
    assert await query(world, QueryPrimaryStorage, QueryCondition("attachedClusterUuids", "=", world.zone)) == []


@pytest.mark.parametrize("url", ["relative", "/", "/etc/x", "/a/../b", "/a;rm", "/usr", "/a b"])
async def test_only_a_directory_of_its_own_will_do(world: SimulatedCloud, url: str) -> None:
    with pytest.raises(CloudError) as refused:
        await world.api(AddLocalPrimaryStorage(name="bad", url=url, zone_uuid=world.zone))
    assert refused.value.kind is INVALID_ARGUMENT
    assert len(await query(world, QueryPrimaryStorage)) == 1


async def test_a_storage_comes_and_goes(world: SimulatedCloud) -> None:
    ps = await world.api(AddLocalPrimaryStorage(name="ssd", url="/ssd", zone_uuid=world.zone, user_tags=["fast"]))
    assert (ps.status, ps.total_capacity) == ("Connected", 0)
    with pytest.raises(CloudError, match="already"):
        await world.api(AddLocalPrimaryStorage(name="again", url="/ssd", zone_uuid=world.zone))
    await world.api(UpdatePrimaryStorage(uuid=ps.uuid, name="nvme", url="/nvme"))
    attach = AttachPrimaryStorageToCluster(cluster_uuid=world.cluster, primary_storage_uuid=ps.uuid)
    attached = await world.api(attach)
    assert (attached.name, attached.url, attached.total_capacity) == ("nvme", "/nvme", 2 * DISK)
    assert world.hosts[1].world.storages["/nvme"] == ps.uuid
    with pytest.raises(CloudError, match="already"):
        await world.api(attach)
    with pytest.raises(CloudError, match="still attached"):
        await world.api(DeletePrimaryStorage(uuid=ps.uuid))
    with pytest.raises(CloudError, match="cannot change"):
        await world.api(UpdatePrimaryStorage(uuid=ps.uuid, url="/other"))
    detached = await world.api(
        DetachPrimaryStorageFromCluster(cluster_uuid=world.cluster, primary_storage_uuid=ps.uuid)
    )
    assert (detached.attached_cluster_uuids, detached.total_capacity) == ([], 0)
    await world.api(DeletePrimaryStorage(uuid=ps.uuid))
    assert [one.uuid for one in await query(world, QueryPrimaryStorage)] == [world.primary_storage]


async def test_a_host_that_refuses_keeps_the_storage_from_the_cluster(world: SimulatedCloud) -> None:
    ps = await world.api(AddLocalPrimaryStorage(name="ssd", url="/ssd", zone_uuid=world.zone))
    host = world.hosts[1].uuid
    world.hosts.fault("error", protocol.InitStorage.path, host=host, code=protocol.STORAGE, details="disk is on fire")
    with pytest.raises(CloudError, match="disk is on fire") as refused:
        await world.api(AttachPrimaryStorageToCluster(cluster_uuid=world.cluster, primary_storage_uuid=ps.uuid))
    assert refused.value.kind is ATTACH_ERROR
    ps = await world.cloud.node.bus.call(GetPrimaryStorage(ps.uuid))
    assert (ps.attached_cluster_uuids, ps.total_capacity) == ([], 0)
    assert (await world.api(GetLocalStorageHostDiskCapacity(primary_storage_uuid=ps.uuid))).inventories == []


async def test_zones_do_not_mix(world: SimulatedCloud) -> None:
    zone = await world.api(CreateZone(name="far"))
    cluster = await world.api(CreateCluster(name="far", zone_uuid=zone.uuid, hypervisor_type="KVM"))
    with pytest.raises(CloudError, match="is in zone"):
        await world.api(
            AttachPrimaryStorageToCluster(cluster_uuid=cluster.uuid, primary_storage_uuid=world.primary_storage)
        )


async def test_takers_and_lookers_at_once_get_in_nobodys_way(world: SimulatedCloud) -> None:
    """Each locks several rows of the same books: in one order, or two would wait for each other."""
    bus, before = world.cloud.node.bus, (await share(world, 0)).available_capacity
    ratios = itertools.cycle(["1.0", "2.0"])

    async def take(host: int) -> None:
        for _ in range(4):
            uuid = new_uuid()
            await bus.call(ReserveStorage(uuid, world.primary_storage, world.hosts[host].uuid, GIB))
            await bus.call(ReleaseStorage(uuid))

    async def look() -> None:
        for _ in range(4):
            await world.cloud.node.settings.set(OVER_PROVISIONING, next(ratios))
            await world.api(ReconnectPrimaryStorage(uuid=world.primary_storage))

    await asyncio.gather(*[take(number % 2) for number in range(8)], look(), look())
    assert (await share(world, 0)).available_capacity == before
    assert (await storage(world)).available_capacity == 2 * before


async def test_search_says_where_it_fits_and_why_not(world: SimulatedCloud) -> None:
    hosts = [host.uuid for host in world.hosts.hosts]
    await make(world, 10 * GIB)
    bus = world.cloud.node.bus
    found = await bus.call(FindStorage(hosts, GIB))
    assert found.candidates[0].primary_storage_uuid == world.primary_storage
    assert found.candidates[0].host_uuids == [hosts[1], hosts[0]]
    found = await bus.call(FindStorage(hosts, DISK - 5 * GIB))
    assert found.candidates[0].host_uuids == [hosts[1]]
    assert [(one.host_uuid, str(DISK - 10 * GIB) in one.reason) for one in found.refusals] == [(hosts[0], True)]
    await world.api(ChangePrimaryStorageState(uuid=world.primary_storage, state_event="disable"))
    found = await bus.call(FindStorage(hosts, GIB))
    assert (found.candidates, [one.reason for one in found.refusals]) == ([], ["it is Disabled"])
    assert (await bus.call(FindStorage(hosts, 0))).candidates, "what is there can be used"
    await world.api(ChangePrimaryStorageState(uuid=world.primary_storage, state_event="enable"))
    found = await bus.call(FindStorage(hosts, GIB, required_tags=["ssd"]))
    assert "lacks the user tags" in found.refusals[0].reason


async def test_what_does_not_fit_is_refused_with_the_numbers(world: SimulatedCloud) -> None:
    with pytest.raises(CloudError) as refused:
        await make(world, DISK)
    assert refused.value.kind is ALLOCATE_ERROR
    assert (refused.value.facts["available"], refused.value.facts["reserved"]) == (DISK, GIB)
    node = world.cloud.node
    await node.settings.set(OVER_PROVISIONING, 4.0)
    await make(world, 2 * DISK)
    assert (await share(world, 0)).available_capacity == DISK - DISK // 2
    await node.settings.set(OVER_PROVISIONING, 2.5)
    await world.api(SyncPrimaryStorageCapacity(primary_storage_uuid=world.primary_storage))
    assert (await share(world, 0)).available_capacity == DISK - -(-2 * DISK * 2 // 5)


async def test_volumes_lie_where_everybody_expects_them(world: SimulatedCloud) -> None:
    uuid, bits = await make(world)
    assert bits.install_path == f"/caelum_ps/dataVolumes/acct-acc/vol-{uuid}/{uuid}.qcow2"
    assert (bits.size, bits.format) == (GIB, "qcow2")
    host = world.hosts[0].uuid
    assert (await world.cloud.node.bus.call(GetVolumeHosts([uuid, "x"]))).hosts == {uuid: host}
    refs = await query(world, QueryLocalStorageResourceRef, QueryCondition("hostUuid", "=", host))
    assert [(one.resource_uuid, one.size, one.resource_type) for one in refs] == [(uuid, GIB, "VolumeVO")]
    # What bits are made on goes with them, not before.
    await world.cloud.node.bus.call(ReleaseStorage(uuid))
    assert (await share(world, 0)).available_capacity == DISK - GIB
    for _ in range(2):
        await world.cloud.node.bus.call(DeleteBitsOnStorage(world.primary_storage, None, bits.install_path, key=uuid))
    assert (await share(world, 0)).available_capacity == DISK
    assert bits.install_path not in world.hosts[0].world.files
    assert await query(world, QueryLocalStorageResourceRef) == []


async def test_fifty_clones_at_once_download_the_image_once_per_host(world: SimulatedCloud) -> None:
    made = await asyncio.gather(*(make(world, IMAGE_SIZE, number % 2, world.image) for number in range(50)))
    assert [host.done[DOWNLOAD] for host in world.hosts.hosts] == [1, 1]
    assert len({bits.install_path for _, bits in made}) == 50
    rows = await query(world, QueryImageCache, QueryCondition("imageUuid", "=", world.image))
    assert len(rows) == 2
    assert {one.install_url.rpartition(";hostUuid://")[2] for one in rows} == {one.uuid for one in world.hosts.hosts}
    base = f"/caelum_ps/imagecache/template/{world.image}/{world.image}.qcow2"
    assert set(world.hosts[0].world.backing.values()) == {base}
    assert (await share(world, 0)).available_capacity == DISK - 25 * IMAGE_SIZE - rows[0].size


async def test_a_download_that_fails_leaves_nothing_and_can_be_repeated(world: SimulatedCloud) -> None:
    world.hosts.fault("error", DOWNLOAD, code=protocol.DOWNLOAD, count=1, details="connection reset")
    with pytest.raises(CloudError, match="connection reset"):
        await world.cloud.node.bus.call(CacheImage(world.primary_storage, world.hosts[0].uuid, world.image))
    assert (await share(world, 0)).available_capacity == DISK
    assert await query(world, QueryImageCache) == []
    cached = await world.cloud.node.bus.call(CacheImage(world.primary_storage, world.hosts[0].uuid, world.image))
    assert cached.install_path in world.hosts[0].world.files


async def test_two_nodes_that_cache_an_image_at_a_time_keep_its_file(
    world: SimulatedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    queues = (f"of another node {number}" for number in itertools.count())
    monkeypatch.setattr(cache, "_signature", lambda _place, _image: next(queues))
    wanted = CacheImage(world.primary_storage, world.hosts[0].uuid, world.image)
    one, other = await world.cloud.node.bus.call_all([wanted, wanted])
    assert not isinstance(one, CloudError)
    assert one == other
    assert one.install_path in world.hosts[0].world.files
    assert len(await query(world, QueryImageCache)) == 1


async def test_a_cached_image_that_vanished_is_fetched_again(world: SimulatedCloud) -> None:
    await make(world, IMAGE_SIZE, image=world.image)
    files = world.hosts[0].world
    files.backing.clear()
    del files.files[f"/caelum_ps/imagecache/template/{world.image}/{world.image}.qcow2"]
    _, bits = await make(world, IMAGE_SIZE, image=world.image)
    assert bits.install_path in files.files
    assert len(files.downloads) == 2


async def test_the_cache_is_cleaned_of_what_nobody_needs(world: SimulatedCloud) -> None:
    uuid, bits = await make(world, IMAGE_SIZE, image=world.image)
    await world.api(DeleteImage(uuid=world.image))
    await world.api(ExpungeImage(image_uuid=world.image))
    clean = CleanUpImageCacheOnPrimaryStorage(uuid=world.primary_storage)
    await world.api(clean)
    assert len(await query(world, QueryImageCache)) == 1, "a clone still stands on it"
    await world.cloud.node.bus.call(DeleteBitsOnStorage(world.primary_storage, None, bits.install_path, key=uuid))
    await world.api(clean)
    assert await query(world, QueryImageCache) == []
    assert world.hosts[0].world.files == {}
    assert (await share(world, 0)).available_capacity == DISK


async def test_an_image_that_is_there_stays_cached_unless_forced(world: SimulatedCloud) -> None:
    await world.cloud.node.bus.call(CacheImage(world.primary_storage, world.hosts[0].uuid, world.image))
    await world.api(CleanUpImageCacheOnPrimaryStorage(uuid=world.primary_storage))
    assert len(await query(world, QueryImageCache)) == 1
    await world.api(CleanUpImageCacheOnPrimaryStorage(uuid=world.primary_storage, force=True))
    assert await query(world, QueryImageCache) == []


async def test_an_image_stays_cached_for_bits_that_are_noted_while_it_is_cleaned_away(world: SimulatedCloud) -> None:
    node, host_uuid, volume = world.cloud.node, world.hosts[0].uuid, new_uuid()
    await node.bus.call(CacheImage(world.primary_storage, host_uuid, world.image))
    await node.bus.call(ReserveStorage(volume, world.primary_storage, host_uuid, IMAGE_SIZE))
    wanted = PlanVolumeOnStorage(
        primary_storage_uuid=world.primary_storage, host_uuid=host_uuid, volume_uuid=volume, size=IMAGE_SIZE,
        image_uuid=world.image, account_uuid="acc", volume_type="Root",
    )  # fmt: skip
    plan = await node.bus.call(wanted)
    assert plan is not None
    clean = world.api(CleanUpImageCacheOnPrimaryStorage(uuid=world.primary_storage, force=True))
    async with node.db.transaction() as tx:
        assert await part(node, BitsRecords).pin(tx, plan)
        cleaning = asyncio.create_task(clean, context=Context())
        await asyncio.wait([cleaning], timeout=1)
    await cleaning
    assert len(await query(world, QueryImageCache)) == 1
    assert plan.cached_path in world.hosts[0].world.files


async def test_bits_on_a_host_that_is_away_go_later(world: SimulatedCloud) -> None:
    uuid, bits = await make(world)
    node, host = world.cloud.node, world.hosts[0]
    world.hosts.fault("error", DELETE, code=protocol.BUSY, transient=True)
    await node.bus.call(DeleteBitsOnStorage(world.primary_storage, None, bits.install_path, key=uuid))
    assert (await share(world, 0)).available_capacity == DISK - GIB, "the space is not free yet"
    assert bits.install_path in host.world.files
    assert len(await node.gc.open_jobs()) == 1
    # New bits of the same volume must not get the path that the garbage collector is going to delete.
    await node.bus.call(ReserveStorage(uuid, world.primary_storage, host.uuid, GIB))
    fresh = await node.bus.call(CreateVolumeOnStorage(world.primary_storage, host.uuid, uuid, GIB, account_uuid="acc"))
    assert fresh.install_path != bits.install_path
    world.hosts.heal()
    await node.gc.trigger_all()

    async def done() -> bool:
        return not await node.gc.open_jobs()

    await world.cloud.until(done)
    assert bits.install_path not in host.world.files
    assert fresh.install_path in host.world.files
    assert (await share(world, 0)).available_capacity == DISK - GIB


async def test_a_late_undo_leaves_other_bits_alone(world: SimulatedCloud) -> None:
    uuid, bits = await make(world)
    bus, first = world.cloud.node.bus, world.hosts[0].uuid
    message = CreateVolumeOnStorage(world.primary_storage, first, uuid, GIB, account_uuid="acc", maker="second")
    assert (await bus.call(message)).install_path == bits.install_path
    await bus.call(DeleteBitsOnStorage(world.primary_storage, first, None, key=uuid, maker="first"))
    assert bits.install_path in world.hosts[0].world.files
    await bus.call(DeleteBitsOnStorage(world.primary_storage, first, None, key=uuid, maker="second"))
    assert bits.install_path not in world.hosts[0].world.files
    assert (await share(world, 0)).available_capacity == DISK


async def test_a_storage_without_hosts_is_disconnected_until_one_is_back(world: SimulatedCloud) -> None:
    from caelum.cloud.host.extension import HostDisconnected
    from caelum.cloud.host.messages import GetHost
    from caelum.kernel.errors import TIMEOUT

    node = world.cloud.node
    for host in world.hosts.hosts:
        inventory = await node.bus.call(GetHost(host_uuid=host.uuid))
        await node.extensions.notify(HostDisconnected, "disconnected", inventory, CloudError(TIMEOUT, "lost"))
    assert (await storage(world)).status == "Disconnected"
    found = await node.bus.call(FindStorage([world.hosts[0].uuid], GIB))
    assert found.refusals[0].reason == "it is Disconnected"
    assert (await world.api(ReconnectPrimaryStorage(uuid=world.primary_storage))).status == "Connected"
    changes = [(one.old_status, one.new_status) for one in await world.cloud.seen(PrimaryStorageStatusChanged)]
    assert changes[-2:] == [("Connected", "Disconnected"), ("Disconnected", "Connected")]


async def test_a_deleted_host_takes_its_share_along(world: SimulatedCloud) -> None:
    uuid, _ = await make(world, image=world.image)
    await world.api(DeleteHost(uuid=world.hosts[0].uuid))
    ps = await storage(world)
    assert (ps.total_capacity, ps.available_capacity) == (DISK, DISK)
    assert await query(world, QueryImageCache) == []
    assert (await world.cloud.node.bus.call(GetVolumeHosts([uuid]))).hosts == {}


async def test_a_storage_goes_with_its_zone(world: SimulatedCloud) -> None:
    zone = await world.api(CreateZone(name="far"))
    ps = await world.api(AddLocalPrimaryStorage(name="far", url="/far", zone_uuid=zone.uuid))
    await world.api(DeleteZone(uuid=zone.uuid))
    assert await query(world, QueryPrimaryStorage, QueryCondition("uuid", "=", ps.uuid)) == []


async def test_the_books_survive_a_restart(world: SimulatedCloud) -> None:
    await make(world, 3 * GIB, image=world.image)
    before = await share(world, 0)
    await world.cloud.node.stop()
    await world.stage.reboot()
    assert (await share(world, 0)).available_capacity == before.available_capacity
