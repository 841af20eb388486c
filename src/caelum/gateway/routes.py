"""The path table: which operation an HTTP request means.

Invariant: a path and a verb (with the body's action key for PUT) name at most one operation. Variables are numbered,
so `/zones/{uuid}` and `/zones/{zoneUuid}` are one entry; a literal segment wins over a variable; empty segments do not
count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from caelum.gateway.refusal import Refusal
from caelum.kernel.message import ApiMeta


class Target(msgspec.Struct, frozen=True):
    """One operation at one path, with the names of the path's variables in order."""

    meta: ApiMeta
    variables: tuple[str, ...]


class Entry(msgspec.Struct):
    """All operations of one normalised path."""

    pattern: str
    by_method: dict[str, Target] = {}
    actions: dict[str, Target] = {}

    def add(self, target: Target) -> None:
        meta = target.meta
        table, key = (self.actions, meta.action) if meta.action else (self.by_method, meta.method)
        if key in table:
            raise ValueError(f"{meta.name} and {table[key].meta.name} both claim {meta.method} {self.pattern} {key}")
        table[key] = target

    def methods(self) -> list[str]:
        return sorted({*self.by_method, *({"PUT"} if self.actions else ())})

    def pick(self, method: str, body: Mapping[str, Any]) -> Target:
        """The operation that this verb (and, for PUT, this body) means here."""
        method = "GET" if method == "HEAD" else method
        if method == "PUT" and self.actions:
            return self._pick_action(body)
        if found := self.by_method.get(method):
            return found
        raise self._not_allowed(method)

    def check_method(self, method: str) -> None:
        """Refuse a verb that no operation has here, before anything of the request is read."""
        if ("GET" if method == "HEAD" else method) not in self.methods():
            raise self._not_allowed(method)

    def _not_allowed(self, method: str) -> Refusal:
        return Refusal(405, f"the method {method[:32]} is not allowed here", {"Allow": ", ".join(self.methods())})

    def _pick_action(self, body: Mapping[str, Any]) -> Target:
        found = next((target for name, target in self.actions.items() if name in body), None)
        if found is None and len(self.actions) == 1 and "PUT" not in self.by_method:
            # A missing key means "no parameters" when it cannot mean anything else.
            found = next(iter(self.actions.values()))
        if found := found or self.by_method.get("PUT"):
            return found
        raise Refusal(400, f"the body doesn't contain action mapping to the URL[{self.pattern}]")


class _Branch:
    """One level of the table: literal segments, and what a variable here leads to."""

    __slots__ = ("entry", "literals", "variable")

    def __init__(self) -> None:
        self.literals: dict[str, _Branch] = {}
        self.variable: _Branch | None = None
        self.entry: Entry | None = None

    def child(self, segment: str) -> _Branch:
        if not segment.startswith("{"):
            return self.literals.setdefault(segment, _Branch())
        self.variable = self.variable or _Branch()
        return self.variable

    def find(self, segments: list[str], index: int = 0) -> tuple[Entry, list[str]] | None:
        if index == len(segments):
            return (self.entry, []) if self.entry else None
        segment = segments[index]
        literal = self.literals.get(segment)
        if literal and (found := literal.find(segments, index + 1)):
            return found
        if self.variable and (found := self.variable.find(segments, index + 1)):
            return found[0], [segment, *found[1]]
        return None


class RouteTable:
    """All operations by path."""

    def __init__(self, metas: Iterable[ApiMeta]) -> None:
        self._root = _Branch()
        self.entries: list[Entry] = []
        for meta in metas:
            for path in (meta.path, *meta.also):
                self._add(path, meta)

    def _add(self, path: str, meta: ApiMeta) -> None:
        branch, variables, pattern = self._root, [], ""
        for segment in _segments(path):
            branch = branch.child(segment)
            if segment.startswith("{"):
                variables.append(segment[1:-1])
                segment = f"{{{len(variables) - 1}}}"
            pattern += "/" + segment
        if branch.entry is None:
            branch.entry = Entry(pattern)
            self.entries.append(branch.entry)
        branch.entry.add(Target(meta, tuple(variables)))

    def find(self, raw_path: str) -> tuple[Entry, list[str]]:
        """The entry for a path (still percent-encoded, without prefix) and the values of its variables."""
        found = self._root.find([_decoded(one) for one in _segments(raw_path)])
        if found is None:
            raise Refusal(404, f"no api mapping to {raw_path}")
        return found


def _segments(path: str) -> list[str]:
    return [one for one in path.split("/") if one]


def _decoded(segment: str) -> str:
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise Refusal(400, "the path is not valid UTF-8") from None
