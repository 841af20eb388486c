"""Answers of the database that are kept until a table changes that they were read from.

Invariant: an answer is given again only while every table that its statements named is as it was before they were sent.
Nobody lists those tables: they are found in the text of the statements, where a name too many does no harm. What is
kept is shared, so it must not be changed by who gets it. Where this process is the only writer, it notes itself what
changes; where others write too, the database's own versions decide (`changed_to`), and only answers from tables that
have one are kept.
"""

from __future__ import annotations

import re
from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from sqlalchemy import MetaData

from caelum.kernel import freshness

_MOST = 50_000
_LOOKS = 2
"""How many of those that were looked at longest ago are looked at with each new answer: more than one, so that answers
that are not true any more become few."""
_WRITES = re.compile(r"\s*(?:INSERT\s+(?:OR\s+\w+\s+)?INTO|UPDATE(?:\s+OR\s+\w+)?|DELETE\s+FROM)\s+\"?(\w+)", re.I)
_HARMLESS = re.compile(r"\s*(?:SELECT|WITH|BEGIN|SAVEPOINT|RELEASE|ROLLBACK|COMMIT|PRAGMA)\b", re.I)
_statements: ContextVar[set[str] | None] = ContextVar("statements", default=None)
_changes: ContextVar[set[str] | None] = ContextVar("changes", default=None)
EVERYTHING = "*"
"""Stands for all tables, when nobody can tell what a statement changes."""


class Remembered:
    """What was read from one database."""

    def __init__(self, metadata: MetaData) -> None:
        self._metadata = metadata
        self._kept: OrderedDict[Hashable, tuple[Any, Mapping[str, int], frozenset[str]]] = OrderedDict()
        self._versions: Mapping[str, int] = {}
        self._shared = False
        self._written: set[str] = set()
        self._noted_from: Mapping[str, int] = {}
        self._noted: dict[frozenset[str], Mapping[str, int]] = {}

    def sent(self, statement: str) -> None:
        """A statement is sent: note what it reads for whoever remembers, and what it changes."""
        reading = _statements.get()
        if reading is not None:
            reading.add(statement)
        changed = _changed_by(statement)
        if changed is None:
            return
        if not self._shared:
            self._written.add(changed)
        elif (changes := _changes.get()) is not None:
            changes.add(changed)

    def changed_to(self, versions: Mapping[str, int]) -> None:
        """The tables' versions are these, for the questions that are asked before anything is awaited."""
        self._shared = True
        self._versions = versions

    def changing(self) -> Changes:
        """A writing transaction begins in the running task."""
        return Changes()

    @property
    def written(self) -> bool:
        """Whether the writing transaction that is open has written anything yet."""
        return bool(self._written)

    def ended(self, changes: Changes) -> None:
        """A writing transaction ended, one way or another: what was read from what it wrote is forgotten. Where others
        write too, its own work heard of `changes`, and all work of those to tables from which answers are kept."""
        if changed := changes.taken():
            freshness.heard()
            if EVERYTHING in changed or not self._affected(changed).isdisjoint(self._versions):
                freshness.all_heard()
        if self._written:
            self._versions = {
                **self._versions,
                **{one: self._versions.get(one, 0) + 1 for one in self._affected(self._written)},
            }
            self._written.clear()

    def get(self, key: Hashable) -> tuple[Any] | None:
        """The answer to `key` in a tuple, or None."""
        found = self._kept.get(key)
        if found is None:
            return None
        answer, versions, statements = found
        if not self._is_true(versions):
            del self._kept[key]
            return None
        reading = _statements.get()
        if reading is not None:
            reading |= statements  # what is read with this answer depends on it
        return (answer,)

    def reader(self) -> Reader:
        """Notes what is read inside its block."""
        return Reader(self._versions)

    def put(self, key: Hashable, answer: Any, reader: Reader) -> None:
        """Keep an answer that was read inside the reader's block."""
        statements = _the_same(frozenset(reader.statements))
        tables = _named_in(statements) & self._metadata.tables.keys()
        if not self._shared:
            tables |= {EVERYTHING}
        elif not tables <= reader.versions.keys():
            return
        self._kept[key] = answer, self._versions_of(frozenset(tables), reader.versions), statements
        self._kept.move_to_end(key)
        while len(self._kept) > _MOST:
            self._kept.popitem(last=False)
        self._drop_untrue()

    def _is_true(self, versions: Mapping[str, int]) -> bool:
        """Whether tables are as they were when they had these versions."""
        for table, version in versions.items():  # noqa: SIM110 - asked all the time, and a generator takes longer
            if self._versions.get(table, 0) != version:
                return False
        return True

    def _drop_untrue(self) -> None:
        """Look at some answers, and keep those that are still true: nobody may ever ask for the others again."""
        for _ in range(min(_LOOKS, len(self._kept))):
            key, kept = self._kept.popitem(last=False)
            if self._is_true(kept[1]):
                self._kept[key] = kept

    def _versions_of(self, tables: frozenset[str], versions: Mapping[str, int]) -> Mapping[str, int]:
        """The versions of these tables; one object for all answers that were read from them as they were then."""
        if versions is not self._noted_from:
            self._noted_from, self._noted = versions, {}
        noted = self._noted.get(tables)
        if noted is None:
            noted = self._noted[tables] = {table: versions.get(table, 0) for table in tables}
        return noted

    def _affected(self, written: set[str]) -> set[str]:
        followers = _followers(self._metadata, len(self._metadata.tables))
        return written.union(*(followers.get(table, frozenset()) for table in written))


class Changes:
    """The tables that a writing transaction changes, where others write too."""

    __slots__ = ("_before", "_tables")

    def __init__(self) -> None:
        self._tables = set[str]()
        self._before = _changes.set(self._tables)

    def taken(self) -> set[str]:
        """Those that were not taken before."""
        if not self._tables:
            return self._tables
        taken = self._tables.copy()
        self._tables.clear()
        return taken

    def close(self) -> None:
        """The transaction is over."""
        _changes.reset(self._before)


class Reader:
    """What was read since `versions`."""

    def __init__(self, versions: Mapping[str, int]) -> None:
        self.versions = versions
        self.statements: set[str] = set()

    def __enter__(self) -> Reader:
        self._token = _statements.set(self.statements)
        return self

    def __exit__(self, *_: object) -> None:
        _statements.reset(self._token)
        around = _statements.get()
        if around is not None:
            around |= self.statements


@lru_cache(maxsize=4096)
def words_in(statement: str) -> frozenset[str]:
    """Every word of a statement, the tables' names among them."""
    return frozenset(re.findall(r"\w+", statement))


@lru_cache(maxsize=1024)
def _named_in(statements: frozenset[str]) -> frozenset[str]:
    return frozenset().union(*map(words_in, statements))


@lru_cache(maxsize=1024)
def _the_same(statements: frozenset[str]) -> frozenset[str]:
    """One object for equal sets: thousands of answers come from the same statements."""
    return statements


@lru_cache(maxsize=4096)
def _changed_by(statement: str) -> str | None:
    found = _WRITES.match(statement)
    if found:
        return found[1]
    return None if _HARMLESS.match(statement) else EVERYTHING


@lru_cache(maxsize=8)
def _followers(metadata: MetaData, _count: int) -> dict[str, frozenset[str]]:
    """The tables whose rows the database itself changes when a row goes, by that row's table."""
    direct = defaultdict[str, set[str]](set)
    for table in metadata.tables.values():
        for key in table.foreign_keys:
            if key.ondelete is not None:
                direct[key.column.table.name].add(table.name)
    found = {}
    for name in direct:
        seen, waiting = set[str](), [name]
        while waiting:
            new = direct.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        found[name] = frozenset(seen)
    return found
