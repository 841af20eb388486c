"""What of the kept results is shown."""

from __future__ import annotations

from bench.results import Row, Run, newest


def _run(date: str, **values: float) -> Run:
    rows = [Row(id=name.replace("__", "/"), scenario="s", value=value, unit="ms") for name, value in values.items()]
    return Run(
        date=date, mode="quick", commit="", processors=2, processor="", memory_gb=1, python="", load_before=0, rows=rows
    )


def test_the_rows_of_a_thing_are_replaced_together() -> None:
    runs = [_run("1", create__p50=5, create__gone=6, list__p50=7), _run("2", create__p50=4)]
    assert [(row.id, row.value, run.date) for row, run in newest(runs)] == [
        ("create/p50", 4, "2"),
        ("list/p50", 7, "1"),
    ]
