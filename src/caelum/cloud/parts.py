"""What services record in each other's transactions, so that what belongs together commits as one.

A service offers that as an extension point with one implementation, its own; whoever has the transaction calls it.
"""

from __future__ import annotations

from typing import TypeVar

from caelum.kernel.errors import UNDELIVERABLE, CloudError
from caelum.kernel.extension import ExtensionPoint
from caelum.kernel.node import Node

P = TypeVar("P", bound=ExtensionPoint)


def part(node: Node, point: type[P]) -> P:
    """The service that keeps these records. Raises UNDELIVERABLE when this node has none."""
    found = node.extensions.of(point)
    if not found:
        raise CloudError(UNDELIVERABLE, f"no service on node[{node.uuid}] keeps {point.__name__}", node=node.uuid)
    return found[0]


def has_part(node: Node, point: type[ExtensionPoint]) -> bool:
    """Whether the service that keeps these records is in this process."""
    return bool(node.extensions.of(point))
