"""CPU and memory of hosts: what is counted is what is reserved, and what is reserved is what runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from caelum.cloud.allocator.model import HostCapacityModel, HostReservationModel
from caelum.cloud.audit.checks.machines import IDLE
from caelum.cloud.audit.evidence import Evidence
from caelum.cloud.audit.extension import AuditCheck, Finding, finding
from caelum.cloud.host.model import HostModel
from caelum.cloud.vm.model import TRANSITIONAL, VmInstanceModel

_VO = "VmInstanceVO"


class HostCapacityCheck(AuditCheck):
    """Compares host capacities, reservations and machines."""

    reads = (HostModel, HostCapacityModel, HostReservationModel, VmInstanceModel)

    def check(self, seen: Evidence) -> Iterator[Finding]:
        """Sums, then each reservation."""
        yield from self._sums(seen)
        yield from self._reservations(seen)

    def _sums(self, seen: Evidence) -> Iterator[Finding]:
        sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for row in seen.rows(HostReservationModel):
            sums[row.host_uuid] = [
                a + b for a, b in zip(sums[row.host_uuid], (row.cpu_num, row.memory, 1), strict=True)
            ]
        for row in seen.rows(HostCapacityModel):
            counted, true = [row.used_cpu, row.used_memory, row.vm_count], sums[row.uuid]
            if counted != true:
                details = (
                    f"host[uuid:{row.uuid}] counts {counted[0]} CPUs and {counted[1]} bytes of {counted[2]} machines;"
                    f" reserved are {true[0]} and {true[1]} for {true[2]}"
                )
                yield finding(
                    "HostCapacityWrong", "HostVO", row.uuid, details, about=(), counted=counted, reserved=true
                )
        known = {row.uuid for row in seen.rows(HostCapacityModel)}
        for host in seen.rows(HostModel):
            if host.uuid in seen.hosts and host.uuid not in known:
                details = f"nothing is known of the capacity of host[uuid:{host.uuid}, name:{host.name}]"
                yield finding("HostCapacityMissing", "HostVO", host.uuid, details, about=())

    def _reservations(self, seen: Evidence) -> Iterator[Finding]:
        vms, rows = seen.by_uuid(VmInstanceModel), {row.vm_uuid: row for row in seen.rows(HostReservationModel)}
        for uuid, row in rows.items():
            vm = vms.get(uuid)
            if vm is None or vm.state in IDLE:
                state = "does not exist" if vm is None else f"is {vm.state}"
                details = f"host[uuid:{row.host_uuid}] reserves {row.cpu_num} CPUs for vm[uuid:{uuid}], which {state}"
                yield finding("StrayHostReservation", _VO, uuid, details, hostUuid=row.host_uuid, memory=row.memory)
        for vm in vms.values():
            if vm.state not in IDLE | TRANSITIONAL:
                yield from self._of_running(vm, rows.get(vm.uuid))

    def _of_running(self, vm: Any, row: Any) -> Iterator[Finding]:
        wanted = (vm.host_uuid, vm.cpu_num, vm.memory_size)
        found = None if row is None else (row.host_uuid, row.cpu_num, row.memory)
        if found != wanted:
            details = (
                f"vm[uuid:{vm.uuid}, name:{vm.name}] is {vm.state} on host, with CPUs and memory {wanted};"
                f" reserved is {found or 'nothing'}"
            )
            yield finding("HostReservationWrong", _VO, vm.uuid, details, needed=list(wanted), reserved=found or ())
