"""Which L3 networks Flat serves, and what hosts must know of them."""

from __future__ import annotations

from collections.abc import Iterable

from caelum.cloud.l2.messages import GetL2
from caelum.cloud.l3.api import L3NetworkInventory, UsedIpInventory
from caelum.cloud.l3.messages import GetHeldIp, GetMtu, ListL3s
from caelum.cloud.network_service.messages import GetProvider
from caelum.drivers.flat_network.commands import DHCP, FlatNetwork
from caelum.drivers.flat_network.messages import EnsureDhcpServer
from caelum.drivers.flat_network.settings import DEFAULT_DNS
from caelum.drivers.flat_network.tags import DHCP_SERVER
from caelum.kernel.ids import is_uuid
from caelum.kernel.node import Node
from caelum.kernel.tag import Tokens

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
        # One after the other: nearly always both are remembered, and two tasks would take longer than that.
        l2 = await bus.call(GetL2(l2_network_uuid=l3.l2_network_uuid))
        mtu = await bus.call(GetMtu(l3_network_uuid=l3.uuid))
        server: UsedIpInventory | None = None
        if DHCP in services and l3.ip_version == 4:
            server = await self._server(l3.uuid)
        own_dns = self._node.settings.get(DEFAULT_DNS)
        return FlatNetwork(l3=l3, services=services, bridge=l2.bridge, mtu=mtu, server=server, own_dns=own_dns)

    async def server_tag(self, l3_uuid: str) -> Tokens | None:
        """What the network's tag says of its DHCP server's address: which it is, or which the user wants."""
        return await self._node.db.remember(
            (DHCP_SERVER.format, l3_uuid), lambda session: DHCP_SERVER.get(session, l3_uuid)
        )

    async def _server(self, l3_uuid: str) -> UsedIpInventory:
        """The DHCP server's address. Every guest asks for it, so the one that was noted is looked at first."""
        tag = await self.server_tag(l3_uuid)
        if tag is not None and is_uuid(tag["ipUuid"]):
            known = await self._node.bus.call(GetHeldIp(l3_network_uuid=l3_uuid, holder=holder(l3_uuid)))
            if known is not None and known.uuid == tag["ipUuid"]:
                return known
        return await self._node.bus.call(EnsureDhcpServer(l3_network_uuid=l3_uuid))


def holder(l3_uuid: str) -> str:
    """Who holds the DHCP server's address."""
    return f"flat-dhcp-{l3_uuid}"
