"""Errors of L3 networks."""

from __future__ import annotations

from caelum.kernel.errors import error_type

ALLOCATE_IP_ERROR = error_type(
    "L3.1000",
    "Unable to allocate an ip address from L3Network",
    "Add an IP range, or free addresses that are no longer needed.",
)
