"""Internal messages to the network service."""

from __future__ import annotations

from caelum.cloud.network_service.api import NetworkServiceProviderInventory
from caelum.kernel.message import Message, message


@message()
class GetProvider(Message[NetworkServiceProviderInventory], kw_only=True):
    """The provider of a type ("Flat")."""

    type: str
