"""nftables, in JSON: whole tables of ours replaced in one transaction.

Invariant: only tables whose name starts with "caelum-" are ever written, and each is replaced as a whole, atomically:
a packet sees the old rules or the new ones, never none.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from nftables import Nftables  # type: ignore[import-untyped]

from caelum.agent.network import names

PREFIX = "caelum-"

Expression = dict[str, Any]

DROP: Expression = {"drop": None}
ACCEPT: Expression = {"accept": None}
MASQUERADE: Expression = {"masquerade": None}

_lock = threading.Lock()


class Chain(msgspec.Struct, frozen=True):
    """A base chain and its rules; each rule is a list of expressions."""

    name: str
    type: str
    hook: str
    priority: int
    rules: Sequence[Sequence[Expression]]
    device: str | None = None


def match(left: Expression, right: Any, op: str = "==") -> Expression:
    """`left op right`; a list on the right means any of."""
    return {"match": {"op": op, "left": left, "right": {"set": right} if isinstance(right, list) else right}}


def field(protocol: str, name: str) -> Expression:
    """A header field, such as ("arp", "saddr ip")."""
    return {"payload": {"protocol": protocol, "field": name}}


def raw(base: str, offset: int, length: int) -> Expression:
    """Bits of a header that nftables has no name for."""
    return {"payload": {"base": base, "offset": offset, "len": length}}


def meta(key: str) -> Expression:
    """A packet's meta datum, such as "iifname"."""
    return {"meta": {"key": key}}


def networks(texts: Iterable[str]) -> list[Any]:
    """Addresses and networks as members of a set."""
    found: list[Any] = []
    for text in texts:
        ip, _, length = text.partition("/")
        found.append({"prefix": {"addr": ip, "len": int(length)}} if length else ip)
    return found


def replace(family: str, table: str, chains: Sequence[Chain]) -> None:
    """Make a table of ours exactly this."""
    place = {"family": family, "table": table}
    commands: list[dict[str, Any]] = [*_gone(family, table), {"add": {"table": {"family": family, "name": table}}}]
    for chain in chains:
        form = {"name": chain.name, "type": chain.type, "hook": chain.hook, "prio": chain.priority, "policy": "accept"}
        device = {"dev": chain.device} if chain.device else {}
        commands.append({"add": {"chain": {**place, **form, **device}}})
        commands += [{"add": {"rule": {**place, "chain": chain.name, "expr": list(rule)}}} for rule in chain.rules]
    run(commands)


def remove(family: str, table: str) -> None:
    """Remove a table of ours; nothing to do if there is none."""
    run(_gone(family, table))


def _gone(family: str, table: str) -> list[dict[str, Any]]:
    if not table.startswith(PREFIX):
        raise ValueError(f"the table {table} is not ours")
    where = {"table": {"family": family, "name": table}}
    return [{"add": where}, {"delete": where}]  # "add" first: deleting what is not there would fail the transaction


def tables(family: str, prefix: str) -> list[str]:
    """What follows `prefix` in the names of the tables that start with it."""
    found = [item["table"]["name"] for item in run([{"list": {"tables": None}}], family) if "table" in item]
    return sorted(name.removeprefix(prefix) for name in found if name.startswith(prefix))


def ruleset() -> list[dict[str, Any]]:
    """Everything in nftables on this host."""
    return run([{"list": {"ruleset": None}}])


def run(commands: list[dict[str, Any]], family: str | None = None) -> list[dict[str, Any]]:
    """Run commands as one transaction and return what they list."""
    with _lock:  # libnftables says nothing of threads
        library = Nftables()
        library.set_json_output(True)
        code, output, error = library.json_cmd({"nftables": commands})
    if code != 0:
        raise names.failure(f"nftables refused: {error.strip()[:1000]}")
    items: list[dict[str, Any]] = output.get("nftables", []) if isinstance(output, dict) else []
    return [item for item in items if family is None or _family(item) == family]


def _family(item: dict[str, Any]) -> str | None:
    for content in item.values():
        if isinstance(content, dict):
            family: str | None = content.get("family")
            return family
    return None
