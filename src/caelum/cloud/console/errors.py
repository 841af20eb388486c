"""What can go wrong on the way to a console."""

from __future__ import annotations

from caelum.kernel.errors import error_type

NO_PROXY = error_type(
    "CONSOLE.1000", "No console proxy is connected", "Check that a console proxy runs: caelum console list."
)
TOKEN_REFUSED = error_type(
    "CONSOLE.1001",
    "The console token is not valid",
    "A token works once, for a limited time, and until its VM stops: request console access again.",
)
TOO_MANY = error_type(
    "CONSOLE.1002", "Too many consoles are open", "Close some, or raise the limit in the settings of console."
)
NO_LINE = error_type(
    "CONSOLE.1003", "The VM's host offers no such console", "The hypervisor has no serial line or no screen for it."
)
UNREACHABLE = error_type(
    "CONSOLE.1004",
    "The console cannot be reached",
    "Look at the status of the VM's host, then open the console again.",
    transient=True,
)
