"""The built-in strategies, under the original's names."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import func, select

from caelum.cloud.allocator.messages import AllocateHost
from caelum.cloud.allocator.model import HOST, VM, HostCapacityModel

Terms = list[Any]


class Ordering(msgspec.Struct, frozen=True):
    """A strategy of fixed terms, none for chance; `last_first` tries the machine's last host before all others."""

    terms: Terms
    last_first: bool = False

    def order(self, _ask: AllocateHost) -> Terms:
        """The terms to sort by."""
        return self.terms

    def preferred(self, ask: AllocateHost) -> str | None:
        """The machine's last host, if that comes first."""
        return ask.last_host_uuid if self.last_first else None


# Of equally loaded hosts the emptier one; the UUID makes the choice repeatable.
_LEAST: Terms = [HostCapacityModel.vm_count, HostCapacityModel.used_memory, HostCapacityModel.uuid]
_STOPPED = select(func.count()).select_from(VM).where(VM.c.last_host_uuid == HOST.c.uuid, VM.c.state == "Stopped")
_LEAST_WITH_STOPPED: Terms = [HostCapacityModel.vm_count + _STOPPED.correlate(HOST).scalar_subquery(), HOST.c.uuid]

STRATEGIES = {
    "LeastVmPreferredHostAllocatorStrategy": Ordering(_LEAST),
    "StoppedVmAwareLeastVmPreferredHostAllocatorStrategy": Ordering(_LEAST_WITH_STOPPED),
    "DefaultHostAllocatorStrategy": Ordering([]),
    "DesignatedHostAllocatorStrategy": Ordering(_LEAST, last_first=True),
    "LastHostPreferredAllocatorStrategy": Ordering(_LEAST, last_first=True),
    "MigrateVmAllocatorStrategy": Ordering(_LEAST),
}


def full_name(name: str, known: list[str]) -> str:
    """`LeastVmPreferred` -> `LeastVmPreferredHostAllocatorStrategy`; a full name stays."""
    for candidate in (name, f"{name}HostAllocatorStrategy", f"{name}AllocatorStrategy"):
        if candidate in known:
            return candidate
    return name
