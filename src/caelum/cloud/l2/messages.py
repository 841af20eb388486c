"""Internal messages to the L2 service."""

from __future__ import annotations

import msgspec

from caelum.cloud.host.spec import HostOrder
from caelum.cloud.l2.api import L2NetworkInventory
from caelum.kernel.message import Message, message


class L2OnHost(msgspec.Struct, frozen=True, rename="camel"):
    """Where an L2 network is on a host."""

    bridge: str


class L2Facts(msgspec.Struct, frozen=True, rename="camel"):
    """What others need to know of an L2 network. `private` networks have no uplink.

    `orders`, if asked for, are what makes it on a host right before a machine starts there; None: `RealiseL2` does.
    """

    inventory: L2NetworkInventory
    bridge: str
    private: bool
    mtu: int
    orders: list[HostOrder] | None = None


class L2HostsReply(msgspec.Struct, frozen=True, rename="camel"):
    """Hosts, by UUID."""

    host_uuids: list[str]


@message(route_by="host_uuid")
class RealiseL2(Message[L2OnHost], kw_only=True):
    """Make sure that an L2 network exists on a host."""

    l2_network_uuid: str
    host_uuid: str


@message(route_by="l2_network_uuid")
class RemoveL2(Message[None], kw_only=True):
    """Take an L2 network off a host; when the host is away, the garbage collector does.

    `force`: it does so too when the host refuses. The bridge stays when other networks of the cluster use it.
    """

    l2_network_uuid: str
    host_uuid: str
    force: bool = False


@message()
class GetL2(Message[L2Facts], kw_only=True):
    """What an L2 network is."""

    l2_network_uuid: str
    with_orders: bool = False


@message()
class GetL2Hosts(Message[L2HostsReply], kw_only=True):
    """The hosts of all clusters that an L2 network is attached to, or of one of them."""

    l2_network_uuid: str
    connected_only: bool = False


@message(route_by="l2_network_uuid")
class CheckL2(Message[None], kw_only=True):
    """Whether an L2 network can be realised on a host; raises when not."""

    l2_network_uuid: str
    host_uuid: str
