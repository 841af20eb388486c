"""dnsmasq for one L3 network: its files, and the process.

Invariant: the files are a function of the `ApplyDhcp` that is remembered. A changed configuration restarts the server;
everything else is re-read on SIGHUP. Leases are fixed and live in the server's memory only, so a restart forgets
nothing that matters, and clients do not notice it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from enum import Enum, auto
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from caelum.agent.network import names, namespaces, processes, state
from caelum.agent.protocol import NETWORK, ApplyDhcp, DhcpEntry

if TYPE_CHECKING:
    from caelum.agent.core import Agent

RUN_DIR = Path("/run/caelum-network")
"""Readable by the user that dnsmasq becomes, unlike the agent's state; gone after a boot, as the processes are."""
LEASE_SECONDS = 12 * 3600
"""How long until a guest asks again and so learns of changed options."""

_OTHER = "other"
"""Tag of the guests for which the network is not the default one."""
_DEFAULT = f"!{_OTHER}"


class Change(Enum):
    """What makes a running server take notice of its files."""

    NONE = auto()
    RELOAD = auto()
    RESTART = auto()


class Taken(msgspec.Struct, frozen=True):
    """Digests of the files that the running server has taken notice of.

    Comparing with the files themselves would miss those that an agent wrote just before it died.
    """

    config: str
    rest: str


class Dnsmasq:
    """The server of one L3 network, with its files in `folder`."""

    def __init__(self, l3_uuid: str) -> None:
        self.folder = RUN_DIR / names.uuid(l3_uuid)
        self.namespace = names.namespace(l3_uuid)
        self.config = self.folder / "dnsmasq.conf"
        self.pid_file = self.folder / "dnsmasq.pid"
        self._taken = self.folder / "taken"
        self._written: Taken | None = None

    @property
    def _word(self) -> str:
        return f"--conf-file={self.config}"

    def pid(self) -> int | None:
        """The running server's pid."""
        return processes.running(self.pid_file, self._word)

    def write(self, cmd: ApplyDhcp, *, reaches_gateway: bool) -> Change:
        """Write all files; tells what the server needs to take notice."""
        self.folder.mkdir(parents=True, exist_ok=True)
        options = options_text(cmd, reaches_gateway=reaches_gateway)
        texts = {"hosts.dhcp": hosts_text(cmd.entries), "hosts.dns": names_text(cmd), "options": options}
        config = config_text(cmd, self.folder)
        for name, text in texts.items():
            state.write(self.folder / name, text.encode())
        state.write(self.config, config.encode())
        self._written = Taken(config=_digest(config), rest=_digest(*texts.values()))
        taken = state.read(self._taken, Taken)
        if taken is None or taken.config != self._written.config:
            return Change.RESTART
        return Change.NONE if taken == self._written else Change.RELOAD

    def forget(self) -> None:
        """Remove all files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    async def settle(self, agent: Agent, change: Change) -> bool:
        """Have the server run with the files as they are; tells whether it was started."""
        pid = await agent.run_blocking(self.pid)
        starts = pid is None or change is Change.RESTART
        if pid is not None and starts:
            await processes.stop(agent, [pid])
        if starts:
            argv = ["dnsmasq", self._word]
            await agent.run(namespaces.command(self.namespace, argv), timeout=20, error_code=NETWORK)
        elif pid is not None and change is Change.RELOAD:
            os.kill(pid, signal.SIGHUP)
        if self._written is not None:
            await agent.run_blocking(state.write, self._taken, msgspec.json.encode(self._written))
        return starts


def config_text(cmd: ApplyDhcp, folder: Path) -> str:
    """The configuration: what only a restart changes."""
    net = names.network(f"{cmd.server_ip}/{cmd.netmask}")
    lines = [
        "port=53", "user=nobody", "no-hosts", "no-resolv", "no-poll", "no-ping", "bogus-priv",
        "domain-needed", "expand-hosts", "bind-interfaces",
        f"interface={names.SERVER_INTERFACE}", "except-interface=lo",
        "dhcp-authoritative", "leasefile-ro", "dhcp-lease-max=65535", "quiet-dhcp",
        # Another network's guests on the same bridge would be told that their address is wrong.
        "dhcp-ignore=tag:!known",
        f"dhcp-range={net.network_address},static,{net.netmask},{LEASE_SECONDS}",
        f"dhcp-hostsfile={folder / 'hosts.dhcp'}", f"dhcp-optsfile={folder / 'options'}",
        f"addn-hosts={folder / 'hosts.dns'}", f"pid-file={folder / 'dnsmasq.pid'}",
        f"log-facility={folder / 'dnsmasq.log'}", "cache-size=1000",
    ]  # fmt: skip
    lines += sorted(f"dhcp-mac=set:{_OTHER},{names.mac(one.mac)}" for one in cmd.entries if not one.is_default)
    if cmd.domain:
        domain = names.hostname(cmd.domain)
        lines += [f"domain={domain}", f"local=/{domain}/"]
    if cmd.forward_dns:
        lines += [f"server={server}" for server in _strangers(cmd)]
    return "".join(f"{line}\n" for line in lines)


def hosts_text(entries: list[DhcpEntry]) -> str:
    """The fixed leases. No tags: dnsmasq 2.86 to 2.90 crashes on SIGHUP when a client with a tag here has a lease."""
    lines = [
        f"{names.mac(one.mac)},{names.address(one.ip)},{names.hostname(one.hostname)}\n"
        for one in sorted(entries, key=lambda one: one.mac)
    ]
    return "".join(lines)


def names_text(cmd: ApplyDhcp) -> str:
    """The names that are answered: every guest's, short and (by expand-hosts) with the domain."""
    ordered = sorted(cmd.entries, key=lambda one: one.ip)
    return "".join(f"{names.address(one.ip)} {names.hostname(one.hostname)}\n" for one in ordered)


def options_text(cmd: ApplyDhcp, *, reaches_gateway: bool) -> str:
    """The DHCP options by tag. An option without value is one that is kept from the guest."""
    gateway = str(names.address(cmd.gateway)) if cmd.gateway else ""
    host_routes = [f"{names.network(one.prefix)},{names.address(one.nexthop)}" for one in cmd.host_routes]
    resolvers = name_servers(cmd, reaches_gateway=reaches_gateway)
    lines = [
        f"tag:{_DEFAULT},option:router{_values([gateway] if gateway else [])}",
        f"tag:{_DEFAULT},option:dns-server{_values(resolvers)}",
        f"tag:{_OTHER},option:router",
        f"tag:{_OTHER},option:dns-server",
        f"option:mtu,{cmd.mtu}",
        *_routes(_DEFAULT, default_routes(cmd, host_routes, gateway)),
        *_routes(_OTHER, host_routes),
    ]
    return "".join(f"{line}\n" for line in lines)


def name_servers(cmd: ApplyDhcp, *, reaches_gateway: bool) -> list[str]:
    """What a guest asks for names.

    The local server knows the network's guests. It stands alone when it can forward; when it has no way out, it
    refuses strangers' names at once and the guest goes on to the next server of its list.
    """
    if not cmd.forward_dns:
        return [str(names.address(server)) for server in cmd.dns]
    return [cmd.server_ip] if reaches_gateway else [cmd.server_ip, *_strangers(cmd)]


def _strangers(cmd: ApplyDhcp) -> list[str]:
    """The given name servers but this one, which may be among them."""
    return [str(names.address(server)) for server in cmd.dns if server != cmd.server_ip]


def default_routes(cmd: ApplyDhcp, host_routes: list[str], gateway: str) -> list[str]:
    """The classless routes where the network is the default one: a client that takes them ignores the router option."""
    metadata = [f"{names.METADATA_IP}/32,{cmd.server_ip}"] if cmd.metadata else []
    routes = [*metadata, *host_routes]
    has_default = any(IPv4Network(route.split(",")[0]).prefixlen == 0 for route in routes)
    return [*routes, f"0.0.0.0/0,{gateway}"] if routes and gateway and not has_default else routes


def _routes(tag: str, routes: list[str]) -> list[str]:
    """Option 121, and 249 for clients that only know Microsoft's number."""
    return (
        [f"tag:{tag},{number}{_values(routes)}" for number in ("option:classless-static-route", "249")]
        if routes
        else []
    )


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _values(values: list[str]) -> str:
    return "".join(f",{value}" for value in values)
