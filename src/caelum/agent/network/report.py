"""What of ours is in this host's network, as the kernel has it.

Invariant: reported is what is there, not what is remembered: a leak shows as an entry that nobody asked for.
"""

from __future__ import annotations

from typing import Any

from caelum.agent.core import Agent
from caelum.agent.network import bridge, metadata, namespaces, nat, nft, spoofing
from caelum.agent.network.links import netlink
from caelum.agent.network.state import Networks


async def dump(agent: Agent, storage_paths: list[str]) -> dict[str, Any]:  # noqa: ARG001 - the hook's shape
    """Bridges, DHCP, metadata, translation and taps, as fields of `HostDump`."""
    return await agent.run_blocking(_dump, Networks(agent.state_dir))


def _dump(networks: Networks) -> dict[str, Any]:
    here = namespaces.ours()
    bridges, taps = _links()
    return {
        "bridges": bridges,
        "dhcp": {l3_uuid: _leases(networks, l3_uuid) for l3_uuid in here},
        "metadata": {l3_uuid: ips for l3_uuid in here if (ips := metadata.served(networks, l3_uuid))},
        "nat": nft.tables(nat.FAMILY, nat.TABLE_PREFIX),
        "taps": sorted({*taps, *spoofing.guarded()}),
    }


def _leases(networks: Networks, l3_uuid: str) -> list[str]:
    service = networks.dhcp(l3_uuid)
    return sorted(entry.mac for entry in service.command.entries) if service else []


def _links() -> tuple[list[str], list[str]]:
    """Our bridges, and the taps in them."""
    with netlink() as net:
        bridges = bridge.ours(net)
        taps = [port.name for one in bridges for port in net.ports(one) if port.kind == "tun"]
    return sorted(one.name for one in bridges), taps
