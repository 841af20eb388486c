"""Places where a test may let the process die, an operation fail, or a step run twice.

Invariant: without a plan every hit costs one comparison and does nothing. After a simulated death each further hit
dies again, so that no code of the dead node goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from caelum.kernel.errors import CloudError


class ProcessDied(BaseException):
    """The simulated death of the process: nothing may catch it, undo or commit because of it."""


class Plan:
    """What is to happen where.

    At each point of `errors` the error is raised, as often as `times` says; then, at the point `death`, the process
    dies. `twice` runs every step and every undo two times. `visited` collects the points that were hit.
    """

    def __init__(
        self,
        *,
        errors: Mapping[str, CloudError] | None = None,
        times: int = 1,
        death: str | None = None,
        twice: bool = False,
        on_death: Callable[[], None] | None = None,
    ) -> None:
        self.errors = {point: [error] * times for point, error in (errors or {}).items()}
        self.death = death
        self.twice = twice
        self.visited: list[str] = []
        self.dead = False
        self._on_death = on_death

    def visit(self, point: str) -> None:
        """Let happen what is planned for this point."""
        if self.dead:
            raise ProcessDied(point)
        self.visited.append(point)
        if point == self.death:
            self.dead = True
            if self._on_death is not None:
                self._on_death()
            raise ProcessDied(point)
        if self.errors.get(point):
            raise self.errors[point].pop()


class Crashpoints:
    """The points of one node."""

    def __init__(self) -> None:
        self.plan: Plan | None = None

    def hit(self, point: str) -> None:
        """The code has come to this point ("vm.stop/stop_domain/after")."""
        if self.plan is not None:
            self.plan.visit(point)

    @property
    def times(self) -> int:
        """How often each step is to run."""
        return 2 if self.plan is not None and self.plan.twice else 1
