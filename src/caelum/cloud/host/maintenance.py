"""Into maintenance: no new machines, those that run are moved or stopped, and only then the host is in Maintenance.

Invariant: nothing of ours runs on a host in Maintenance; when that cannot be reached the host is in its former state.
"""

from __future__ import annotations

from caelum.cloud.host import records
from caelum.cloud.host.api import HostInventory
from caelum.cloud.host.errors import UNABLE_TO_MAINTAIN
from caelum.cloud.host.extension import HostMaintenance, HypervisorDriver
from caelum.cloud.host.settings import IGNORE_MAINTENANCE_ERRORS
from caelum.cloud.host.states import CONNECTED, HOST_STATES, MAINTENANCE, PRE_MAINTENANCE
from caelum.cloud.vm.messages import ListVms, StopVm
from caelum.kernel.errors import CloudError, as_cloud_error
from caelum.kernel.node import Node

_RUNNING = ["Running", "Paused", "Unknown", "Crashed"]
_AT_ONCE = 10
"""Machines that are stopped at the same time."""


async def maintain(node: Node, host: HostInventory) -> HostInventory:
    """Bring a host into maintenance. Raises HOST.1001 with the causes."""
    if host.state == MAINTENANCE:
        return host
    former = host.state
    waiting = HOST_STATES.next(former, "preMaintain")
    host = await records.change(node, host.uuid, state=waiting)
    try:
        await node.extensions.each(HostMaintenance, "maintain", host)
        await _stop_machines(node, host)
    except BaseException as error:
        await records.change(node, host.uuid, state=former if former != PRE_MAINTENANCE else "Enabled")
        if not isinstance(error, Exception):
            raise
        cause = as_cloud_error(error)
        details = f"host[uuid:{host.uuid}, name:{host.name}] stays {former}: {cause.details}"
        raise CloudError(UNABLE_TO_MAINTAIN, details, cause=cause, hostUuid=host.uuid) from error
    return await records.change(node, host.uuid, state=HOST_STATES.next(host.state, "maintain"))


async def _stop_machines(node: Node, host: HostInventory) -> None:
    failures: list[BaseException] = []
    if node.bus.serves(ListVms):
        vms = (await node.bus.call(ListVms(host_uuids=[host.uuid], states=_RUNNING))).vms
        answers = await node.bus.call_all([StopVm(vm_uuid=vm.uuid) for vm in vms], _AT_ONCE)
        failures = [one for one in answers if isinstance(one, CloudError)]
    if host.status == CONNECTED:
        left = await node.drivers.get(HypervisorDriver, host.hypervisor_type).vm_states(host.uuid, None)
        running = sorted(uuid for uuid, state in left.items() if state in ("Running", "Paused"))
    else:
        running = []
    if (running or failures) and not node.settings.get(IGNORE_MAINTENANCE_ERRORS):
        details = f"{len(running)} machines still run on it and {len(failures)} could not be stopped"
        raise CloudError(UNABLE_TO_MAINTAIN, details, causes=failures, running=running)
