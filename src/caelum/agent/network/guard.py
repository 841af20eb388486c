"""DHCP isolation: a guest of ours hears its own host's DHCP server and no other, and nobody else hears that server.

Invariant: the table `bridge caelum-dhcp` is a function of the remembered bridges and DHCP services, and is replaced as
a whole. It judges DHCP by the client's hardware address inside the packet, so that DHCP between strangers on the same
wire passes untouched.

Every host serves an L3 network from the same address, so neither ARP for it nor the server's own frames may cross an
uplink.
"""

from __future__ import annotations

from collections.abc import Iterable

from caelum.agent.core import Agent
from caelum.agent.network import names, nft
from caelum.agent.network.nft import DROP, Chain, Expression, field, match, meta
from caelum.agent.network.state import DhcpState, Networks
from caelum.agent.protocol import CreateBridge

FAMILY, TABLE = "bridge", "caelum-dhcp"
PRIORITY = -210
"""Before the bridge family's usual filters (-200)."""
_CLIENT = nft.raw("th", 8 * (8 + 28), 48)
"""The client's hardware address (chaddr): 28 bytes into BOOTP, after 8 bytes of UDP."""


async def refresh(agent: Agent) -> None:
    """Bring the table in line with what is remembered."""
    async with agent.lock("network-guard"):
        await agent.run_blocking(_refresh, Networks(agent.state_dir))


def _refresh(networks: Networks) -> None:
    services = list(networks.all_dhcp())
    if services:
        nft.replace(FAMILY, TABLE, chains(networks.bridges(), services))
    else:
        nft.remove(FAMILY, TABLE)


def present() -> bool:
    """Whether the table is there."""
    return TABLE in nft.tables(FAMILY, "")


def chains(bridges: Iterable[CreateBridge], services: list[DhcpState]) -> list[Chain]:
    """The table's content."""
    uplinks = {one.bridge: one.interface for one in bridges if one.interface}
    servers = sorted(names.server_port(state.command.l3_uuid) for state in services)
    clients = sorted({_number(entry.mac) for state in services for entry in state.command.entries})
    forward = [*_isolation(uplinks, servers, services), *_requests(clients, servers), *_answers(clients, servers)]
    return [
        Chain("forward", "filter", "forward", PRIORITY, forward),
        Chain("output", "filter", "output", PRIORITY, _answers(clients, [])),
    ]


def _isolation(uplinks: dict[str, str], servers: list[str], services: list[DhcpState]) -> list[list[Expression]]:
    ports = sorted(set(uplinks.values()))
    if not ports:
        return []
    hidden = [
        {"concat": [uplinks[state.command.bridge], ip]}
        for state in services
        if state.command.bridge in uplinks
        for ip in (state.command.server_ip, names.METADATA_IP)
    ]
    rules = [
        [match(meta("iifname"), ports), match(meta("oifname"), servers), DROP],
        [match(meta("iifname"), servers), match(meta("oifname"), ports), DROP],
    ]
    if hidden:
        asked = {"concat": [meta("oifname"), field("arp", "daddr ip")]}
        rules.append([match(asked, hidden), DROP])
    return rules


def _requests(clients: list[int], servers: list[str]) -> list[list[Expression]]:
    """Our guests' requests reach our servers only."""
    if not clients:
        return []
    return [[match(field("udp", "dport"), 67), match(_CLIENT, clients), match(meta("oifname"), servers, "!="), DROP]]


def _answers(clients: list[int], servers: list[str]) -> list[list[Expression]]:
    """Answers to our guests come from our servers only."""
    if not clients:
        return []
    elsewhere = [match(meta("iifname"), servers, "!=")] if servers else []
    return [[match(field("udp", "sport"), 67), match(_CLIENT, clients), *elsewhere, DROP]]


def _number(mac: str) -> int:
    return int(mac.replace(":", ""), 16)
