"""Hosts: adding, connecting, following and deleting them, and everything that is done on them.

Invariant: operations on a host run in that host's queue, at most `kvm/host.syncLevel` at a time, and only while it is
Connected. What changes the host itself runs in a queue of its own, so that neither waits for the other's inside.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, select

from caelum.cloud.cluster.messages import GetCluster
from caelum.cloud.host import messages as m
from caelum.cloud.host import records
from caelum.cloud.host.api import (
    ChangeHostState,
    DeleteHost,
    GetHostTask,
    GetHypervisorTypes,
    HostInventory,
    HostTaskReply,
    ReconnectHost,
    UpdateHost,
)
from caelum.cloud.host.cascade import HostCascade
from caelum.cloud.host.connect import Connector
from caelum.cloud.host.errors import UNABLE_TO_ADD, UNABLE_TO_RECONNECT
from caelum.cloud.host.events import HostDeleted, HostStatusChanged
from caelum.cloud.host.extension import HypervisorDriver
from caelum.cloud.host.flows import AddHostContext, AddHostFlow
from caelum.cloud.host.maintenance import maintain
from caelum.cloud.host.model import HostModel
from caelum.cloud.host.settings import SYNC_LEVEL
from caelum.cloud.host.spec import ConsoleTarget, VmStarted
from caelum.cloud.host.states import CONNECTED, DISCONNECTED, HOST_STATES, MAINTENANCE, PRE_MAINTENANCE
from caelum.cloud.host.tracker import HostTracker
from caelum.cloud.vm.extension import VmResourceProvider
from caelum.cloud.vm.messages import HostVmsSeen, VmStateSeen
from caelum.kernel.errors import CloudError, invalid
from caelum.kernel.membership import NodeLifecycle
from caelum.kernel.node import Node
from caelum.kernel.queue import QueueDump, TaskDump
from caelum.kernel.service import Service, handles, intercepts

_OPERATIONS = "host-{host_uuid}"
_LIFE = "host-life-{uuid}"
_CONNECTS_PATIENCE = 60.0
"""Seconds that somebody without a host waits for those that are being connected."""
_CONNECTS_LOOK = 0.2
"""Seconds between two looks whether they are."""


class HostService(Service):
    """Owns hosts."""

    name = "host"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.connector = Connector(node)
        self.tracker = HostTracker(node, self.connector)
        self._starting: defaultdict[tuple[str, str], set[asyncio.Task[Any]]] = defaultdict(set)
        """The starts of machines that go on, by host and machine."""
        node.extensions.add(HostCascade(node))

    async def start(self) -> None:
        """Follow hosts from the moment at which this node is ready: drivers must listen for agents first."""
        self.node.bus.subscribe(NodeLifecycle, self._on_lifecycle)
        self.node.bus.subscribe(HostStatusChanged, self._on_status)
        self.node.bus.subscribe(HostDeleted, self._on_deleted)

    async def stop(self) -> None:
        await self.tracker.stop()

    async def _on_lifecycle(self, event: NodeLifecycle) -> None:
        if event.node_uuid == self.node.uuid and event.life_cycle == "NodeJoin":
            await self.tracker.start()

    async def _on_status(self, event: HostStatusChanged) -> None:
        if event.new_status == CONNECTED:
            self.tracker.connected(event.host_uuid)
        elif event.new_status == DISCONNECTED:
            self.tracker.lost(event.host_uuid)

    async def _on_deleted(self, event: HostDeleted) -> None:
        self.tracker.forget(event.host_uuid)
        self.connector.forget(event.host_uuid)

    @handles(m.AwaitHost)
    async def await_host(self, msg: m.AwaitHost) -> None:
        await self.tracker.tried(msg.host_uuid)
        now = await records.standing(self.node, msg.host_uuid)
        if now is not None and now.status == CONNECTED:
            return
        with contextlib.suppress(CloudError):
            await self.connector.connected(msg.host_uuid, patient=False)

    @handles(m.AwaitLostHost)
    async def await_lost_host(self, msg: m.AwaitLostHost) -> bool:
        """Wait for the return of a host that was lost a moment ago."""
        return await self.connector.worth_another_try(msg.host_uuid, msg.waited)

    @handles(m.AwaitHosts)
    async def await_hosts(self, msg: m.AwaitHosts) -> bool:
        place = records.Place(msg.host_uuid, msg.cluster_uuid, msg.zone_uuid)
        waited = not self.tracker.is_listed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CONNECTS_PATIENCE):
                await self.tracker.listed()
                untried = await records.there(self.node, self.tracker.untried, place)
                waited |= bool(untried)
                for host_uuid in untried:
                    await self.tracker.tried(host_uuid)
                # The rows tell of other nodes' connects too, and of those that a node will take over from a dead one.
                # Those that begin later are not waited for: among many hosts there would always be one.
                awaited = await records.connecting(self.node, place)
                waited |= bool(awaited)
                while awaited:
                    await asyncio.sleep(_CONNECTS_LOOK)
                    awaited &= await records.connecting(self.node, place)
        return waited

    # --- public operations ------------------------------------------------------------------------------------------

    @intercepts(UpdateHost)
    async def check_update(self, msg: UpdateHost) -> None:
        """A management address belongs to one host."""
        if msg.management_ip is not None:
            await self._check_address(msg.management_ip, msg.uuid)

    @handles(UpdateHost, queue=_LIFE)
    async def update(self, msg: UpdateHost) -> HostInventory:
        """Change name, description or management address."""
        values = {"name": msg.name, "description": msg.description, "management_ip": msg.management_ip}
        return await records.change(self.node, msg.uuid, **_given(values))

    @handles(DeleteHost, queue=_LIFE)
    async def delete(self, msg: DeleteHost) -> None:
        """Delete a host with what lives on it; one that is gone already is a success."""
        if await records.find(self.node, HostModel.uuid == msg.uuid):
            await self.node.cascade.delete("HostVO", [msg.uuid], mode=msg.delete_mode)

    @handles(ReconnectHost)
    async def reconnect(self, msg: ReconnectHost) -> HostInventory:
        """Connect a host anew."""
        try:
            return await self.connector.connect(msg.uuid)
        except CloudError as error:
            details = f"unable to reconnect host[uuid:{msg.uuid}]: {error.details}"
            raise CloudError(UNABLE_TO_RECONNECT, details, cause=error, hostUuid=msg.uuid) from error

    @handles(ChangeHostState, queue=_LIFE)
    async def change_state(self, msg: ChangeHostState) -> HostInventory:
        """Enable, disable, or empty for maintenance; a host that leaves maintenance is connected anew."""
        host = await records.get(self.node, msg.uuid)
        if msg.state_event == "maintain":
            return await maintain(self.node, host)
        changed = await records.change(self.node, msg.uuid, state=HOST_STATES.next(host.state, msg.state_event))
        if host.state in (PRE_MAINTENANCE, MAINTENANCE):
            return await self.connector.connect(msg.uuid)
        return changed

    @handles(GetHypervisorTypes)
    async def hypervisor_types(self, msg: GetHypervisorTypes) -> list[str]:  # noqa: ARG002 - it has no parameters
        """The types that have a driver."""
        return self.node.drivers.types(HypervisorDriver)

    @handles(GetHostTask)
    async def tasks(self, msg: GetHostTask) -> HostTaskReply:
        """What runs and waits in the queues that name a host."""
        dump = self.node.queues.dump()
        results = {}
        for uuid in msg.host_uuids:
            found = [queue for signature, queue in dump.items() if _wanted(signature, uuid, msg.sync_signatures)]
            results[uuid] = _chain(found)
        return HostTaskReply(results=results)

    # --- life -------------------------------------------------------------------------------------------------------

    @handles(m.AddHost)
    async def add(self, msg: m.AddHost) -> HostInventory:
        """Add a host for a driver."""
        cluster = await self.node.bus.call(GetCluster(cluster_uuid=msg.cluster_uuid))
        if cluster.hypervisor_type != msg.hypervisor_type:
            why = f"cluster[uuid:{cluster.uuid}] is for {cluster.hypervisor_type}, not for {msg.hypervisor_type}"
            raise invalid("clusterUuid", why)
        await self._check_address(msg.management_ip, msg.host_uuid)
        ctx = AddHostContext(
            host_uuid=msg.host_uuid, hypervisor_type=msg.hypervisor_type, name=msg.name, description=msg.description,
            management_ip=msg.management_ip, cluster_uuid=cluster.uuid, zone_uuid=cluster.zone_uuid,
            details=msg.details, system_tags=msg.system_tags, user_tags=msg.user_tags, tag_uuids=msg.tag_uuids,
        )  # fmt: skip
        try:
            return await self.node.workflows.run(AddHostFlow, ctx, answers=True)
        except CloudError as error:
            details = f"unable to add host[name:{msg.name}, managementIp:{msg.management_ip}]: {error.details}"
            raise CloudError(UNABLE_TO_ADD, details, cause=error) from error

    async def _check_address(self, management_ip: str, host_uuid: str) -> None:
        others = await records.find(self.node, HostModel.management_ip == management_ip, HostModel.uuid != host_uuid)
        if others:
            why = f"there has been another host[uuid:{others[0].uuid}] having managementIp[{management_ip}]"
            raise invalid("managementIp", why, hostUuid=others[0].uuid)

    @handles(m.UpdateHostRecord)
    async def update_record(self, msg: m.UpdateHostRecord) -> HostInventory:
        """Change columns for a driver."""
        if "management_ip" in msg.changes:
            await self._check_address(msg.changes["management_ip"], msg.host_uuid)
        return await records.change(self.node, msg.host_uuid, **msg.changes)

    @handles(m.ReconnectHostInternal)
    async def reconnect_internally(self, msg: m.ReconnectHostInternal) -> HostInventory:
        """Connect a host anew, or join the connect that is going on."""
        return await self.connector.connect(msg.host_uuid)

    @handles(m.GetHost)
    async def get(self, msg: m.GetHost) -> HostInventory:
        """One host."""
        return await records.get(self.node, msg.host_uuid)

    @handles(m.ListHosts)
    async def list_hosts(self, msg: m.ListHosts) -> m.HostsReply:
        """Hosts by cluster, zone or UUID."""
        conditions: list[ColumnElement[bool]] = []
        if msg.cluster_uuids is not None:
            conditions.append(HostModel.cluster_uuid.in_(msg.cluster_uuids))
        if msg.host_uuids is not None:
            conditions.append(HostModel.uuid.in_(msg.host_uuids))
        if msg.zone_uuid is not None:
            conditions.append(HostModel.zone_uuid == msg.zone_uuid)
        return m.HostsReply(hosts=await records.find(self.node, *conditions))

    # --- what is seen -----------------------------------------------------------------------------------------------

    @handles(m.HostAgentSeen)
    async def agent_seen(self, msg: m.HostAgentSeen) -> None:
        """An agent that is not the one of the last connect is looked at now."""
        async with self.node.db.read() as session:
            query = select(HostModel.agent_uuid).where(HostModel.uuid == msg.host_uuid)
            known = (await session.execute(query)).one_or_none()
        if known is not None and msg.agent_uuid != known.agent_uuid:
            self.tracker.nudge(msg.host_uuid)

    @handles(m.HostSuspected)
    async def suspected(self, msg: m.HostSuspected) -> None:
        """Look at a host now."""
        self.tracker.nudge(msg.host_uuid)

    @handles(m.VmStatesSeenOnHost, queue="host-seen-{host_uuid}")
    async def vm_states_seen(self, msg: m.VmStatesSeenOnHost) -> None:
        """Tell the VM service, in the order of what was seen."""
        if msg.complete and self.node.bus.serves(HostVmsSeen):
            await self.node.bus.call(HostVmsSeen(host_uuid=msg.host_uuid, states=msg.states))
        elif self.node.bus.serves(VmStateSeen):
            seen = [VmStateSeen(vm_uuid=uuid, host_uuid=msg.host_uuid, state=one) for uuid, one in msg.states.items()]
            for one in seen:
                self.node.bus.send(one)

    # --- operations on a host ---------------------------------------------------------------------------------------

    async def _driver(self, host_uuid: str, *, patient: bool = True) -> HypervisorDriver:
        now = await records.standing(self.node, host_uuid)
        if now is not None and now.status == CONNECTED:
            return self.node.drivers.get(HypervisorDriver, now.hypervisor_type)
        host = await self.connector.connected(host_uuid, patient=patient)
        return self.node.drivers.get(HypervisorDriver, host.hypervisor_type)

    @handles(m.StartVmOnHost, queue=_OPERATIONS, level=SYNC_LEVEL)
    async def start_vm(self, msg: m.StartVmOnHost) -> VmStarted:
        """Start a machine."""
        return await (await self._driver(msg.host_uuid)).start_vm(msg.host_uuid, msg.spec)

    @handles(m.PrepareAndStartVmOnHost, queue=_OPERATIONS, level=SYNC_LEVEL)
    async def prepare_and_start_vm(self, msg: m.PrepareAndStartVmOnHost) -> VmStarted:
        """The same after what its description says, and what providers say now: in the meantime it may have changed.
        A destruction calls it off."""
        task, key = asyncio.current_task(), (msg.host_uuid, msg.spec.vm_uuid)
        assert task is not None  # noqa: S101 - handlers run in tasks
        self._starting[key].add(task)
        try:
            return await self._prepare_and_start(msg)
        finally:
            self._starting[key].discard(task)
            if not self._starting[key]:
                del self._starting[key]

    async def _prepare_and_start(self, msg: m.PrepareAndStartVmOnHost) -> VmStarted:
        driver, before = await self._driver(msg.host_uuid), list(msg.spec.before)
        for left in await self.node.extensions.each(VmResourceProvider, "prepare_start", msg.spec, msg.host_uuid):
            before += left
        return await driver.start_vm(msg.host_uuid, msgspec.structs.replace(msg.spec, before=before))

    @handles(m.StopVmOnHost, queue=_OPERATIONS, level=SYNC_LEVEL)
    async def stop_vm(self, msg: m.StopVmOnHost) -> None:
        """Stop a machine."""
        driver = await self._driver(msg.host_uuid)
        await driver.stop_vm(msg.host_uuid, msg.vm_uuid, msg.kind, msg.grace_seconds)

    @handles(m.RebootVmOnHost, queue=_OPERATIONS, level=SYNC_LEVEL)
    async def reboot_vm(self, msg: m.RebootVmOnHost) -> VmStarted:
        """Reboot a machine."""
        return await (await self._driver(msg.host_uuid)).reboot_vm(msg.host_uuid, msg.spec)

    @handles(m.PauseVmOnHost, queue=_OPERATIONS, level=SYNC_LEVEL)
    async def pause_vm(self, msg: m.PauseVmOnHost) -> None:
        """Pause a machine."""
        await (await self._driver(msg.host_uuid)).pause_vm(msg.host_uuid, msg.vm_uuid)

    @handles(m.ResumeVmOnHost, queue=_OPERATIONS, level=SYNC_LEVEL)
    async def resume_vm(self, msg: m.ResumeVmOnHost) -> None:
        """Resume a machine."""
        await (await self._driver(msg.host_uuid)).resume_vm(msg.host_uuid, msg.vm_uuid)

    @handles(m.DestroyVmOnHost)
    async def destroy_vm(self, msg: m.DestroyVmOnHost) -> None:
        """Destroy a machine; a start that still goes on ends first. It may hold the turn that this would wait for."""
        queue, level = _OPERATIONS.format(host_uuid=msg.host_uuid), self.node.settings.get(SYNC_LEVEL)
        await self._call_off(msg.host_uuid, msg.vm_uuid)
        async with self.node.queues.turn(queue, level, type(msg).__name__):
            await self._call_off(msg.host_uuid, msg.vm_uuid)  # one whose turn came before
            await (await self._driver(msg.host_uuid)).destroy_vm(msg.host_uuid, msg.vm_uuid)

    async def _call_off(self, host_uuid: str, vm_uuid: str) -> None:
        starts = list(self._starting.get((host_uuid, vm_uuid), ()))
        for start in starts:
            start.cancel()
        if starts:
            await asyncio.wait(starts)

    @handles(m.DestroyAndReleaseVmOnHost, queue=_OPERATIONS, level=SYNC_LEVEL)
    async def destroy_and_release_vm(self, msg: m.DestroyAndReleaseVmOnHost) -> None:
        """Destroy a machine and what it had. A connect that is under way or due could bring that again, so it is over
        first."""
        await self.tracker.tried(msg.host_uuid)
        await (await self._driver(msg.host_uuid)).destroy_vm(msg.host_uuid, msg.vm_uuid, msg.orders)

    @handles(m.GetVmStatesOnHost)
    async def vm_states(self, msg: m.GetVmStatesOnHost) -> m.VmStatesReply:
        """States of machines."""
        driver = await self._driver(msg.host_uuid)
        return m.VmStatesReply(states=await driver.vm_states(msg.host_uuid, msg.vm_uuids))

    @handles(m.DumpHost)
    async def dump(self, msg: m.DumpHost) -> m.HostContents:
        """What is on a host."""
        driver = await self._driver(msg.host_uuid, patient=False)  # what is not there now is told so
        return await driver.dump(msg.host_uuid, msg.storage_paths)

    @handles(m.AttachVolumeOnHost, queue=_OPERATIONS, level=SYNC_LEVEL)
    async def attach_volume(self, msg: m.AttachVolumeOnHost) -> None:
        """Plug a disk in."""
        await (await self._driver(msg.host_uuid)).attach_volume(msg.host_uuid, msg.vm_uuid, msg.volume)

    @handles(m.DetachVolumeOnHost, queue=_OPERATIONS, level=SYNC_LEVEL)
    async def detach_volume(self, msg: m.DetachVolumeOnHost) -> None:
        """Unplug a disk."""
        await (await self._driver(msg.host_uuid)).detach_volume(msg.host_uuid, msg.vm_uuid, msg.volume)

    @handles(m.AttachNicOnHost, queue=_OPERATIONS, level=SYNC_LEVEL)
    async def attach_nic(self, msg: m.AttachNicOnHost) -> None:
        """Plug a NIC in."""
        await (await self._driver(msg.host_uuid)).attach_nic(msg.host_uuid, msg.vm_uuid, msg.nic)

    @handles(m.DetachNicOnHost, queue=_OPERATIONS, level=SYNC_LEVEL)
    async def detach_nic(self, msg: m.DetachNicOnHost) -> None:
        """Unplug a NIC."""
        await (await self._driver(msg.host_uuid)).detach_nic(msg.host_uuid, msg.vm_uuid, msg.nic)

    @handles(m.GetConsoleOnHost)
    async def console(self, msg: m.GetConsoleOnHost) -> ConsoleTarget:
        """Where a machine's screen is."""
        return await (await self._driver(msg.host_uuid)).console(msg.host_uuid, msg.vm_uuid)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _wanted(signature: str, host_uuid: str, only: list[str] | None) -> bool:
    return host_uuid in signature and (only is None or signature in only)


def _chain(queues: list[QueueDump]) -> dict[str, Any]:
    running = [one for queue in queues for one in queue.running]
    pending = [one for queue in queues for one in queue.pending]
    return {
        "runningTask": [_task(one, index, "executionTime") for index, one in enumerate(running)],
        "pendingTask": [_task(one, index, "pendingTime") for index, one in enumerate(pending)],
    }


def _task(task: TaskDump, index: int, age: str) -> dict[str, Any]:
    return {"name": task.name, "index": index, age: int(task.age * 1000), "apiId": task.job_uuid}
