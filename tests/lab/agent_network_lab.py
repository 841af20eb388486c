"""A network namespace that plays the host, with an agent in it, and namespaces that play guests.

The test's thread moves into the "host" namespace, and threads and programs that it starts follow: the machine's own
interfaces are out of reach.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import aiohttp

from caelum.agent import network
from caelum.agent.core import Agent, AgentConfig
from caelum.agent.protocol import Command, DeleteDhcp
from caelum.agent.registry import handlers
from caelum.kernel.ids import new_uuid

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

MISSING = [program for program in ("dnsmasq", "nft", "ip", "nsenter", "busybox", "curl") if not shutil.which(program)]
RUNS_HERE = os.geteuid() == 0 and not MISSING

DHCP_SCRIPT = """#!/bin/sh
env > "$LEASE_FILE.$1"
if [ "$1" = bound ]; then
  ip addr add "$ip/$mask" dev "$interface"
  [ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
  set -- $staticroutes
  while [ $# -ge 2 ]; do
    ip route add "$1" via "$2" dev "$interface"
    shift 2
  done
fi
"""


class NoReports:
    """Reports go nowhere."""

    agent_uuid = "0" * 32

    def add(self, kind: str, body: dict[str, Any]) -> None: ...

    def send_to(self, url: str, host_uuid: str) -> None: ...


def run(*argv: str, check: bool = True, timeout: float = 20) -> str:
    """A program's output."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode != 0:
        raise AssertionError(f"{argv}: {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


@contextlib.contextmanager
def own_network() -> Iterator[str]:
    """Move the thread into a fresh namespace; yields its name."""
    name = f"lab-{new_uuid()[:8]}"
    run("ip", "netns", "add", name)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    inside = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        assert _libc.setns(inside, _CLONE_NEWNET) == 0
        run("ip", "link", "set", "lo", "up")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("0")  # a new namespace has the machine's value
        yield name
    finally:
        _libc.setns(before, _CLONE_NEWNET)
        os.close(before)
        os.close(inside)
        run("ip", "netns", "delete", name)


class Host:
    """The agent's network half, and what a test needs around it."""

    def __init__(self, state_dir: Path, http: aiohttp.ClientSession) -> None:
        self.agent = Agent(AgentConfig(state_dir=state_dir, tls_dir=state_dir), http, NoReports())
        network.setup(self.agent)
        self.guests: list[Guest] = []
        self.networks: set[str] = set()
        """The L3 networks of the commands: /run/netns is the machine's, and may hold others' too."""

    async def do(self, command: Command[Any]) -> Any:
        """Carry out a command as the server does: under its lock."""
        if hasattr(command, "l3_uuid"):
            self.networks.add(command.l3_uuid)
        found = handlers()[command.path]
        name = found.lock_name(command)
        async with self.agent.lock(name) if name else contextlib.nullcontext():
            return await found.function(self.agent, command)

    async def dump(self) -> dict[str, Any]:
        """What is here."""
        found = await self.agent.hooks.dump[0](self.agent, [])
        for kind in ("dhcp", "metadata"):
            found[kind] = {uuid: content for uuid, content in found[kind].items() if uuid in self.networks}
        return found

    def guest(self, port: str, bridge: str | None, mac: str, folder: Path) -> Guest:
        """A fake guest behind a bridge port."""
        guest = Guest(port, bridge, mac, folder)
        self.guests.append(guest)
        return guest


class Guest:
    """A namespace with one interface, whose other end is a port of a bridge."""

    def __init__(self, port: str, bridge: str | None, mac: str, folder: Path) -> None:
        self.port, self.mac = port, mac
        self.name = f"guest-{new_uuid()[:8]}"
        self.lease_file = folder / f"{self.name}.lease"
        self.script = folder / "dhcp.sh"
        self.script.write_text(DHCP_SCRIPT)
        self.script.chmod(0o755)
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        self.run("ip", "link", "set", "eth0", "address", mac, "up")
        self.run("ip", "link", "set", "lo", "up")
        if bridge:
            run("ip", "link", "set", port, "master", bridge)
        run("ip", "link", "set", port, "up")

    def run(self, *argv: str, check: bool = True, timeout: float = 20) -> str:
        """Run a program in the guest."""
        return run("nsenter", f"--net=/run/netns/{self.name}", "--", *argv, check=check, timeout=timeout)

    def dhcp(self, tries: int = 4) -> dict[str, str]:
        """Ask for a lease; the variables that the client got, empty without one."""
        self.run("ip", "addr", "flush", "dev", "eth0")
        bound = Path(f"{self.lease_file}.bound")
        bound.unlink(missing_ok=True)
        argv = [
            "busybox",
            "udhcpc",
            "-i",
            "eth0",
            "-f",
            "-n",
            "-q",
            "-t",
            str(tries),
            "-T",
            "1",
            "-s",
            str(self.script),
        ]
        options = ["-O", "staticroutes", "-O", "mtu", "-O", "hostname", "-O", "search"]
        self.run("env", f"LEASE_FILE={self.lease_file}", *argv, *options, check=False, timeout=30)
        if not bound.exists():
            return {}
        return dict(line.split("=", 1) for line in bound.read_text().splitlines() if "=" in line)

    def get(self, url: str) -> str | None:
        """A page, or None when it is not there."""
        out = self.run("curl", "-s", "-m", "5", "-w", "\n%{http_code}", url, check=False)
        body, _, code = out.rpartition("\n")
        return body if code == "200" else None

    def pings(self, ip: str) -> bool:
        """Whether an address answers."""
        return "1 received" in self.run("ping", "-c", "1", "-W", "1", ip, check=False)

    def remove(self) -> None:
        """Take the guest away."""
        run("ip", "link", "delete", self.port, check=False)
        run("ip", "netns", "delete", self.name)


@contextlib.asynccontextmanager
async def host(folder: Path) -> AsyncIterator[Host]:
    """A host in a namespace of its own; afterwards nothing of it is left."""
    with own_network():
        async with aiohttp.ClientSession() as http:
            one = Host(folder / "state", http)
            try:
                yield one
            finally:
                for guest in one.guests:
                    guest.remove()
                for l3_uuid in list(one.networks):
                    await one.do(DeleteDhcp(l3_uuid=l3_uuid, bridge="none"))
                await one.agent.close()


def links(name: str) -> dict[str, Any]:
    """What `ip` shows of an interface."""
    return cast("dict[str, Any]", json.loads(run("ip", "-d", "-j", "link", "show", name))[0])


def addresses(name: str) -> list[str]:
    """An interface's addresses."""
    shown = json.loads(run("ip", "-j", "addr", "show", name))[0]
    return [f"{one['local']}/{one['prefixlen']}" for one in shown["addr_info"]]
