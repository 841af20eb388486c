"""DHCP, DNS and metadata of an L3 network: one namespace behind a veth on the network's bridge.

Invariant: what runs follows from the remembered `ApplyDhcp`. Applying it again repairs whatever is missing. The
servers outlive the agent, and `keeper` starts again what died.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Interface

import msgspec

from caelum.agent.core import Agent
from caelum.agent.network import guard, links, metadata, names, namespaces, processes, state
from caelum.agent.network.dnsmasq import Change, Dnsmasq
from caelum.agent.network.links import netlink
from caelum.agent.network.state import DhcpState, Networks
from caelum.agent.protocol import ApplyDhcp, DeleteDhcp, DhcpEntry, Empty, ReleaseDhcp
from caelum.agent.registry import handler


@handler(ApplyDhcp, lock="l3-{l3_uuid}")
async def apply_dhcp(agent: Agent, cmd: ApplyDhcp) -> Empty:
    """Serve these guests; with `rebuild` no others."""
    names.interface(cmd.bridge)
    networks = Networks(agent.state_dir)
    known = await agent.run_blocking(networks.dhcp, cmd.l3_uuid)
    entries = cmd.entries if cmd.rebuild or known is None else merged(known.command.entries, cmd.entries)
    wanted = msgspec.structs.replace(cmd, entries=[_clean(one) for one in entries], rebuild=False)
    current = DhcpState(command=wanted, served=known.served if known else {})
    reaches_gateway = await _ensure_port(agent, wanted)
    await _serve(agent, current, reaches_gateway=reaches_gateway)
    if wanted.metadata:
        await metadata.ensure_server(agent, cmd.l3_uuid)
    return Empty()


@handler(ReleaseDhcp, lock="l3-{l3_uuid}")
async def release_dhcp(agent: Agent, cmd: ReleaseDhcp) -> Empty:
    """Serve these guests no longer."""
    known = await agent.run_blocking(Networks(agent.state_dir).dhcp, cmd.l3_uuid)
    if known is None:
        return Empty()
    gone = {names.mac(one) for one in cmd.macs}
    kept = [one for one in known.command.entries if one.mac not in gone]
    current = DhcpState(command=msgspec.structs.replace(known.command, entries=kept), served=known.served)
    if await agent.run_blocking(namespaces.exists, names.namespace(cmd.l3_uuid)):
        await _serve(agent, current, reaches_gateway=await agent.run_blocking(_reaches_gateway, agent, known.command))
    else:
        await agent.run_blocking(Networks(agent.state_dir).save_dhcp, current)
    return Empty()


@handler(DeleteDhcp, lock="l3-{l3_uuid}")
async def delete_dhcp(agent: Agent, cmd: DeleteDhcp) -> Empty:
    """Remove a network's servers, namespace, port and files."""
    namespace, port = names.namespace(cmd.l3_uuid), names.server_port(cmd.l3_uuid)
    await processes.stop(agent, await agent.run_blocking(namespaces.members, namespace))
    await agent.run_blocking(_remove_link, port)
    await namespaces.remove(agent, namespace)
    networks = Networks(agent.state_dir)
    await agent.run_blocking(Dnsmasq(cmd.l3_uuid).forget)
    await agent.run_blocking(lambda: networks.forget(cmd.l3_uuid, keep=state.NAT_FILE))
    await guard.refresh(agent)
    return Empty()


def merged(known: list[DhcpEntry], given: list[DhcpEntry]) -> list[DhcpEntry]:
    """The known entries with the given ones in place of those that have the same MAC or address."""
    macs, ips = {names.mac(one.mac) for one in given}, {one.ip for one in given}
    return [one for one in known if one.mac not in macs and one.ip not in ips] + given


def _clean(entry: DhcpEntry) -> DhcpEntry:
    return DhcpEntry(
        mac=names.mac(entry.mac),
        ip=str(names.address(entry.ip)),
        hostname=names.hostname(entry.hostname),
        is_default=entry.is_default,
    )


async def _serve(agent: Agent, current: DhcpState, *, reaches_gateway: bool) -> None:
    """Remember the service, then bring guard, files and server in line with it.

    The server keeps an address bound to a MAC until the lease ends, and then would not give it to the address's new
    owner: only a restart makes it forget.
    """
    networks, cmd = Networks(agent.state_dir), current.command
    server = Dnsmasq(cmd.l3_uuid)
    wanted = {one.ip: one.mac for one in cmd.entries}
    moved = any(current.served.get(ip, mac) != mac for ip, mac in wanted.items())
    current.served = {**wanted, **current.served}  # former owners stay in it until the restart has happened
    change = await agent.run_blocking(lambda: server.write(cmd, reaches_gateway=reaches_gateway))
    await agent.run_blocking(networks.save_dhcp, current)
    await guard.refresh(agent)
    if await server.settle(agent, Change.RESTART if moved else change):
        current.served = wanted
        await agent.run_blocking(networks.save_dhcp, current)


async def _ensure_port(agent: Agent, cmd: ApplyDhcp) -> bool:
    """Make the namespace and its veth; tells whether the server inside reaches the gateway."""
    namespace = names.namespace(cmd.l3_uuid)
    await namespaces.ensure(agent, namespace)
    reaches_gateway = await agent.run_blocking(_reaches_gateway, agent, cmd)
    await agent.run_blocking(_plug, cmd, namespace)
    await agent.run_blocking(namespaces.inside, namespace, _set_up_inside, cmd, reaches_gateway)
    return reaches_gateway


def _reaches_gateway(agent: Agent, cmd: ApplyDhcp) -> bool:
    """On a private bridge the gateway is on this host. Behind an uplink it is not, and the server is cut off there:
    its address exists on every host, so answers could go to any of them."""
    bridge = Networks(agent.state_dir).bridge(cmd.bridge)
    return bool(cmd.gateway) and (bridge is None or bridge.interface is None)


def _plug(cmd: ApplyDhcp, namespace: str) -> None:
    port = names.server_port(cmd.l3_uuid)
    with netlink() as net:
        bridge, outer = net.get(cmd.bridge), net.find(port)
        if outer is not None and not namespaces.inside(namespace, _has_interface):
            net.remove(port)
            outer = None
        if outer is None:
            handle = os.open(namespaces.path(namespace), os.O_RDONLY | os.O_CLOEXEC)
            try:
                outer = net.add_veth(port, names.SERVER_INTERFACE, handle, names.fixed_mac("dhcp", cmd.l3_uuid))
            finally:
                os.close(handle)
        links.silence(port)
        links.fill_checksums(port)
        net.change(outer, mtu=cmd.mtu, master=bridge.index, state="up")


def _has_interface() -> bool:
    with netlink() as net:
        return net.find(names.SERVER_INTERFACE) is not None


def _set_up_inside(cmd: ApplyDhcp, reaches_gateway: bool) -> None:
    """The namespace's own side. It must never forward: it would lead guests past the anti-spoofing of their taps."""
    prefix = names.network(f"{cmd.server_ip}/{cmd.netmask}").prefixlen
    addresses = [IPv4Interface(f"{names.address(cmd.server_ip)}/{prefix}")]
    if cmd.metadata:
        addresses.append(IPv4Interface(f"{names.METADATA_IP}/32"))
    links.sysctl("ipv4/ip_forward", "0")
    links.sysctl(f"ipv6/conf/{names.SERVER_INTERFACE}/disable_ipv6", "1")
    links.fill_checksums(names.SERVER_INTERFACE)
    with netlink() as net:
        inner = net.get(names.SERVER_INTERFACE)
        net.change(net.get("lo"), state="up")
        net.change(inner, mtu=cmd.mtu, state="up")
        net.set_addresses(inner, addresses)
        usable = reaches_gateway and cmd.gateway != cmd.server_ip
        net.set_default_route(str(names.address(cmd.gateway)) if usable else None)


async def revive(agent: Agent, l3_uuid: str) -> None:
    """Start again what died of a network's servers; without its namespace, that waits for the server's rebuild."""
    server = Dnsmasq(l3_uuid)
    async with agent.lock(f"l3-{l3_uuid}"):
        service = await agent.run_blocking(Networks(agent.state_dir).dhcp, l3_uuid)
        if service is None or not await agent.run_blocking(namespaces.exists, server.namespace):
            return
        if await agent.run_blocking(server.pid) is None:
            await server.settle(agent, Change.RESTART)
        if service.command.metadata:
            await metadata.ensure_server(agent, l3_uuid)


def is_well(agent: Agent, cmd: ApplyDhcp) -> bool:
    """Whether a network's servers run."""
    has_metadata = not cmd.metadata or metadata.pid(agent, cmd.l3_uuid) is not None
    return has_metadata and Dnsmasq(cmd.l3_uuid).pid() is not None


def _remove_link(name: str) -> None:
    with netlink() as net:
        net.remove(name)
