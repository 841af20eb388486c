"""`caelum agent --clean`: take everything of ours off this host. Volumes and images stay.

Invariant: what is ours is told by its mark in libvirt and in the kernel, not by what is remembered, so that nothing is
left when the agent's files are lost, and nothing of others is touched. Each thing is tried whatever became of the
others, and in the end the host is looked at again: only that decides whether all is gone. Running it twice is the same
as once.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from collections.abc import Awaitable, Iterable
from typing import Any

import aiohttp

from caelum.agent.core import Agent, AgentConfig
from caelum.agent.network import bridge, dhcp, guard, metadata, names, namespaces, nat, nft, processes, spoofing
from caelum.agent.network.dnsmasq import Dnsmasq
from caelum.agent.network.links import netlink
from caelum.agent.network.state import Networks
from caelum.agent.protocol import DeleteBridge, DeleteDhcp, DeleteNat, DestroyVm, Nic
from caelum.agent.registry import AgentFailure
from caelum.agent.server import load_modules
from caelum.agent.vm import commands, domains
from caelum.agent.vm.libvirtd import Libvirt

_TAP = re.compile(r"vnic\d+\.\d+")


class _Silence:
    """Nobody is told: the server learns that the host is empty when it connects again."""

    agent_uuid = "0" * 32

    def add(self, kind: str, body: dict[str, Any]) -> None: ...

    def send_to(self, url: str, host_uuid: str) -> None: ...


def run(config: AgentConfig) -> int:
    """Clean this host. 0 when nothing of ours is left, else 1 and what is left on standard error."""
    left = asyncio.run(_run(config))
    for line in left:
        print(line, file=sys.stderr)
    return 1 if left else 0


async def _run(config: AgentConfig) -> list[str]:
    async with aiohttp.ClientSession() as http:
        agent = Agent(config, http, _Silence())
        for module in load_modules():
            setup = getattr(module, "setup", None)
            if setup is not None:
                setup(agent)
        try:
            return await clean(agent)
        finally:
            await agent.part(Libvirt).close(agent)
            await agent.close()


async def clean(agent: Agent) -> list[str]:
    """Remove everything of ours; what is left, and why."""
    failures: list[str] = []
    await _guests(agent, failures)
    await _networks(agent, failures)
    await _bridges(agent, failures)
    failures += [f"left: {one}" for one in await agent.run_blocking(_left, Networks(agent.state_dir))]
    if not failures:
        await agent.run_blocking(_forget, agent)
    return failures


async def _guests(agent: Agent, failures: list[str]) -> None:
    try:
        guests = await agent.part(Libvirt).call(_our_guests)
    except AgentFailure as failure:
        failures.append(f"guests: {agent.config.libvirt_uri} cannot be asked: {failure.details}")
        return
    for vm_uuid in guests:
        await _try(f"guest {vm_uuid}", commands.destroy_vm(agent, DestroyVm(vm_uuid=vm_uuid)), failures)
    still_there = await agent.part(Libvirt).call(_our_guests)
    failures += [f"left: guest {one}" for one in still_there]


async def _networks(agent: Agent, failures: list[str]) -> None:
    networks = Networks(agent.state_dir)
    for l3_uuid in await agent.run_blocking(_dhcp_here, networks):
        await _try(f"DHCP of L3 network {l3_uuid}", _remove_dhcp(agent, l3_uuid), failures)
    for l3_uuid in await agent.run_blocking(_nat_here, networks):
        command = DeleteNat(l3_uuid=l3_uuid, bridge="")
        await _try(f"translation of L3 network {l3_uuid}", nat.delete_nat(agent, command), failures)
    for tap in await agent.run_blocking(_guards_here, networks):
        nic = Nic(nic_uuid="", device_id=0, mac="", name=tap, bridge="", ips=[])
        await _try(f"guard of {tap}", spoofing.unplugged(agent, nic), failures)
    await _try("", agent.run_blocking(nft.remove, guard.FAMILY, guard.TABLE), failures)


async def _remove_dhcp(agent: Agent, l3_uuid: str) -> None:
    # By their pid files too: without its namespace's name, a server could not be found by the namespace.
    pids = [Dnsmasq(l3_uuid).pid(), metadata.pid(agent, l3_uuid)]
    await processes.stop(agent, [one for one in pids if one is not None])
    await dhcp.delete_dhcp(agent, DeleteDhcp(l3_uuid=l3_uuid, bridge=""))


async def _bridges(agent: Agent, failures: list[str]) -> None:
    for tap in await agent.run_blocking(_taps_here):
        await _try(f"tap {tap}", agent.run_blocking(_remove_link, tap), failures)
    for name, l2_uuid in await agent.run_blocking(_bridges_here):
        command = DeleteBridge(l2_uuid=l2_uuid, bridge=name)
        await _try(f"bridge {name}", bridge.delete_bridge(agent, command), failures)


async def _try(what: str, work: Awaitable[object], failures: list[str]) -> None:
    try:
        await work
    except (AgentFailure, OSError) as error:
        failures.append(f"{what}: {error.details if isinstance(error, AgentFailure) else error}")
    else:
        if what:
            print(f"removed {what}", flush=True)


# --- blocking, in threads ---------------------------------------------------------------------------------------------


def _our_guests(connection: Any) -> list[str]:
    return sorted(one.name() for one in connection.listAllDomains() if domains.mark(one) is not None)


def _dhcp_here(networks: Networks) -> list[str]:
    """L3 networks that this host serves. The names of namespaces are the machine's, and one that has its interface but
    whose other end is not here belongs to another host on the same machine.
    """
    remembered = {one.command.l3_uuid for one in networks.all_dhcp()}
    with netlink() as net:
        present = {link.name for link in net.all()}
    named = [one for one in namespaces.ours() if _is_uuid(one)]
    here = [one for one in named if names.server_port(one) in present or not _is_plugged(names.namespace(one))]
    return sorted({*remembered, *here})


def _is_uuid(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{32}", text) is not None


def _is_plugged(namespace: str) -> bool:
    def has_interface() -> bool:
        with netlink() as net:
            return net.find(names.SERVER_INTERFACE) is not None

    try:
        return namespaces.inside(namespace, has_interface)
    except OSError:  # a name without a namespace
        return False


def _nat_here(networks: Networks) -> list[str]:
    forwarding = networks.forwarding()
    users = forwarding.users if forwarding is not None else []
    remembered = [one.command.l3_uuid for one in networks.all_nat()]
    return sorted({*users, *remembered, *nft.tables(nat.FAMILY, nat.TABLE_PREFIX)})


def _guards_here(networks: Networks) -> list[str]:
    return sorted({*spoofing.guarded(), *(nic.name for nic in networks.taps())})


def _taps_here() -> list[str]:
    """Taps of ours that outlived their guests."""
    with netlink() as net:
        ports = [port for one in bridge.ours(net) for port in net.ports(one)]
    return sorted(port.name for port in ports if port.kind == "tun" and _TAP.fullmatch(port.name))


def _bridges_here() -> list[tuple[str, str]]:
    with netlink() as net:
        marked = [(link.name, bridge.Marker.of(link)) for link in bridge.ours(net)]
    return sorted((name, marker.l2_uuid) for name, marker in marked if marker is not None)


def _remove_link(name: str) -> None:
    with netlink() as net:
        net.remove(name)


def _left(networks: Networks) -> Iterable[str]:
    """What of ours is in the kernel."""
    tables = sorted({item["table"]["name"] for item in nft.run([{"list": {"tables": None}}]) if "table" in item})
    return [
        *(f"namespace {names.namespace(one)}" for one in _dhcp_here(networks)),
        *(f"table {one}" for one in tables if one.startswith(nft.PREFIX)),
        *(f"bridge {name}" for name, _ in _bridges_here()),
    ]


def _forget(agent: Agent) -> None:
    """Remove what is remembered of guests and networks; volumes lie elsewhere."""
    for directory in (Networks(agent.state_dir).root, agent.state_dir / "vm"):
        shutil.rmtree(directory, ignore_errors=True)
