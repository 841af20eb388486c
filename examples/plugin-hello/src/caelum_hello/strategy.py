"""A driver: an order of the hosts that would do, chosen by an offering's `allocatorStrategy`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import column, table

from caelum.cloud.allocator.extension import HostAllocatorStrategy
from caelum.cloud.allocator.messages import AllocateHost
from caelum.kernel.node import Node

HOST = table("host", column("name"), column("uuid"))
"""What the order speaks of; `host_capacity` is there to be named too."""


class ByNameStrategy:
    """Fills the hosts in the order of their names."""

    name = "hello-strategy"

    def __init__(self, node: Node) -> None:
        node.drivers.add(HostAllocatorStrategy, "ByNameHostAllocatorStrategy", self)

    def order(self, ask: AllocateHost) -> list[Any]:
        """The SQL terms to sort by."""
        return [HOST.c.name, HOST.c.uuid]

    def preferred(self, ask: AllocateHost) -> str | None:
        """No host goes before the order."""
        return None
