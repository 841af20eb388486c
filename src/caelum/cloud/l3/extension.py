"""Where others may join in the life of an L3 network, and what the service records in the transactions of others."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.l3.api import IpRangeInventory, L3NetworkInventory, UsedIpInventory
from caelum.cloud.l3.messages import AllocateIp
from caelum.kernel.extension import ExtensionPoint


class L3BeforeDelete(ExtensionPoint):
    """Before an L3 network goes: network services remove what they have on hosts. An exception stops the deletion."""

    async def before_delete_l3(self, l3: L3NetworkInventory) -> None:
        """`l3` is about to be deleted; nothing uses its addresses any more, but services."""


class L3Changed(ExtensionPoint):
    """After an L3 network's ranges, DNS servers, routes or MTU changed: services refresh what hosts know of them."""

    async def l3_changed(self, l3: L3NetworkInventory) -> None:
        """`l3` is as it is now."""


class IpRangeAdded(ExtensionPoint):
    """After a range was added to an L3 network."""

    async def ip_range_added(self, l3: L3NetworkInventory, added: IpRangeInventory) -> None:
        """`added` is among the ranges of `l3`."""


class AddressRecords(ExtensionPoint):
    """The records of addresses."""

    async def take(self, tx: AsyncSession, asked: Sequence[AllocateIp]) -> list[UsedIpInventory]:
        """What these messages would do, and raise, in a transaction that has written nothing yet; in their order. For a
        workflow whose undo returns them."""
        raise NotImplementedError

    async def give_back(self, tx: AsyncSession, vm_nic_uuids: Sequence[str]) -> None:
        """What `ReturnIp` would do, for these NICs."""
        raise NotImplementedError
