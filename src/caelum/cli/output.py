"""Tables and JSON for the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

COLUMNS = ("uuid", "name", "state", "status", "type", "managementIp", "ip", "hostUuid", "size", "value", "createDate")
"""Columns of a table, in order, of which a resource has some."""
WIDEST = 48


def show(result: Any, form: str, fields: Sequence[str] = ()) -> None:
    """Print a result as a table or as JSON."""
    if form == "json":
        print(json.dumps(result, indent=2))
    elif isinstance(result, list):
        print_table(result, fields)
    elif isinstance(result, dict):
        print_record(result)
    elif result is not None:
        print(result)


def print_table(rows: list[dict[str, Any]], fields: Sequence[str] = ()) -> None:
    """One line a resource."""
    if not rows:
        print("(none)")
        return
    wanted = list(fields) or _columns(rows)
    lines = [[_cell(row, name) for name in wanted] for row in rows]
    widths = [min(WIDEST, max(len(name), *(len(line[number]) for line in lines))) for number, name in enumerate(wanted)]
    for line in [[name.upper() for name in wanted], *lines]:
        print("  ".join(cell[:width].ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    present = [name for name in COLUMNS if any(name in row or name == "ip" for row in rows)]
    if not any("vmNics" in row or "ip" in row for row in rows):
        present = [name for name in present if name != "ip"]
    return present or sorted(rows[0])[:6]


def _cell(row: dict[str, Any], name: str) -> str:
    if name == "ip" and "vmNics" in row:
        return ",".join(nic.get("ip", "-") for nic in row["vmNics"])
    value = row.get(name)
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def print_record(record: dict[str, Any]) -> None:
    """One line a field."""
    width = max((len(name) for name in record), default=0)
    for name, value in record.items():
        print(f"{name.ljust(width)}  {_brief(value)}")


def _brief(value: Any) -> str:
    """A field's value in one line; of resources inside it only what they are called. JSON output has all."""
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return ", ".join(_called(one) for one in value)
    return value if isinstance(value, str) else json.dumps(value)


def _called(resource: dict[str, Any]) -> str:
    return str(next((resource[name] for name in ("ip", "name", "uuid") if resource.get(name)), json.dumps(resource)))


class Progress:
    """A line on the terminal that says how long an operation runs; silent when nobody watches."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = False

    def __call__(self, seconds: float) -> None:
        if sys.stderr.isatty():
            self._shown = True
            print(f"\r{self._what}: {seconds:5.1f} s", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Clear the line."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
