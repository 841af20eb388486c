"""The network services' workflows fail, repeat themselves and die at each of their points."""

from __future__ import annotations

import pytest

import caelum.testing.rehearsals_network  # noqa: F401 - declares the scenarios
from caelum.cloud.l2.flows import AttachL2Flow, DeleteL2Flow, DetachL2Flow
from caelum.cloud.l3.flows import DeleteL3Flow
from caelum.cloud.network_service.flows import AttachServicesFlow, DetachServicesFlow
from caelum.kernel.workflow import Workflow
from caelum.testing.harness import Harness

FLOWS = [AttachL2Flow, DetachL2Flow, DeleteL2Flow, DeleteL3Flow, AttachServicesFlow, DetachServicesFlow]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("flow", FLOWS)
async def test_every_crash_ends_as_before_or_as_success(flow: type[Workflow[object, object]]) -> None:
    async with Harness(flow) as harness:
        assert await harness.rehearse() > 15
