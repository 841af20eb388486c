"""Public operations on capacity."""

from __future__ import annotations

from typing import Annotated

import msgspec

from caelum.kernel.message import ApiMessage, Param, Reply, rest

_PACKAGE = "org.zstack.header.allocator"


class CpuMemoryCapacityData(msgspec.Struct, rename="camel", kw_only=True):
    """The capacity of one zone, cluster or host."""

    resource_uuid: str
    total_cpu: int = 0
    available_cpu: int = 0
    total_memory: int = 0
    available_memory: int = 0
    managed_cpu_num: int = 0


class CpuMemoryCapacity(Reply, kw_only=True):
    """Sums, and the capacity of each resource that was asked for."""

    total_cpu: int
    available_cpu: int
    total_memory: int
    available_memory: int
    managed_cpu_num: int
    capacity_data: list[CpuMemoryCapacityData]
    resource_type: str | None = None
    success: bool = True


@rest("GET /hosts/capacities/cpu-memory", package=_PACKAGE)
class GetCpuMemoryCapacity(ApiMessage[CpuMemoryCapacity], kw_only=True):
    """Sum up the CPU and memory of zones, clusters or hosts, or of everything."""

    zone_uuids: Annotated[list[str] | None, Param(resource="ZoneVO")] = None
    cluster_uuids: Annotated[list[str] | None, Param(resource="ClusterVO")] = None
    host_uuids: Annotated[list[str] | None, Param(resource="HostVO")] = None
    hypervisor_type: Annotated[str | None, Param(valid_values=("KVM", "ESX"))] = None
    all: Annotated[bool, Param()] = False


class StrategiesReply(Reply, kw_only=True):
    """Names of strategies."""

    strategies: list[str]


@rest("GET /hosts/allocators/strategies", package=_PACKAGE, admin_only=True)
class GetHostAllocatorStrategies(ApiMessage[StrategiesReply], kw_only=True):
    """List the strategies by which hosts are chosen."""
