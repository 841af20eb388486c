"""Which errors say that the cluster failed, and not what was asked."""

from __future__ import annotations

import pytest

from caelum.kernel.errors import OPERATION_ERROR, TIMEOUT, UNDELIVERABLE, CloudError
from caelum.kernel.membership import EVICTED, is_of_cluster
from caelum.kernel.postgresql import CONFLICT, DATABASE_UNAVAILABLE


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (CloudError(UNDELIVERABLE, "its node left", left=True), True),
        (CloudError(UNDELIVERABLE, "nobody handles it"), False),
        (CloudError(EVICTED, "gone"), True),
        (CloudError(DATABASE_UNAVAILABLE, "away"), True),
        (CloudError(CONFLICT, "two at once"), True),
        (CloudError(TIMEOUT, "too slow"), False),
        (ValueError("own fault"), False),
    ],
)
def test_at_whatever_depth_and_beyond_the_wire(error: Exception, found: bool) -> None:
    assert is_of_cluster(error) is found
    wrapped = CloudError(OPERATION_ERROR, "it failed", cause=error)
    assert is_of_cluster(wrapped) is found
    assert is_of_cluster(CloudError(OPERATION_ERROR, "again", cause=wrapped.to_wire())) is found
