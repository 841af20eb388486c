"""Many resources at once: rows of one that was made through the API are copied, in the database of a stopped server.

Every row of every table that names the resource, or something that belongs to it, is copied with new UUIDs, names and
addresses; what it only refers to (image, offering, host) stays the same. So a copy is what the API would have made.

New UUIDs grow, so that they come to the end of an index, and other indexes are made when all rows are there: with a
million copies, a tree that grows everywhere would be most of the work.
"""

from __future__ import annotations

import ipaddress
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from caelum.kernel.ids import derived_uuid

_HISTORY = frozenset({"workflow_journal", "api_job", "garbage_collector", "alembic_version", "quota_usage", "session"})
_OF_HOSTS = frozenset({"host", "host_capacity", "system_tag", "account_resource_ref"})
_BATCH = 20_000
Change = Callable[[int], Any]
"""A cell's value in the n-th copy."""


class Template(NamedTuple):
    """A row to copy: its table, the statement, the row, and what each changing cell becomes."""

    table: str
    statement: str
    row: list[Any]
    changes: list[tuple[int, Callable[[int, dict[str, Any]], Any]]]


class Filler:
    """Copies rows in one SQLite database."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA foreign_keys=OFF")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("PRAGMA cache_size=-1000000")  # a million rows with random keys touch every page

    def close(self) -> None:
        """Bring everything into the file."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()

    def host_uuids(self) -> list[str]:
        """All hosts."""
        return [row[0] for row in self._db.execute("SELECT uuid FROM host ORDER BY name")]

    def vms(self, vm_uuid: str, count: int, hosts: list[str] | None = None) -> dict[str, list[str]]:
        """Copies of a VM with its disks, NICs and addresses, by turns on `hosts`; answers who is where.

        Names are in another order than UUIDs, so that a sort has something to do.
        """
        own = {vm_uuid}
        for query in (
            "SELECT uuid FROM vm_nic WHERE vm_instance_uuid=?",
            "SELECT uuid FROM volume WHERE vm_instance_uuid=?",
            "SELECT uuid FROM vm_cd_rom WHERE vm_instance_uuid=?",
            "SELECT used_ip_uuid FROM vm_nic WHERE vm_instance_uuid=?",
        ):
            own |= {row[0] for row in self._db.execute(query, (vm_uuid,))}
        (base,) = self._db.execute("SELECT max(internal_id) FROM vm_instance").fetchone()
        first = int(ipaddress.ip_address("11.0.0.1"))
        special: dict[str, Change] = {
            "vm_nic.mac": lambda n: "fb:" + ":".join(f"{byte:02x}" for byte in n.to_bytes(5, "big")),
            "vm_nic.internal_name": lambda n: f"vnic{base + 1 + n}.0",
            "vm_nic.ip": lambda n: str(ipaddress.ip_address(first + n)),
            "used_ip.ip": lambda n: str(ipaddress.ip_address(first + n)),
            "used_ip.ip_in_long": lambda n: first + n,
            "used_ip.ip_offset": lambda n: 1_000_000 + n,
            "vm_instance.internal_id": lambda n: base + 1 + n,
            "vm_instance.name": lambda n: f"vm-{n * 7919 % count:07d}",
            "vm_sequence.id": lambda n: base + 1 + n,
        }
        if hosts is not None:
            where = [row[0] for row in self._db.execute("SELECT name FROM sqlite_master WHERE type='table'")]
            for column in ("host_uuid", "last_host_uuid"):
                special.update({f"{table}.{column}": lambda n: hosts[n % len(hosts)] for table in where})
        self._copy({one: _fresh for one in own if one}, count, special)
        placed: dict[str, list[str]] = {}
        query = "SELECT host_uuid, uuid FROM vm_instance WHERE host_uuid IS NOT NULL AND uuid<>?"
        for host_uuid, uuid_ in self._db.execute(query, (vm_uuid,)):
            placed.setdefault(host_uuid, []).append(uuid_)
        return placed

    def hosts(self, host_uuid: str, ips: list[str]) -> None:
        """Copies of a host that are the simulated hosts at these addresses."""
        special: dict[str, Change] = {
            "host.management_ip": lambda n: ips[n],
            "host.name": lambda n: f"host-{n:05d}",
        }
        # What lies on the host (guests, cached images, the storage's mark) is not on its copies.
        new = {host_uuid: lambda n: derived_uuid("simulated host", ips[n])}
        self._copy(new, len(ips), special, only=_OF_HOSTS)

    def _copy(
        self, own: dict[str, Change], count: int, special: dict[str, Change], only: frozenset[str] | None = None
    ) -> None:
        templates = list(self._templates(own, special, only))
        indexes = self._drop_indexes({one.table for one in templates})
        for begin in range(0, count, _BATCH):
            numbers = range(begin, min(count, begin + _BATCH))
            names = [{old: new(n) for old, new in own.items()} for n in numbers]
            self._db.execute("BEGIN")
            for one in templates:
                self._db.executemany(one.statement, _rows(one.row, one.changes, numbers, names))
            self._db.execute("COMMIT")
        for statement in indexes:
            self._db.execute(statement)

    def _drop_indexes(self, tables: set[str]) -> list[str]:
        """Drop the indexes of tables but for those that constraints have; the statements that make them again."""
        query = "SELECT name, tbl_name, sql FROM sqlite_master WHERE type='index' AND sql IS NOT NULL"
        found = [(name, sql) for name, table, sql in self._db.execute(query) if table in tables]
        for name, _ in found:
            self._db.execute(f'DROP INDEX "{name}"')
        return [sql for _, sql in found]

    def _templates(
        self, own: dict[str, Change], special: dict[str, Change], only: frozenset[str] | None
    ) -> Iterator[Template]:
        tables = [row[0] for row in self._db.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        wanted = set(tables) - _HISTORY if only is None else only
        for table in (one for one in tables if one in wanted and not one.startswith("sqlite_")):
            columns = list(self._db.execute(f'PRAGMA table_info("{table}")'))
            names = [column[1] for column in columns]
            marks = ", ".join("?" * len(own))
            where = " OR ".join(f'"{name}" IN ({marks})' for name in names)
            found = self._db.execute(f'SELECT * FROM "{table}" WHERE {where}', [*own] * len(names)).fetchall()
            quoted = ", ".join(f'"{name}"' for name in names)
            statement = f'INSERT INTO "{table}" ({quoted}) VALUES ({", ".join("?" * len(names))})'
            for row in found:
                changes = [
                    _change(table, column, value, own, special) for column, value in zip(columns, row, strict=True)
                ]
                yield Template(table, statement, list(row), [(at, one) for at, one in enumerate(changes) if one])


def _fresh(number: int) -> str:
    return f"{number:08x}{os.urandom(12).hex()}"


def _change(table: str, column: Any, value: Any, own: dict[str, Change], special: dict[str, Change]) -> Any:
    """How a cell changes from copy to copy: a function of the number and the new names, or None."""
    name, is_key = f"{table}.{column[1]}", bool(column[5])
    if name in special:
        change = special[name]
        return None if value is None else lambda n, _names: change(n)
    if isinstance(value, str):
        within = [one for one in own if one in value]
        if within == [value]:
            return lambda _n, names: names[value]
        if within:
            return lambda _n, names: _replaced(value, within, names)
        if is_key and column[1] == "uuid":
            return lambda n, _names: _fresh(n)
    if is_key and isinstance(value, int) and column[1] == "id":
        return lambda _n, _names: None
    return None


def _replaced(value: str, within: list[str], names: dict[str, Any]) -> str:
    for one in within:
        value = value.replace(one, names[one])
    return value


def _rows(row: list[Any], changes: Any, numbers: range, names: list[dict[str, Any]]) -> Iterator[list[Any]]:
    for at, number in enumerate(numbers):
        new = row.copy()
        for place, change in changes:
            new[place] = change(number, names[at])
        yield new
