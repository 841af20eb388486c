"""System tags of L3 networks."""

from __future__ import annotations

from caelum.kernel.tag import system_tag

MTU = system_tag("l3NetworkUuid::{l3Uuid}::mtu::{mtu}", resource="L3NetworkVO")
"""The MTU that guests are told, when it is not the L2 network's."""
ROUTER_INTERFACE_IP = system_tag("routerInterfaceIp::{routerInterfaceIp}", resource="L3NetworkVO")
NETWORK_SERVICES = system_tag("networkservices::{networkservices}", resource="L3NetworkVO")
ENABLE_DHCP = system_tag("enableDHCP::{enableDHCP}", resource="L3NetworkVO")
