"""Errors of primary storages."""

from __future__ import annotations

from caelum.kernel.errors import error_type

ALLOCATE_ERROR = error_type(
    "PS.1000",
    "Unable to allocate a primary storage that has available space for required volume",
    "Delete what is no longer needed, add space or a storage, or ask for less.",
)
ATTACH_ERROR = error_type(
    "PS.1001", "Unable to attach a primary storage to cluster", "Read the cause; the hosts named in it refused."
)
DETACH_ERROR = error_type(
    "PS.1002", "Unable to detach a primary storage from cluster", "Read the cause for the reason."
)
NO_CACHED_IMAGE = error_type(
    "CAELUM.PS.1000", "The cached image is not on the storage", "It is fetched again.", transient=True
)
RESERVED_ELSEWHERE = error_type(
    "CAELUM.PS.1001", "The volume has its space reserved at another place", "Release it before it reserves anew."
)
DISCONNECTED = error_type(
    "PS.1003",
    "The primary storage is disconnected",
    "Reconnect it when its hosts are back (ReconnectPrimaryStorage).",
    transient=True,
)
