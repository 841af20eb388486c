"""Anti-spoofing: a guest speaks only with the MAC and the addresses that it was given, and plays neither router nor
DHCP server.

Invariant: each guarded tap has a table of its own, `netdev caelum-tap-<tap>`, hooked at the tap's ingress and replaced
as a whole; there is no moment in which a plugged tap is half guarded.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

from caelum.agent.core import Agent
from caelum.agent.network import names, nft
from caelum.agent.network.links import netlink
from caelum.agent.network.nft import ACCEPT, DROP, Chain, Expression, field, match, meta
from caelum.agent.network.state import Networks
from caelum.agent.protocol import Nic

FAMILY = "netdev"
PRIORITY = -150
TABLE_PREFIX = names.tap_table("x")[:-1]

_NOBODY = "0.0.0.0"  # noqa: S104 - a packet's source, not an address to listen at
_ARP, _RARP, _IPV4, _IPV6 = "arp", 0x8035, "ip", "ip6"


async def plugged(agent: Agent, nic: Nic) -> None:
    """Guard a NIC's tap, or take the guard away when the NIC is not to have one."""
    if not nic.anti_spoofing:
        await unplugged(agent, nic)
        return
    async with agent.lock(lock(nic.name)):
        await agent.run_blocking(_guard, nic)
        await agent.run_blocking(Networks(agent.state_dir).save_tap, nic)


async def unplugged(agent: Agent, nic: Nic) -> None:
    """Take a tap's guard away."""
    async with agent.lock(lock(nic.name)):
        await agent.run_blocking(Networks(agent.state_dir).forget_tap, nic.name)
        await agent.run_blocking(nft.remove, FAMILY, names.tap_table(nic.name))


def settle(networks: Networks, tap: str) -> None:
    """Make the guard that is remembered of a tap that is there; remove that of a tap that is gone.

    A table outlives its device, and would meet the next one of this name.
    """
    nic = networks.tap(tap)
    with netlink() as net:
        present = net.find(tap) is not None
    if present and nic is not None:
        _guard(nic)
    elif not present:
        networks.forget_tap(tap)
        nft.remove(FAMILY, names.tap_table(tap))


def _guard(nic: Nic) -> None:
    nft.replace(FAMILY, names.tap_table(nic.name), [chain(nic)])


def lock(tap: str) -> str:
    """The name of the lock under which a tap's guard changes."""
    return f"tap-{tap}"


def guarded() -> list[str]:
    """The taps that have a table."""
    return nft.tables(FAMILY, TABLE_PREFIX)


def chain(nic: Nic) -> Chain:
    """What may come out of a guest's NIC."""
    mac = names.mac(nic.mac)
    sources = [ip_network(text, strict=False) for text in (*nic.ips, *nic.extra_source_ips)]
    v4 = [str(one) for one in collapse_addresses(one for one in sources if isinstance(one, IPv4Network))]
    v6 = [str(one) for one in collapse_addresses(one for one in sources if isinstance(one, IPv6Network))]
    rules = [
        [match(field("ether", "saddr"), mac, "!="), DROP],
        *_arp(mac, v4),
        *_ipv4(v4),
        *_ipv6(v6),
        # QEMU announces a migrated guest by RARP. All else is dropped: VLAN tags, for one, would hide an address.
        [match(meta("protocol"), [_ARP, _IPV4, _IPV6, _RARP], "!="), DROP],
    ]
    return Chain("ingress", "filter", "ingress", PRIORITY, rules, device=nic.name)


def _arp(mac: str, sources: list[str]) -> list[list[Expression]]:
    # From nobody: "does anybody have this address?", asked before one takes it.
    return [
        [match(field("arp", "saddr ether"), mac, "!="), DROP],
        [match(field("arp", "saddr ip"), nft.networks([_NOBODY, *sources]), "!="), DROP],
    ]


def _ipv4(sources: list[str]) -> list[list[Expression]]:
    return [
        [match(field("udp", "sport"), 67), match(meta("protocol"), _IPV4), DROP],
        [
            match(field("ip", "saddr"), _NOBODY),
            match(field("udp", "sport"), 68),
            match(field("udp", "dport"), 67),
            ACCEPT,
        ],
        [match(field("ip", "saddr"), nft.networks(sources or [_NOBODY]), "!="), DROP],
    ]


def _ipv6(sources: list[str]) -> list[list[Expression]]:
    return [
        [match(field("icmpv6", "type"), "nd-router-advert"), DROP],
        [match(field("udp", "sport"), 547), match(meta("protocol"), _IPV6), DROP],
        [match(field("ip6", "saddr"), nft.networks(["fe80::/10", "::/128", *sources]), "!="), DROP],
    ]
