"""Names of what the agent makes in the kernel, and the shapes that names from outside must have.

Invariant: a name here is derived from a UUID alone, so that every part of the agent, and the next agent after a
restart, finds the same objects. Nothing that came over the wire reaches a file name or a configuration unchecked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError

from caelum.agent.protocol import INVALID, NETWORK
from caelum.agent.registry import AgentFailure

METADATA_IP = "169.254.169.254"
SERVER_INTERFACE = "eth0"
"""The DHCP server's interface inside its namespace."""

_UUID = re.compile(r"[0-9a-f]{32}")
_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOSTNAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")


def invalid(what: str, value: object) -> AgentFailure:
    """The failure for a field that does not have its shape."""
    return AgentFailure(INVALID, f"{what} {value!r} is not valid", field=what, value=str(value))


def failure(details: str, *, transient: bool = False, **facts: object) -> AgentFailure:
    """A failure of the host's networking."""
    return AgentFailure(NETWORK, details, transient=transient, **facts)


def uuid(text: str) -> str:
    """`text` if it is a UUID as the wire has them."""
    if not _UUID.fullmatch(text):
        raise invalid("uuid", text)
    return text


def interface(text: str) -> str:
    """`text` if it can name a network interface."""
    if not _INTERFACE.fullmatch(text):
        raise invalid("interface name", text)
    return text


def mac(text: str) -> str:
    """`text` as a lower-case MAC address."""
    if not _MAC.fullmatch(text.lower()):
        raise invalid("mac", text)
    return text.lower()


def hostname(text: str) -> str:
    """`text` if it is a host or domain name."""
    if not _HOSTNAME.fullmatch(text):
        raise invalid("hostname", text)
    return text


def address(text: str) -> IPv4Address:
    """`text` as an IPv4 address."""
    try:
        return IPv4Address(text)
    except AddressValueError:
        raise invalid("address", text) from None


def network(text: str) -> IPv4Network:
    """`text`, such as 10.0.0.0/24 or 10.0.0.1/255.255.255.0, as the network that it lies in."""
    try:
        return IPv4Network(text, strict=False)
    except (AddressValueError, NetmaskValueError, ValueError):
        raise invalid("network", text) from None


def namespace(l3_uuid: str) -> str:
    """The network namespace that serves an L3 network."""
    return f"caelum-{uuid(l3_uuid)}"


def server_port(l3_uuid: str) -> str:
    """The bridge port behind which an L3 network's server sits; 14 characters."""
    return f"cd{uuid(l3_uuid)[:12]}"


def nat_table(l3_uuid: str) -> str:
    """The nftables table that translates an L3 network's addresses."""
    return f"caelum-nat-{uuid(l3_uuid)}"


def tap_table(tap: str) -> str:
    """The nftables table that guards a tap."""
    return f"caelum-tap-{interface(tap)}"


def fixed_mac(*parts: str) -> str:
    """A locally administered MAC address, always the same for the same parts.

    The kernel's own choice would change with each rebuild, and guests would talk to the old one until their ARP
    caches expire.
    """
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def listed(words: Iterable[object]) -> str:
    """Words for an error text."""
    return ", ".join(str(word) for word in words) or "none"
