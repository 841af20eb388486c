"""The bus of a cloud with one management node: messages are passed as the objects themselves.

Invariant: nothing leaves the process. A message that the ring gives to another node is undeliverable here, at once.
"""

from __future__ import annotations

from typing import TypeVar

from caelum.kernel.bus import BusBase
from caelum.kernel.errors import UNDELIVERABLE, CloudError
from caelum.kernel.events import CanonicalEvent
from caelum.kernel.message import Message

R = TypeVar("R")


class MemoryBus(BusBase):
    """Calls and events within this process."""

    async def call(self, msg: Message[R], timeout: float | None = None) -> R:
        """See `Bus.call`."""
        if not self.ring.alone:
            node = self.destination(msg)
            if node != self.ring.me:
                raise CloudError(
                    UNDELIVERABLE,
                    f"message[{msg.__meta__.name}] belongs to node[{node}], which needs a RabbitMQ bus",
                    node=node,
                )
        return await self.call_local(msg, timeout)

    def publish(self, event: CanonicalEvent) -> None:
        """See `Bus.publish`."""
        self.events.deliver(event)
