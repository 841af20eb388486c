"""Errors of backup storages."""

from __future__ import annotations

from caelum.kernel.errors import error_type

DOWNLOAD_ERROR = error_type(
    "BS.1000", "Unable to download an image to backup storage", "Read the cause; nothing was kept, so try again."
)
ATTACH_ERROR = error_type("BS.1001", "Unable to attach backup storage to zone", "Read the cause for the reason.")
DETACH_ERROR = error_type("BS.1002", "Unable to detach backup storage from zone", "Read the cause for the reason.")
ALLOCATE_ERROR = error_type(
    "BS.1003",
    "Unable to allocate a backup storage",
    "Delete images that are no longer needed, or add space or a storage.",
)
CONNECT_ERROR = error_type(
    "BS.1500", "Unable to connect a backup storage", "Read the cause, then reconnect it.", transient=True
)
