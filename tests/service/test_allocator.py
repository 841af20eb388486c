"""Choosing hosts: never beyond what there is, and every refusal with its numbers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession
from tests.service.host_clouds import HostCloud, host_cloud

from caelum.cloud.allocator import choose, pages
from caelum.cloud.allocator.api import GetCpuMemoryCapacity, GetHostAllocatorStrategies
from caelum.cloud.allocator.extension import HostFilter
from caelum.cloud.allocator.messages import (
    AllocateHost,
    Candidate,
    DiskRequest,
    HostAllocation,
    ReportHostCapacity,
    ReserveHost,
    ReturnHost,
)
from caelum.cloud.allocator.model import HostCapacityModel, HostReservationModel
from caelum.cloud.allocator.pages import Pages
from caelum.cloud.allocator.rules import request
from caelum.cloud.allocator.settings import CONCURRENT, CPU_RATIO, MEMORY_RATIO, PAGE, RESERVED_MEMORY
from caelum.cloud.allocator.strategies import STRATEGIES
from caelum.cloud.cluster.api import ChangeClusterState, CreateCluster
from caelum.cloud.host import records
from caelum.cloud.host.api import ChangeHostState, DeleteHost
from caelum.cloud.host.messages import AwaitHosts
from caelum.cloud.host.model import HostModel
from caelum.cloud.host.states import CONNECTED, CONNECTING
from caelum.cloud.host.tags import RESERVED_MEMORY as RESERVED_TAG
from caelum.cloud.primary_storage.extension import Reserve, SpaceRecords
from caelum.cloud.primary_storage.messages import (
    FindStorage,
    ReleaseStorage,
    ReserveStorage,
    StorageCandidate,
    StorageCandidates,
    StorageRefusal,
)
from caelum.kernel import context
from caelum.kernel.errors import CANCELED, OPERATION_ERROR, CloudError, not_found
from caelum.kernel.ids import new_uuid
from caelum.kernel.service import Service, handles

GIB = 1 << 30


class Disks(Service):
    """Stands where primary storage is: the storage that is asked for, or one, with its own space on every host."""

    name = "primary_storage"
    storage = new_uuid()

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self.free: dict[str, int] = {}
        self.taken: dict[str, tuple[str, int]] = {}
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    @handles(FindStorage)
    async def find(self, msg: FindStorage) -> StorageCandidates:
        free = {uuid: self.free.get(uuid, 100 * GIB) for uuid in msg.host_uuids}
        fits = {uuid: n for uuid, n in free.items() if n >= msg.size}
        storage = msg.primary_storage_uuid or self.storage
        refusals = [StorageRefusal(storage, u, f"{n} bytes are free") for u, n in free.items() if u not in fits]
        return StorageCandidates([StorageCandidate(storage, list(fits), fits)] if fits else [], refusals)

    @handles(ReserveStorage)
    async def reserve(self, msg: ReserveStorage) -> None:
        host_uuid = msg.host_uuid or ""
        free = self.free.get(host_uuid, 100 * GIB)
        if msg.key not in self.taken:
            if free < msg.size:
                raise CloudError(OPERATION_ERROR, f"{free} bytes are free, {msg.size} are needed")
            self.taken[msg.key] = (host_uuid, msg.size)
            self.free[host_uuid] = free - msg.size
        if self.meanwhile is not None:
            await self.meanwhile()

    @handles(ReleaseStorage)
    async def release(self, msg: ReleaseStorage) -> None:
        host_uuid, size = self.taken.pop(msg.key, ("", 0))
        if host_uuid:
            self.free[host_uuid] += size


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[HostCloud]:
    async with host_cloud(tmp_path, 3, services=[Disks], cpu_num=4, memory=9 * GIB) as cloud:
        for index in range(3):
            await cloud.add_host(index)
        yield cloud


async def allocate(cloud: HostCloud, **more: Any) -> HostAllocation:
    values = {"vm_uuid": new_uuid(), "cpu_num": 1, "memory": GIB}
    return await cloud.node.bus.call(AllocateHost(**{**values, **more}))


async def books(cloud: HostCloud) -> dict[str, tuple[int, int, int]]:
    """CPU, memory and machines by host, checked against the reservations."""
    async with cloud.node.db.read() as session:
        rows = {row.uuid: row for row in await session.scalars(select(HostCapacityModel))}
        reserved = list(await session.scalars(select(HostReservationModel)))
    for uuid, row in rows.items():
        mine = [one for one in reserved if one.host_uuid == uuid]
        assert row.used_cpu == sum(one.cpu_num for one in mine)
        assert row.used_memory == sum(one.memory for one in mine)
        assert row.vm_count == len(mine)
        assert 0 <= row.used_cpu <= row.total_cpu
        assert 0 <= row.used_memory <= row.limit_memory
    return {uuid: (row.used_cpu, row.used_memory, row.vm_count) for uuid, row in rows.items()}


@pytest.mark.parametrize("concurrent", [False, True])
async def test_a_hundred_at_once_of_which_twenty_four_fit(cloud: HostCloud, concurrent: bool) -> None:
    await cloud.node.settings.set(CONCURRENT, concurrent)
    asks = [AllocateHost(vm_uuid=new_uuid(), cpu_num=1, memory=GIB) for _ in range(100)]
    answers = await cloud.node.bus.call_all(asks)
    placed = [one for one in answers if isinstance(one, HostAllocation)]
    refused = [one for one in answers if isinstance(one, CloudError)]
    assert (len(placed), len(refused)) == (24, 76)
    assert {one.code for one in refused} == {"HOST_ALLOCATION.1000"}
    assert set(Counter(one.host_uuid for one in placed).values()) == {8}
    assert set((await books(cloud)).values()) == {(8, 8 * GIB, 8)}


async def test_a_hundred_at_once_of_which_sixty_fit(tmp_path: Path) -> None:
    async with host_cloud(tmp_path, 4, cpu_num=4, memory=16 * GIB) as cloud:
        for index in range(4):
            await cloud.add_host(index)
        answers = await cloud.node.bus.call_all(
            [AllocateHost(vm_uuid=new_uuid(), cpu_num=2, memory=GIB) for _ in range(100)]
        )
        assert sum(isinstance(one, HostAllocation) for one in answers) == 60
        assert set((await books(cloud)).values()) == {(30, 15 * GIB, 15)}


async def test_hosts_that_another_node_is_connecting_are_waited_for(cloud: HostCloud) -> None:
    host, other, _ = [one.uuid for one in await records.find(cloud.node)]
    cloud.node.services["host"].tracker.forget(host)
    await records.move(cloud.node, host, CONNECTING)
    asking = asyncio.create_task(allocate(cloud, host_uuid=host))
    await asyncio.sleep(0.5)
    assert not asking.done()
    await records.move(cloud.node, host, CONNECTED)
    assert (await asking).host_uuid == host

    await records.move(cloud.node, host, CONNECTING)
    with pytest.raises(CloudError) as caught:
        await asyncio.wait_for(allocate(cloud, host_uuid=other, cpu_num=1000), 5)
    assert caught.value.code == "HOST_ALLOCATION.1000"


@pytest.mark.parametrize("after", [(pages.Pages, "next"), (pages.Pages, "missed"), (choose, "explain")])
async def test_a_host_that_is_connected_after_it_was_passed_over_is_tried(
    cloud: HostCloud, monkeypatch: pytest.MonkeyPatch, after: tuple[Any, str]
) -> None:
    host = (await records.find(cloud.node))[0].uuid
    cloud.node.services["host"].tracker.forget(host)
    await records.move(cloud.node, host, CONNECTING)
    original, asked = getattr(*after), []

    async def then_connected(*given: Any) -> Any:
        answer = await original(*given)
        asked.append(answer)
        await records.move(cloud.node, host, CONNECTED)
        return answer

    monkeypatch.setattr(*after, then_connected)
    assert (await allocate(cloud, host_uuid=host, last_host_uuid=host)).host_uuid == host
    assert asked


async def test_those_who_wait_for_a_connect_share_what_they_read(
    cloud: HostCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = (await records.find(cloud.node))[0]
    cloud.node.services["host"].tracker.forget(host.uuid)
    await records.move(cloud.node, host.uuid, CONNECTING)
    reads, rows = 0, records._CONNECTING.rows

    async def counted(session: Any) -> Any:
        nonlocal reads
        reads += 1
        return await rows(session)

    monkeypatch.setattr(records, "_CONNECTING", SimpleNamespace(rows=counted))
    places: list[dict[str, str]] = [{}, {"host_uuid": host.uuid}, {"zone_uuid": host.zone_uuid}] * 3
    asking = [asyncio.create_task(cloud.node.bus.call(AwaitHosts(**place))) for place in places]
    await asyncio.sleep(1.1)
    before = reads
    await records.move(cloud.node, host.uuid, CONNECTED)
    assert await asyncio.gather(*asking) == [True] * 9
    # At first all may read before one of them has read; later each change is read by those who look in the same moment.
    assert before <= 9, "not 5 times a second each"


@pytest.mark.parametrize("untried", [True, False])
async def test_a_host_that_hangs_in_its_connect_delays_nobody_elsewhere(cloud: HostCloud, untried: bool) -> None:
    host, other, _ = await records.find(cloud.node)
    tracker = cloud.node.services["host"].tracker
    followed = tracker._followed[host.uuid]
    if untried:
        if followed.task is not None:
            await asyncio.wait([followed.task])
        followed.rest()  # no ping says meanwhile that it was tried
        followed.tried = asyncio.get_running_loop().create_future()
    else:
        tracker.forget(host.uuid)
        await records.move(cloud.node, host.uuid, CONNECTING)
    elsewhere = new_uuid()
    for place in ({"host_uuid": other.uuid}, {"cluster_uuid": elsewhere}, {"zone_uuid": elsewhere}):
        assert not await asyncio.wait_for(cloud.node.bus.call(AwaitHosts(**place)), 2)
    asking = [
        asyncio.create_task(cloud.node.bus.call(AwaitHosts(**place)))
        for place in (
            {}, {"host_uuid": host.uuid}, {"cluster_uuid": host.cluster_uuid}, {"zone_uuid": host.zone_uuid},
        )
    ]  # fmt: skip
    await asyncio.sleep(0.3)
    assert not any(one.done() for one in asking)
    if untried:
        followed.was_tried()
    else:
        await records.move(cloud.node, host.uuid, CONNECTED)
    assert await asyncio.gather(*asking) == [True] * 4


async def test_a_repeated_request_is_the_same_and_a_return_gives_back_all(cloud: HostCloud) -> None:
    vm = new_uuid()
    disks = [DiskRequest(key=new_uuid(), size=GIB, is_root=True)]
    first = await allocate(cloud, vm_uuid=vm, disks=disks)
    assert first.disks == {disks[0].key: Disks.storage}
    assert first.hypervisor_type == "KVM"
    for _ in range(3):
        assert await allocate(cloud, vm_uuid=vm, disks=disks) == first
    assert sum(count for _, _, count in (await books(cloud)).values()) == 1
    await cloud.node.bus.call(ReturnHost(vm_uuid=vm, host_uuid=new_uuid()))
    assert sum(count for _, _, count in (await books(cloud)).values()) == 1
    for _ in range(2):
        await cloud.node.bus.call(ReturnHost(vm_uuid=vm))
        assert set((await books(cloud)).values()) == {(0, 0, 0)}


async def test_another_size_for_the_same_machine_replaces_its_reservation(cloud: HostCloud) -> None:
    vm = new_uuid()
    await allocate(cloud, vm_uuid=vm, cpu_num=1)
    await allocate(cloud, vm_uuid=vm, cpu_num=3, memory=2 * GIB)
    assert sorted((await books(cloud)).values())[-1] == (3, 2 * GIB, 1)


async def test_every_refusal_says_how_many_and_why(cloud: HostCloud) -> None:
    hosts = [host.uuid for host in cloud.sim.hosts]
    await cloud.api(ChangeHostState(uuid=hosts[0], state_event="disable"))
    with pytest.raises(CloudError) as caught:
        await allocate(cloud, memory=20 * GIB)
    assert caught.value.code == "HOST_ALLOCATION.1000"
    causes = {one.facts["filter"]: one for one in caught.value.causes}
    assert {name: one.facts["refused"] for name, one in causes.items()} == {
        "HostStateAndHypervisor": 1,
        "HostCapacity": 2,
    }
    assert "Disabled" in causes["HostStateAndHypervisor"].details
    assert f"{8 * GIB} bytes of memory free" in causes["HostCapacity"].details
    assert f"needed are 1 CPUs and {20 * GIB} bytes" in causes["HostCapacity"].details
    assert len(caught.value.to_wire().causes or []) == 2


async def test_only_usable_hosts_are_chosen(cloud: HostCloud) -> None:
    disabled, maintained, away = (host.uuid for host in cloud.sim.hosts)
    await cloud.api(ChangeHostState(uuid=disabled, state_event="disable"))
    await cloud.api(ChangeHostState(uuid=maintained, state_event="maintain"))
    assert {(await allocate(cloud)).host_uuid for _ in range(4)} == {away}
    await cloud.api(ChangeClusterState(uuid=cloud.cluster.uuid, state_event="disable"))
    with pytest.raises(CloudError, match="its cluster Disabled"):
        await allocate(cloud)
    await cloud.api(ChangeClusterState(uuid=cloud.cluster.uuid, state_event="enable"))
    await cloud.sim[2].die()
    await cloud.until_status(away, "Disconnected")
    with pytest.raises(CloudError, match="Disconnected"):
        await allocate(cloud)
    assert (await cloud.host(away)).status == "Disconnected"


async def test_wishes_are_honoured(cloud: HostCloud) -> None:
    hosts = [host.uuid for host in cloud.sim.hosts]
    assert (await allocate(cloud, host_uuid=hosts[1])).host_uuid == hosts[1]
    assert (await allocate(cloud, avoid_host_uuids=hosts[:2])).host_uuid == hosts[2]
    assert (await allocate(cloud, cluster_uuid=cloud.cluster.uuid)).cluster_uuid == cloud.cluster.uuid
    other = await cloud.api(CreateCluster(zone_uuid=cloud.cluster.zone_uuid, name="other", hypervisor_type="KVM"))
    with pytest.raises(CloudError) as caught:
        await allocate(cloud, cluster_uuid=other.uuid)
    assert [one.facts["filter"] for one in caught.value.causes] == ["DesignatedHost"]
    for strategy in ("LastHostPreferred", "LastHostPreferredAllocatorStrategy", "DesignatedHostAllocatorStrategy"):
        assert (await allocate(cloud, strategy=strategy, last_host_uuid=hosts[0])).host_uuid == hosts[0]
    with pytest.raises(CloudError, match="Sinister"):
        await allocate(cloud, strategy="Sinister")


async def test_the_load_spreads(cloud: HostCloud) -> None:
    chosen = Counter([(await allocate(cloud, memory=GIB // 4)).host_uuid for _ in range(20)])
    assert sorted(chosen.values()) == [6, 7, 7]


async def test_a_dry_run_lists_and_takes_nothing(cloud: HostCloud) -> None:
    await allocate(cloud, host_uuid=cloud.sim[0].uuid)
    found = await allocate(cloud, dry_run=True)
    assert {one.host_uuid for one in found.candidates} == {host.uuid for host in cloud.sim.hosts}
    assert found.candidates[-1].host_uuid == cloud.sim[0].uuid
    assert found.candidates[-1].available_memory == 7 * GIB
    assert sum(count for _, _, count in (await books(cloud)).values()) == 1


async def test_disks_decide_too_and_nothing_is_kept_of_a_failure(cloud: HostCloud) -> None:
    disks: Any = cloud.node.services["primary_storage"]
    hosts = [host.uuid for host in cloud.sim.hosts]
    disks.free = {hosts[0]: 5 * GIB, hosts[1]: 15 * GIB, hosts[2]: GIB}
    ask = [DiskRequest(key=new_uuid(), size=4 * GIB, is_root=True), DiskRequest(key=new_uuid(), size=4 * GIB)]
    # Each of the two disks fits on the first host, both together only on the second.
    assert (await allocate(cloud, disks=ask)).host_uuid == hosts[1]
    assert set(disks.taken) == {one.key for one in ask}
    with pytest.raises(CloudError) as caught:
        await allocate(cloud, disks=[DiskRequest(key=new_uuid(), size=50 * GIB)])
    assert {one.facts["filter"]: one.facts["refused"] for one in caught.value.causes} == {"HostPrimaryStorage": 3}
    assert "bytes are free" in caught.value.details
    two = [DiskRequest(key=new_uuid(), size=4 * GIB) for _ in range(2)]
    with pytest.raises(CloudError):
        await allocate(cloud, disks=two, host_uuid=hosts[0])
    assert disks.free[hosts[0]] == 5 * GIB
    assert sum(count for _, _, count in (await books(cloud)).values()) == 1


class Space(SpaceRecords):
    """Stands where storages' records are: what was taken of which, in order, as long as a storage is there."""

    def __init__(self, gone: bool = False) -> None:
        self.taken: list[tuple[str, str]] = []
        self._gone = gone

    async def at(self, primary_storage_uuid: str, host_uuid: str) -> Reserve:
        if self._gone:
            raise not_found("PrimaryStorageVO", primary_storage_uuid)

        async def take(_tx: AsyncSession, key: str, _size: int) -> None:
            self.taken.append((primary_storage_uuid, key))

        return take


async def test_a_storage_that_is_deleted_meanwhile_is_a_refusal(cloud: HostCloud) -> None:
    disks: Any = cloud.node.services["primary_storage"]
    cloud.node.extensions.add(Space(gone=True))
    disk = DiskRequest(key=new_uuid(), size=GIB)
    assert (await allocate(cloud, disks=[disk])).disks == {disk.key: disks.storage}
    assert set(disks.taken) == {disk.key}, "storage by storage, as long as one has it"


async def test_whoever_takes_of_several_storages_does_so_in_one_order(cloud: HostCloud) -> None:
    space = Space()
    cloud.node.extensions.add(space)
    for order in ("ab", "ba"):
        await allocate(
            cloud, disks=[DiskRequest(key=new_uuid(), size=GIB, primary_storage_uuid=one * 32) for one in order]
        )
    assert [storage[0] for storage, _ in space.taken] == ["a", "b", "a", "b"]


async def test_an_allocation_whose_run_has_turned_back_meanwhile_leaves_nothing(cloud: HostCloud) -> None:
    disks: Any = cloud.node.services["primary_storage"]
    taken: list[int] = []

    async def count() -> None:
        taken.append(len(disks.taken))

    disks.meanwhile = count
    with (
        context.use(context.TaskContext(step_key="step/run", fence=f"{new_uuid()}:1")),
        pytest.raises(CloudError, match="does not want it any more") as caught,
    ):
        await allocate(cloud, disks=[DiskRequest(key=new_uuid(), size=GIB) for _ in range(2)])
    assert caught.value.kind is CANCELED
    assert taken == [1, 2]
    assert disks.taken == {}
    assert set((await books(cloud)).values()) == {(0, 0, 0)}


async def test_chance_chooses_among_all_and_finds_the_last(cloud: HostCloud) -> None:
    hosts = [cloud.sim[index].uuid for index in range(3)]
    by_chance = {"strategy": "DefaultHostAllocatorStrategy", "cpu_num": 4}
    chosen = [(await allocate(cloud, **by_chance)).host_uuid for _ in range(18)]
    assert set(chosen) == set(hosts)
    assert sum(count for _, _, count in (await books(cloud)).values()) == 18
    listed = (await allocate(cloud, **{**by_chance, "cpu_num": 1}, dry_run=True)).candidates
    assert {one.host_uuid for one in listed} <= set(hosts)
    assert len(listed) == len({one.host_uuid for one in listed})


async def test_chance_is_even_wherever_the_uuids_lie(cloud: HostCloud) -> None:
    other = await cloud.api(CreateCluster(zone_uuid=cloud.cluster.zone_uuid, name="other", hypervisor_type="KVM"))
    uuids = [f"{number:032x}" for number in range(1, 10)] + ["f" * 32]
    await copy_host(cloud, uuids, other.uuid)
    asked = request(
        AllocateHost(vm_uuid=new_uuid(), cpu_num=1, memory=GIB, cluster_uuid=other.uuid), None, physically=False
    )
    pages = [Pages(cloud.node.db, asked, STRATEGIES["DefaultHostAllocatorStrategy"]) for _ in range(1000)]
    chosen = Counter([(await one.next(1))[0].uuid for one in pages])
    assert all(40 < chosen[uuid] < 160 for uuid in uuids), chosen
    whole = [[row.uuid for _ in range(11) for row in await pages[0].next(1)] for _ in range(2)]
    assert (len(whole[0]), whole[1]) == (9, []), "each of the others once"


async def copy_host(cloud: HostCloud, uuids: list[str], cluster_uuid: str) -> None:
    """Have hosts like the first one in another cluster, in the records only."""
    changed: dict[Any, dict[str, Any]] = {HostModel: {"cluster_uuid": cluster_uuid}, HostCapacityModel: {}}
    async with cloud.node.db.transaction() as tx:
        for model, more in changed.items():
            table = model.__table__
            found = (await tx.execute(select(table).where(table.c.uuid == cloud.sim[0].uuid))).mappings().one()
            own = {"management_ip"} & found.keys()
            rows = [{**found, **more, **dict.fromkeys(own, uuid), "uuid": uuid} for uuid in uuids]
            await tx.execute(insert(table), rows)


async def test_the_same_request_twice_at_once_takes_one_place(cloud: HostCloud) -> None:
    await cloud.node.settings.set(CONCURRENT, True)
    ask = AllocateHost(vm_uuid=new_uuid(), cpu_num=1, memory=GIB, disks=[DiskRequest(key=new_uuid(), size=GIB)])
    first, second = await cloud.node.bus.call_all([ask, ask])
    assert isinstance(first, HostAllocation)
    assert second == first
    assert sorted((await books(cloud)).values()) == [(0, 0, 0), (0, 0, 0), (1, GIB, 1)]


async def test_the_one_host_that_fits_is_always_found(tmp_path: Path) -> None:
    async with host_cloud(tmp_path, 20, cpu_num=4, memory=9 * GIB) as cloud:
        hosts = [(await cloud.add_host(index)).uuid for index in range(20)]

        class Picky(HostFilter):
            async def refuse(self, ask: AllocateHost, candidates: list[Candidate]) -> dict[str, str]:
                return {one.host_uuid: "not this one" for one in candidates if one.host_uuid != hosts[7]}

        cloud.node.extensions.add(Picky())
        for _ in range(200):
            vm = new_uuid()
            assert (await allocate(cloud, vm_uuid=vm, strategy="DefaultHostAllocatorStrategy")).host_uuid == hosts[7]
            await cloud.node.bus.call(ReturnHost(vm_uuid=vm))


async def test_a_host_whose_load_changes_meanwhile_hides_no_other(tmp_path: Path) -> None:
    async with host_cloud(tmp_path, 10, cpu_num=4, memory=9 * GIB) as cloud:
        hosts = sorted([(await cloud.add_host(index)).uuid for index in range(10)])

        class Busy(HostFilter):
            """While the first page is looked at, one of its hosts gets a VM and goes to the end of the order."""

            async def refuse(self, ask: AllocateHost, candidates: list[Candidate]) -> dict[str, str]:
                if candidates[0].host_uuid == hosts[0]:
                    reserve = ReserveHost(vm_uuid=new_uuid(), host_uuid=hosts[0], cpu_num=1, memory=GIB)
                    await cloud.node.bus.call(reserve)
                return {one.host_uuid: "not this one" for one in candidates if one.host_uuid != hosts[8]}

        cloud.node.extensions.add(Busy())
        assert (await allocate(cloud)).host_uuid == hosts[8]


async def test_plugins_filter(cloud: HostCloud) -> None:
    class Moody(HostFilter):
        async def refuse(self, ask: AllocateHost, candidates: list[Candidate]) -> dict[str, str]:
            return {one.host_uuid: "it is in a bad mood" for one in candidates if one.host_uuid != wanted}

    wanted = cloud.sim[2].uuid
    cloud.node.extensions.add(Moody())
    await cloud.node.settings.set(PAGE, 1)
    assert {(await allocate(cloud)).host_uuid for _ in range(3)} == {wanted}
    with pytest.raises(CloudError) as caught:
        await allocate(cloud, avoid_host_uuids=[wanted])
    assert {one.facts["filter"]: one.facts["refused"] for one in caught.value.causes} == {"AvoidHost": 1, "Moody": 2}


async def test_a_machine_that_was_found_running_is_booked_even_beyond_the_limit(cloud: HostCloud) -> None:
    host, vm = cloud.sim[0].uuid, new_uuid()
    ask = ReserveHost(vm_uuid=vm, host_uuid=host, cpu_num=1, memory=50 * GIB)
    with pytest.raises(CloudError) as caught:
        await cloud.node.bus.call(ask)
    assert str(8 * GIB) in caught.value.details
    for _ in range(2):
        await cloud.node.bus.call(ReserveHost(vm_uuid=vm, host_uuid=host, cpu_num=1, memory=50 * GIB, force=True))
    with pytest.raises(CloudError):
        await allocate(cloud, host_uuid=host)
    await cloud.node.bus.call(ReturnHost(vm_uuid=vm))
    assert set((await books(cloud)).values()) == {(0, 0, 0)}


async def test_limits_follow_settings_tags_and_reports(cloud: HostCloud) -> None:
    host = cloud.sim[0].uuid

    async def limits() -> tuple[int | None, int | None]:
        found = await cloud.host(host)
        return found.available_cpu_capacity, found.available_memory_capacity

    settings = cloud.node.settings
    assert await limits() == (40, 8 * GIB)
    await settings.set(CPU_RATIO, 2)
    await settings.set(MEMORY_RATIO, 1.5)
    await settings.set(RESERVED_MEMORY, "2G")
    assert await limits() == (8, int(13.5 * GIB) - 2 * GIB)
    await settings.set_for(CPU_RATIO, cloud.cluster.uuid, "ClusterVO", 3)
    await cloud.node.events.idle()
    assert await limits() == (12, int(13.5 * GIB) - 2 * GIB)
    async with cloud.node.db.transaction() as tx:
        await RESERVED_TAG.set(tx, host, capacity="3G")

    async def reserved() -> bool:
        return await limits() == (12, int(13.5 * GIB) - 3 * GIB)

    await cloud.until(reserved)
    await cloud.node.bus.call(ReportHostCapacity(host_uuid=host, total_cpu=8, total_memory=10 * GIB))
    assert await limits() == (24, 12 * GIB)


async def test_a_report_of_the_same_changes_nothing_and_counts_again(cloud: HostCloud) -> None:
    host, db = cloud.sim[0].uuid, cloud.node.db
    await allocate(cloud, cpu_num=2, host_uuid=host)
    async with db.read() as session:
        row = await session.get(HostCapacityModel, host)
    assert row is not None
    same = ReportHostCapacity(
        host_uuid=host, total_cpu=row.cpu_num, cpu_sockets=row.cpu_sockets, total_memory=row.total_memory
    )
    before = db.transactions
    await cloud.node.bus.call(same)
    assert db.transactions == before
    async with db.transaction() as tx:
        wrong = await tx.get(HostCapacityModel, host)
        assert wrong is not None
        wrong.vm_count = 7
    await cloud.node.bus.call(same)
    async with db.read() as session:
        again = await session.get(HostCapacityModel, host)
    assert again is not None
    assert (again.vm_count, again.used_cpu) == (row.vm_count, row.used_cpu)


async def test_capacity_for_clients(cloud: HostCloud) -> None:
    await allocate(cloud, cpu_num=2, host_uuid=cloud.sim[0].uuid)
    hosts = [host.uuid for host in cloud.sim.hosts]
    one = await cloud.api(GetCpuMemoryCapacity(host_uuids=hosts[:1]))
    assert (one.total_cpu, one.available_cpu, one.managed_cpu_num) == (40, 38, 4)
    assert (one.total_memory, one.available_memory, one.resource_type) == (9 * GIB, 7 * GIB, "HostVO")
    everything = await cloud.api(GetCpuMemoryCapacity(all=True))
    assert (everything.total_cpu, everything.available_cpu) == (120, 118)
    assert [data.resource_uuid for data in everything.capacity_data] == [cloud.cluster.zone_uuid]
    by_cluster = await cloud.api(GetCpuMemoryCapacity(cluster_uuids=[cloud.cluster.uuid], hypervisor_type="ESX"))
    assert (by_cluster.total_cpu, by_cluster.capacity_data[0].resource_uuid) == (0, cloud.cluster.uuid)
    names = (await cloud.api(GetHostAllocatorStrategies())).strategies
    assert "LeastVmPreferredHostAllocatorStrategy" in names


async def test_a_deleted_host_leaves_the_books(cloud: HostCloud) -> None:
    await allocate(cloud, host_uuid=cloud.sim[0].uuid)
    await cloud.api(DeleteHost(uuid=cloud.sim[0].uuid))
    assert cloud.sim[0].uuid not in await books(cloud)
    async with cloud.node.db.read() as session:
        assert list(await session.scalars(select(HostReservationModel))) == []


async def test_returns_and_allocations_mixed_keep_the_books(cloud: HostCloud) -> None:
    async def live(_: int) -> None:
        for _ in range(5):
            vm = new_uuid()
            try:
                await allocate(cloud, vm_uuid=vm, memory=2 * GIB)
            except CloudError:
                continue
            await asyncio.gather(*(cloud.node.bus.call(ReturnHost(vm_uuid=vm)) for _ in range(2)))

    await cloud.node.settings.set(CONCURRENT, True)
    await asyncio.gather(*map(live, range(20)))
    assert set((await books(cloud)).values()) == {(0, 0, 0)}
