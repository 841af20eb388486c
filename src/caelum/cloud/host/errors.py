"""The kinds of errors that hosts raise; codes and texts are the original's."""

from __future__ import annotations

from caelum.kernel.errors import error_type

UNABLE_TO_ADD = error_type(
    "HOST.1000", "Unable to add host", "Read the cause; nothing of the host was kept, so it can be added again."
)
UNABLE_TO_MAINTAIN = error_type(
    "HOST.1001",
    "Unable to put host to maintenance mode",
    "The host is back in its former state; stop or move the named virtual machines and repeat.",
)
UNABLE_TO_RECONNECT = error_type("HOST.1002", "Unable to reconnect host", "Read the cause; it is retried by itself.")
CONNECTION_ERROR = error_type(
    "HOST.1003",
    "An error happened when connecting to host",
    "Read the cause. The host stays Disconnected and is retried by itself.",
    transient=True,
)
FAILED_TO_START_VM = error_type("HOST.1005", "Failed to start vm on hypervisor", "Read the cause.")
FAILED_TO_STOP_VM = error_type("HOST.1006", "Failed to stop vm on hypervisor", "Read the cause.")
FAILED_TO_REBOOT_VM = error_type("HOST.1007", "Failed to reboot vm on hypervisor", "Read the cause.")
FAILED_TO_DESTROY_VM = error_type("HOST.1008", "Failed to destroy vm on hypervisor", "Read the cause.")
HOST_DISCONNECTED = error_type(
    "HOST.1010",
    "This host is disconnected, cannot perform the required operation",
    "Check that the host is up and its agent runs; it is connected again by itself.",
    transient=True,
)
