"""What the tests of several nodes share."""

from __future__ import annotations

import pytest

from caelum.cluster.postgres import binaries

# Short, but longer than a busy machine lets a loop wait.
FAST = {"node_lease_seconds": 2.5, "node_eviction_seconds": 4.0, "node_patience_seconds": 3.0, "stop_seconds": 2.0}


@pytest.fixture(autouse=True)
def _postgresql_is_there() -> None:
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed: tools/install cluster")
