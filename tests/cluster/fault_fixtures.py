"""What the tests of faults share: one cluster of three nodes for all faults, and the table of what they did."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fault_report
import pytest
from fault_cluster import FaultCluster, fault_cluster
from fault_judge import Judge
from fault_trial import ROUND_LIMIT, ROUNDS, Trial

_TABLE = "faults"


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultCluster]:
    """Three nodes, three hosts; whatever the tests do to them, the next test finds them mended."""
    with fault_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: FaultCluster) -> Iterator[FaultCluster]:
    """The cluster, whole: all nodes are ready and know each other."""
    running_cluster.wait_met()
    yield running_cluster
    running_cluster.mend()


@pytest.fixture
def judge(cluster: FaultCluster) -> Judge:
    """Who looks whether everything is as it should be."""
    return Judge(cluster)


@pytest.fixture
def trial(cluster: FaultCluster, judge: Judge) -> Trial:
    """The cluster under load."""
    return Trial(cluster, judge)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several processes that test, one has the cluster; each round of a fault has its own time."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        if running_cluster.__name__ in names:
            item.add_marker(pytest.mark.xdist_group("faults"))
        if trial.__name__ in names:
            item.add_marker(pytest.mark.timeout(ROUNDS * ROUND_LIMIT))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the table over, where another process shows it."""
    handed = getattr(session.config, "workeroutput", None)
    if handed is not None:
        handed[_TABLE] = [asdict(one) for one in fault_report.ROWS.values()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a process that tested has measured."""
    for one in getattr(node, "workeroutput", {}).get(_TABLE, ()):
        fault_report.ROWS[one["fault"]] = fault_report.Row(**one)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the table of faults; put it where `CAELUM_RELIABILITY` says."""
    if not fault_report.ROWS:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line(fault_report.table())
    if target := os.environ.get("CAELUM_RELIABILITY"):
        fault_report.write(Path(target))
