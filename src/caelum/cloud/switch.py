"""The two states that most resources have: Enabled and Disabled, each reachable from either."""

from __future__ import annotations

from caelum.kernel.state import StateMachine

ENABLED = "Enabled"
DISABLED = "Disabled"


def switch(name: str) -> StateMachine:
    """The state machine of a kind of resource that is only enabled and disabled."""
    states = (ENABLED, DISABLED)
    table = {
        (state, event): target for state in states for event, target in (("enable", ENABLED), ("disable", DISABLED))
    }
    return StateMachine(name, states, table)
