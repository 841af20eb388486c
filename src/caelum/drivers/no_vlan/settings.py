"""Settings of L2 networks without VLAN."""

from __future__ import annotations

from caelum.kernel.settings import setting

DEFAULT_MTU = setting(
    "networkService", "defaultDhcpMtu.l2NoVlanNetwork", 1500, int, "Default mtu for l2NoVlanNetwork.",
    minimum=68, maximum=9216,
)  # fmt: skip
