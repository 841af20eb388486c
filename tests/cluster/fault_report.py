"""The table of all faults: what clients saw, how long the cloud needed, what failed."""

from __future__ import annotations

import math
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass
class Row:
    """One fault; seconds, and `restored`, the share of the former work done again, are the worst of its rounds."""

    fault: str
    rounds: int = 0
    downtime: float = 0.0
    recovery: float = 0.0
    restored: float = math.inf
    operations: int = 0
    errors: int = 0
    note: str = ""

    def add(self, downtime: float, recovery: float, restored: float, operations: int, errors: int) -> None:
        """Another round."""
        self.rounds += 1
        self.downtime, self.recovery = max(self.downtime, downtime), max(self.recovery, recovery)
        self.restored = min(self.restored, restored)
        self.operations += operations
        self.errors += errors


ROWS: dict[str, Row] = {}


def row(fault: str, note: str = "") -> Row:
    """The row of a fault."""
    return ROWS.setdefault(fault, Row(fault, note=note))


HEAD = [
    "| fault | rounds | requests fail for | interrupted work is over after | work again | operations | failed |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
]


def table() -> str:
    """All rows as a table in Markdown."""
    return "\n".join([*HEAD, *_lines().values()])


def _lines() -> dict[str, str]:
    """The rows in Markdown, by their faults."""
    lines = {}
    for one in ROWS.values():
        times = f"{one.downtime:.1f} s | {one.recovery:.1f} s | {one.restored:.0%}"
        line = f"| {one.fault} | {one.rounds} | {times} | {one.operations} | {one.errors} |"
        lines[_kind(line)] = line
    return lines


def _kind(line: str) -> str:
    """The fault of a row, however long it lasts."""
    return re.sub(r"\d+", "0", line.split("|")[1].strip())


def write(page: Path) -> None:
    """Put the rows between the marks of a page; those of faults that were not tried now stay."""
    head, _, rest = page.read_text().partition(BEGIN)
    old, _, tail = rest.partition(END)
    kept = {_kind(line): line for line in old.splitlines() if line.startswith("| ") and line not in HEAD}
    rows = "\n".join([*HEAD, *(kept | _lines()).values()])
    where = f"{os.cpu_count()} CPUs, Python {platform.python_version()}, {platform.system()}"
    page.write_text(f"{head}{BEGIN}\n{rows}\n\nMeasured on one machine with {where}.\n{END}{tail}")
