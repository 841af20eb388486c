"""State machines: which states a kind of resource has, and which event leads from which to which.

Invariant: a transition that is not in the table does not happen.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from caelum.kernel.errors import CloudError, error_type

S = TypeVar("S", bound=str)

ILLEGAL_TRANSITION = error_type(
    "SYS.1005", "Unable to change resource state", "Bring the resource into one of the allowed states first."
)


class StateMachine:
    """The table of one kind. `states` is a string enum or the names; keys are (state, event), values the next state."""

    def __init__(
        self, name: str, states: type[enum.Enum] | Iterable[str], table: Mapping[tuple[str, str], str]
    ) -> None:
        self.name = name
        self.states = tuple(_text(state) for state in states)
        self._table = {(_text(state), event): _text(target) for (state, event), target in table.items()}
        unknown = {state for (state, _), to in self._table.items() for state in (state, to)} - set(self.states)
        if unknown:
            raise ValueError(f"state machine {name} leads from or to unknown states {sorted(unknown)}")
        self.events = frozenset(event for _, event in self._table)

    def next(self, state: str, event: str) -> str:
        """The state after `event`. Raises ILLEGAL_TRANSITION, naming what is allowed."""
        if event not in self.events:
            raise ValueError(f"state machine {self.name} has no event {event!r}; it has {sorted(self.events)}")
        target = self._table.get((_text(state), event))
        if target is None:
            allowed = self.states_for(event)
            raise CloudError(
                ILLEGAL_TRANSITION,
                f"{self.name} in state[{_text(state)}] does not allow operation[{event}]; it needs state"
                f" {allowed}, and from {_text(state)} it allows {self.events_from(state)}",
                state=_text(state),
                operation=event,
                allowedStates=allowed,
            )
        return target

    def allows(self, state: str, event: str) -> bool:
        """Whether `event` may happen in `state`."""
        return (_text(state), event) in self._table

    def events_from(self, state: str) -> list[str]:
        """The events that `state` allows."""
        return sorted(event for source, event in self._table if source == _text(state))

    def states_for(self, event: str) -> list[str]:
        """The states that allow `event`."""
        return sorted(source for source, one in self._table if one == event)


def _text(state: Any) -> str:
    return str(state.value) if isinstance(state, enum.Enum) else str(state)
