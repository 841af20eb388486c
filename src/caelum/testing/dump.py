"""Everything that a cloud is, as plain values that can be compared: all tables, and all that is on the hosts.

Invariant: two dumps of one cloud are equal exactly when nothing that matters changed in between. `canonical` makes
dumps of two clouds comparable: UUIDs, MAC and IP addresses become names that say only how they are connected.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import DateTime, Table, select

from caelum.kernel.database import Base, Database
from caelum.kernel.workflow import flows

NOT_STATE = frozenset(
    {
        "workflow_journal",
        "api_job",
        "garbage_collector",
        "alembic_version",
        "certificate_authority",
        "schema_compatibility",
        "used_ip.ip_in_long",
        "used_ip.ip_offset",
        "session",
        "account.password",
        "management_node",
        "table_change",
    }
)
"""Tables and columns that tell of the past, say again what another column says, or are of each cloud's own making."""

_IDENTITY = re.compile(
    r"\b[0-9a-f]{32}\b|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"
    r"|\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b|\b(?:\d{1,3}[.-]){3}\d{1,3}\b"
)
_UUID = re.compile(r"[0-9a-f]{32}")
_MOMENT = re.compile(r"\b(ConnectedTime::)\d+")
"""Times that are kept as text."""
_NIC_NAME = re.compile(r"\bvnic(\d+)\.")
_NUMBERS = frozenset({"internal_id", "internalId"})
"""What the database and the hosts call the small number of a VM."""
_ROUNDS = 6
_STABLE_ENDINGS = frozenset({"Running", "Existing", "Pending"})

Dump = dict[str, Any]


async def dump_database(db: Database, ignore: Iterable[str] = ()) -> Dump:
    """All rows of all tables, without times, in an order of their own content."""
    left_out = NOT_STATE | set(ignore)
    result: Dump = {}
    async with db.read() as session:
        for table in Base.metadata.sorted_tables:
            if table.name not in left_out:
                rows = [_plain(table, row, left_out) for row in (await session.execute(select(table))).mappings()]
                result[table.name] = sorted(rows, key=_text)
    return result


def masked(value: Any, masks: Iterable[str]) -> Any:
    """The same with each of these texts replaced, wherever it stands."""
    for number, text in enumerate(masks):
        value = _replaced(value, text, f"<{number}>")
    return value


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, Mapping):
        return {_replaced(key, old, new): _replaced(item, old, new) for key, item in value.items()}
    return [_replaced(one, old, new) for one in value] if isinstance(value, list) else value


def closed_up(dump: Dump) -> Dump:
    """The same with the small numbers of VMs, and the names of NICs made of them, replaced by places in their order.

    A sequence of PostgreSQL gives no number twice, also when what took it is rolled back, so that gaps mean nothing. A
    number that belongs to no VM stays as it is.
    """
    numbers = sorted(row["internal_id"] for row in dump.get("vm_instance", ()))
    places = {str(number): f"VM {place}" for place, number in enumerate(numbers, 1)}
    renumbered: Dump = _renumbered(dump, places)
    return renumbered


def _renumbered(value: Any, places: Mapping[str, str], key: str = "") -> Any:
    if isinstance(value, str):
        return _NIC_NAME.sub(lambda found: f"vnic<{places[found[1]]}>." if found[1] in places else found[0], value)
    if isinstance(value, Mapping):
        return {_renumbered(name, places): _renumbered(item, places, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_renumbered(one, places) for one in value]
    return places.get(str(value), value) if key in _NUMBERS else value


def identities(dump: Dump) -> frozenset[str]:
    """All UUIDs, MAC and IP addresses in a dump."""
    lines = (line for key, value in dump.items() for line in _lines(key, value))
    return frozenset(found for line in lines for found in _IDENTITY.findall(line))


def uuids(dump: Dump) -> frozenset[str]:
    """All UUIDs in a dump."""
    return frozenset(one for one in identities(dump) if _UUID.fullmatch(one))


def canonical(dump: Dump, known: frozenset[str] = frozenset()) -> list[str]:
    """The dump as sorted lines in which each UUID and address is named by its place among the others.

    Those that are `known` stay as they are.
    """
    lines = [line for key, value in dump.items() for line in _lines(key, value)]
    names = dict.fromkeys(identities(dump) - known, "#")
    for _ in range(_ROUNDS):
        seen: dict[str, list[str]] = {one: [] for one in names}
        for line in lines:
            for one in names.keys() & _IDENTITY.findall(line):
                seen[one].append(_renamed(line, {**names, one: "@"}))
        names = {one: "#" + _digest("\n".join([names[one], *sorted(places)])) for one, places in seen.items()}
    return sorted(_renamed(line, names) for line in lines)


def differences(expected: Any, found: Any, path: str = "") -> list[str]:
    """What is not equal, one line each."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        keys = sorted({*expected, *found}, key=str)
        return [line for key in keys for line in differences(expected.get(key), found.get(key), f"{path}/{key}")]
    if isinstance(expected, list) and isinstance(found, list):
        missing, extra = _minus(expected, found), _minus(found, expected)
        return [f"{path}: missing {_text(one)}" for one in missing] + [f"{path}: extra {_text(one)}" for one in extra]
    return [] if expected == found else [f"{path}: {_text(expected)} became {_text(found)}"]


def structural_differences(expected: list[str], found: list[str]) -> list[str]:
    """What differs between two canonical dumps when all names are left out; one difference changes many names."""
    plain, other = ([re.sub(r"#[0-9a-f]{10}", "#", line) for line in lines] for lines in (expected, found))
    return differences(plain, other) or ["the same lines, connected in another way", *differences(expected, found)]


def transitional(dump: Dump) -> list[str]:
    """Rows whose state or status says that something is under way ("Starting")."""
    found = []
    for table, rows in dump.items():
        for row in rows if isinstance(rows, list) else []:
            for column in ("state", "status") if isinstance(row, dict) else ():
                value = row.get(column)
                if isinstance(value, str) and value.endswith("ing") and value not in _STABLE_ENDINGS:
                    found.append(f"{table} {row.get('uuid', row)} is {value}")
    return found


async def unfinished(db: Database) -> list[str]:
    """The workflows that have not ended, by name."""
    table = Base.metadata.tables["workflow_journal"]
    query = select(table.c.name, table.c.state).where(table.c.state.in_(("Running", "Undoing")))
    async with db.read() as session:
        return [f"{name} is {state}" for name, state in await session.execute(query) if name in flows()]


def _plain(table: Table, row: Mapping[Any, Any], left_out: frozenset[str]) -> dict[str, Any]:
    # Numbers that the database gives out say only in which order rows came, and what runs side by side comes in any.
    wanted = [
        one for one in table.columns if not isinstance(one.type, DateTime) and one is not table.autoincrement_column
    ]
    return {one.name: _timeless(row[one]) for one in wanted if f"{table.name}.{one.name}" not in left_out}


def _timeless(value: Any) -> Any:
    return _MOMENT.sub(r"\1#", value) if isinstance(value, str) else value


def _lines(path: str, value: Any) -> Iterable[str]:
    """One line a row; what is nested deeper (hosts) becomes one line a leaf, so that no order is left in a line."""
    if isinstance(value, list) and all(isinstance(one, Mapping) and _is_flat(one) for one in value):
        yield from (f"{path}: {_text(one)}" for one in value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _lines(f"{path}/{key}", item)
    elif isinstance(value, list):
        for item in value:
            yield from _lines(f"{path}[]", item)
    else:
        yield f"{path}: {_text(value)}"


def _is_flat(row: Mapping[str, Any]) -> bool:
    return not any(isinstance(one, (Mapping, list)) for one in row.values())


def _minus(left: list[Any], right: list[Any]) -> list[Any]:
    rest = [_text(one) for one in right]
    result = []
    for one in left:
        text = _text(one)
        if text in rest:
            rest.remove(text)
        else:
            result.append(one)
    return result


def _renamed(line: str, names: Mapping[str, str]) -> str:
    return _IDENTITY.sub(lambda found: names.get(found[0], found[0]), line)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=_fallback)


def _fallback(value: Any) -> str:
    return "time" if isinstance(value, datetime) else str(value)
