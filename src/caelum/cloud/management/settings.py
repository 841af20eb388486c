"""Settings of management nodes."""

from __future__ import annotations

from caelum.kernel.settings import Seconds, setting

HEARTBEAT_INTERVAL = setting(
    "managementServer",
    "node.heartbeatInterval",
    "5",
    Seconds,
    "The interval management node writes heartbeat to database, in seconds",
    minimum=1,
)
