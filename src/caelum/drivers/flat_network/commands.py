"""What hosts are told of an L3 network and its guests; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from caelum.agent.protocol import (
    ApplyDhcp,
    ApplyMetadata,
    ApplyNat,
    Command,
    DeleteDhcp,
    DeleteNat,
    DhcpEntry,
    Empty,
    HostRoute,
    MetadataEntry,
    ReleaseDhcp,
    ReleaseMetadata,
)
from caelum.cloud.host.spec import NicSpec, VmSpec
from caelum.cloud.l3.api import L3NetworkInventory, UsedIpInventory

DHCP, DNS, USERDATA, HOST_ROUTE, SNAT, EIP = "DHCP", "DNS", "Userdata", "HostRoute", "SNAT", "Eip"
SERVICES = (DHCP, USERDATA, EIP, DNS, HOST_ROUTE, SNAT)
"""What the provider offers. SNAT is an addition to the original, for private L2 networks only."""


class FlatNetwork(msgspec.Struct, frozen=True):
    """An L3 network that Flat serves, with what hosts need to know of it."""

    l3: L3NetworkInventory
    services: frozenset[str]
    bridge: str
    mtu: int
    server: UsedIpInventory | None
    own_dns: bool = False


class Guest(msgspec.Struct, frozen=True):
    """A NIC, and whose it is."""

    vm: VmSpec
    nic: NicSpec

    @property
    def ip(self) -> str | None:
        """The NIC's IPv4 address."""
        return next((one.ip for one in self.nic.ips if one.ip_version == 4), None)

    @property
    def hostname(self) -> str:
        """The machine's name; the address with dashes for one that has none."""
        return self.vm.hostname or (self.ip or "").replace(".", "-")


def guests_by_network(specs: Iterable[VmSpec]) -> dict[str, list[Guest]]:
    """All NICs with an IPv4 address, by L3 network."""
    found: dict[str, list[Guest]] = {}
    for vm in specs:
        for nic in vm.nics:
            guest = Guest(vm, nic)
            if guest.ip is not None:
                found.setdefault(nic.l3_network_uuid, []).append(guest)
    return found


def apply(network: FlatNetwork, guests: Sequence[Guest], *, rebuild: bool) -> list[Command[Empty]]:
    """What serves these guests; with `rebuild` no others. In the order in which a host needs it."""
    commands: list[Command[Empty]] = []
    if network.server is not None:
        commands.append(_dhcp(network, network.server, guests, rebuild))
        if USERDATA in network.services:
            commands.append(_metadata(network, guests, rebuild))
    if SNAT in network.services and (nat := _nat(network)) is not None:
        commands.append(nat)
    return commands


def _dhcp(network: FlatNetwork, server: UsedIpInventory, guests: Sequence[Guest], rebuild: bool) -> ApplyDhcp:
    l3 = network.l3
    return ApplyDhcp(
        l3_uuid=l3.uuid,
        bridge=network.bridge,
        server_ip=server.ip,
        netmask=server.netmask or "",
        gateway=server.gateway or "",
        dns=_dns(network, server),
        domain=l3.dns_domain,
        mtu=network.mtu,
        host_routes=_routes(network),
        metadata=USERDATA in network.services,
        forward_dns=network.own_dns and DNS in network.services,
        entries=[
            DhcpEntry(mac=one.nic.mac, ip=one.ip or "", hostname=one.hostname, is_default=one.nic.is_default)
            for one in guests
        ],
        rebuild=rebuild,
    )


def _dns(network: FlatNetwork, server: UsedIpInventory) -> list[str]:
    if DNS not in network.services:
        return []
    own = [server.ip] if network.own_dns else []
    return own + [one for one in network.l3.dns if ":" not in one]


def _routes(network: FlatNetwork) -> list[HostRoute]:
    if HOST_ROUTE not in network.services:
        return []
    return [HostRoute(prefix=one.prefix, nexthop=one.nexthop) for one in network.l3.host_route if ":" not in one.prefix]


def _metadata(network: FlatNetwork, guests: Sequence[Guest], rebuild: bool) -> ApplyMetadata:
    entries = [
        MetadataEntry(
            ip=one.ip or "",
            vm_uuid=one.vm.vm_uuid,
            hostname=one.hostname,
            ssh_keys=one.vm.ssh_keys,
            user_data=one.vm.user_data,
        )
        for one in guests
    ]
    return ApplyMetadata(l3_uuid=network.l3.uuid, entries=entries, rebuild=rebuild)


def _nat(network: FlatNetwork) -> ApplyNat | None:
    """The translation of the network's addresses, once it has a range that tells them."""
    for one in network.l3.ip_ranges:
        if one.ip_range_type == "Normal" and one.ip_version == 4 and one.gateway and one.network_cidr:
            return ApplyNat(l3_uuid=network.l3.uuid, bridge=network.bridge, gateway=one.gateway, cidr=one.network_cidr)
    return None


def release(l3_uuid: str, guests: Sequence[Guest]) -> list[Command[Empty]]:
    """What serves these guests no longer."""
    ips = [one.ip for one in guests if one.ip is not None]
    macs = [one.nic.mac for one in guests]
    return [ReleaseDhcp(l3_uuid=l3_uuid, macs=macs), ReleaseMetadata(l3_uuid=l3_uuid, ips=ips)]


def remove(l3_uuid: str, bridge: str, services: Iterable[str]) -> list[Command[Empty]]:
    """What takes the network's services off a host."""
    chosen = set(services)
    commands: list[Command[Empty]] = []
    if DHCP in chosen:
        commands.append(DeleteDhcp(l3_uuid=l3_uuid, bridge=bridge))
    if SNAT in chosen:
        commands.append(DeleteNat(l3_uuid=l3_uuid, bridge=bridge))
    return commands
