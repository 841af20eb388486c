"""Internal messages to the Flat provider."""

from __future__ import annotations

from caelum.cloud.l3.api import UsedIpInventory
from caelum.kernel.message import Message, message


@message(route_by="l3_network_uuid")
class EnsureDhcpServer(Message[UsedIpInventory], kw_only=True):
    """The address of an L3 network's DHCP server, the same on every host; taken from its ranges at first need."""

    l3_network_uuid: str


@message(route_by="l3_network_uuid")
class RefreshL3(Message[None], kw_only=True):
    """Tell the hosts whose machines use an L3 network what the network is now."""

    l3_network_uuid: str
