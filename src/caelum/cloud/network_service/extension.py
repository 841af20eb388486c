"""What providers of network services implement."""

from __future__ import annotations

from typing import ClassVar

from caelum.cloud.l3.api import L3NetworkInventory


class NetworkServiceDriver:
    """One type of provider, registered by that type ("Flat"). Its row is made at the
    first start that has the driver."""

    display_name: ClassVar[str]
    description: ClassVar[str]
    services: ClassVar[tuple[str, ...]]

    async def check(self, l3: L3NetworkInventory, services: list[str]) -> None:
        """Whether the provider can serve these on the network; raises when not."""

    async def attached(self, l3: L3NetworkInventory, services: list[str]) -> None:
        """The provider now serves these on the network. An exception takes the attachment back."""

    async def detached(self, l3: L3NetworkInventory, services: list[str]) -> None:
        """The provider no longer serves these on the network: take them off the hosts. Idempotent; may be undone by
        `attached`."""

    async def released(self, l3: L3NetworkInventory, services: list[str]) -> None:
        """No host serves these any more: give back what was kept for them. Idempotent, and never undone."""
