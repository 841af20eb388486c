"""L3 networks, IP ranges and addresses, as clients see them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from caelum.kernel.message import (
    ApiMessage,
    ApiQuery,
    CreateMessage,
    DeleteMessage,
    Expand,
    Inventory,
    Param,
    Reply,
    WholeReply,
    inventory,
    rest,
)

_PACKAGE = "org.zstack.header.network.l3"
_L3 = Expand(field="l3Network", inventory="L3NetworkInventory", foreign_key="l3NetworkUuid")
_VERSIONS = ("4", "6")
_RANGE_TYPES = ("Normal", "AddressPool")

L3Uuid = Annotated[str, Param(resource="L3NetworkVO", check_account=True, target=True)]
"""The L3 network that an operation is about."""


@inventory(_PACKAGE, vo="IpRangeVO", expands=(_L3,))
class IpRangeInventory(Inventory, kw_only=True):
    """A range of addresses of an L3 network, both ends included."""

    uuid: str
    l3_network_uuid: str
    name: str
    description: str | None = None
    start_ip: str
    end_ip: str
    netmask: str | None = None
    gateway: str | None = None
    network_cidr: str | None = None
    ip_version: int
    address_mode: str | None = None
    prefix_len: int | None = None
    ip_range_type: str
    create_date: datetime
    last_op_date: datetime


@inventory(_PACKAGE, vo="AddressPoolVO", parent="IpRangeInventory", type_value="AddressPool", expands=(_L3,))
class AddressPoolInventory(IpRangeInventory, kw_only=True):
    """A range whose addresses are given out as virtual IPs only, never to NICs."""


@inventory(_PACKAGE, vo="ReservedIpRangeVO", expands=(_L3,))
class ReservedIpRangeInventory(Inventory, kw_only=True):
    """Addresses of an L3 network that are never chosen automatically."""

    uuid: str
    l3_network_uuid: str
    name: str | None = None
    description: str | None = None
    start_ip: str
    end_ip: str
    ip_version: int
    create_date: datetime
    last_op_date: datetime


@inventory(_PACKAGE, vo="L3NetworkHostRouteVO")
class L3NetworkHostRouteInventory(Inventory, kw_only=True):
    """A route that guests of an L3 network get by DHCP."""

    id: int
    l3_network_uuid: str
    prefix: str
    nexthop: str
    create_date: datetime
    last_op_date: datetime


@inventory(
    _PACKAGE,
    vo="UsedIpVO",
    expands=(_L3, Expand(field="vmNic", inventory="VmNicInventory", foreign_key="vmNicUuid")),
)
class UsedIpInventory(Inventory, kw_only=True):
    """An address in use."""

    uuid: str
    ip_range_uuid: str | None = None
    l3_network_uuid: str
    ip_version: int
    ip: str
    netmask: str | None = None
    gateway: str | None = None
    used_for: str | None = None
    ip_in_long: int | None = None
    ip_in_binary: list[int] | None = None
    """The address's bytes, signed, as the original's clients read them."""
    vm_nic_uuid: str | None = None
    create_date: datetime
    last_op_date: datetime


@inventory(
    "org.zstack.header.network.service",
    vo="NetworkServiceL3NetworkRefVO",
    expands=(
        _L3,
        Expand(
            field="serviceProvider",
            inventory="NetworkServiceProviderInventory",
            foreign_key="networkServiceProviderUuid",
        ),
    ),
)
class NetworkServiceL3NetworkRefInventory(Inventory, kw_only=True):
    """Which provider serves a network service on an L3 network."""

    l3_network_uuid: str
    network_service_provider_uuid: str
    network_service_type: str


@inventory(
    _PACKAGE,
    vo="L3NetworkVO",
    expands=(
        Expand(field="zone", inventory="ZoneInventory", foreign_key="zoneUuid"),
        Expand(field="l2Network", inventory="L2NetworkInventory", foreign_key="l2NetworkUuid"),
        Expand(field="vmNic", inventory="VmNicInventory", foreign_key="uuid", key="l3NetworkUuid"),
        Expand(
            field="serviceProviderRef",
            inventory="NetworkServiceL3NetworkRefInventory",
            foreign_key="uuid",
            key="l3NetworkUuid",
            hidden=True,
        ),
        Expand(field="usedIp", inventory="UsedIpInventory", foreign_key="uuid", key="l3NetworkUuid"),
        Expand(field="ipRanges", inventory="IpRangeInventory", foreign_key="uuid", key="l3NetworkUuid"),
        Expand(
            field="networkServices",
            inventory="NetworkServiceL3NetworkRefInventory",
            foreign_key="uuid",
            key="l3NetworkUuid",
        ),
        Expand(field="hostRoute", inventory="L3NetworkHostRouteInventory", foreign_key="uuid", key="l3NetworkUuid"),
        Expand(field="reservedIpRanges", inventory="ReservedIpRangeInventory", foreign_key="uuid", key="l3NetworkUuid"),
    ),
    aliases=(("serviceProvider", "serviceProviderRef.serviceProvider"),),
)
class L3NetworkInventory(Inventory, kw_only=True):
    """An L3 network."""

    uuid: str
    name: str
    description: str | None = None
    type: str
    zone_uuid: str
    l2_network_uuid: str
    state: str
    dns_domain: str | None = None
    system: bool
    category: str
    ip_version: int
    enable_ipam: bool = msgspec.field(name="enableIPAM")
    isolated: bool
    create_date: datetime
    last_op_date: datetime
    dns: list[str]
    ip_ranges: list[IpRangeInventory]
    network_services: list[NetworkServiceL3NetworkRefInventory]
    host_route: list[L3NetworkHostRouteInventory]
    reserved_ip_ranges: list[ReservedIpRangeInventory]


class FreeIpInventory(Inventory, kw_only=True):
    """An address that nobody uses."""

    ip_range_uuid: str
    ip: str
    netmask: str | None = None
    gateway: str | None = None


class IpCapacityData(msgspec.Struct, rename="camel", kw_only=True):
    """How many addresses one resource has and uses."""

    resource_uuid: str
    total_capacity: int = 0
    available_capacity: int = 0
    used_ip_address_number: int = 0
    ipv4_total_capacity: int = 0
    ipv4_available_capacity: int = 0
    ipv4_used_ip_address_number: int = 0
    ipv6_total_capacity: int = 0
    ipv6_available_capacity: int = 0
    ipv6_used_ip_address_number: int = 0


class AddIpRangeByNetworkCidrReply(WholeReply, kw_only=True):
    """The ranges that a CIDR became: two when the gateway lies in its middle. `inventory` is the first."""

    inventory: IpRangeInventory
    inventories: list[IpRangeInventory]


class AvailabilityReply(WholeReply, kw_only=True):
    """Whether an address is free, and why not."""

    available: bool
    reason: str | None = None


class IpCapacityReply(WholeReply, kw_only=True):
    """How many addresses there are and are used, in all and by resource."""

    total_capacity: int
    available_capacity: int
    used_ip_address_number: int
    ipv4_total_capacity: int
    ipv4_available_capacity: int
    ipv4_used_ip_address_number: int
    ipv6_total_capacity: int
    ipv6_available_capacity: int
    ipv6_used_ip_address_number: int
    capacity_data: list[IpCapacityData]
    resource_type: str | None = None


class L3TypesReply(Reply, kw_only=True):
    """The names of types."""

    types: list[str]


class MtuReply(WholeReply, kw_only=True):
    """An MTU, in bytes."""

    mtu: int


@rest("POST /l3-networks", package=_PACKAGE, tags_for="L3NetworkVO")
class CreateL3Network(CreateMessage[L3NetworkInventory], kw_only=True):
    """Create an L3 network on an L2 network."""

    name: Annotated[str, Param(max_length=255)]
    description: Annotated[str | None, Param(max_length=2048)] = None
    type: str | None = "L3BasicNetwork"
    l2_network_uuid: Annotated[str, Param(resource="L2NetworkVO")]
    category: Annotated[str | None, Param(valid_values=("Public", "Private", "System"))] = "Private"
    ip_version: Annotated[int | None, Param(valid_values=_VERSIONS)] = None
    system: bool | None = False
    dns_domain: str | None = None
    enable_ipam: bool | None = msgspec.field(default=True, name="enableIPAM")


@rest("POST /l3-networks/{l3NetworkUuid}/ip-ranges", package=_PACKAGE, tags_for="IpRangeVO")
class AddIpRange(CreateMessage[IpRangeInventory], kw_only=True):
    """Add a range of IPv4 addresses to an L3 network."""

    l3_network_uuid: L3Uuid
    name: Annotated[str, Param(max_length=255)]
    description: Annotated[str | None, Param(max_length=2048)] = None
    start_ip: str
    end_ip: str
    netmask: str
    gateway: str | None = None
    ip_range_type: Annotated[str | None, Param(valid_values=_RANGE_TYPES)] = None


@rest("POST /l3-networks/{l3NetworkUuid}/ip-ranges/by-cidr", package=_PACKAGE, tags_for="IpRangeVO")
class AddIpRangeByNetworkCidr(CreateMessage[AddIpRangeByNetworkCidrReply], kw_only=True):
    """Add all addresses of an IPv4 network to an L3 network, but for the gateway (by default the first)."""

    name: Annotated[str, Param(max_length=255)]
    description: Annotated[str | None, Param(max_length=2048)] = None
    l3_network_uuid: L3Uuid
    network_cidr: str
    gateway: Annotated[str | None, Param(max_length=64)] = None
    ip_range_type: Annotated[str | None, Param(valid_values=_RANGE_TYPES)] = None


@rest("DELETE /l3-networks/ip-ranges/{uuid}", package=_PACKAGE)
class DeleteIpRange(DeleteMessage[None], kw_only=True):
    """Delete an IP range; the NICs that use its addresses are detached."""

    uuid: Annotated[str, Param(resource="IpRangeVO", check_account=True, success_if_missing=True, target=True)]


@rest("PUT /l3-networks/ip-ranges/{uuid}/actions", package=_PACKAGE)
class UpdateIpRange(ApiMessage[IpRangeInventory], kw_only=True):
    """Change an IP range's name or description."""

    uuid: Annotated[str, Param(resource="IpRangeVO", check_account=True, target=True)]
    name: Annotated[str | None, Param(max_length=255)] = None
    description: Annotated[str | None, Param(max_length=2048)] = None


@rest("POST /l3-networks/{l3NetworkUuid}/reserved-ip-ranges", package=_PACKAGE, tags_for="ReservedIpRangeVO")
class AddReservedIpRange(CreateMessage[ReservedIpRangeInventory], kw_only=True):
    """Keep addresses of an L3 network from being chosen automatically."""

    l3_network_uuid: L3Uuid
    start_ip: str
    end_ip: str


@rest("DELETE /l3-networks/reserved-ip-ranges/{uuid}", package=_PACKAGE)
class DeleteReservedIpRange(DeleteMessage[None], kw_only=True):
    """Delete a reserved range; its addresses may be chosen again."""

    uuid: Annotated[str, Param(resource="ReservedIpRangeVO", check_account=True, success_if_missing=True, target=True)]


@rest("POST /l3-networks/{l3NetworkUuid}/dns", package=_PACKAGE)
class AddDnsToL3Network(ApiMessage[L3NetworkInventory], kw_only=True):
    """Add a DNS server for the guests of an L3 network."""

    l3_network_uuid: L3Uuid
    dns: str


@rest("DELETE /l3-networks/{l3NetworkUuid}/dns/{dns}", package=_PACKAGE)
class RemoveDnsFromL3Network(ApiMessage[L3NetworkInventory], kw_only=True):
    """Remove a DNS server from an L3 network."""

    l3_network_uuid: L3Uuid
    dns: str


@rest("POST /l3-networks/{l3NetworkUuid}/hostroute", package=_PACKAGE)
class AddHostRouteToL3Network(ApiMessage[L3NetworkInventory], kw_only=True):
    """Add a route for the guests of an L3 network."""

    l3_network_uuid: L3Uuid
    prefix: str
    nexthop: str


@rest("DELETE /l3-networks/{l3NetworkUuid}/hostroute", package=_PACKAGE)
class RemoveHostRouteFromL3Network(ApiMessage[L3NetworkInventory], kw_only=True):
    """Remove a route from an L3 network."""

    l3_network_uuid: L3Uuid
    prefix: str


@rest("PUT /l3-networks/{uuid}/actions", package=_PACKAGE)
class UpdateL3Network(ApiMessage[L3NetworkInventory], kw_only=True):
    """Change an L3 network's name, description, DNS domain or category."""

    uuid: L3Uuid
    name: Annotated[str | None, Param(max_length=255)] = None
    description: Annotated[str | None, Param(max_length=2048)] = None
    dns_domain: Annotated[str | None, Param(max_length=255)] = None
    category: Annotated[str | None, Param(valid_values=("Public", "Private", "System"))] = None
    system: bool | None = None


@rest("PUT /l3-networks/{uuid}/actions", package=_PACKAGE)
class ChangeL3NetworkState(ApiMessage[L3NetworkInventory], kw_only=True):
    """Enable or disable an L3 network; a disabled one takes no new NICs."""

    uuid: L3Uuid
    state_event: Annotated[str, Param(valid_values=("enable", "disable"))]


@rest("DELETE /l3-networks/{uuid}", package=_PACKAGE)
class DeleteL3Network(DeleteMessage[None], kw_only=True):
    """Delete an L3 network with its ranges; the NICs on it are detached, the VMs stay."""

    uuid: Annotated[str, Param(resource="L3NetworkVO", check_account=True, success_if_missing=True, target=True)]


@rest("GET /l3-networks", package=_PACKAGE, also=("/l3-networks/{uuid}",))
class QueryL3Network(ApiQuery[L3NetworkInventory], kw_only=True):
    """Query L3 networks."""


@rest("GET /l3-networks/ip-ranges", package=_PACKAGE, also=("/l3-networks/ip-ranges/{uuid}",))
class QueryIpRange(ApiQuery[IpRangeInventory], kw_only=True):
    """Query IP ranges."""


@rest("GET /l3-networks/address-pools", package=_PACKAGE, also=("/l3-networks/address-pools/{uuid}",))
class QueryAddressPool(ApiQuery[AddressPoolInventory], kw_only=True):
    """Query address pools."""


@rest("GET /l3-networks/ip-address", package=_PACKAGE, also=("/l3-networks/ip-address/{uuid}",))
class QueryIpAddress(ApiQuery[UsedIpInventory], kw_only=True):
    """Query addresses in use."""


@rest(
    "GET /l3-networks/ip/free",
    package=_PACKAGE,
    also=("/l3-networks/{l3NetworkUuid}/ip/free", "/l3-networks/ip-ranges/{ipRangeUuid}/ip/free"),
)
class GetFreeIp(ApiMessage[list[FreeIpInventory]], kw_only=True):
    """Get free addresses of an L3 network or of an IP range, the first `limit` of them after `start`."""

    l3_network_uuid: Annotated[str | None, Param(resource="L3NetworkVO", check_account=True)] = None
    ip_range_uuid: Annotated[str | None, Param(resource="IpRangeVO", check_account=True)] = None
    ip_range_type: Annotated[str | None, Param(valid_values=_RANGE_TYPES)] = None
    ip_version: Annotated[int | None, Param(valid_values=_VERSIONS)] = None
    start: str | None = None
    limit: int = 100


@rest("GET /l3-networks/{l3NetworkUuid}/ip/{ip}/availability", package=_PACKAGE, route_by="l3_network_uuid")
class CheckIpAvailability(ApiMessage[AvailabilityReply], kw_only=True):
    """Check whether an address of an L3 network is free."""

    l3_network_uuid: Annotated[str, Param(resource="L3NetworkVO", check_account=True)]
    ip: Annotated[str, Param(max_length=255)]
    arp_check: bool | None = False
    ip_range_check: bool | None = True


@rest("GET /ip-capacity", package=_PACKAGE)
class GetIpAddressCapacity(ApiMessage[IpCapacityReply], kw_only=True):
    """Get how many addresses zones, L3 networks or IP ranges have, and how many are free."""

    zone_uuids: Annotated[list[str] | None, Param(resource="ZoneVO")] = None
    l3_network_uuids: Annotated[list[str] | None, Param(resource="L3NetworkVO", check_account=True)] = None
    ip_range_uuids: Annotated[list[str] | None, Param(resource="IpRangeVO", check_account=True)] = None
    all: bool | None = False


@rest("GET /l3-networks/types", package=_PACKAGE)
class GetL3NetworkTypes(ApiMessage[L3TypesReply], kw_only=True):
    """Get the types of L3 networks."""


@rest("GET /l3-networks/{l3NetworkUuid}/mtu", package=_PACKAGE)
class GetL3NetworkMtu(ApiMessage[MtuReply], kw_only=True):
    """Get the MTU that guests of an L3 network are told."""

    l3_network_uuid: L3Uuid


@rest("POST /l3-networks/{l3NetworkUuid}/mtu", package=_PACKAGE)
class SetL3NetworkMtu(ApiMessage[WholeReply], kw_only=True):
    """Set the MTU that guests of an L3 network are told."""

    l3_network_uuid: L3Uuid
    mtu: Annotated[int, Param(minimum=68, maximum=9216)]
