"""Settings of the Flat provider."""

from __future__ import annotations

from caelum.kernel.settings import setting

DEFAULT_DNS = setting(
    "flatNetworkProvider", "allow.default.dns", False, bool, "If setup ZStack default dns for flat network"
)
"""Whether guests are told the network's own DHCP server as their first DNS server; it forwards."""
