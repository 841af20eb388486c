"""Runs that another version of the program began, whose workflow had other steps.

Invariant: a run goes on only where this version's steps agree with those that it has been through and the one that was
under way. Where they do not, it is undone, or tried until it holds when its pivot is behind, step by step under the
names that both versions know; so it ends all the same.
"""

from __future__ import annotations

import logging
from typing import Any

from caelum.kernel.errors import CloudError
from caelum.kernel.flow import BEGIN, Workflow
from caelum.kernel.jobs import MANAGEMENT_NODE_UNAVAILABLE
from caelum.kernel.journal import RUNNING, UNDOING, JournalModel, encode_error

log = logging.getLogger(__name__)


def relocate(flow: type[Workflow[Any, Any]], row: JournalModel) -> None:
    """Lead a run to this version's steps; `row` is a copy, which is written when the run is claimed.

    Rows of before steps were noted are taken to be of these steps.
    """
    noted = flow.step_names() if row.steps is None else row.steps
    former, names = noted.split(","), flow.step_names().split(",")
    row.steps = flow.step_names()
    # While it runs, the step at its position may have begun.
    through = former[: row.position + (row.state == RUNNING)]
    if names[: len(through)] == through:
        return
    done = {name for index, name in enumerate(former[: row.position]) if index not in row.skipped}
    if row.state == RUNNING and (flow.pivot == BEGIN or flow.pivot in done):
        _go_on(row, names, done)
    else:
        _turn_back(flow, row, done, through[row.position :])
    if lost := sorted(done - set(names)):
        log.error(
            "workflow %s %s of %s was begun by another version; of its steps %s nothing is known here, `caelum admin"
            " audit` tells whether they left anything", flow.name, row.uuid, row.subject, ", ".join(lost),
        )  # fmt: skip


def _go_on(row: JournalModel, names: list[str], done: set[str]) -> None:
    row.position = next((index for index, name in enumerate(names) if name not in done), len(names))
    row.skipped = []


def _turn_back(flow: type[Workflow[Any, Any]], row: JournalModel, done: set[str], begun: list[str]) -> None:
    """Undo what is done, and the step that may have begun: of one in the database, nothing has happened."""
    touched = done | {step.name for step in flow.steps if step.name in begun and not step.transactional}
    row.position = len(flow.steps)
    row.skipped = [index for index, step in enumerate(flow.steps) if step.name not in touched]
    if row.state == RUNNING:
        details = f"the node that ran {flow.name} had another version, whose steps are not known here"
        row.state, row.error = UNDOING, encode_error(CloudError(MANAGEMENT_NODE_UNAVAILABLE, details))
