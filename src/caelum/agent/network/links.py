"""The kernel's links, addresses and routes, by netlink.

Invariant: every function here says what is to be, not what to do: called twice, the second call changes nothing.
All of it blocks for a few milliseconds: call it through `agent.run_blocking`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import msgspec
from pyroute2 import IPRoute  # type: ignore[import-untyped]
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

from caelum.agent.network import names

_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17
_UP = 1


class Link(msgspec.Struct, frozen=True):
    """A network interface as the kernel has it."""

    index: int
    name: str
    kind: str | None
    alias: str
    master: int | None
    mtu: int
    mac: str | None
    up: bool


class Links:
    """One netlink conversation, in the calling thread's network namespace."""

    def __init__(self, route: IPRoute) -> None:
        self._route = route

    def all(self) -> list[Link]:
        """Every interface."""
        return [_link(message) for message in self._route.link("dump")]

    def find(self, name: str) -> Link | None:
        """The interface with this name."""
        try:
            return _link(self._route.link("get", ifname=name)[0])
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise

    def get(self, name: str) -> Link:
        """The interface with this name; NETWORK failure that lists what there is."""
        link = self.find(name)
        if link is None:
            present = sorted(one.name for one in self.all())
            raise names.failure(
                f"there is no interface {name}; there are {names.listed(present)}", interface=name, present=present
            )
        return link

    def ports(self, bridge: Link) -> list[Link]:
        """The interfaces in a bridge."""
        return [link for link in self.all() if link.master == bridge.index]

    def add_bridge(self, name: str, mac: str) -> Link:
        """A bridge that forwards at once and keeps its MAC address whatever ports come and go."""
        self._route.link("add", ifname=name, kind="bridge", br_stp_state=0, br_forward_delay=0, address=mac)
        return self.get(name)

    def add_veth(self, name: str, peer: str, namespace_fd: int, mac: str) -> Link:
        """A veth pair whose other end is `peer` inside the namespace."""
        self._route.link(
            "add", ifname=name, kind="veth", peer={"ifname": peer, "net_ns_fd": namespace_fd, "address": mac}
        )
        return self.get(name)

    def change(self, link: Link, **wanted: Any) -> None:
        """Set attributes (mtu, master, ifalias, state, address ...)."""
        self._route.link("set", index=link.index, **wanted)

    def remove(self, name: str) -> None:
        """Delete an interface; nothing to do if there is none."""
        link = self.find(name)
        if link is not None:
            self._route.link("del", index=link.index)

    def addresses(self, link: Link) -> list[str]:
        """An interface's addresses with prefix length, without IPv6 link-local ones."""
        found = []
        for message in self._route.get_addr(index=link.index):
            text = message.get("local") or message.get("address")
            if text and not text.lower().startswith("fe80"):
                found.append(f"{text}/{message['prefixlen']}")
        return found

    def networks(self) -> dict[str, list[str]]:
        """Addresses by interface name."""
        return {link.name: self.addresses(link) for link in self.all()}

    def add_address(self, link: Link, address: IPv4Interface) -> None:
        """Give an interface an address."""
        self._route.addr("replace", index=link.index, address=str(address.ip), prefixlen=address.network.prefixlen)

    def remove_address(self, link: Link, address: str) -> None:
        """Take an address from an interface; nothing to do if it does not have it."""
        if address in self.addresses(link):
            ip, _, length = address.partition("/")
            self._route.addr("del", index=link.index, address=ip, prefixlen=int(length))

    def set_addresses(self, link: Link, wanted: list[IPv4Interface]) -> None:
        """Make an interface have exactly these addresses."""
        for extra in set(self.addresses(link)) - {str(one) for one in wanted}:
            self.remove_address(link, extra)
        for one in wanted:
            self.add_address(link, one)

    def set_default_route(self, gateway: str | None) -> None:
        """Make `gateway` the only default route, or have none."""
        if gateway is not None:
            self._route.route("replace", dst="default", gateway=gateway)
            return
        for message in self._route.get_default_routes(family=socket.AF_INET):
            self._route.route("del", dst="default", gateway=message.get("gateway"))


@contextmanager
def netlink() -> Iterator[Links]:
    """A netlink conversation; the kernel's refusals become NETWORK failures."""
    try:
        with IPRoute() as route:
            yield Links(route)
    except NetlinkError as error:
        raise names.failure(f"the kernel refused: {error}", errno=error.code) from error


def sysctl(path: str, value: str) -> None:
    """Set a kernel parameter of the thread's network namespace; one that the kernel lacks is left out."""
    file = Path("/proc/sys/net") / path
    if file.exists() and file.read_text().strip() != value:
        file.write_text(value)


def read_sysctl(path: str) -> str:
    """A kernel parameter of the thread's network namespace."""
    return (Path("/proc/sys/net") / path).read_text().strip()


def silence(name: str) -> None:
    """Keep the host's own IP stack off an interface that belongs to guests: no IPv6, no ARP for other addresses."""
    sysctl(f"ipv6/conf/{name}/disable_ipv6", "1")
    sysctl(f"ipv4/conf/{name}/arp_ignore", "1")


def fill_checksums(name: str) -> None:
    """Have checksums computed in software: DHCP clients on raw sockets drop packets with the ones left to hardware."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        value = bytearray(struct.pack("II", _ETHTOOL_STXCSUM, 0))
        buffer = (memoryview(value), struct.pack("16s", name.encode()))
        _ethtool(handle, *buffer)


def _ethtool(handle: socket.socket, value: memoryview, name: bytes) -> None:
    data = (ctypes.c_char * len(value)).from_buffer(value)
    fcntl.ioctl(handle, _SIOCETHTOOL, name + struct.pack("P", ctypes.addressof(data)) + b"\0" * 16)


def _link(message: Any) -> Link:
    return Link(
        index=message["index"],
        name=message.get("ifname"),
        kind=message.get(("linkinfo", "kind")),
        alias=message.get("ifalias") or "",
        master=message.get("master"),
        mtu=message.get("mtu"),
        mac=message.get("address"),
        up=bool(message["flags"] & _UP),
    )
