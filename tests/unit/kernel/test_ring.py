"""The ring: the same owner everywhere, even shares, and few moves."""

import random

import pytest

from caelum.kernel.errors import UNDELIVERABLE, CloudError
from caelum.kernel.ids import is_uuid, new_uuid
from caelum.kernel.ring import Ring, RingChange

_RANDOM = random.Random(7)
KEYS = [_RANDOM.randbytes(16).hex() for _ in range(8_000)]


def _ring(seed: int, nodes: int) -> tuple[Ring, list[str]]:
    names = [random.Random(seed * 100 + n).randbytes(16).hex() for n in range(nodes)]
    ring = Ring(names[0])
    for name in names:
        ring.join(name)
    return ring, names


@pytest.mark.parametrize("seed", range(5))
def test_three_nodes_share_evenly_and_a_third_takes_a_third(seed: int) -> None:
    ring, names = _ring(seed, 3)
    shares = [sum(ring.owner(key) == name for key in KEYS) for name in names]
    assert max(shares) / min(shares) <= 1.25
    ring.leave(names[2])
    before = {key: ring.owner(key) for key in KEYS}
    ring.join(names[2])
    moved = [key for key in KEYS if ring.owner(key) != before[key]]
    assert 0.28 <= len(moved) / len(KEYS) <= 0.38
    assert all(ring.owner(key) == names[2] for key in moved)


def test_shares_are_what_keys_find() -> None:
    ring, names = _ring(1, 3)
    counted = {name: sum(ring.owner(key) == name for key in KEYS) / len(KEYS) for name in names}
    assert ring.shares() == pytest.approx(counted, abs=0.02)
    assert sum(ring.shares().values()) == pytest.approx(1)
    assert _ring(2, 1)[0].shares() == {_ring(2, 1)[1][0]: 1.0}
    assert Ring().shares() == {}


def test_owners_do_not_depend_on_the_order_of_joining() -> None:
    ring, names = _ring(3, 5)
    other = Ring(names[4])
    for name in reversed(names):
        other.join(name)
    assert [ring.owner(key) for key in KEYS] == [other.owner(key) for key in KEYS]


def test_when_a_node_leaves_only_its_keys_move() -> None:
    ring, names = _ring(4, 4)
    before = {key: ring.owner(key) for key in KEYS}
    ring.leave(names[1])
    assert all(ring.owner(key) == owner for key, owner in before.items() if owner != names[1])
    assert names[1] not in {ring.owner(key) for key in KEYS}


def test_a_single_node_owns_everything_and_an_empty_ring_nothing() -> None:
    ring = Ring("me")
    with pytest.raises(CloudError) as caught:
        ring.owner(new_uuid())
    assert caught.value.kind is UNDELIVERABLE
    assert not ring.owns("x")
    ring.join("me")
    assert ring.alone
    assert ring.owns("x")
    ring.join("you")
    assert not ring.alone
    ring.leave("me")
    assert not ring.alone
    assert not ring.owns("x")


def test_listeners_hear_of_changes_only_and_do_not_disturb_each_other() -> None:
    ring, heard = Ring("me"), []

    def broken(change: RingChange) -> None:
        raise ValueError("a listener's bug")

    ring.on_change(broken)
    stop = ring.on_change(heard.append)
    ring.join("me")
    ring.join("me")
    ring.join("you")
    ring.leave("nobody")
    ring.leave("me")
    stop()
    ring.leave("you")
    assert heard == [
        RingChange("joined", "me", frozenset({"me"})),
        RingChange("joined", "you", frozenset({"me", "you"})),
        RingChange("left", "me", frozenset({"you"})),
    ]


def test_a_node_that_ends_its_work_is_gone_only_later() -> None:
    ring, (me, ending, dead) = _ring(3, 3)
    gone: list[str] = []
    stop = ring.on_gone(gone.append)
    ring.leave(ending, ends_work=True)
    assert (ring.members, gone) == ({me, dead}, [])
    ring.leave(dead)
    ring.gone(ending)
    assert gone == [dead, ending]
    stop()
    ring.gone(me)
    assert gone == [dead, ending]


def test_a_uuid_for_what_the_local_node_serves() -> None:
    ring, _ = _ring(5, 3)
    assert all(ring.owns(ring.new_uuid()) for _ in range(50))
    assert is_uuid(Ring("me").new_uuid()), "also in no ring"
    other = Ring("me")
    other.join("you")
    assert not other.owns(other.new_uuid()), "nothing is its own"
