"""ZQL: from text to statements.

Invariant: what is not understood is refused with the place where it stands; nothing is skipped. As in the original,
keywords are lower case, and `and` and `or` have no precedence: they nest to the right.
"""

from __future__ import annotations

import re
from typing import Literal, NoReturn

import msgspec

from caelum.cloud.query.compile import MAX_CONDITIONS, Junction, Tree
from caelum.kernel.errors import invalid
from caelum.kernel.message import QueryCondition

MAX_STATEMENTS = 20
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*'|"[^"]*")|(?P<number>-?\d+(?:\.\d+)?(?![\w.]))|(?P<word>[A-Za-z_]\w*(?:\.\w+)*)"""
    r"|(?P<sign>!=|>=|<=|[=<>(),;]))"
)
_SIGNS = ("=", "!=", ">", ">=", "<", "<=")
_LATER = ("restrict", "group", "filter", "inner", "left", "right", "having")


class Token(msgspec.Struct, frozen=True):
    """A piece of the text; `kind` is text, number, word, sign or end."""

    kind: str
    value: str
    at: int


class Statement(msgspec.Struct, kw_only=True):
    """One question."""

    kind: Literal["query", "count"]
    entity: str
    fields: tuple[str, ...] = ()
    where: Tree | None = None
    with_total: bool = False
    order: list[tuple[str, str]] = []
    limit: int | None = None
    offset: int = 0
    name: str | None = None


def parse(text: str) -> list[Statement]:
    """The statements of a text. Raises SYS.1007 that says what was expected where."""
    return _Parser(text).statements()


def _tokens(text: str) -> list[Token]:
    found, at, end = [], 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            bad = text[at:].lstrip()
            raise invalid("zql", f"nothing in ZQL begins with {bad[:20]!r}, at character {len(text) - len(bad) + 1}")
        kind = match.lastgroup or ""
        found.append(Token(kind, _plain(kind, match[kind]), match.start(kind)))
        at = match.end()
    return [*found, Token("end", "the end", end)]


def _plain(kind: str, value: str) -> str:
    if kind != "text":
        return value
    return value[1:-1].replace("''", "'") if value[0] == "'" else value[1:-1]


class _Parser:
    """Reads tokens one after another."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = 0
        self._conditions = 0

    def statements(self) -> list[Statement]:
        found = []
        while self._here.kind != "end":
            found.append(self._statement())
            if len(found) > MAX_STATEMENTS:
                raise invalid("zql", f"more than {MAX_STATEMENTS} statements are given")
            if not self._sign(";") and self._here.kind != "end":
                self._expected("';' or the end")
        if not found:
            self._expected("query or count")
        return found

    @property
    def _here(self) -> Token:
        return self._tokens[self._next]

    def _expected(self, what: str) -> NoReturn:
        here = self._here
        later = "; this part of ZQL is not offered" if here.value in _LATER else ""
        raise invalid("zql", f"{what} is expected instead of {here.value[:40]!r} at character {here.at + 1}{later}")

    def _take(self, kind: str, what: str) -> str:
        here = self._here
        if here.kind != kind:
            self._expected(what)
        self._next += 1
        return here.value

    def _is(self, kind: str, *values: str) -> bool:
        """Take these tokens if all of them come now."""
        ahead = self._tokens[self._next : self._next + len(values)]
        if [(one.kind, one.value) for one in ahead] != [(kind, value) for value in values]:
            return False
        self._next += len(values)
        return True

    def _sign(self, value: str) -> bool:
        return self._is("sign", value)

    def _words(self, *values: str) -> bool:
        return self._is("word", *values)

    def _need(self, sign: str) -> None:
        if not self._sign(sign):
            self._expected(repr(sign))

    def _statement(self) -> Statement:
        kind: Literal["query", "count"] = "query"
        if self._words("count"):
            kind = "count"
        elif not self._words("query"):
            self._expected("query or count")
        entity, _, first = self._take("word", "an entity").partition(".")
        fields = [first] if first else []
        while first and self._sign(","):
            fields.append(self._take("word", "a field"))
        made = Statement(kind=kind, entity=entity, fields=tuple(fields))
        if self._words("where"):
            made.where = self._tree()
        self._rest(made)
        return made

    def _rest(self, made: Statement) -> None:
        """What may follow the condition, in the grammar's order."""
        if self._words("return", "with"):
            self._need("(")
            if not self._words("total"):
                self._expected("total")
            self._need(")")
            made.with_total = True
        if self._words("order", "by"):
            made.order = [self._order()]
            while self._sign(","):
                made.order.append(self._order())
        if self._words("limit"):
            made.limit = self._whole()
        if self._words("offset"):
            made.offset = self._whole()
        if self._words("named", "as"):
            made.name = self._take("text", "a name in quotes")

    def _order(self) -> tuple[str, str]:
        field = self._take("word", "a field")
        direction = self._take("word", "asc or desc")
        if direction not in ("asc", "desc"):
            self._next -= 1
            self._expected("asc or desc")
        return field, direction

    def _whole(self) -> int:
        text = self._take("number", "a whole number")
        if not text.isdecimal() or len(text) > 18:
            self._next -= 1
            self._expected("a whole number")
        return int(text)

    def _tree(self) -> Tree:
        """A condition and what follows it; how deep they nest is bounded by how many there may be."""
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise invalid("zql", f"more than {MAX_CONDITIONS} conditions or parentheses are given")
        if self._sign("("):
            left = self._tree()
            self._need(")")
        else:
            left = self._condition()
        for op in ("and", "or"):
            if self._words(op):
                return Junction("and" if op == "and" else "or", (left, self._tree()))
        return left

    def _condition(self) -> QueryCondition:
        field = self._take("word", "a field")
        for op in ("is not null", "is null"):
            if self._words(*op.split()):
                return QueryCondition(field, op)
        for op in ("not in", "in"):
            if self._words(*op.split()):
                return QueryCondition(field, op, self._list())
        for op in ("not like", "like"):
            if self._words(*op.split()):
                return QueryCondition(field, op, self._value())
        if self._here.kind != "sign" or self._here.value not in _SIGNS:
            self._expected("an operator")
        return QueryCondition(field, self._take("sign", "an operator"), self._value())

    def _value(self) -> str:
        if self._here.kind not in ("text", "number") and self._here.value not in ("true", "false"):
            self._expected("a value")
        self._next += 1
        return self._tokens[self._next - 1].value

    def _list(self) -> str:
        self._need("(")
        values = [self._value()]
        while self._sign(","):
            values.append(self._value())
        self._need(")")
        if any("," in one for one in values):
            raise invalid("zql", "a value in a list must not hold a comma; use = and or")
        return ",".join(values)
