"""The kinds of errors of host allocation; codes and texts are the original's."""

from __future__ import annotations

from caelum.kernel.errors import error_type

NO_AVAILABLE_HOST = error_type(
    "HOST_ALLOCATION.1000",
    "No available host found",
    "Each cause names a filter, how many hosts it refused and why. Free or add what the numbers say is missing.",
)
