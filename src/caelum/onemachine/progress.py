"""What `make up` tells while it works: a line when a step begins, signs of life in long ones, the times at the end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGN_OF_LIFE = 10.0


class Progress:
    """Lines with the seconds since the start, and how long each phase took."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._phases: list[tuple[str, float]] = []

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def say(self, text: str) -> None:
        """One line."""
        # In one piece: several threads tell.
        sys.stdout.write(f"[{self.seconds:6.1f} s] {text}\n")
        sys.stdout.flush()

    @contextmanager
    def phase(self, name: str, text: str) -> Iterator[None]:
        """Say what begins, that it still goes on, and remember under `name` how long it took."""
        self.say(text)
        begun, over = time.monotonic(), threading.Event()

        def tell() -> None:
            while not over.wait(SIGN_OF_LIFE):
                self.say(f"... still {text}, for {time.monotonic() - begun:.0f} s now")

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()
            self._phases.append((name, time.monotonic() - begun))

    def times(self) -> str:
        """All phases' times in one line."""
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._phases)
