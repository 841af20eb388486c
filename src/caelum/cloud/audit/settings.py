"""Settings of the auditor."""

from __future__ import annotations

from caelum.kernel.settings import Seconds, setting

RECHECK_AFTER = setting(
    "audit",
    "recheck.after",
    "2",
    Seconds,
    "Seconds after which the auditor looks again at what seemed wrong",
    minimum=0,
)
