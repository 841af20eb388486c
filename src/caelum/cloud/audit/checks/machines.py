"""Virtual machines: what the records place on a host is there and as they say, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from caelum.cloud.audit.api import INFO
from caelum.cloud.audit.evidence import Evidence
from caelum.cloud.audit.extension import AuditCheck, Finding, finding
from caelum.cloud.vm.model import TRANSITIONAL, VmInstanceModel, VmState

PLACED = frozenset({VmState.RUNNING, VmState.PAUSED, VmState.CRASHED, VmState.NO_STATE})
"""States in which a host has the machine."""
IDLE = frozenset({VmState.CREATED, VmState.STOPPED, VmState.DESTROYED, VmState.ERROR})
"""States in which no host has it, and it needs none."""
_UNCERTAIN = TRANSITIONAL | {VmState.UNKNOWN}
_VO = "VmInstanceVO"


class MachineCheck(AuditCheck):
    """Compares machines both ways."""

    reads = (VmInstanceModel,)

    def check(self, seen: Evidence) -> Iterator[Finding]:
        """From the records to the hosts, and back."""
        vms = seen.by_uuid(VmInstanceModel)
        for vm in vms.values():
            yield from self._record(seen, vm)
        for host_uuid, contents in seen.hosts.items():
            for uuid, state in contents.vms.items():
                yield from self._on_host(host_uuid, uuid, state, vms.get(uuid))
            for name in contents.strangers:
                details = f"host[uuid:{host_uuid}] has the machine {name}, which is not ours"
                yield finding("ForeignMachine", "HostVO", host_uuid, details, severity=INFO, name=name)

    def _record(self, seen: Evidence, vm: Any) -> Iterator[Finding]:
        where = f"vm[uuid:{vm.uuid}, name:{vm.name}]"
        contents = seen.hosts.get(vm.host_uuid)
        if vm.state in PLACED and vm.host_uuid is None:
            yield finding("VmWithoutHost", _VO, vm.uuid, f"{where} is {vm.state} on no host", state=vm.state)
        elif vm.state in PLACED and contents is not None:
            found = contents.vms.get(vm.uuid)
            facts: dict[str, Any] = {"hostUuid": vm.host_uuid, "state": vm.state, "stateOnHost": found or "absent"}
            if found is None:
                details = f"{where} is {vm.state}, but host[uuid:{vm.host_uuid}] does not have it"
                yield finding("VmNotOnHost", _VO, vm.uuid, details, **facts)
            elif found != vm.state:
                details = f"{where} is {vm.state}, but host[uuid:{vm.host_uuid}] says {found}"
                yield finding("VmStateDiffers", _VO, vm.uuid, details, **facts)
        elif vm.state == VmState.UNKNOWN and contents is not None:
            details = f"{where} is {vm.state} although host[uuid:{vm.host_uuid}] answers"
            yield finding("VmStateUnknown", _VO, vm.uuid, details, hostUuid=vm.host_uuid)
        elif vm.state in IDLE and vm.host_uuid is not None:
            details = f"{where} is {vm.state}, and yet placed on host[uuid:{vm.host_uuid}]"
            yield finding("IdleVmHasHost", _VO, vm.uuid, details, hostUuid=vm.host_uuid, state=vm.state)

    def _on_host(self, host_uuid: str, uuid: str, state: str, vm: Any) -> Iterator[Finding]:
        there = f"host[uuid:{host_uuid}] has vm[uuid:{uuid}] {state}"
        facts: dict[str, Any] = {"hostUuid": host_uuid, "stateOnHost": state}
        if vm is None:
            yield finding("StrayVm", _VO, uuid, f"{there}, of which there is no record", **facts)
        elif vm.state in _UNCERTAIN or vm.host_uuid == host_uuid:
            return
        elif vm.state in PLACED:
            details = f"{there}; the record says {vm.state} on host[uuid:{vm.host_uuid}]"
            yield finding("VmOnWrongHost", _VO, uuid, details, about=(uuid, host_uuid), **facts)
        else:
            yield finding("IdleVmOnHost", _VO, uuid, f"{there}; the record says {vm.state}", state=vm.state, **facts)
