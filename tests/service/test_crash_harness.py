"""Every durable workflow fails, repeats itself and dies at each of its points: see caelum/testing/harness.py.

All cases of all workflows take long, so that a run plays each workflow's success and a sample of its other cases.
HARNESS=full plays all, HARNESS=<number> a larger sample, HARNESS_SEED=<text> another one.
"""

from __future__ import annotations

import os
import random

import pytest

from caelum.builtin import import_declarations
from caelum.kernel.workflow import flows
from caelum.testing.harness import Case, Harness, cases
from caelum.testing.rehearsals import import_rehearsals, rehearsals

import_declarations()
import_rehearsals()
SAMPLE = os.environ.get("HARNESS", "3")
SEED = os.environ.get("HARNESS_SEED", "first light")
OURS = sorted(name for name, flow in flows().items() if flow.__module__.startswith(("caelum.cloud", "caelum.drivers")))


def chosen(name: str) -> list[Case]:
    """The cases of a workflow that this run plays; its success is always the first."""
    every = cases(flows()[name])
    if SAMPLE == "full":
        return every
    rest = random.Random(f"{SEED} {name}").sample(every[1:], min(int(SAMPLE), len(every) - 1))
    return [every[0], *rest]


@pytest.mark.parametrize("name", OURS)
def test_each_workflow_has_a_rehearsal(name: str) -> None:
    assert flows()[name].rehearsal in rehearsals()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", OURS)
async def test_workflow_ends_as_if_nothing_or_everything_had_happened(name: str) -> None:
    played = chosen(name)
    print(f"{name}: {', '.join(map(str, played))} (seed {SEED})")
    async with Harness(flows()[name]) as harness:
        assert await harness.rehearse(played) == len(played)
