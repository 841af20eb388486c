"""Network services and their providers, as clients see them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from caelum.cloud.l3.api import L3NetworkInventory, NetworkServiceL3NetworkRefInventory
from caelum.kernel.message import ApiMessage, ApiQuery, Inventory, Param, Reply, inventory, rest

_PACKAGE = "org.zstack.header.network.service"


@inventory(_PACKAGE, vo="NetworkServiceProviderVO")
class NetworkServiceProviderInventory(Inventory, kw_only=True):
    """A provider of network services."""

    uuid: str
    name: str
    description: str | None = None
    type: str
    create_date: datetime
    last_op_date: datetime
    network_service_types: list[str]
    attached_l2_network_uuids: list[str]


class NetworkServiceTypesReply(Reply, kw_only=True):
    """Provider types by service type."""

    types: dict[str, list[str]]


@rest("POST /l3-networks/{l3NetworkUuid}/network-services", package=_PACKAGE)
class AttachNetworkServiceToL3Network(ApiMessage[L3NetworkInventory], kw_only=True):
    """Let providers serve an L3 network. The keys are providers (UUID or type), the values their service types."""

    l3_network_uuid: Annotated[str, Param(resource="L3NetworkVO", check_account=True, target=True)]
    network_services: dict[str, list[str]]


@rest(
    "DELETE /l3-networks/{l3NetworkUuid}/network-services",
    package=_PACKAGE,
    also=("/l3-networks/{l3NetworkUuid}/network-services/{service}",),
    admin_only=True,
)
class DetachNetworkServiceFromL3Network(ApiMessage[L3NetworkInventory], kw_only=True):
    """Stop services on an L3 network: those named with their provider, or the one `service`, or all."""

    l3_network_uuid: Annotated[str, Param(resource="L3NetworkVO", check_account=True, target=True)]
    network_services: dict[str, list[str]] | None = None
    service: str | None = None


@rest("GET /network-services/types", package=_PACKAGE, admin_only=True)
class GetNetworkServiceTypes(ApiMessage[NetworkServiceTypesReply], kw_only=True):
    """Get the network service types, and who provides each."""


@rest("GET /l3-networks/network-services/refs", package=_PACKAGE, admin_only=True)
class QueryNetworkServiceL3NetworkRef(ApiQuery[NetworkServiceL3NetworkRefInventory], kw_only=True):
    """Query which provider serves what on which L3 network."""


@rest("GET /network-services/providers", package=_PACKAGE)
class QueryNetworkServiceProvider(ApiQuery[NetworkServiceProviderInventory], kw_only=True):
    """Query network service providers."""
