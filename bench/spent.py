"""Where a server's time goes: samples of what its threads execute, by py-spy, as shares of the parts of the program."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path

_RATE = 200
"""Samples a second."""
_OURS = "caelum"
"""Our own package is told apart by its rooms."""
_LIBRARY = "Python's own library"
_SMALL = 2.0
"""Percent below which a part is counted among the rest."""


class Profile:
    """A profile of a process for some seconds: `start()`, the load, then `shares()`."""

    def __init__(self, pid: int, seconds: int, path: Path) -> None:
        program = Path(sys.executable).parent / "py-spy"
        # Only what holds the interpreter's lock counts, waiting does not; the server goes on meanwhile.
        how = ["--gil", "--nonblocking", "--duration", str(seconds), "--rate", str(_RATE), "--format", "raw"]
        self._command = [str(program), "record", *how, "--pid", str(pid), "--output", str(path)]
        self._path = path
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Begin to sample."""
        quiet = asyncio.subprocess.DEVNULL
        self._process = await asyncio.create_subprocess_exec(*self._command, stdout=quiet, stderr=quiet)

    async def shares(self) -> dict[str, float]:
        """Percent of the samples by the part whose code ran, most first. Raises RuntimeError when there are none."""
        if self._process is None or await self._process.wait() or not self._path.exists():
            raise RuntimeError("py-spy could not sample the server: it may have to run as root")
        return shares(self._path.read_text())


def shares(text: str) -> dict[str, float]:
    """Percent by part of collapsed stacks: a line each, frames parted by semicolons, then how often it was met."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        found[_part(stack.rpartition(";")[2])] += int(count)
    whole = sum(found.values())
    percents = {part: count / whole * 100 for part, count in found.most_common()}
    large = {part: share for part, share in percents.items() if share >= _SMALL}
    return large | {"the rest": 100 - sum(large.values())}


def _part(frame: str) -> str:
    """The part of a frame like `run (caelum/kernel/bus.py:12)`: its package, and the room for our own."""
    path = frame.partition(" (")[2].rpartition("site-packages/")[2].rpartition("src/")[2]
    package, _, inner = path.partition("/")
    if package == _OURS:
        return f"{_OURS}/{inner.partition('/')[0].partition('.py:')[0]}"
    # Generated code is named like `<sqlalchemy generated ...>` or `<frozen abc>`.
    name = package.lstrip("<").partition(" ")[0].partition(".py")[0].partition(":")[0]
    return _LIBRARY if name in {"frozen", "string>", *sys.stdlib_module_names} else name
