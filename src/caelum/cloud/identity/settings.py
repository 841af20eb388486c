"""Settings of sessions."""

from __future__ import annotations

from caelum.kernel.settings import Seconds, setting

SESSION_TIMEOUT = setting(
    "identity",
    "session.timeout",
    "7200",
    Seconds,
    "A timeout period assigned to a session. After timeout, the session will be cleaned out.",
    minimum=1,
    maximum=31_535_999,
)
MAX_CONCURRENT_SESSIONS = setting(
    "identity",
    "session.maxConcurrent",
    500,
    int,
    "Max number of sessions management server accepts for every user. When this limit met, new session will be"
    " rejected",
    minimum=1,
)
CLEANUP_INTERVAL = setting(
    "identity",
    "session.cleanup.interval",
    "3600",
    Seconds,
    "The interval management server checks expired sessions, in seconds",
    minimum=2,
)
