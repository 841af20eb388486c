"""Which of the hosts that a strategy holds for equal comes first."""

from __future__ import annotations

from caelum.cloud.allocator.rules import HostRow
from caelum.cloud.allocator.strategies import STRATEGIES, nearest_first


def _host(uuid: str, vm_count: int, used_memory: int) -> HostRow:
    values = dict.fromkeys(HostRow._fields, 0) | {"uuid": uuid, "vm_count": vm_count, "used_memory": used_memory}
    return HostRow(**values)  # type: ignore[arg-type]


_PAGE = [_host("a", 1, 5), _host("b", 1, 5), _host("c", 1, 6), _host("d", 2, 5), _host("e", 2, 5), _host("f", 2, 5)]
_NEAR = {"b", "e", "f"}


def _order(strategy: str) -> str:
    return "".join(row.uuid for row in nearest_first(STRATEGIES[strategy], _PAGE, _NEAR.__contains__))


def test_near_hosts_come_first_among_equals_only() -> None:
    assert _order("LeastVmPreferredHostAllocatorStrategy") == "bacefd"
    assert _order("LastHostPreferredAllocatorStrategy") == "bacefd"


def test_what_is_not_known_to_be_equal_stays_as_it_is() -> None:
    assert _order("StoppedVmAwareLeastVmPreferredHostAllocatorStrategy") == "abcdef"
    assert _order("DefaultHostAllocatorStrategy") == "abcdef"
