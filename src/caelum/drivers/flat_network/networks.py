"""Which L3 networks Flat serves, and what hosts must know of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from caelum.cloud.l2.messages import GetL2
from caelum.cloud.l3.api import L3NetworkInventory, UsedIpInventory
from caelum.cloud.l3.messages import GetMtu, ListL3s
from caelum.cloud.network_service.messages import GetProvider
from caelum.drivers.flat_network.commands import DHCP, FlatNetwork
from caelum.drivers.flat_network.messages import EnsureDhcpServer
from caelum.drivers.flat_network.settings import DEFAULT_DNS
from caelum.kernel.node import Node

TYPE = "Flat"


class Networks:
    """Looks networks up. The provider's UUID never changes, so it is asked for once."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._provider: str | None = None

    async def provider(self) -> str:
        """The UUID of the Flat provider."""
        if self._provider is None:
            self._provider = (await self._node.bus.call(GetProvider(type=TYPE))).uuid
        return self._provider

    async def served(self, l3_uuids: Iterable[str]) -> list[L3NetworkInventory]:
        """Those of these networks that exist and that Flat serves."""
        uuids = list(dict.fromkeys(l3_uuids))
        if not uuids:
            return []
        request = ListL3s(l3_network_uuids=uuids, provider_uuid=await self.provider())
        return (await self._node.bus.call(request)).networks

    async def services(self, l3: L3NetworkInventory) -> frozenset[str]:
        """What Flat serves on the network."""
        mine = await self.provider()
        return frozenset(
            one.network_service_type for one in l3.network_services if one.network_service_provider_uuid == mine
        )

    async def facts(self, l3: L3NetworkInventory) -> FlatNetwork:
        """What hosts must know of the network. Takes an address for its DHCP server when it has none."""
        services = await self.services(l3)
        bus = self._node.bus
        l2, mtu = await asyncio.gather(
            bus.call(GetL2(l2_network_uuid=l3.l2_network_uuid)), bus.call(GetMtu(l3_network_uuid=l3.uuid))
        )
        server: UsedIpInventory | None = None
        if DHCP in services and l3.ip_version == 4:
            server = await bus.call(EnsureDhcpServer(l3_network_uuid=l3.uuid))
        own_dns = self._node.settings.get(DEFAULT_DNS)
        return FlatNetwork(l3=l3, services=services, bridge=l2.bridge, mtu=mtu, server=server, own_dns=own_dns)
