"""The consistent-hash ring: which management node serves a resource.

Invariant: owners depend only on the set of members, so every node with the same members computes the same owner; when
a node joins, keys move only to it, and when one leaves, only its keys move.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Literal

import msgspec

from caelum.kernel.errors import UNDELIVERABLE, CloudError
from caelum.kernel.ids import new_uuid

log = logging.getLogger(__name__)

VIRTUAL_NODES = 1024
"""Points per node. The spread of the shares is about 1/sqrt(points): 3 % here, which keeps max/min under 1.25."""
_CIRCLE = 1 << 64
_MOST_TRIES = 100
"""At a UUID for the local node, of which each has a chance of one in the number of members."""


class RingChange(msgspec.Struct, frozen=True):
    """A node came or went; `members` is the set after the change."""

    kind: Literal["joined", "left"]
    node: str
    members: frozenset[str]


def _hash(key: str) -> int:
    # The original's hash barely mixes the last characters, so its virtual nodes clump; this one mixes every bit.
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")


class Ring:
    """The members of this cloud as one node knows them. `me` is the local node's UUID."""

    def __init__(self, me: str = "") -> None:
        self.me = me
        self._members: frozenset[str] = frozenset()
        self._points: list[int] = []
        self._owners: list[str] = []
        self._only: str | None = None
        self._callbacks: list[Callable[[RingChange], None]] = []
        self._gone_callbacks: list[Callable[[str], None]] = []

    @property
    def members(self) -> frozenset[str]:
        """The UUIDs of all nodes in the ring."""
        return self._members

    @property
    def alone(self) -> bool:
        """Whether the local node is the only member, so that it owns everything."""
        return self._only is not None and self._only == self.me

    def owner(self, uuid: str) -> str:
        """The node that serves this resource. Raises UNDELIVERABLE while the ring is empty."""
        if self._only is not None:
            return self._only
        if not self._points:
            raise CloudError(UNDELIVERABLE, f"no management node is in the ring to serve uuid[{uuid}]", uuid=uuid)
        index = bisect_left(self._points, _hash(uuid))
        return self._owners[index if index < len(self._owners) else 0]

    def shares(self) -> dict[str, float]:
        """Which part of all resources each node serves, of 1."""
        arcs = dict.fromkeys(self._members, 0)
        for index, (point, owner) in enumerate(zip(self._points, self._owners, strict=True)):
            # The first point's arc goes around the end.
            arcs[owner] += (point - self._points[index - 1]) % _CIRCLE
        return {node: arc / _CIRCLE for node, arc in arcs.items()}

    def owns(self, uuid: str) -> bool:
        """Whether the local node serves this resource."""
        return bool(self._members) and self.owner(uuid) == self.me

    def new_uuid(self) -> str:
        """A fresh UUID for a resource that the local node serves, as long as the members stay: what is made as a part
        of something else takes no trips to another node. One that it does not serve when it is in no ring."""
        for _ in range(_MOST_TRIES):
            uuid = new_uuid()
            if self.owns(uuid):
                break
        return uuid

    def join(self, node: str) -> None:
        """Add a node; one that is in already changes nothing."""
        if node not in self._members:
            self._rebuild(self._members | {node})
            self._tell(RingChange("joined", node, self._members))

    def leave(self, node: str, *, ends_work: bool = False) -> None:
        """Take a node out; one that is not in changes nothing. `ends_work`: it still does what it was asked before."""
        if node in self._members:
            self._rebuild(self._members - {node})
            self._tell(RingChange("left", node, self._members))
            if not ends_work:
                self.gone(node)

    def gone(self, node: str) -> None:
        """A node that is out of the ring does nothing any more."""
        for callback in list(self._gone_callbacks):
            callback(node)

    def on_gone(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call `callback(node)` when nothing more is to be expected of a node; returns what ends that."""
        self._gone_callbacks.append(callback)
        return lambda: self._gone_callbacks.remove(callback)

    def on_change(self, callback: Callable[[RingChange], None]) -> Callable[[], None]:
        """Call `callback` after each change; returns what ends that."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def _rebuild(self, members: Iterable[str]) -> None:
        self._members = frozenset(members)
        circle = sorted((_hash(f"{node}#{index}"), node) for node in self._members for index in range(VIRTUAL_NODES))
        self._points = [point for point, _ in circle]
        self._owners = [node for _, node in circle]
        self._only = next(iter(self._members)) if len(self._members) == 1 else None

    def _tell(self, change: RingChange) -> None:
        for callback in list(self._callbacks):
            try:
                callback(change)
            except Exception:
                log.exception("a ring listener failed on %s of node %s", change.kind, change.node)
