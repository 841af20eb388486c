"""A bus between the nodes of one process, for tests: what a broker does, without one.

Invariant: a call ends with one answer also when its node dies: then it is MANAGEMENT_NODE_UNAVAILABLE. Messages and
events are passed as the objects themselves, with the caller's task context, to the node that the sender's ring names.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TypeVar

from caelum.kernel import context
from caelum.kernel.bus import BusBase
from caelum.kernel.database import refuse_in_transaction
from caelum.kernel.errors import UNDELIVERABLE, CloudError
from caelum.kernel.events import CanonicalEvent
from caelum.kernel.jobs import MANAGEMENT_NODE_UNAVAILABLE
from caelum.kernel.message import Message
from caelum.kernel.node import Node

R = TypeVar("R")


class Link:
    """What the nodes of a test are connected by. A node that is cut off neither hears nor is heard."""

    def __init__(self) -> None:
        self._buses: dict[str, LinkedBus] = {}

    def bus(self, node: Node) -> LinkedBus:
        """A bus for a node: `Node(config, bus=link.bus)`."""
        return LinkedBus(self, node)

    def add(self, bus: LinkedBus) -> None:
        """Let a node take part."""
        self._buses[bus.ring.me] = bus

    def cut(self, node: str) -> None:
        """Cut a node off; what others wait for from it is answered with an error."""
        self._buses.pop(node, None)
        for bus in self._buses.values():
            bus.gone(node)

    def find(self, node: str) -> LinkedBus | None:
        """The bus of a node that takes part."""
        return self._buses.get(node)

    def everyone(self) -> list[LinkedBus]:
        """All that take part."""
        return list(self._buses.values())


class LinkedBus(BusBase):
    """Calls and events between the nodes of one `Link`."""

    def __init__(self, link: Link, node: Node) -> None:
        super().__init__(node.ring, node.queues, node.events, node.setting)
        self._link = link
        self._calls: dict[asyncio.Future[None], str] = {}

    async def start(self) -> None:
        """Take part."""
        self._link.add(self)

    async def stop(self) -> None:
        """Take part no longer."""
        self._link.cut(self.ring.me)

    async def call(self, msg: Message[R], timeout: float | None = None) -> R:
        """See `Bus.call`."""
        node = self.destination(msg)
        if node == self.ring.me:
            return await self.call_local(msg, timeout)
        refuse_in_transaction(f"call {type(msg).__name__}")
        peer = self._link.find(node) if self._link.find(self.ring.me) is self else None
        if peer is None:
            name = msg.__meta__.name
            why = f"node[{node}] for message[{name}] is not there"
            raise CloudError(UNDELIVERABLE, why, node=node, message=name, left=True, undelivered=True)
        return await self._ask(peer, msg, timeout)

    async def _ask(self, peer: LinkedBus, msg: Message[R], timeout: float | None) -> R:
        loop = asyncio.get_running_loop()
        node, gone = peer.ring.me, loop.create_future()
        self._calls[gone] = node
        far = Context()
        far.run(context.enter, context.current())
        work = loop.create_task(peer.call_local(msg, timeout), context=far)
        try:
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                name = msg.__meta__.name
                raise CloudError(
                    MANAGEMENT_NODE_UNAVAILABLE, f"node[{node}] went away during message[{name}]", node=node
                )
            return work.result()
        finally:
            work.cancel()
            del self._calls[gone]

    def gone(self, node: str) -> None:
        """Answer what a node that went away will not answer."""
        for future, other in self._calls.items():
            if other == node and not future.done():
                future.set_result(None)

    def publish(self, event: CanonicalEvent) -> None:
        """See `Bus.publish`."""
        if self._link.find(self.ring.me) is not self:
            self.events.deliver(event)
            return
        for one in self._link.everyone():
            one.events.deliver(event)
