"""Arithmetic of addresses and ranges; no I/O.

A range is seen as the numbers 0 ... size-1, its offsets from the first address, so that the same code serves IPv4 and
IPv6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple, Protocol

from caelum.kernel.errors import invalid

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Span(Protocol):
    """Anything with a first and a last address."""

    @property
    def start_ip(self) -> str:
        """The first."""

    @property
    def end_ip(self) -> str:
        """The last."""


class Segment(NamedTuple):
    """Offsets `first` ... `last` of a range, both included."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """How many offsets there are."""
        return self.last - self.first + 1


class NewRange(NamedTuple):
    """What a request makes into a range."""

    start: IPv4Address
    end: IPv4Address
    gateway: IPv4Address
    network: IPv4Network


def ipv4(field: str, text: str) -> IPv4Address:
    """The address in a request's field."""
    try:
        return IPv4Address(text.strip())
    except ValueError:
        raise invalid(field, f"{text[:255]} is not an IPv4 address") from None


def any_ip(field: str, text: str) -> Address:
    """The address, of either version, in a request's field."""
    try:
        return ip_address(text.strip())
    except ValueError:
        raise invalid(field, f"{text[:255]} is not an IP address") from None


def any_network(field: str, text: str) -> Network:
    """The network, of either version, in a request's field; host bits are dropped."""
    try:
        return ip_network(text.strip(), strict=False)
    except ValueError:
        raise invalid(field, f"{text[:255]} is not a CIDR") from None


def size(span: Span) -> int:
    """How many addresses a range has."""
    return int(ip_address(span.end_ip)) - int(ip_address(span.start_ip)) + 1


def offset(span: Span, address: Address) -> int | None:
    """The address's distance from the start of the range, or None outside."""
    start = ip_address(span.start_ip)
    distance = int(address) - int(start)
    return distance if address.version == start.version and 0 <= distance < size(span) else None


def at(span: Span, distance: int) -> Address:
    """The address at this distance from the start."""
    return ip_address(span.start_ip) + distance


def overlap(one: Span, other: Span) -> bool:
    """Whether two ranges share an address."""
    first, second = ip_address(one.start_ip), ip_address(other.start_ip)
    if first.version != second.version:
        return False
    latest_start = max(int(first), int(second))
    return latest_start <= min(int(ip_address(one.end_ip)), int(ip_address(other.end_ip)))


def usable(span: Span, reserved: Iterable[Span]) -> list[Segment]:
    """What is left of a range without reserved addresses, in order."""
    segments, first, last = [], 0, size(span) - 1
    for cut in sorted(_cuts(span, reserved)):
        if cut.first > first:
            segments.append(Segment(first, cut.first - 1))
        first = max(first, cut.last + 1)
    if first <= last:
        segments.append(Segment(first, last))
    return segments


def _cuts(span: Span, reserved: Iterable[Span]) -> Iterator[Segment]:
    start, last = int(ip_address(span.start_ip)), size(span) - 1
    for one in reserved:
        if overlap(span, one):
            begin, end = int(ip_address(one.start_ip)) - start, int(ip_address(one.end_ip)) - start
            yield Segment(max(0, begin), min(last, end))


def range_of(start_ip: str, end_ip: str, netmask: str, gateway: str | None, pool: bool) -> NewRange:
    """A checked IPv4 range. A pool of virtual IPs has no gateway: its first address stands for it."""
    start, end = ipv4("startIp", start_ip), ipv4("endIp", end_ip)
    if gateway is None and not pool:
        raise invalid("gateway", "an IP range for NICs needs a gateway")
    via = start if gateway is None or pool else ipv4("gateway", gateway)
    try:
        network = IPv4Network((int(start), netmask.strip()), strict=False)
    except ValueError:
        raise invalid("netmask", f"{netmask[:255]} is not a netmask") from None
    if start > end:
        raise invalid("startIp", f"start ip[{start}] is behind end ip[{end}]")
    if end not in network:
        raise invalid("endIp", f"start ip[{start}] and end ip[{end}] are not both in the network {network}")
    if not pool:
        _check_for_nics(start, end, via, network)
    return NewRange(start, end, via, network)


def _check_for_nics(start: IPv4Address, end: IPv4Address, gateway: IPv4Address, network: IPv4Network) -> None:
    if gateway not in network:
        raise invalid("gateway", f"gateway[{gateway}] is not in the network {network}")
    if start <= gateway <= end:
        raise invalid("gateway", f"gateway[{gateway}] can not be part of range[{start}, {end}]")
    for edge, what in ((network.network_address, "network"), (network.broadcast_address, "broadcast")):
        if network.prefixlen < 31 and start <= edge <= end:
            raise invalid("startIp", f"the {what} address {edge} can not be part of range[{start}, {end}]")


def ranges_of_cidr(cidr: str, gateway: str | None, pool: bool) -> list[NewRange]:
    """The ranges that a CIDR becomes: everything but network, broadcast and gateway; two when that lies in between."""
    network = any_network("networkCidr", cidr)
    if not isinstance(network, IPv4Network):
        raise invalid("networkCidr", f"{cidr} is not an IPv4 CIDR")
    if network.prefixlen > 29 and not pool:
        raise invalid("networkCidr", f"{network} is too small: it has fewer than 8 addresses; use /29 or larger")
    if pool:
        return [NewRange(network[0], network[-1], network[0], network)]
    first, last = network[1], network[-2]
    via = first if gateway is None else ipv4("gateway", gateway)
    if not first <= via <= last:
        raise invalid("gateway", f"gateway[{via}] is none of {network}'s addresses {first} to {last}")
    parts = ((first, via - 1), (via + 1, last))
    return [NewRange(start, end, via, network) for start, end in parts if start <= end]


def check_reserved(start_ip: str, end_ip: str) -> tuple[Address, Address]:
    """The ends of a range to reserve."""
    start, end = any_ip("startIp", start_ip), any_ip("endIp", end_ip)
    if start.version != end.version or int(start) > int(end):
        raise invalid("startIp", f"start ip[{start}] is behind end ip[{end}]")
    return start, end
