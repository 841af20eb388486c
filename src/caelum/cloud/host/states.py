"""What states hosts have and what leads from one to another."""

from __future__ import annotations

from caelum.kernel.state import StateMachine

ENABLED, DISABLED, PRE_MAINTENANCE, MAINTENANCE = "Enabled", "Disabled", "PreMaintenance", "Maintenance"
CONNECTING, CONNECTED, DISCONNECTED = "Connecting", "Connected", "Disconnected"

HOST_STATES = StateMachine(
    "Host",
    (ENABLED, DISABLED, PRE_MAINTENANCE, MAINTENANCE),
    {
        (ENABLED, "enable"): ENABLED,
        (ENABLED, "disable"): DISABLED,
        (ENABLED, "preMaintain"): PRE_MAINTENANCE,
        (DISABLED, "enable"): ENABLED,
        (DISABLED, "disable"): DISABLED,
        (DISABLED, "preMaintain"): PRE_MAINTENANCE,
        (PRE_MAINTENANCE, "enable"): ENABLED,
        (PRE_MAINTENANCE, "disable"): DISABLED,
        (PRE_MAINTENANCE, "preMaintain"): PRE_MAINTENANCE,
        (PRE_MAINTENANCE, "maintain"): MAINTENANCE,
        (MAINTENANCE, "enable"): ENABLED,
        (MAINTENANCE, "disable"): DISABLED,
    },
)
"""The administrator's will. The status (Connecting, Connected, Disconnected) is what we see, and moves freely."""
