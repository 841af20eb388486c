"""Adding a host fails, repeats itself and dies at each of its points."""

from __future__ import annotations

import pytest

import caelum.testing.rehearsals_host  # noqa: F401 - declares the scenario
from caelum.cloud.host.flows import AddHostFlow
from caelum.testing.harness import Harness


@pytest.mark.timeout(300)
async def test_every_crash_ends_as_before_or_as_success() -> None:
    async with Harness(AddHostFlow) as harness:
        assert await harness.rehearse() > 10
