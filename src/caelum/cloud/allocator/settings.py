"""Settings of host allocation: how much of a host may be given away."""

from __future__ import annotations

from caelum.kernel.settings import Size, setting

_PLACES = ("HostVO", "ClusterVO", "ZoneVO")

CPU_RATIO = setting(
    "host",
    "cpu.overProvisioning.ratio",
    10,
    int,
    "The over provisioning ratio for CPU number",
    minimum=1,
    maximum=1000,
    bindable=_PLACES,
)
MEMORY_RATIO = setting(
    "mevoco",
    "overProvisioning.memory",
    1.0,
    float,
    "How many times the memory of a host may be given to virtual machines.",
    minimum=0.1,
    maximum=1000,
    bindable=_PLACES,
)
RESERVED_MEMORY = setting(
    "kvm",
    "reservedMemory",
    "1G",
    Size,
    "The memory of each host that no virtual machine gets; it is for the host itself.",
    minimum=0,
    bindable=_PLACES,
)
CONCURRENT = setting(
    "hostAllocator", "hostAllocator.concurrent", False, bool, "Whether several hosts are allocated at the same time."
)
CONCURRENT_LEVEL = setting(
    "hostAllocator",
    "hostAllocator.concurrent.level",
    10,
    int,
    "How many hosts are allocated at the same time, if more than one.",
    minimum=1,
    maximum=255,
)
PAGE = setting("hostAllocator", "paginationLimit", 500, int, "How many candidates are looked at together.", minimum=1)
CHECK_PHYSICAL_MEMORY = setting(
    "hostAllocator",
    "hostAllocator.checkHostMem",
    True,
    bool,
    "Whether a virtual machine must fit into the physical memory of its host, whatever the over-provisioning.",
)
