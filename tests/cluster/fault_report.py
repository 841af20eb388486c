"""The table of all faults: what clients saw, how long the cloud needed, what failed."""

from __future__ import annotations

import math
import os
import platform
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


def table() -> str:
    """All rows as a table in Markdown."""
    lines = [
        "| fault | rounds | requests fail for | interrupted work is over after | work again | operations | failed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in ROWS.values():
        times = f"{one.downtime:.1f} s | {one.recovery:.1f} s | {one.restored:.0%}"
        lines.append(f"| {one.fault} | {one.rounds} | {times} | {one.operations} | {one.errors} |")
    return "\n".join(lines)


def write(page: Path) -> None:
    """Put the table between the marks of a page."""
    head, _, rest = page.read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    where = f"{os.cpu_count()} CPUs, Python {platform.python_version()}, {platform.system()}"
    page.write_text(f"{head}{BEGIN}\n{table()}\n\nMeasured on one machine with {where}.\n{END}{tail}")
