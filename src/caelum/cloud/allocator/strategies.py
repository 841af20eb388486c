"""The built-in strategies, under the original's names."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import msgspec
from sqlalchemy import func, select

from caelum.cloud.allocator.extension import HostAllocatorStrategy
from caelum.cloud.allocator.messages import AllocateHost
from caelum.cloud.allocator.model import HOST, VM, HostCapacityModel
from caelum.cloud.allocator.rules import HostRow

Terms = list[Any]


class Ordering(msgspec.Struct, frozen=True):
    """A strategy of fixed terms, none for chance; `last_first` tries the machine's last host before all others.

    Hosts with the same values of the fields `alike` are as good as each other; without any, none are.
    """

    terms: Terms
    last_first: bool = False
    alike: tuple[str, ...] = ()

    def order(self, _ask: AllocateHost) -> Terms:
        """The terms to sort by."""
        return self.terms

    def preferred(self, ask: AllocateHost) -> str | None:
        """The machine's last host, if that comes first."""
        return ask.last_host_uuid if self.last_first else None


# Of equally loaded hosts the emptier one; the UUID makes a node's choice repeatable.
_LEAST: Terms = [HostCapacityModel.vm_count, HostCapacityModel.used_memory, HostCapacityModel.uuid]
_ALIKE = ("vm_count", "used_memory")
_STOPPED = select(func.count()).select_from(VM).where(VM.c.last_host_uuid == HOST.c.uuid, VM.c.state == "Stopped")
_LEAST_WITH_STOPPED: Terms = [HostCapacityModel.vm_count + _STOPPED.correlate(HOST).scalar_subquery(), HOST.c.uuid]

STRATEGIES = {
    "LeastVmPreferredHostAllocatorStrategy": Ordering(_LEAST, alike=_ALIKE),
    "StoppedVmAwareLeastVmPreferredHostAllocatorStrategy": Ordering(_LEAST_WITH_STOPPED),
    "DefaultHostAllocatorStrategy": Ordering([]),
    "DesignatedHostAllocatorStrategy": Ordering(_LEAST, last_first=True, alike=_ALIKE),
    "LastHostPreferredAllocatorStrategy": Ordering(_LEAST, last_first=True, alike=_ALIKE),
    "MigrateVmAllocatorStrategy": Ordering(_LEAST, alike=_ALIKE),
}


def nearest_first(
    strategy: HostAllocatorStrategy, page: list[HostRow], is_near: Callable[[str], bool]
) -> list[HostRow]:
    """A page, with those first of hosts that are as good as each other for which `is_near(uuid)`."""
    alike = strategy.alike if isinstance(strategy, Ordering) else ()
    if not alike:
        return page
    groups = itertools.groupby(page, attrgetter(*alike))
    return [row for _, equal in groups for row in sorted(equal, key=lambda one: not is_near(one.uuid))]


def full_name(name: str, known: list[str]) -> str:
    """`LeastVmPreferred` -> `LeastVmPreferredHostAllocatorStrategy`; a full name stays."""
    for candidate in (name, f"{name}HostAllocatorStrategy", f"{name}AllocatorStrategy"):
        if candidate in known:
            return candidate
    return name
