"""System tags of the Flat provider."""

from __future__ import annotations

from caelum.kernel.tag import system_tag

DHCP_SERVER = system_tag("flatNetwork::DhcpServer::{ip}::ipUuid::{ipUuid}", resource="L3NetworkVO", inherent=True)
"""The address of a network's DHCP server. A client may wish for one when it makes the network, with any word
for `ipUuid`."""
