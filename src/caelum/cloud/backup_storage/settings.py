"""Settings of backup storages."""

from __future__ import annotations

from caelum.kernel.settings import Seconds, Size, setting

RESERVED_CAPACITY = setting(
    "backupStorage", "reservedCapacity", "1G", Size, "Reserved capcacity on every backup storage", minimum=0
)
PING_INTERVAL = setting(
    "backupStorage",
    "ping.interval",
    60,
    Seconds,
    "The interval management server sends ping command to backup storage, in seconds",
    minimum=1,
)
