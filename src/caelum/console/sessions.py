"""The consoles that a proxy holds open, within its limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from caelum.cloud.console.errors import TOO_MANY
from caelum.console.pipe import Pipe
from caelum.kernel.errors import CloudError


class Place:
    """One of the consoles that may be open; its pipe comes once both sides are connected."""

    def __init__(self, vm_uuid: str) -> None:
        self.vm_uuid = vm_uuid
        self.pipe: Pipe | None = None


class Sessions:
    """All open consoles of a proxy. The limits may change while consoles are open."""

    def __init__(self, most: Callable[[], int], most_of_vm: Callable[[], int]) -> None:
        self._most, self._most_of_vm = most, most_of_vm
        self._places: set[Place] = set()

    def __len__(self) -> int:
        return len(self._places)

    @contextmanager
    def place(self, vm_uuid: str) -> Iterator[Place]:
        """Hold a place for a console of this VM. Raises CONSOLE.1002."""
        _check("the proxy", len(self._places), self._most())
        _check(f"vm[uuid:{vm_uuid}]", sum(one.vm_uuid == vm_uuid for one in self._places), self._most_of_vm())
        place = Place(vm_uuid)
        self._places.add(place)
        try:
            yield place
        finally:
            self._places.discard(place)

    def end(self, code: int, reason: str, vm_uuid: str | None = None) -> None:
        """End the consoles of a VM, or all."""
        for place in list(self._places):
            if place.pipe is not None and vm_uuid in (None, place.vm_uuid):
                place.pipe.end(code, reason)


def _check(whose: str, there: int, most: int) -> None:
    if there >= most:
        raise CloudError(TOO_MANY, f"{whose} has {there} open consoles, at most {most} are allowed", most=most)
