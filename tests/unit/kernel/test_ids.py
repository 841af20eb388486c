"""UUIDs as the wire has them."""

from __future__ import annotations

import uuid

from caelum.kernel.ids import derived_uuid, is_uuid, new_uuid


def test_a_new_uuid_is_a_random_one_of_the_standard() -> None:
    made = [new_uuid() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(is_uuid(one) for one in made)
    assert {(uuid.UUID(one).version, uuid.UUID(one).variant) for one in made} == {(4, uuid.RFC_4122)}


def test_a_derived_uuid_is_that_of_the_standard() -> None:
    namespace = uuid.UUID("6d2fa657-00f2-42e3-86c2-7e8ff05c4780")
    assert derived_uuid("vm", "Straße") == uuid.uuid5(namespace, "vm\0Straße").hex
    assert is_uuid(derived_uuid("vm"))
