"""What happened in a simulated run, line by line: the story of a failure, and the proof that a seed makes one history.

Invariant: a line holds nothing that differs between two runs of a seed: no addresses of memory, no temporary paths.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import deque

from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.orm.exc import StaleDataError

from caelum.testing.simulation.loop import VirtualLoop

_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")
_KEPT = 400_000
_DEFECTS = (
    AssertionError, AttributeError, IndexError, KeyError, NameError, NotImplementedError, RuntimeError, TypeError,
    ValueError, IntegrityError, InvalidRequestError, StaleDataError,
)  # fmt: skip


class History(logging.Handler):
    """Collects lines with the virtual time and the machine; also what the program logs."""

    def __init__(self, loop: VirtualLoop, hidden: tuple[str, ...] = ()) -> None:
        super().__init__(logging.INFO)
        self.lines: deque[str] = deque(maxlen=_KEPT)
        self.count = 0
        self.defects: dict[str, None] = {}
        """Errors in the log that no fault excuses: of a program that is wrong."""
        self._loop = loop
        self._hidden = hidden
        self._hash = hashlib.sha256()

    def hide(self, text: str) -> None:
        """Write something else for a text that differs from run to run."""
        self._hidden += (text,)

    def add(self, text: str, who: str | None = None) -> None:
        """Write one line."""
        for number, one in enumerate(self._hidden):
            text = text.replace(one, f"<directory {number}>")
        name = self._loop.machine.name if who is None else who
        line = f"{self._loop.time():12.6f} {name:10} {_ADDRESS.sub('0x', text)}"
        self.lines.append(line)
        self.count += 1
        self._hash.update(line.encode())

    def emit(self, record: logging.LogRecord) -> None:
        """A log record of the program becomes a line."""
        text = f"{record.levelname} {record.name}: {record.getMessage()}"
        if record.exc_info and record.exc_info[1] is not None:
            if isinstance(record.exc_info[1], _DEFECTS):
                self.defects[f"{text}: {record.exc_info[1]!r}"] = None
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        self.add(text)

    def digest(self) -> str:
        """The whole history in 64 digits."""
        return self._hash.hexdigest()

    def last(self, count: int) -> list[str]:
        """The last lines."""
        return list(self.lines)[-count:] if count else []
