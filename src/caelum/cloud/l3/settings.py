"""Settings of L3 networks."""

from __future__ import annotations

from caelum.kernel.settings import setting

RANDOM = "RandomIpAllocatorStrategy"
FIRST_AVAILABLE = "FirstAvailableIpAllocatorStrategy"
STRATEGIES = (RANDOM, FIRST_AVAILABLE)

IP_STRATEGY = setting(
    "l3Network",
    "ipAllocatorStrategy",
    RANDOM,
    str,
    "How an address is chosen from the ranges of an L3 network",
    valid=STRATEGIES,
    bindable=("L3NetworkVO",),
)
