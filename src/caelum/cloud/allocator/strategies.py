"""The built-in strategies, under the original's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import func, select

from caelum.cloud.allocator.messages import AllocateHost
from caelum.cloud.allocator.model import HOST, VM, HostCapacityModel

Terms = list[Any]


class Ordering(msgspec.Struct, frozen=True):
    """A strategy made of a function; `last_first` tries the machine's last host before all others."""

    terms: Callable[[AllocateHost], Terms]
    last_first: bool = False

    def order(self, ask: AllocateHost) -> Terms:
        """The terms to sort by."""
        return self.terms(ask)

    def preferred(self, ask: AllocateHost) -> str | None:
        """The machine's last host, if that comes first."""
        return ask.last_host_uuid if self.last_first else None


def _least(_: AllocateHost) -> Terms:
    # Of equally loaded hosts the emptier one; the UUID makes the choice repeatable.
    return [HostCapacityModel.vm_count, HostCapacityModel.used_memory, HostCapacityModel.uuid]


def _least_with_stopped(_: AllocateHost) -> Terms:
    stopped = select(func.count()).select_from(VM).where(VM.c.last_host_uuid == HOST.c.uuid, VM.c.state == "Stopped")
    return [HostCapacityModel.vm_count + stopped.correlate(HOST).scalar_subquery(), HOST.c.uuid]


def _random(_: AllocateHost) -> Terms:
    return [func.random()]


STRATEGIES = {
    "LeastVmPreferredHostAllocatorStrategy": Ordering(_least),
    "StoppedVmAwareLeastVmPreferredHostAllocatorStrategy": Ordering(_least_with_stopped),
    "DefaultHostAllocatorStrategy": Ordering(_random),
    "DesignatedHostAllocatorStrategy": Ordering(_least, last_first=True),
    "LastHostPreferredAllocatorStrategy": Ordering(_least, last_first=True),
    "MigrateVmAllocatorStrategy": Ordering(_least),
}


def full_name(name: str, known: list[str]) -> str:
    """`LeastVmPreferred` -> `LeastVmPreferredHostAllocatorStrategy`; a full name stays."""
    for candidate in (name, f"{name}HostAllocatorStrategy", f"{name}AllocatorStrategy"):
        if candidate in known:
            return candidate
    return name
