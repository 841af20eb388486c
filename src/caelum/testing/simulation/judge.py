"""What must be true of a cloud once everything is mended and has come to rest.

Invariant: the judge asks the cloud as a client and an operator would, and looks into the database and the hosts itself.
"""

from __future__ import annotations

import asyncio
from typing import Any

from caelum.cloud.audit.api import INFO, RunAudit
from caelum.cloud.host.messages import ListHosts
from caelum.kernel import context
from caelum.kernel.errors import INTERNAL
from caelum.kernel.node import Node
from caelum.testing.dump import dump_database, transitional, unfinished
from caelum.testing.simulation.client import Call, Client
from caelum.testing.simulation.cluster import Cluster
from caelum.testing.simulation.faults import Nemesis
from caelum.testing.simulation.workload import Workload

REST = 1800.0
"""Seconds within which a mended cloud must come to rest."""
_LOOK_AGAIN = 5.0
_PATIENCE = 60.0
_ENDS: dict[str, frozenset[str | None]] = {
    "CreateVmInstance": frozenset({"Running"}),
    "StartVmInstance": frozenset({"Running"}),
    "RebootVmInstance": frozenset({"Running"}),
    "ResumeVmInstance": frozenset({"Running"}),
    "StopVmInstance": frozenset({"Stopped"}),
    "PauseVmInstance": frozenset({"Paused"}),
    "RecoverVmInstance": frozenset({"Stopped"}),
    "DestroyVmInstance": frozenset({"Destroyed", None}),
    "ExpungeVmInstance": frozenset({None}),
}
"""The states in which a successful operation leaves a VM; None: it is gone."""


class Judge:
    """Judges one run."""

    def __init__(self, cluster: Cluster, workload: Workload, nemesis: Nemesis) -> None:
        self._cluster, self._workload, self._nemesis = cluster, workload, nemesis

    async def problems(self, client: Client) -> list[str]:
        """Everything that is not as promised."""
        left = await self._come_to_rest()
        if left:
            return [f"after {REST:.0f} s there is still {one}" for one in left]
        found = [problem for call in self._workload.calls for problem in await self._answer(client, call)]
        found += await self._states()
        found += self._cluster.hosts.doubles
        found += [f"a defect in the log: {one}" for one in self._cluster.history.defects]
        return found + await self._audit()

    # --- rest ---------------------------------------------------------------------------------------------------------

    async def _come_to_rest(self) -> list[str]:
        end = self._cluster.loop.time() + REST
        while True:
            left = await self._restless()
            if not left or self._cluster.loop.time() > end:
                return left
            await asyncio.sleep(_LOOK_AGAIN)

    async def _restless(self) -> list[str]:
        missing = [f"node{index} down" for index, one in enumerate(self._cluster.processes) if not (one and one.ready)]
        if missing:
            return missing
        left: list[str] = await self._on_node(_restless)
        alive = {one.node.uuid for one in self._cluster.ready() if one.node is not None}
        # Until a node that died is evicted, what it owned can be asked of nobody.
        return left + [f"dead node {uuid}" for uuid in sorted(await self._on_node(_members)) if uuid not in alive]

    async def _on_node(self, work: Any) -> Any:
        process = self._cluster.ready()[0]
        try:
            return await self._cluster.on(process, work(process.node), 900)
        except Exception as error:
            self._cluster.history.add(f"the judge got no answer: {error!r}")
            return [f"an error: {error!r}"]

    # --- the clients' view --------------------------------------------------------------------------------------------

    async def _answer(self, client: Client, call: Call) -> list[str]:
        """A job has one answer, and it is the one that the client was told."""
        if not call.accepted:
            return []
        status, body = await client.final_answer_of(call.job, _PATIENCE)
        what = f"job {call.job} ({call.name} {call.about or ''})"
        if status == 202:
            return [f"{what} was never answered"]
        if status == 404:
            return [f"{what} was accepted and is lost"]
        if call.code == INTERNAL.code:
            return [f"{what} met an error that nobody foresaw: {call.error}"]
        if call.ended is not None and body != call.body:
            return [f"{what} was answered {call.code}, and is now {status} {body.get('error', {}).get('code')}"]
        return []

    async def _states(self) -> list[str]:
        """The last successful operation on a VM, when no other came in between, is what the VM shows."""
        rows: list[dict[str, Any]] = await self._on_node(_vms)
        states = {row["uuid"]: row["state"] for row in rows if isinstance(row, dict)}
        found = []
        for vm_uuid in self._workload.vms:
            calls = [call for call in self._workload.calls if call.about == vm_uuid]
            last = max(calls, key=lambda call: call.ended or float("inf"))
            alone = all(call is last or (call.ended is not None and call.ended < last.begun) for call in calls)
            free = last.succeeded and self._took_hold(vm_uuid, last)
            expected = _ENDS.get(last.name)
            if alone and free and expected and states.get(vm_uuid) not in expected:
                found.append(f"{last.name} of vm {vm_uuid} succeeded, and it is {states.get(vm_uuid)}")
        return found

    def _took_hold(self, vm_uuid: str, call: Call) -> bool:
        """Whether nothing happened to the VM by itself that the call may not have known of: who asks for the state that
        the records show, before anybody noticed that it is another, is told so, and no host has anything to do."""
        changed = self._nemesis.changed_by_themselves.get(vm_uuid)
        if changed is None or call.ended is None:
            return True
        done = self._cluster.hosts.done.get(vm_uuid, ())
        return changed < call.begun and any(call.begun <= one <= call.ended for one in done)

    # --- the operator's view ------------------------------------------------------------------------------------------

    async def _audit(self) -> list[str]:
        found: list[str] = await self._on_node(_audit)
        return found


async def _restless(node: Node) -> list[str]:
    await node.gc.trigger_all()
    left = [*await unfinished(node.db), *transitional(await dump_database(node.db))]
    left += [f"gc job {one}" for one in await node.gc.open_jobs()]
    hosts = (await node.bus.call(ListHosts())).hosts
    return left + [f"host {one.management_ip} {one.status}" for one in hosts if one.status != "Connected"]


async def _members(node: Node) -> list[str]:
    return list(node.ring.members)


async def _vms(node: Node) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await dump_database(node.db))["vm_instance"]
    return found


async def _audit(node: Node) -> list[str]:
    with context.use(context.TaskContext(actor=context.SYSTEM, api="RunAudit")):
        reply = await node.bus.call(RunAudit())
    return [f"audit: {one.kind} {one.details}" for one in reply.findings if one.severity != INFO]
