"""ZQL's grammar: what it gives, and what it says to the rest."""

from __future__ import annotations

import pytest

from caelum.cloud.query.compile import Junction
from caelum.cloud.query.zql import Statement, parse
from caelum.kernel.errors import CloudError
from caelum.kernel.message import QueryCondition as C

A, B, D = C("a", "=", "1"), C("b", "!=", "x"), C("d", "is null")


def one(text: str) -> Statement:
    (found,) = parse(text)
    return found


def test_everything_that_a_statement_may_have() -> None:
    found = one(
        "query vminstance.uuid,name where state = 'Running' return with (total) order by name asc, cpuNum desc"
        " limit 10 offset 20 named as 'vms'"
    )
    assert (found.kind, found.entity, found.fields) == ("query", "vminstance", ("uuid", "name"))
    assert found.where == C("state", "=", "Running")
    assert (found.with_total, found.limit, found.offset, found.name) == (True, 10, 20, "vms")
    assert found.order == [("name", "asc"), ("cpuNum", "desc")]


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a=1 and b!='x' or d is null", Junction("and", (A, Junction("or", (B, D))))),
        ("(a=1 and b!='x') or d is null", Junction("or", (Junction("and", (A, B)), D))),
        ("((a=1))", A),
        ("a.b.c >= -1.5", C("a.b.c", ">=", "-1.5")),
        ("a in ('x', 2, true)", C("a", "in", "x,2,true")),
        ("a not in (1)", C("a", "not in", "1")),
        ("a not like 'x%'", C("a", "not like", "x%")),
        ("a is not null", C("a", "is not null")),
        ("a = 'it''s'", C("a", "=", "it's")),
        ('a = "it\'s; and or"', C("a", "=", "it's; and or")),
        ("__systemTag__ = 'x'", C("__systemTag__", "=", "x")),
    ],
)
def test_conditions(text: str, tree: object) -> None:
    assert one(f"query e where {text}").where == tree


def test_several_statements() -> None:
    assert [found.kind for found in parse("query a; count b where x=1;\n query c ;")] == ["query", "count", "query"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "query or count is expected instead of 'the end'"),
        ("select * from vm", "nothing in ZQL begins with '* from vm', at character 8"),
        ("QUERY vm", "query or count is expected"),
        ("query", "an entity is expected"),
        ("query vm where", "a field is expected"),
        ("query vm where a", "an operator is expected instead of 'the end'"),
        ("query vm where a = b", "a value is expected instead of 'b' at character 20"),
        ("query vm where (a = 1", "')' is expected"),
        ("query vm where a = 'x", "nothing in ZQL begins with"),
        ("query vm where a in (query x)", "a value is expected"),
        ("query vm restrict by (zone.uuid='x')", "this part of ZQL is not offered"),
        ("query vm order by a", "asc or desc is expected"),
        ("query vm limit -1", "a whole number is expected"),
        ("query vm limit 1.5", "a whole number is expected"),
        ("query vm return with (zwatch)", "total is expected"),
        ("query vm where a in ('x,y')", "must not hold a comma"),
        ("query vm query vm", "';' or the end is expected"),
        ("query vm;" * 21, "more than 20 statements"),
        ("query vm where " + "(" * 5000, "more than 100 conditions"),
        ("query vm where " + " and ".join(["a=1"] * 5000), "more than 100 conditions"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(CloudError) as refused:
        parse(text)
    assert refused.value.code == "SYS.1007"
    assert said in refused.value.details
