"""UUIDs as the wire has them."""

from __future__ import annotations

import uuid

from caelum.kernel.ids import is_uuid, new_uuid


def test_a_new_uuid_is_a_random_one_of_the_standard() -> None:
    made = [new_uuid() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(is_uuid(one) for one in made)
    assert {(uuid.UUID(one).version, uuid.UUID(one).variant) for one in made} == {(4, uuid.RFC_4122)}
