"""Address translation: a private network's gateway on its bridge, and its way out through the host.

Invariant: each L3 network has one table of ours, `ip caelum-nat-<uuid>`, and no other table is ever changed. Into a
private network only answers pass, so that two networks of one host do not see each other. The host forwards packets
while somebody needs it, and then does again what it did before.
"""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from caelum.agent.core import Agent
from caelum.agent.network import links, names, nft
from caelum.agent.network.links import Links, netlink
from caelum.agent.network.nft import DROP, MASQUERADE, Chain, field, match, meta
from caelum.agent.network.state import Forwarding, NatState, Networks
from caelum.agent.protocol import ApplyNat, DeleteNat, Empty
from caelum.agent.registry import handler

FAMILY = "ip"
TABLE_PREFIX = names.nat_table("0" * 32)[:-32]
_FORWARD = "ipv4/ip_forward"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_ANSWER = {"set": ["established", "related"]}


@handler(ApplyNat, lock="l3-{l3_uuid}")
async def apply_nat(agent: Agent, cmd: ApplyNat) -> Empty:
    """Give the network its gateway and its way out."""
    gateway = _gateway(cmd)
    names.interface(cmd.bridge)
    networks = Networks(agent.state_dir)
    await agent.run_blocking(_set_gateway, cmd.bridge, gateway)
    await agent.run_blocking(networks.save_nat, NatState(command=cmd))
    await agent.run_blocking(nft.replace, FAMILY, names.nat_table(cmd.l3_uuid), chains(cmd))
    async with agent.lock("network-forwarding"):
        await agent.run_blocking(_forward_for, networks, cmd.l3_uuid)
    await agent.run_blocking(_check_others, cmd.bridge)
    return Empty()


@handler(DeleteNat, lock="l3-{l3_uuid}")
async def delete_nat(agent: Agent, cmd: DeleteNat) -> Empty:
    """Take both away."""
    networks = Networks(agent.state_dir)
    known = await agent.run_blocking(networks.nat, cmd.l3_uuid)
    await agent.run_blocking(nft.remove, FAMILY, names.nat_table(cmd.l3_uuid))
    if known is not None:
        await agent.run_blocking(_take_gateway, known.command.bridge, _gateway(known.command))
    async with agent.lock("network-forwarding"):
        await agent.run_blocking(_forward_no_more_for, networks, cmd.l3_uuid)
    await agent.run_blocking(networks.forget_nat, cmd.l3_uuid)
    return Empty()


def translate_again(networks: Networks, l3_uuid: str) -> None:
    """Make the table that is remembered."""
    known = networks.nat(l3_uuid)
    if known is not None:
        nft.replace(FAMILY, names.nat_table(l3_uuid), chains(known.command))


def _gateway(cmd: ApplyNat) -> IPv4Interface:
    net, gateway = names.network(cmd.cidr), names.address(cmd.gateway)
    if gateway not in net:
        raise names.invalid("gateway", f"{cmd.gateway} (not in {cmd.cidr})")
    return IPv4Interface(f"{gateway}/{net.prefixlen}")


def chains(cmd: ApplyNat) -> list[Chain]:
    """The table's content. The bridge is never the way out: bridged frames pass here too when the kernel is so set."""
    net = names.network(cmd.cidr)
    inside = {"prefix": {"addr": str(net.network_address), "len": net.prefixlen}}
    comes_in, goes_in = match(meta("iifname"), cmd.bridge), match(meta("oifname"), cmd.bridge)
    out = [
        match(field("ip", "saddr"), inside),
        match(field("ip", "daddr"), inside, "!="),
        match(meta("oifname"), cmd.bridge, "!="),
        MASQUERADE,
    ]
    forward = [
        [comes_in, match(field("ip", "saddr"), inside, "!="), match(meta("oifname"), cmd.bridge, "!="), DROP],
        [goes_in, match(meta("iifname"), cmd.bridge, "!="), match({"ct": {"key": "state"}}, _ANSWER, "!="), DROP],
    ]
    return [
        Chain("postrouting", "nat", "postrouting", 100, [out]),
        Chain("forward", "filter", "forward", 0, forward),
    ]


def _set_gateway(bridge: str, gateway: IPv4Interface) -> None:
    with netlink() as net:
        link = net.get(bridge)
        _check_overlap(net, bridge, gateway.network)
        net.add_address(link, gateway)


def _check_overlap(net: Links, bridge: str, wanted: IPv4Network) -> None:
    for name, addresses in net.networks().items():
        for text in addresses if name != bridge else ():
            if ":" not in text and IPv4Interface(text).network.overlaps(wanted):
                raise names.failure(
                    f"{wanted} overlaps {text} of this host's {name}: packets for one would go to the other",
                    cidr=str(wanted), interface=name, address=text,
                )  # fmt: skip


def _take_gateway(bridge: str, gateway: IPv4Interface) -> None:
    with netlink() as net:
        link = net.find(bridge)
        if link is not None:
            net.remove_address(link, str(gateway))


def _forward_for(networks: Networks, l3_uuid: str) -> None:
    boot, state = _BOOT.read_text().strip(), networks.forwarding()
    if state is None or state.boot != boot:  # what was before an earlier boot is no concern of this one
        state = Forwarding(before=links.read_sysctl(_FORWARD), boot=boot)
    if l3_uuid not in state.users:
        state.users.append(l3_uuid)
        networks.save_forwarding(state)
    links.sysctl(_FORWARD, "1")


def _forward_no_more_for(networks: Networks, l3_uuid: str) -> None:
    state = networks.forwarding()
    if state is None or l3_uuid not in state.users:
        return
    state.users.remove(l3_uuid)
    if not state.users:
        links.sysctl(_FORWARD, state.before)
    networks.save_forwarding(state if state.users else None)


def _check_others(bridge: str) -> None:
    """Fail when somebody else's firewall drops what is forwarded: accepting in our table would not help."""
    blocking = blockers(nft.ruleset(), bridge)
    if blocking:
        raise names.failure(
            f"forwarding for {bridge} is set up, but dropped by the policy of {names.listed(blocking)};"
            f" accept iifname {bridge} and oifname {bridge} there",
            bridge=bridge, chains=blocking,
        )  # fmt: skip


def blockers(ruleset: list[dict[str, Any]], bridge: str) -> list[str]:
    """Foreign chains that drop forwarded packets by policy, and whose table has no rule that names the bridge."""
    speaking = {_place(item["rule"]) for item in ruleset if "rule" in item and f"'{bridge}'" in str(item["rule"])}
    hooked = [item["chain"] for item in ruleset if "chain" in item and item["chain"].get("hook") == "forward"]
    return [
        " ".join((*_place(chain), chain["name"]))
        for chain in hooked
        if chain.get("policy") == "drop"
        and chain["family"] in ("ip", "inet")
        and not chain["table"].startswith(nft.PREFIX)
        and _place(chain) not in speaking
    ]


def _place(item: dict[str, Any]) -> tuple[str, str]:
    return item["family"], item["table"]
