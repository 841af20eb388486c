"""What clients may ask the Flat provider."""

from __future__ import annotations

from typing import Annotated

from caelum.kernel.message import ApiMessage, Param, WholeReply, rest

_PACKAGE = "org.zstack.network.service.flat"


class DhcpIpReply(WholeReply, kw_only=True):
    """The address of an L3 network's DHCP server; absent when there is none."""

    ip: str | None = None
    ip6: str | None = None


@rest("GET /l3-networks/{l3NetworkUuid}/dhcp-ip", package=_PACKAGE)
class GetL3NetworkDhcpIpAddress(ApiMessage[DhcpIpReply], kw_only=True):
    """Get the address of an L3 network's DHCP server; it is the same on every host."""

    l3_network_uuid: Annotated[str, Param(resource="L3NetworkVO", check_account=True, target=True)]
