"""Internal messages to the L3 service.

An address is held: `holder` names who has it (a NIC's UUID, a virtual IP's UUID, a service's name for its server
address). A holder has at most one address per L3 network and IP version, which makes allocating idempotent.
"""

from __future__ import annotations

import msgspec

from caelum.cloud.l3.api import L3NetworkInventory, NetworkServiceL3NetworkRefInventory, UsedIpInventory
from caelum.kernel.message import Message, message


class L3sReply(msgspec.Struct, frozen=True, rename="camel"):
    """L3 networks with their ranges, DNS servers, routes and services."""

    networks: list[L3NetworkInventory]


@message(route_by="vm_nic_uuid")
class AllocateIp(Message[UsedIpInventory], kw_only=True):
    """Take an address for a NIC, or for another `holder`; again with the same holder answers the same address. Served
    where the NIC is: of nodes that choose the same one, the database lets one have it.

    Without `required_ip` the strategy (FirstAvailableIpAllocatorStrategy, RandomIpAllocatorStrategy) chooses.
    """

    l3_network_uuid: str
    vm_nic_uuid: str | None = None
    holder: str | None = None
    required_ip: str | None = None
    used_for: str | None = None
    ip_version: int = 4
    ip_range_type: str = "Normal"
    ip_range_uuid: str | None = None
    strategy: str | None = None


@message()
class GetHeldIp(Message[UsedIpInventory | None], kw_only=True):
    """The address that a holder has on an L3 network, or None."""

    l3_network_uuid: str
    holder: str
    ip_version: int = 4


@message(route_by="vm_nic_uuid")
class ReturnIp(Message[None], kw_only=True):
    """Give back all addresses of a NIC (or other holder), or only those in one L3 network."""

    vm_nic_uuid: str
    l3_network_uuid: str | None = None


@message()
class GetL3(Message[L3sReply], kw_only=True):
    """The named L3 networks, in the order of the names; raises when one does not exist."""

    l3_network_uuids: list[str]


@message()
class ListL3s(Message[L3sReply], kw_only=True):
    """The L3 networks that meet all the given conditions; what does not exist is not in the answer."""

    l3_network_uuids: list[str] | None = None
    l2_network_uuids: list[str] | None = None
    provider_uuid: str | None = None


@message()
class GetMtu(Message[int], kw_only=True):
    """The MTU that guests of an L3 network are told."""

    l3_network_uuid: str


@message(route_by="l3_network_uuid")
class ChangeL3Services(Message[L3NetworkInventory], kw_only=True):
    """Attach and detach network services. A service type that another provider serves already is refused."""

    l3_network_uuid: str
    attach: list[NetworkServiceL3NetworkRefInventory] = []
    detach: list[NetworkServiceL3NetworkRefInventory] = []
