"""What the crash harness compares: gaps in the numbers of a sequence mean nothing, everything else does."""

from __future__ import annotations

from typing import Any

from caelum.testing.dump import closed_up, differences


def cloud(*numbers: int, on_host: int | None = None) -> dict[str, Any]:
    """VMs of these numbers, the last of which is on a host, there perhaps with another number."""
    there = numbers[-1] if on_host is None else on_host
    guest = {"internalId": there, "cpuNum": 2, "nics": [{"name": f"vnic{there}.0"}]}
    return {
        "vm_instance": [{"name": f"vm{place}", "internal_id": number} for place, number in enumerate(numbers)],
        "vm_nic": [{"internal_name": f"vnic{number}.0"} for number in numbers],
        "hosts": {"host": {"vms": {"vm": guest}}},
    }


def test_a_gap_between_the_numbers_of_vms_is_no_difference() -> None:
    assert differences(closed_up(cloud(1, 2)), closed_up(cloud(2, 5))) == []


def test_another_order_is_a_difference() -> None:
    assert differences(closed_up(cloud(1, 2)), closed_up(cloud(2, 1)))


def test_a_number_of_no_vm_is_a_difference() -> None:
    assert differences(closed_up(cloud(1, 2)), closed_up(cloud(1, 2, on_host=3)))
    assert differences(closed_up(cloud(1, 2, on_host=2)), closed_up(cloud(4, 5, on_host=2)))


def test_a_dump_without_vms_stays_as_it_is() -> None:
    found = {"vm_nic": [{"internal_name": "vnic1.0"}]}
    assert closed_up(found) == found
