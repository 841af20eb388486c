"""Hosts in a node with simulated agents: added, lost, found again, emptied and deleted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from tests.service.host_clouds import SERVICES, HostCloud, QuickKvmService, host_cloud

from caelum.agent import protocol as p
from caelum.agent.news import VmStateReport
from caelum.cloud.cluster.api import DeleteCluster
from caelum.cloud.host import records
from caelum.cloud.host.api import (
    ChangeHostState,
    DeleteHost,
    GetHostTask,
    GetHypervisorTypes,
    HostInventory,
    ReconnectHost,
    UpdateHost,
)
from caelum.cloud.host.events import HostDeleted, HostLostSight, HostStatusChanged
from caelum.cloud.host.extension import HostBeforeDelete, HostConnect
from caelum.cloud.host.messages import AwaitHost, GetVmStatesOnHost, StartVmOnHost
from caelum.cloud.host.model import HostModel
from caelum.cloud.host.settings import LOST_PATIENCE, PING_INTERVAL, PING_TIMEOUT
from caelum.cloud.host.spec import VmSpec
from caelum.cloud.host.tags import CONNECTED_TIME, OS_DISTRIBUTION
from caelum.cloud.vm.messages import HostLost, HostVmsSeen, VmStateSeen
from caelum.drivers.kvm.api import KVMHostInventory, UpdateKVMHost
from caelum.drivers.kvm.remote import on_host
from caelum.drivers.kvm.tags import LIBVIRT_VERSION
from caelum.kernel import pki
from caelum.kernel.database import Database
from caelum.kernel.errors import OPERATION_ERROR, CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.pki import CertificateAuthority, Identity
from caelum.kernel.service import Service, handles
from caelum.kernel.tag import SystemTagModel
from caelum.kernel.views import view
from caelum.simulator import Latency, SimulatedHosts


class VmEar(Service):
    """Stands where the VM service is, and notes what it is told."""

    name = "vm"
    heard: list[Any]

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self.heard = []

    @handles(VmStateSeen)
    async def seen(self, msg: VmStateSeen) -> None:
        self.heard.append(msg)

    @handles(HostVmsSeen)
    async def all_seen(self, msg: HostVmsSeen) -> None:
        self.heard.append(msg)

    @handles(HostLost)
    async def lost(self, msg: HostLost) -> None:
        self.heard.append(msg)


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[HostCloud]:
    async with host_cloud(tmp_path, 2, services=[VmEar]) as cloud:
        yield cloud


def heard(cloud: HostCloud, cls: type) -> list[Any]:
    ear: Any = cloud.node.services["vm"]
    return [one for one in ear.heard if isinstance(one, cls)]


def vm_spec() -> VmSpec:
    return VmSpec(vm_uuid=new_uuid(), name="vm", internal_id=1, cpu_num=1, memory=1 << 30)


async def test_a_host_is_added_with_its_facts(cloud: HostCloud) -> None:
    host = await cloud.add_host(system_tags=["reservedMemory::2G"])
    assert isinstance(host, KVMHostInventory)
    assert (host.status, host.state, host.architecture) == ("Connected", "Enabled", "x86_64")
    assert host.uuid == cloud.sim[0].uuid
    assert (host.username, host.ssh_port, host.os_distribution) == ("root", 22, "Debian")
    assert (host.cpu_num, host.total_cpu_capacity, host.available_cpu_capacity) == (16, 160, 160)
    assert host.available_memory_capacity == host.total_memory_capacity - (2 << 30)
    async with cloud.node.db.read() as session:
        assert await LIBVIRT_VERSION.get(session, host.uuid) == {"version": "9.0.0"}
        assert await OS_DISTRIBUTION.get(session, host.uuid) == {"distribution": "Debian"}
    changes = [(one.old_status, one.new_status) for one in await cloud.seen(HostStatusChanged)]
    assert changes == [("Connecting", "Connected")]
    assert cloud.sim[0].world.host_uuid == host.uuid


async def test_what_a_change_of_status_tells_is_what_is_stored(cloud: HostCloud) -> None:
    host = await cloud.add_host()
    cloud.node.services["host"].tracker.forget(host.uuid)
    moved = await records.move(cloud.node, host.uuid, "Connecting", agent_uuid=new_uuid())
    assert moved is not None
    assert moved.inventory == await records.get(cloud.node, host.uuid)
    assert moved.inventory.last_op_date > host.last_op_date
    async with cloud.node.db.read() as session:
        assert moved.row == await records.row_of(session, host.uuid)
    assert await records.move(cloud.node, host.uuid, "Connected", of=("Disconnected",)) is None
    assert await records.move(cloud.node, new_uuid(), "Connected") is None
    assert await records.get(cloud.node, host.uuid) == moved.inventory


async def test_only_hypervisors_with_drivers_are_listed(cloud: HostCloud) -> None:
    assert await cloud.api(GetHypervisorTypes()) == ["KVM"]


async def test_nothing_is_left_of_a_host_that_cannot_be_connected(cloud: HostCloud) -> None:
    cloud.sim.fault("error", p.ConnectHost.path, code=p.LIBVIRT, details="libvirtd is away", count=1)
    with pytest.raises(CloudError) as caught:
        await cloud.add_host()
    assert caught.value.code == "HOST.1000"
    assert "libvirtd is away" in caught.value.details
    wire, chain = caught.value.to_wire(), []
    while wire is not None:
        chain.append(wire.code)
        wire = wire.cause
    assert chain == ["HOST.1000", "HOST.1003", "AGENT.1005"]
    async with cloud.node.db.read() as session:
        assert await session.scalar(select(func.count()).select_from(HostModel)) == 0
        assert await session.scalar(select(func.count()).select_from(SystemTagModel)) == 0
    assert (await cloud.add_host()).status == "Connected"


async def test_a_host_is_added_once_and_under_its_own_name(cloud: HostCloud) -> None:
    with pytest.raises(CloudError, match="certificate of host"):
        await cloud.add_host(0, resource_uuid=cloud.sim[1].uuid)
    await cloud.add_host(0, resource_uuid=cloud.sim[0].uuid)
    with pytest.raises(CloudError, match=r"another host|already") as caught:
        await cloud.add_host(0)
    assert caught.value.code in ("HOST.1000", "SYS.1007")
    with pytest.raises(CloudError) as caught:
        await cloud.add_host(1, management_ip="127.200.0.1")
    assert caught.value.code == "HOST.1010"


async def test_a_forged_certificate_is_refused(cloud: HostCloud, tmp_path: Path) -> None:
    async with SimulatedHosts(1, directory=tmp_path / "foreign", first_ip="127.9.0.1", port=cloud.sim.port) as forged:
        with pytest.raises(CloudError) as caught:
            await cloud.add_host(0, management_ip=forged[0].ip)
        assert caught.value.code == "HOST.1010"
        assert "certificate" in caught.value.details.lower()
        host = await cloud.add_host(0)
        await cloud.api(UpdateHost(uuid=host.uuid, management_ip=forged[0].ip))
        with pytest.raises(CloudError, match="certificate"):
            await cloud.api(ReconnectHost(uuid=host.uuid))
        assert (await cloud.host(host.uuid)).status == "Disconnected"
        assert not forged[0].arrived


async def test_a_dead_agent_is_noticed_at_once_and_its_restart_reconnects(cloud: HostCloud) -> None:
    await cloud.node.settings.set(PING_INTERVAL, 600)
    await cloud.node.settings.set(LOST_PATIENCE, 0)
    host = await cloud.add_host()
    await asyncio.sleep(0.5)
    await cloud.sim[0].die()
    await cloud.until_status(host.uuid, "Disconnected", 5)
    await cloud.until(lambda: [one.host_uuid for one in heard(cloud, HostLost)] == [host.uuid])
    assert [one.reason.code for one in await cloud.seen(HostLostSight)] == ["HOST.1010"]
    with pytest.raises(CloudError) as caught:
        await cloud.node.bus.call(StartVmOnHost(host_uuid=host.uuid, spec=vm_spec()))
    assert caught.value.code == "HOST.1010"
    await cloud.sim[0].revive()
    await cloud.until_status(host.uuid, "Connected", 10)
    assert cloud.sim[0].world.host_uuid == host.uuid


async def test_an_agent_that_restarts_between_pings_is_connected_anew(cloud: HostCloud) -> None:
    host = await cloud.add_host()
    await asyncio.sleep(0.3)
    before = cloud.sim[0].arrived[p.ConnectHost.path]
    await cloud.sim[0].die()
    await cloud.sim[0].revive()
    await cloud.until(lambda: cloud.sim[0].arrived[p.ConnectHost.path] > before, 10)
    await cloud.until_status(host.uuid, "Connected", 10)


async def test_a_host_that_cannot_be_connected_is_tried_less_and_less_often(cloud: HostCloud) -> None:
    """Its status changes with each attempt; the news of that is no reason for another one."""
    await cloud.add_host()
    await asyncio.sleep(0.3)
    arrived = cloud.sim[0].arrived
    cloud.sim.fault("error", p.ConnectHost.path, code=p.LIBVIRT, details="libvirtd is away")
    before = arrived[p.ConnectHost.path]
    await cloud.sim[0].die()
    await cloud.sim[0].revive()
    await cloud.until(lambda: arrived[p.ConnectHost.path] > before, 10)
    begun = arrived[p.ConnectHost.path]
    await asyncio.sleep(2.5)
    assert arrived[p.ConnectHost.path] - begun <= 3


async def test_pings_that_hang_lead_to_disconnected_and_back(cloud: HostCloud) -> None:
    await cloud.node.settings.set(PING_TIMEOUT, 2)
    host = await cloud.add_host()
    await asyncio.sleep(0.3)
    cloud.sim.fault("hang", p.Ping.path)
    await cloud.until_status(host.uuid, "Disconnected", 20)
    assert cloud.sim[0].arrived[p.Ping.path] >= 3
    cloud.sim.heal()
    await cloud.until_status(host.uuid, "Connected", 10)


async def test_the_trackers_own_loss_does_not_wake_it(cloud: HostCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    host, service = await cloud.add_host(), cloud.node.services["host"]
    await asyncio.sleep(0.3)
    look, looks, told = service.tracker._look, list[float](), list[float]()

    async def looked(followed: Any) -> Any:
        looks.append(time.monotonic())
        return await look(followed)

    async def lost(host_uuid: str, error: BaseException) -> None:
        await type(service.connector).lost(service.connector, host_uuid, error)
        told.append(time.monotonic())

    monkeypatch.setattr(service.tracker, "_look", looked)
    monkeypatch.setattr(service.connector, "lost", lost)
    cloud.sim.fault("refuse", p.Ping.path)
    await cloud.until(lambda: told and looks[-1] > told[0], 15)
    assert looks[-1] - told[0] > 0.8
    assert (await cloud.host(host.uuid)).status == "Disconnected"


async def test_one_lost_ping_is_no_loss(cloud: HostCloud) -> None:
    host = await cloud.add_host()
    await asyncio.sleep(0.3)
    cloud.sim.fault("lose_reply", p.Ping.path, count=2)
    before = cloud.sim[0].arrived[p.Ping.path]
    await cloud.until(lambda: cloud.sim[0].arrived[p.Ping.path] >= before + 3, 10)
    assert (await cloud.host(host.uuid)).status == "Connected"
    assert not await cloud.seen(HostLostSight)


async def test_a_node_that_stops_loses_no_host(tmp_path: Path) -> None:
    async with host_cloud(tmp_path, 1) as cloud:
        host = await cloud.add_host()
        cloud.sim.fault("hang", p.ConnectHost.path, count=1)
        before = cloud.sim[0].arrived[p.ConnectHost.path]
        task = asyncio.create_task(cloud.api(ReconnectHost(uuid=host.uuid)))
        await cloud.until(lambda: cloud.sim[0].arrived[p.ConnectHost.path] > before, 10)
        await cloud.node.stop()
        await asyncio.wait([task])
        db = Database(cloud.node.db.url)
        async with db.read() as session:
            assert await session.scalar(select(HostModel.status)) == "Connecting"
        await db.close()


async def test_a_ping_alone_does_not_make_a_host_connected(cloud: HostCloud) -> None:
    class Failing(HostConnect):
        broken = True

        async def connect(self, host: HostInventory) -> None:
            if self.broken:
                raise CloudError(OPERATION_ERROR, "no bridge can be made")

    host = await cloud.add_host()
    extension = Failing()
    cloud.node.extensions.add(extension)
    with pytest.raises(CloudError) as caught:
        await cloud.api(ReconnectHost(uuid=host.uuid))
    assert caught.value.code == "HOST.1002"
    assert "no bridge can be made" in caught.value.details
    await asyncio.sleep(2.5)
    assert (await cloud.host(host.uuid)).status != "Connected"
    extension.broken = False
    await cloud.until_status(host.uuid, "Connected", 10)


async def test_reconnects_at_the_same_time_are_one(cloud: HostCloud) -> None:
    host = await cloud.add_host()
    cloud.sim.latency(Latency(path=p.ConnectHost.path, low=0.3))
    before = cloud.sim[0].arrived[p.ConnectHost.path]
    await asyncio.gather(*(cloud.api(ReconnectHost(uuid=host.uuid)) for _ in range(5)))
    assert cloud.sim[0].arrived[p.ConnectHost.path] == before + 1


async def test_the_connect_of_an_unchanged_host_writes_its_status_and_time(cloud: HostCloud) -> None:
    host, db = await cloud.add_host(), cloud.node.db
    async with db.transaction() as tx:
        await CONNECTED_TIME.set(tx, host.uuid, hostConnectedTime=1)
    before = db.transactions
    await cloud.node.services["host"].connector.connect(host.uuid)
    assert db.transactions - before == 2
    async with db.read() as session:
        noted = await CONNECTED_TIME.get_all(session, host.uuid)
        assert [int(one["hostConnectedTime"]) > 1 for one in noted] == [True]
        assert view(await records.load(session, host.uuid)) == await records.get(cloud.node, host.uuid)


async def test_a_connect_takes_over_what_has_changed(cloud: HostCloud) -> None:
    host = await cloud.add_host()
    facts = cloud.sim[0].world.facts
    facts.libvirt_version, facts.os_version, facts.total_memory = "9.1.0", "13", facts.total_memory * 2
    now = await cloud.api(ReconnectHost(uuid=host.uuid))
    assert (now.os_version, now.total_memory_capacity) == ("13", facts.total_memory)
    async with cloud.node.db.read() as session:
        assert await LIBVIRT_VERSION.get(session, host.uuid) == {"version": "9.1.0"}


async def test_a_restarted_server_connects_its_hosts(tmp_path: Path) -> None:
    async with host_cloud(tmp_path, 2) as cloud:
        hosts = [await cloud.add_host(0), await cloud.add_host(1)]
        await cloud.node.stop()
        seen = [host.arrived[p.ConnectHost.path] for host in cloud.sim.hosts]
        async with HostCloud(tmp_path, services=SERVICES, drivers=[QuickKvmService]) as second:
            for index, host in enumerate(hosts):
                await second.until(lambda i=index: cloud.sim[i].arrived[p.ConnectHost.path] > seen[i])
                await second.until_status(host.uuid, "Connected")


async def test_what_an_agent_reports_reaches_the_vm_service(cloud: HostCloud) -> None:
    host, spec = await cloud.add_host(), vm_spec()
    started = await cloud.node.bus.call(StartVmOnHost(host_uuid=host.uuid, spec=spec))
    assert started.vnc_port == 5900
    states = (await cloud.node.bus.call(GetVmStatesOnHost(host_uuid=host.uuid))).states
    assert states == {spec.vm_uuid: "Running"}
    cloud.sim[0].guest_changes(spec.vm_uuid, "Stopped")
    await cloud.until(lambda: heard(cloud, VmStateSeen))
    assert [one.state for one in heard(cloud, VmStateSeen)] == ["Stopped"], "that it runs said the answer"
    await cloud.until(lambda: any(one.states == {} for one in heard(cloud, HostVmsSeen)[1:]), 5)


async def test_a_failed_start_has_the_agents_words_as_cause(cloud: HostCloud) -> None:
    host = await cloud.add_host()
    cloud.sim[0].world.facts.total_memory = 1 << 20
    with pytest.raises(CloudError) as caught:
        await cloud.node.bus.call(StartVmOnHost(host_uuid=host.uuid, spec=vm_spec()))
    assert caught.value.code == "HOST.1005"
    assert caught.value.to_wire().cause.code == "AGENT.1005"
    assert caught.value.to_wire().cause.opaque["free"] == 1 << 20


async def test_other_drivers_commands_are_cancelled_with_their_caller(cloud: HostCloud) -> None:
    host = await cloud.add_host()
    command = p.CreateBridge(l2_uuid="l2", bridge="br0", interface="eth0")
    await on_host(cloud.node.bus, host.uuid, command)
    assert list(cloud.sim[0].world.bridges) == ["br0"]
    cloud.sim.fault("hang", p.DeleteBridge.path)
    work = asyncio.create_task(on_host(cloud.node.bus, host.uuid, p.DeleteBridge(l2_uuid="l2", bridge="br0")))
    await cloud.until(lambda: cloud.sim[0].journal.running() == 1)
    tasks = (await cloud.api(GetHostTask(host_uuids=[host.uuid]))).results[host.uuid]
    assert [one["name"] for one in tasks["runningTask"]] == ["RunAgentCommand"]
    work.cancel()
    await cloud.until(lambda: cloud.sim[0].journal.running() == 0)


async def test_without_patience_a_command_ends_with_its_agent(cloud: HostCloud) -> None:
    await cloud.node.settings.set(LOST_PATIENCE, 0)
    host = await cloud.add_host()
    await asyncio.sleep(0.3)
    cloud.sim.fault("hang", p.CheckInterface.path)
    work = asyncio.create_task(on_host(cloud.node.bus, host.uuid, p.CheckInterface(name="eth0"), timeout=60))
    await cloud.until(lambda: cloud.sim[0].journal.running() == 1)
    await cloud.sim[0].die()
    with pytest.raises(CloudError) as caught:
        await asyncio.wait_for(work, 10)
    assert caught.value.code == "HOST.1010"


@pytest.mark.parametrize("fault", ["die", "die_after"])
async def test_a_command_outlives_the_death_of_its_agent(cloud: HostCloud, fault: str) -> None:
    host, spec, sim = await cloud.add_host(), vm_spec(), cloud.sim[0]
    await asyncio.sleep(0.3)
    cloud.sim.fault(fault, p.StartVm.path, count=1)
    start = asyncio.create_task(cloud.node.bus.call(StartVmOnHost(host_uuid=host.uuid, spec=spec)))
    command = p.CreateBridge(l2_uuid="l2", bridge="br0", interface="eth0")
    await cloud.until(lambda: not sim.alive)
    await cloud.until_status(host.uuid, "Disconnected")
    # What comes while the host is away waits too, more of it than the queue of the host's commands has room for.
    waiting = [asyncio.create_task(on_host(cloud.node.bus, host.uuid, command)) for _ in range(12)]
    await asyncio.sleep(0.5)
    assert not start.done()
    assert not any(one.done() for one in waiting)
    await sim.revive()
    assert (await asyncio.wait_for(start, 20)).vnc_port == 5900
    await asyncio.wait_for(asyncio.gather(*waiting), 20)
    assert list(sim.world.vms) == [spec.vm_uuid]
    assert (await cloud.host(host.uuid)).status == "Connected"


async def test_the_patience_with_a_lost_host_ends(cloud: HostCloud) -> None:
    await cloud.node.settings.set(LOST_PATIENCE, 3)
    host, sim = await cloud.add_host(), cloud.sim[0]
    await asyncio.sleep(0.3)
    cloud.sim.fault("die", p.StartVm.path, count=1)
    start = asyncio.create_task(cloud.node.bus.call(StartVmOnHost(host_uuid=host.uuid, spec=vm_spec())))
    await cloud.until_status(host.uuid, "Disconnected")
    dropped = asyncio.create_task(on_host(cloud.node.bus, host.uuid, p.Echo()))
    await asyncio.sleep(0.1)
    dropped.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(dropped, 1)
    with pytest.raises(CloudError, match=r"HOST\.1010"):
        await asyncio.wait_for(start, 20)
    began = asyncio.get_running_loop().time()
    with pytest.raises(CloudError, match=r"HOST\.1010"):
        await on_host(cloud.node.bus, host.uuid, p.Echo())
    assert asyncio.get_running_loop().time() - began < 2, "a host that is gone for longer is not waited for"
    assert not sim.world.vms


async def test_a_deleted_host_is_not_waited_for(cloud: HostCloud) -> None:
    host = await cloud.add_host()
    await cloud.sim[0].die()
    await cloud.until_status(host.uuid, "Disconnected")
    start = asyncio.create_task(cloud.node.bus.call(StartVmOnHost(host_uuid=host.uuid, spec=vm_spec())))
    await asyncio.sleep(0.2)
    await cloud.api(DeleteHost(uuid=host.uuid, delete_mode="Enforcing"))
    with pytest.raises(CloudError, match=r"SYS\.1003"):
        await asyncio.wait_for(start, 10)


async def test_state_and_maintenance(cloud: HostCloud) -> None:
    host, spec = await cloud.add_host(), vm_spec()
    assert (await cloud.api(ChangeHostState(uuid=host.uuid, state_event="disable"))).state == "Disabled"
    assert (await cloud.api(ChangeHostState(uuid=host.uuid, state_event="enable"))).state == "Enabled"
    await cloud.node.bus.call(StartVmOnHost(host_uuid=host.uuid, spec=spec))
    with pytest.raises(CloudError) as caught:
        await cloud.api(ChangeHostState(uuid=host.uuid, state_event="maintain"))
    assert caught.value.code == "HOST.1001"
    assert (await cloud.host(host.uuid)).state == "Enabled"
    cloud.sim[0].guest_changes(spec.vm_uuid, "Stopped")
    assert (await cloud.api(ChangeHostState(uuid=host.uuid, state_event="maintain"))).state == "Maintenance"
    pings = cloud.sim[0].arrived[p.Ping.path]
    await asyncio.sleep(2.5)
    assert cloud.sim[0].arrived[p.Ping.path] == pings
    connects = cloud.sim[0].arrived[p.ConnectHost.path]
    back = await cloud.api(ChangeHostState(uuid=host.uuid, state_event="enable"))
    assert (back.state, back.status) == ("Enabled", "Connected")
    assert cloud.sim[0].arrived[p.ConnectHost.path] == connects + 1


async def test_update(cloud: HostCloud) -> None:
    first, second = await cloud.add_host(0), await cloud.add_host(1)
    changed = await cloud.api(UpdateKVMHost(uuid=first.uuid, name="new", ssh_port=2222, password="other"))
    assert (changed.name, changed.ssh_port, changed.username) == ("new", 2222, "root")
    with pytest.raises(CloudError, match="another host"):
        await cloud.api(UpdateHost(uuid=first.uuid, management_ip=second.management_ip))


async def test_deletion_asks_tells_and_leaves_nothing(cloud: HostCloud) -> None:
    class Objecting(HostBeforeDelete):
        async def before_delete(self, host: HostInventory, force: bool) -> None:
            raise CloudError(OPERATION_ERROR, "something still needs it")

    host = await cloud.add_host()
    cloud.node.extensions.add(Objecting())
    with pytest.raises(CloudError, match="still needs it"):
        await cloud.api(DeleteHost(uuid=host.uuid))
    await cloud.api(DeleteHost(uuid=host.uuid, delete_mode="Enforcing"))
    assert [one.host_uuid for one in await cloud.seen(HostDeleted)] == [host.uuid]
    with pytest.raises(CloudError, match=r"SYS\.1003"):
        await cloud.host(host.uuid)
    async with cloud.node.db.read() as session:
        assert await session.scalar(select(func.count()).select_from(SystemTagModel)) == 0
    await cloud.api(DeleteHost(uuid=host.uuid))
    await asyncio.sleep(0.2)
    assert not cloud.node.services["host"].tracker._followed


async def test_hosts_go_with_their_cluster(cloud: HostCloud) -> None:
    host = await cloud.add_host()
    await cloud.api(DeleteCluster(uuid=cloud.cluster.uuid))
    with pytest.raises(CloudError, match=r"SYS\.1003"):
        await cloud.host(host.uuid)


async def test_a_deleted_host_is_not_heard_any_more(cloud: HostCloud) -> None:
    host = await cloud.add_host()
    await cloud.api(DeleteHost(uuid=host.uuid))
    await asyncio.sleep(0.1)
    cloud.node.services["kvm"].agents._listener._hosts._until.clear()
    count = len(heard(cloud, VmStateSeen))
    cloud.sim[0].report("vm-state", VmStateReport(vm_uuid=new_uuid(), state="Running"))
    await asyncio.sleep(0.3)
    assert len(heard(cloud, VmStateSeen)) == count


async def test_a_host_without_our_certificate_gets_no_answer(cloud: HostCloud, tmp_path: Path) -> None:
    files = pki.Files.in_directory(tmp_path / "stranger", "stranger")
    authority = CertificateAuthority.open(tmp_path / "stranger")
    pki.store(files, authority.issue(Identity("host", cloud.sim[0].uuid)))
    port = cloud.node.services["kvm"].agents.callback_base.rpartition(":")[2]
    tls = pki.client_context(files._replace(authority=tmp_path / "pki" / "ca.pem"))
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port), ssl=tls, server_hostname=pki.SERVER_NAME)
    writer.write(b"POST /agent/report HTTP/1.1\r\n\r\n")
    with pytest.raises((OSError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)


async def test_work_on_a_host_that_is_being_connected_waits_for_it(cloud: HostCloud) -> None:
    host = await cloud.add_host()
    cloud.sim.latency(Latency(path=p.ConnectHost.path, low=0.5))
    connect = asyncio.create_task(cloud.api(ReconnectHost(uuid=host.uuid)))
    await cloud.until_status(host.uuid, "Connecting")
    await cloud.node.bus.call(StartVmOnHost(host_uuid=host.uuid, spec=vm_spec()))
    assert connect.done()
    await cloud.node.settings.set(LOST_PATIENCE, 0)
    cloud.sim.fault("error", p.ConnectHost.path)
    connect = asyncio.create_task(cloud.api(ReconnectHost(uuid=host.uuid)))
    await cloud.until_status(host.uuid, "Connecting")
    with pytest.raises(CloudError) as caught:
        await cloud.node.bus.call(StartVmOnHost(host_uuid=host.uuid, spec=vm_spec()))
    assert caught.value.code == "HOST.1010"
    await asyncio.gather(connect, return_exceptions=True)


async def test_who_awaits_a_host_waits_for_what_a_change_of_the_ring_brings(
    cloud: HostCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, tracker, go = await cloud.add_host(), cloud.node.services["host"].tracker, asyncio.Event()

    async def rescan(_connect: bool) -> None:
        await go.wait()

    monkeypatch.setattr(tracker, "_rescan", rescan)
    tracker._on_ring(None)
    waiting = asyncio.create_task(cloud.node.bus.call(AwaitHost(host_uuid=host.uuid)))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    go.set()
    await asyncio.wait_for(waiting, 5)
