"""State machines: what is not in the table does not happen."""

import enum
import itertools

import pytest

from caelum.kernel.errors import CloudError
from caelum.kernel.state import ILLEGAL_TRANSITION, StateMachine


class Door(enum.StrEnum):
    OPEN = "Open"
    CLOSED = "Closed"
    LOCKED = "Locked"


DOOR = StateMachine(
    "Door",
    Door,
    {
        (Door.OPEN, "close"): Door.CLOSED,
        ("Closed", "open"): "Open",
        ("Closed", "lock"): "Locked",
        ("Locked", "unlock"): "Closed",
    },
)


def test_the_table_is_the_whole_truth() -> None:
    done = set()
    for state, event in itertools.product(Door, DOOR.events):
        if DOOR.allows(state, event):
            done.add((str(state), event, DOOR.next(state, event)))
        else:
            with pytest.raises(CloudError):
                DOOR.next(state, event)
    assert done == {
        ("Open", "close", "Closed"),
        ("Closed", "open", "Open"),
        ("Closed", "lock", "Locked"),
        ("Locked", "unlock", "Closed"),
    }


def test_an_illegal_transition_names_both_and_what_is_allowed() -> None:
    with pytest.raises(CloudError) as caught:
        DOOR.next("Locked", "open")
    assert caught.value.kind is ILLEGAL_TRANSITION
    assert caught.value.facts == {"state": "Locked", "operation": "open", "allowedStates": ["Closed"]}
    assert "Door in state[Locked] does not allow operation[open]" in caught.value.details
    assert "['unlock']" in caught.value.details


def test_events_of_a_state() -> None:
    assert DOOR.events_from(Door.CLOSED) == ["lock", "open"]
    assert DOOR.states_for("open") == ["Closed"]


def test_mistakes_in_a_table_or_an_event_are_programming_errors() -> None:
    with pytest.raises(ValueError, match="Ajar"):
        StateMachine("Door", Door, {("Open", "lean"): "Ajar"})
    with pytest.raises(ValueError, match="explode"):
        DOOR.next("Open", "explode")
