"""The shares of a server's time, from a sampler's stacks."""

from __future__ import annotations

from bench.spent import shares

_STACKS = """\
main (caelum/cli/main.py:5);run (asyncio/runners.py:118);_serve (caelum/kernel/bus.py:12) 6
main (caelum/cli/main.py:5);execute (sqlalchemy/orm/session.py:99) 10
main (caelum/cli/main.py:5);uuid4 (uuid.py:7) 2
main (caelum/cli/main.py:5);get (<frozen abc>:7) 1
main (caelum/cli/main.py:5);commit (<sqlalchemy generated _go() wrapper for commit>:2) 2
main (caelum/cli/main.py:5);rare (yarl/_url.py:7) 0
"""


def test_a_sample_counts_for_the_part_whose_code_runs() -> None:
    found = shares(_STACKS)
    assert list(found) == ["sqlalchemy", "caelum/kernel", "Python's own library", "the rest"]
    assert [round(one) for one in found.values()] == [57, 29, 14, 0]
