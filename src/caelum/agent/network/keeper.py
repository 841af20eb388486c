"""Keeps what was asked for: at the agent's start, and every few seconds while it runs.

Invariant: what runs is left alone. Only what died is started again, only tables that somebody flushed are filled again,
and what a boot took is forgotten, since the server asks for everything anew when the host connects.
"""

from __future__ import annotations

import asyncio
import logging

from caelum.agent.core import Agent
from caelum.agent.network import dhcp, guard, links, names, namespaces, nat, nft, spoofing, state
from caelum.agent.network.dnsmasq import Dnsmasq
from caelum.agent.network.state import Networks
from caelum.agent.registry import AgentFailure

log = logging.getLogger(__name__)

SECONDS = 5.0
"""How often is looked."""


async def started(agent: Agent) -> None:
    """Forget what a boot took, then keep the rest."""
    await agent.run_blocking(_forget_lost, Networks(agent.state_dir))
    agent.spawn(_keep(agent), "networks")


def _forget_lost(networks: Networks) -> None:
    present = _interfaces()
    for service in list(networks.all_dhcp()):
        l3_uuid = service.command.l3_uuid
        if not namespaces.exists(names.namespace(l3_uuid)):
            networks.forget(l3_uuid, keep=state.NAT_FILE)
            Dnsmasq(l3_uuid).forget()
    for translation in list(networks.all_nat()):
        if translation.command.bridge not in present:
            networks.forget_nat(translation.command.l3_uuid)
    for bridge in networks.bridges():
        if bridge.bridge not in present:
            networks.forget_bridge(bridge.bridge)


async def _keep(agent: Agent) -> None:
    while True:
        try:
            await look(agent)
        except (AgentFailure, OSError) as error:
            log.warning("cannot repair the networks: %s", error)
        await asyncio.sleep(SECONDS)


async def look(agent: Agent) -> None:
    """Repair what is missing."""
    networks = Networks(agent.state_dir)
    services = await agent.run_blocking(lambda: list(networks.all_dhcp()))
    for service in services:
        if not await agent.run_blocking(dhcp.is_well, agent, service.command):
            log.warning("a server of L3 network %s died; starting it again", service.command.l3_uuid)
            await dhcp.revive(agent, service.command.l3_uuid)
    if services and not await agent.run_blocking(guard.present):
        log.warning("the table %s is gone; making it again", guard.TABLE)
        await guard.refresh(agent)
    for tap in await agent.run_blocking(_unsettled, networks):
        log.warning("the tap %s and its guard are not together; settling it", tap)
        async with agent.lock(spoofing.lock(tap)):
            await agent.run_blocking(spoofing.settle, networks, tap)
    for l3_uuid in await agent.run_blocking(_untranslated, networks):
        log.warning("the translation of L3 network %s is gone; making it again", l3_uuid)
        async with agent.lock(f"l3-{l3_uuid}"):
            await agent.run_blocking(nat.translate_again, networks, l3_uuid)


def _unsettled(networks: Networks) -> list[str]:
    """Taps without the guard that they are to have, and guards without tap."""
    wanted, guarded, present = {nic.name for nic in networks.taps()}, set(spoofing.guarded()), _interfaces()
    return sorted((wanted - guarded) | ((wanted | guarded) - present))


def _interfaces() -> set[str]:
    with links.netlink() as net:
        return {link.name for link in net.all()}


def _untranslated(networks: Networks) -> list[str]:
    wanted = {translation.command.l3_uuid for translation in networks.all_nat()}
    return sorted(wanted - set(nft.tables(nat.FAMILY, nat.TABLE_PREFIX))) if wanted else []
