"""What plugs into host allocation: strategies, which order the candidates, and filters, which refuse some; and what the
service records in the transactions of others.
"""

from __future__ import annotations

from typing import Any, Protocol

from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.allocator.messages import AllocateHost, Candidate
from caelum.kernel.extension import ExtensionPoint


class HostAllocatorStrategy(Protocol):
    """An order of candidates, registered by its name: `node.drivers.add(HostAllocatorStrategy, "...", strategy)`."""

    def order(self, ask: AllocateHost) -> list[Any]:
        """SQL terms to sort by, best first, over the tables `host` and `host_capacity`; none: chance decides."""

    def preferred(self, ask: AllocateHost) -> str | None:
        """A host that is tried before all others; None: the order alone decides."""


class RoomRecords(ExtensionPoint):
    """The records of what machines have reserved of hosts."""

    async def give_back(self, tx: AsyncSession, vm_uuid: str) -> None:
        """What `ReturnHost` would do. All machines of a host wait for its books until the transaction ends: nothing
        that takes long may come after it there.
        """
        raise NotImplementedError


class HostFilter(ExtensionPoint):
    """Refuses candidates beyond what the database knows of them."""

    async def refuse(self, ask: AllocateHost, candidates: list[Candidate]) -> dict[str, str]:
        """The hosts that will not do, with the reason and its numbers."""
        return {}
