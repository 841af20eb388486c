"""Changes that a command made and that its own answer tells of: they are reported only when nobody hears the answer.

Invariant: what is withheld for a command is told (its answer is an error, goes to the callback, or found nobody in its
request any more), or the answer that says the same is in the hands of who asked. What is lost with the agent is found
by the server when it connects to the next one.
"""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[], None]


class Withheld:
    """What would be told, by command."""

    def __init__(self) -> None:
        self._of: dict[str, list[Tell]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def keep(self, task_uuid: str, tell: Tell) -> None:
        """Call `tell` if the answer of this command, a success, is not heard."""
        self._of.setdefault(task_uuid, []).append(tell)

    def heard(self, task_uuid: str) -> None:
        """The answer of a command is with who waited for it."""
        self._of.pop(task_uuid, None)

    def unheard(self, task_uuid: str) -> None:
        """It is not, or it does not tell of what was done."""
        for tell in self._of.pop(task_uuid, ()):
            tell()
