"""The built-in strategies, under the original's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import case, func, select

from caelum.cloud.allocator.messages import AllocateHost
from caelum.cloud.allocator.model import HOST, VM, HostCapacityModel

Terms = list[Any]


class Ordering(msgspec.Struct, frozen=True):
    """A strategy made of a function."""

    terms: Callable[[AllocateHost], Terms]

    def order(self, ask: AllocateHost) -> Terms:
        """The terms to sort by."""
        return self.terms(ask)


def _least(_: AllocateHost) -> Terms:
    # Of equally loaded hosts the emptier one; the UUID makes the choice repeatable.
    return [HostCapacityModel.vm_count, HostCapacityModel.used_memory, HOST.c.uuid]


def _least_with_stopped(_: AllocateHost) -> Terms:
    stopped = select(func.count()).select_from(VM).where(VM.c.last_host_uuid == HOST.c.uuid, VM.c.state == "Stopped")
    return [HostCapacityModel.vm_count + stopped.correlate(HOST).scalar_subquery(), HOST.c.uuid]


def _last_first(ask: AllocateHost) -> Terms:
    last = case((HOST.c.uuid == (ask.last_host_uuid or ""), 0), else_=1)
    return [last, *_least(ask)]


def _random(_: AllocateHost) -> Terms:
    return [func.random()]


STRATEGIES = {
    "LeastVmPreferredHostAllocatorStrategy": Ordering(_least),
    "StoppedVmAwareLeastVmPreferredHostAllocatorStrategy": Ordering(_least_with_stopped),
    "DefaultHostAllocatorStrategy": Ordering(_random),
    "DesignatedHostAllocatorStrategy": Ordering(_last_first),
    "LastHostPreferredAllocatorStrategy": Ordering(_last_first),
    "MigrateVmAllocatorStrategy": Ordering(_least),
}


def full_name(name: str, known: list[str]) -> str:
    """`LeastVmPreferred` -> `LeastVmPreferredHostAllocatorStrategy`; a full name stays."""
    for candidate in (name, f"{name}HostAllocatorStrategy", f"{name}AllocatorStrategy"):
        if candidate in known:
            return candidate
    return name
