"""Keeps the records true to what hosts say of their machines.

Invariant: a report never overrides an operation: it waits for its turn in the VM's queue, and then the host is asked
again, for the report may be older than the operation.
"""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple, cast

from sqlalchemy import Table, bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.allocator.messages import ReserveHost, ReturnHost
from caelum.cloud.host.messages import GetHost
from caelum.cloud.vm.api import StrangerVmFound, VmStateChangedOnHost
from caelum.cloud.vm.flows.base import VmContext, VmFlow, destroy_on_host, prepare_on, release_from, state_on_host
from caelum.cloud.vm.messages import HostLost, HostVmsSeen, VmStateSeen
from caelum.cloud.vm.model import ON_HOST, TRANSITIONAL, VM_STATES, VmInstanceModel, VmState
from caelum.cloud.vm.records import give_running_quota, move, set_state, take_running_quota
from caelum.cloud.vm.specs import read_vm
from caelum.kernel.errors import CloudError
from caelum.kernel.membership import is_of_cluster
from caelum.kernel.prepared import Prepared
from caelum.kernel.rows import read_row, update_rows
from caelum.kernel.service import Service, handles
from caelum.kernel.views import view
from caelum.kernel.workflow import BEGIN, Run, step

log = logging.getLogger(__name__)

_EVENTS = {
    "Running": "running",
    "Paused": "paused",
    "Stopped": "stopped",
    "Crashed": "crashed",
    "NoState": "noState",
    "Unknown": "unknown",
}
_NOT_RUNNING = frozenset({VmState.STOPPED, VmState.CREATED, VmState.DESTROYED, VmState.EXPUNGING, VmState.ERROR})
"""Stable states in which no host should have the machine."""


class VmGoneFlow(VmFlow[VmContext]):
    """A VM stopped by itself: what it had on its host is given back. -> Stopped."""

    name = "vm.gone"
    rehearsal = "vm_gone"
    pivot = BEGIN

    async def begin(self, tx: AsyncSession, ctx: VmContext) -> None:
        vm = await read_vm(tx, ctx.vm_uuid, lock=True)
        ctx.former_state, ctx.host_uuid = vm.state, vm.host_uuid
        # From now on a host that connects gets nothing for it any more.
        place = {"host_uuid": None, "last_host_uuid": vm.host_uuid or vm.last_host_uuid}
        await update_rows(tx, VmInstanceModel, place, uuid=vm.uuid)

    @step(no_undo="a machine that is gone needs nothing on a host")
    async def release(self, run: Run[VmContext]) -> None:
        if run.ctx.host_uuid is not None:
            # The definition is left on the host when the guest shuts itself down.
            await destroy_on_host(run.node, run.ctx.vm_uuid, run.ctx.host_uuid)
            await release_from(run.node, run.ctx.vm_uuid, run.ctx.host_uuid)
        await run.bus.call(ReturnHost(vm_uuid=run.ctx.vm_uuid))

    async def complete(self, tx: AsyncSession, ctx: VmContext) -> None:
        self.final = view(await move(self.node, tx, ctx.vm_uuid, "stopped"))
        await give_running_quota(tx, ctx.vm_uuid)


_VM = cast("Table", VmInstanceModel.__table__)
_ON_HOST = Prepared(select(_VM.c.uuid, _VM.c.state).where(_VM.c.host_uuid == bindparam("key")))


_AGAIN = (1.0, 2.0, 2.0, 2.0, 5.0, 10.0, 20.0)
"""Seconds before what a host has is told again to those who could not be reached: soon until a dead node is evicted."""


class _Seen(NamedTuple):
    """What matters of a VM that was seen."""

    uuid: str
    state: str
    host_uuid: str | None
    cpu_num: int
    memory_size: int


_SEEN = Prepared(select(*(_VM.c[name] for name in _Seen._fields)).where(_VM.c.uuid == bindparam("key")))


class VmTracer(Service):
    """Takes in what hosts report. Its service id is `vm`'s neighbour, since it is about hosts as much as VMs."""

    name = "vm-tracer"

    @handles(HostLost)
    async def host_lost(self, msg: HostLost) -> None:
        turns = [
            self.node.queues.run(f"vm-{uuid}", 1, self._make_unknown, uuid, msg.host_uuid, name="host lost")
            for uuid in await self._vms_on(msg.host_uuid)
        ]
        await asyncio.gather(*turns)

    async def _make_unknown(self, vm_uuid: str, host_uuid: str) -> None:
        """Unless the host is back when the VM's turn has come."""
        if await self._is_back(host_uuid):
            return
        async with self.db.transaction() as tx:
            vm = await read_row(tx, VmInstanceModel, vm_uuid, lock=True)
            if vm is None or vm.host_uuid != host_uuid or vm.state not in ON_HOST:
                return
            state = vm.state
            await move(self.node, tx, vm_uuid, "unknown")
        if await self._is_back(host_uuid):
            # What it has may have been compared a moment before.
            self.bus.send(VmStateSeen(vm_uuid=vm_uuid, host_uuid=host_uuid, state=state))

    async def _is_back(self, host_uuid: str) -> bool:
        try:
            return (await self.bus.call(GetHost(host_uuid=host_uuid))).status == "Connected"
        except CloudError:
            return False

    @handles(HostVmsSeen)
    async def host_seen(self, msg: HostVmsSeen) -> None:
        """Compare all that a host has with the records, both ways."""
        expected = await self._states_on(msg.host_uuid)
        seen = {uuid: msg.states.get(uuid, "Stopped") for uuid in (*expected, *(msg.states.keys() - expected.keys()))}
        differing = [uuid for uuid, state in seen.items() if state != expected.get(uuid)]
        await self._tell_all(
            [VmStateSeen(vm_uuid=uuid, host_uuid=msg.host_uuid, state=seen[uuid]) for uuid in differing]
        )

    async def _tell_all(self, messages: list[VmStateSeen]) -> None:
        """Tell those who work on the VMs, and again when they could not be reached: the next ping is long away."""
        for pause in (*_AGAIN, None):
            answers = await self.bus.call_all(messages)
            messages = [
                one for one, answer in zip(messages, answers, strict=True)
                if isinstance(answer, CloudError) and is_of_cluster(answer)
            ]  # fmt: skip
            if not messages or pause is None:
                return
            await asyncio.sleep(pause)

    @handles(VmStateSeen, queue="vm-{vm_uuid}")
    async def vm_seen(self, msg: VmStateSeen) -> None:
        found = await _SEEN.rows(self.db.once, key=msg.vm_uuid)
        vm = _Seen(*found[0]) if found else None
        if vm is None:
            self.bus.publish(StrangerVmFound(vm_identity=msg.vm_uuid, host_uuid=msg.host_uuid, vm_state=msg.state))
            return
        if vm.state == msg.state and vm.host_uuid == msg.host_uuid:
            return
        if vm.state in TRANSITIONAL or (vm.host_uuid != msg.host_uuid and msg.state not in ON_HOST):
            return
        true_state = await state_on_host(self.node, vm.uuid, msg.host_uuid)
        if true_state == VmState.UNKNOWN:
            return  # the host cannot be asked; when it connects again, all is compared
        if true_state != vm.state or vm.host_uuid != msg.host_uuid:
            await self._adopt(vm, msg.host_uuid, true_state)

    async def _adopt(self, vm: _Seen, host_uuid: str, state: str) -> None:
        if state == VmState.STOPPED:
            if vm.state not in _NOT_RUNNING:
                await self.node.workflows.run(VmGoneFlow, VmContext(vm_uuid=vm.uuid))
                self._tell(vm, state, None)
        elif vm.state in (VmState.DESTROYED, VmState.EXPUNGING):
            await destroy_on_host(self.node, vm.uuid, host_uuid)
        elif vm.host_uuid in (None, host_uuid) or vm.state in _NOT_RUNNING:
            await self._found_on_host(vm, host_uuid, state)
        else:
            log.warning("VM %s is on host %s and was seen %s on %s", vm.uuid, vm.host_uuid, state, host_uuid)

    async def _found_on_host(self, vm: _Seen, host_uuid: str, state: str) -> None:
        """The host has the machine in this state: so be it."""
        event = _EVENTS.get(state)
        if event is None or not VM_STATES.allows(vm.state, event):
            log.warning("VM %s is %s, its host %s says %s: ignored", vm.uuid, vm.state, host_uuid, state)
            return
        if vm.state in _NOT_RUNNING and state in ON_HOST:
            await self.bus.call(
                ReserveHost(vm_uuid=vm.uuid, host_uuid=host_uuid, cpu_num=vm.cpu_num, memory=vm.memory_size, force=True)
            )
        async with self.db.transaction() as tx:
            row = await read_vm(tx, vm.uuid, lock=True)
            await set_state(self.node, tx, row, VM_STATES.next(row.state, event), host_uuid=host_uuid)
            if state in ON_HOST:
                await take_running_quota(tx, row, freely=True)
        if vm.state in _NOT_RUNNING:
            await prepare_on(self.node, vm.uuid, host_uuid)
        self._tell(vm, state, host_uuid)

    def _tell(self, vm: _Seen, state: str, host_uuid: str | None) -> None:
        self.bus.publish(
            VmStateChangedOnHost(
                vm_uuid=vm.uuid,
                from_state=vm.state,
                to_state=state,
                original_host_uuid=vm.host_uuid,
                current_host_uuid=host_uuid,
            )
        )

    async def _vms_on(self, host_uuid: str) -> list[str]:
        return list(await self._states_on(host_uuid))

    async def _states_on(self, host_uuid: str) -> dict[str, str]:
        """State by UUID of the VMs that the records place on a host."""
        return {row[0]: row[1] for row in await _ON_HOST.rows(self.db.once, key=host_uuid)}
