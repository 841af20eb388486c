"""Results: what was measured, on what machine, compared with the last time, and the page that shows it."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

import msgspec

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
FINDINGS = Path(__file__).parent / "findings.md"
"""What the numbers do not say by themselves: why a goal is missed, where the time goes, what was tried."""
_BAR = 40
_WORSE = 1.25
"""How much more than the last time is pointed out."""


class Row(msgspec.Struct, kw_only=True):
    """A number. `goal` is the most that it may be, or the least where more is better (`at_least`)."""

    id: str
    scenario: str
    value: float
    unit: str
    goal: float | None = None
    at_least: bool = False
    met: bool | None = None
    simulated: bool = True
    beyond: bool = False
    """It was given up at this value, and would have been more."""

    def __post_init__(self) -> None:
        self.met = False if self.beyond else self.met
        self.value = round(self.value, 3 if self.value < 10 else 1)
        if self.goal is not None:
            self.met = self.value >= self.goal if self.at_least else self.value <= self.goal


class Run(msgspec.Struct, kw_only=True):
    """All rows of one run, and the facts of the machine."""

    date: str
    mode: str
    commit: str
    processors: int
    processor: str
    memory_gb: float
    python: str
    load_before: float
    load_after: float = 0.0
    rows: list[Row] = []


def begin(mode: str) -> Run:
    """A run on this machine, now."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return Run(
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"), mode=mode, commit=_commit(),
        processors=len(os.sched_getaffinity(0)), processor=_processor(), memory_gb=round(memory, 1),
        python=platform.python_version(), load_before=round(os.getloadavg()[0], 1),
    )  # fmt: skip


def keep(run: Run) -> Path:
    """Write a run into the history; what it did not measure stays in `latest.json` from the runs before."""
    RESULTS.mkdir(exist_ok=True)
    run.load_after = round(os.getloadavg()[0], 1)
    path = RESULTS / f"{run.date.replace(' ', 'T').replace(':', '')}-{run.mode}.json"
    path.write_bytes(_pretty(run))
    (RESULTS / "latest.json").write_bytes(_pretty([row for row, _ in newest(history())]))
    return path


def newest(runs: list[Run]) -> list[tuple[Row, Run]]:
    """The latest rows of each thing that was measured, with their run. A thing is what ids have before the slash: its
    rows are replaced together, as one that a later run no longer has would tell of an older program."""
    of_thing: dict[str, list[tuple[Row, Run]]] = {}
    for run in runs:
        measured: dict[str, list[tuple[Row, Run]]] = {}
        for row in run.rows:
            measured.setdefault(row.id.partition("/")[0], []).append((row, run))
        of_thing.update(measured)
    return [row for rows in of_thing.values() for row in rows]


def last() -> list[Row]:
    """The rows of the last runs."""
    path = RESULTS / "latest.json"
    return msgspec.json.decode(path.read_bytes(), type=list[Row]) if path.exists() else []


def history() -> list[Run]:
    """All kept runs, oldest first."""
    files = sorted(one for one in RESULTS.glob("*.json") if one.name != "latest.json")
    return [msgspec.json.decode(one.read_bytes(), type=Run) for one in files]


def table(rows: list[Row], before: list[Row]) -> str:
    """The rows for a terminal, with what they were before."""
    old = {row.id: row.value for row in before}
    lines = []
    for row in rows:
        verdict = "" if row.met is None else "ok" if row.met else "MISSED"
        goal = "" if row.goal is None else f"{'>=' if row.at_least else '<='} {row.goal:g}"
        lines.append(
            f"{row.id:38} {_value(row):>10} {row.unit:8} {goal:>10} {verdict:7}{_change(row, old.get(row.id))}"
        )
    return "\n".join(lines)


def _value(row: Row) -> str:
    return f"> {row.value:g}" if row.beyond else f"{row.value:g}"


def _bars(rows: list[Row]) -> list[str]:
    """How far each row with a goal is from it: the goal is in the middle of the bar."""
    lines = []
    for row in rows:
        if row.goal:
            share = row.goal / row.value if row.at_least and row.value else row.value / row.goal
            full = min(_BAR, max(1, round(share * _BAR / 2)))
            bar = "█" * full + ("…" if share > 2 else " " * (_BAR - full + 1))
            lines.append(f"{row.id:42} {bar[: _BAR // 2]}|{bar[_BAR // 2 :]} {share:6.2f} × goal")
    return lines


def _change(row: Row, before: float | None) -> str:
    if not before or not row.value:
        return ""
    ratio = before / row.value if row.at_least else row.value / before
    return f" was {before:g}{'  WORSE' if ratio > _WORSE else ''}"


def write_page() -> None:
    """Generate docs/performance.md from what was kept."""
    runs = history()
    measured = newest(runs)
    lines = [_HEAD]
    scenarios = dict.fromkeys(row.scenario for row, _ in measured)
    for scenario in scenarios:
        lines += [
            f"\n### {scenario}\n",
            "| measure | value | goal | | measured | load |",
            "| --- | ---: | ---: | --- | --- | --- |",
        ]
        for row, run in measured:
            if row.scenario == scenario:
                goal = "" if row.goal is None else f"{'≥' if row.at_least else '≤'} {row.goal:g} {row.unit}"
                verdict = "" if row.met is None else "met" if row.met else "**missed**"
                mark = ", simulated" if row.simulated else ""
                load = f"{run.load_before:g}–{run.load_after:g}"
                lines.append(
                    f"| {row.id} | {_value(row)} {row.unit}{mark} | {goal} | {verdict} | {run.date} | {load} |"
                )
    if bars := _bars([row for row, _ in measured]):
        lines += ["\n## Against the goals\n", "Left of the mark is met.\n", "```text", *bars, "```"]
    lines += ["\n" + FINDINGS.read_text().rstrip()]
    machines = dict.fromkeys((run.processor, run.processors, run.memory_gb, run.python) for run in runs)
    lines.append("\n## Machines\n")
    lines += [
        f"- {kind}, {count} processors, {memory:g} GB, Python {version}" for kind, count, memory, version in machines
    ]
    PAGE.write_text("\n".join(lines) + "\n")


def _pretty(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent)
    return found.stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


_HEAD = """# Performance

This page is made by `make bench` from `bench/results/` and `bench/findings.md`; do not edit it. `make bench` takes a
few minutes, `make bench-full` up to an hour or, on a slow machine, what `--scale 0.1` or less makes of it; `--only
NAME` runs one scenario, `--profile` writes what the server spends its time on. A scenario that was given up after its
time limit has a row that says so.

The server under test is a process of its own with its default durability (SQLite in WAL mode, every step of a workflow
committed before the next; where nodes are counted: a PostgreSQL and a RabbitMQ of their own), beside it the simulated
hosts, which answer the real agents' protocol over real HTTPS, and the load generator, all on the same processors.
"Simulated" says that no hypervisor was started. `load` is the machine's load average before and after: above the number
of processors, seconds say more of the machine than of the program. CPU milliseconds per operation change much less, and
statements per operation not at all. p99 of few operations is their worst.

For comparison, under other conditions (ZStack's README: one management node, 100 threads, simulator): 1 VM 0.51 s,
100 VMs 11.33 s, 1,000 VMs 103 s, 10,000 VMs 23 min.

## Results"""
