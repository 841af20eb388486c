"""A cluster of real processes that can be broken in every way and mended again.

It is what `make cluster` starts, in a directory of its own and on free ports, but each node reaches database and broker
through a network that can be cut.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fault_proxy
import msgspec

from caelum.cluster import up
from caelum.cluster.layout import ClusterLayout
from caelum.cluster.parts import node, parts, share_authority
from caelum.cluster.provision import ClusterProvisioner
from caelum.kernel import pki
from caelum.onemachine import processes
from caelum.onemachine.access import log_in
from caelum.onemachine.start import answers_ready, start_parts, wait_ready
from caelum.sdk import Client

PROXY = Path(fault_proxy.__file__)
BLOCK = 20
"""Ports that a cluster takes, in one piece."""


def free_block(size: int = BLOCK) -> int:
    """The first of so many neighbouring ports that nobody uses."""
    while True:
        first = random.randrange(20_000, 32_000, size)
        if all(processes.is_free(first + offset) for offset in range(size)):
            return first


class FaultCluster:
    """Three nodes by default; nodes are named by their number from 0."""

    def __init__(self, home: Path, nodes: int = 3, hosts: int = 3) -> None:
        first = free_block()
        self.layout = ClusterLayout(
            home=home, nodes=nodes, hosts=hosts, database_port=first, broker_port=first + 1, control_port=first + 2,
            agent_port=first + 3, api_port=first + 5, callback_port=first + 8, console_port=first + 11,
        )  # fmt: skip
        self._proxy_control = first + 4
        self._links = {("database", one): first + 14 + one for one in range(nodes)}
        self._links |= {("broker", one): first + 17 + one for one in range(nodes)}
        self.client = Client()
        self.resources: dict[str, str] = {}
        """UUIDs of what a VM needs, by parameter of CreateVmInstance."""

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all parts and furnish the cloud."""
        layout = self.layout
        for directory in (layout.logs, layout.run, layout.backup_storage, layout.guest_image.parent):
            directory.mkdir(parents=True, exist_ok=True)
        share_authority(layout)
        shared = [one for one in parts(layout) if one["name"] not in layout.names]
        start_parts(layout, [*shared, self._proxies(), *(self._node(index) for index in range(layout.nodes))])
        self.wait_ready()
        self.client = log_in(*layout.apis)
        up.wait_met(layout, self.client)
        provisioner = ClusterProvisioner(self.client, layout, lambda _text: None)
        provisioner.resources()
        self.resources = provisioner.choices

    def stop(self) -> None:
        """Stop everything; the directory stays."""
        for index in range(self.layout.nodes):
            with contextlib.suppress(OSError, ValueError):
                self.resume(index)
        processes.terminate(self.layout.run / "supervisor.pid", 120)

    def _proxies(self) -> dict[str, Any]:
        targets = {"database": self.layout.database_port, "broker": self.layout.broker_port}
        pairs = [f"{port}:{targets[kind]}" for (kind, _), port in self._links.items()]
        return {"name": "proxies", "command": [sys.executable, str(PROXY), str(self._proxy_control), *pairs]}

    def _node(self, index: int) -> dict[str, Any]:
        database, broker = self._links["database", index], self._links["broker", index]
        part = node(
            self.layout,
            index,
            CAELUM_DATABASE_URL=self.layout.database_url.replace(f":{self.layout.database_port}/", f":{database}/"),
            CAELUM_BUS_URL=self.layout.bus_url.replace(f":{self.layout.broker_port}/", f":{broker}/"),
            CAELUM_METRICS_PUBLIC="true",
        )
        # Under a program of the test's choice, if there is one at the node's start: `env` or `faketime`.
        wrapper = self.wrapper(index)
        group = f"setpriv --regid={self.group(index)} --clear-groups " if Firewall.works() else ""
        part["command"] = ["/bin/sh", "-c", f'exec {group}$(cat {wrapper} 2>/dev/null) "$@"', "sh", *part["command"]]
        return part

    @staticmethod
    def group(index: int) -> int:
        """The group of a node's process, by which a firewall knows its packets."""
        return 61_001 + index

    def wrapper(self, index: int) -> Path:
        """The file whose words are put before a node's command line at its next start."""
        return self.layout.run / f"{self.layout.names[index]}.wrapper"

    # --- looking ------------------------------------------------------------------------------------------------------

    def wait_ready(self, *indices: int) -> None:
        """Wait until these nodes (all by default) are ready, with the hosts."""
        layout = self.layout
        names = {layout.names[one]: one for one in (indices or range(layout.nodes))}
        waits: dict[str, Callable[[], bool]] = {
            name: lambda index=index: answers_ready(f"{layout.api_of(index)}/readyz")  # type: ignore[misc]
            for name, index in names.items()
        }
        waits["hosts"] = lambda: processes.answers((layout.address, layout.control_port))
        wait_ready(layout, waits, {name: self.log(index) for name, index in names.items()})

    def wait_met(self) -> None:
        """Wait until all nodes are ready and know each other."""
        self.wait_ready()
        up.wait_met(self.layout, self.client)

    def log(self, index: int) -> Path:
        """A node's log."""
        return self.layout.data_of(index) / "log" / "server.log"

    def node_uuid(self, index: int) -> str:
        """The UUID that a node has in its present life."""
        with urllib.request.urlopen(f"{self.layout.api_of(index)}/healthz", timeout=5) as answer:
            return str(json.load(answer)["node"])

    def pid(self, index: int) -> int:
        """A node's process."""
        return int((self.layout.run / f"{self.layout.names[index]}.pid").read_text())

    # --- nodes --------------------------------------------------------------------------------------------------------

    def kill(self, index: int) -> None:
        """`kill -9`; its supervisor starts it again."""
        os.kill(self.pid(index), signal.SIGKILL)

    def hold(self, index: int, number: int = signal.SIGKILL) -> None:
        """End a node by a signal and keep it down."""
        self._marker(self.layout.names[index]).touch()
        os.kill(self.pid(index), number)

    def release(self, index: int) -> None:
        """Let a node that was held down start again."""
        self._marker(self.layout.names[index]).unlink(missing_ok=True)

    def pause(self, index: int) -> None:
        """SIGSTOP."""
        os.kill(self.pid(index), signal.SIGSTOP)

    def resume(self, index: int) -> None:
        """SIGCONT."""
        os.kill(self.pid(index), signal.SIGCONT)

    # --- networks -----------------------------------------------------------------------------------------------------

    def cut(self, kind: str, index: int) -> None:
        """Break a node's connections to `database` or `broker`, and refuse new ones."""
        fault_proxy.tell(self._proxy_control, "cut", self._links[kind, index])

    def stall(self, kind: str, index: int) -> None:
        """Let a node's bytes to and from `database` or `broker` go nowhere."""
        fault_proxy.tell(self._proxy_control, "stall", self._links[kind, index])

    def mute(self, kind: str, index: int) -> None:
        """Let a node's bytes to `database` or `broker` go nowhere; what comes from there arrives."""
        fault_proxy.tell(self._proxy_control, "mute", self._links[kind, index])

    def deafen(self, kind: str, index: int) -> None:
        """Let the bytes from `database` or `broker` to a node go nowhere; what it sends arrives."""
        fault_proxy.tell(self._proxy_control, "deafen", self._links[kind, index])

    @contextlib.contextmanager
    def no_way_between_nodes(self) -> Iterator[None]:
        """Lose every packet of a node to a port at which another one listens."""
        layout = self.layout
        listening = (layout.api_port, layout.callback_port, layout.console_port)
        rules = [
            (self.group(one), port + other)
            for one, other in itertools.permutations(range(layout.nodes), 2)
            for port in listening
        ]
        with Firewall(rules):
            yield

    def cut_hosts(self, *indices: int) -> None:
        """Cut these nodes (none: heal) from all hosts, both ways."""
        layout = self.layout
        cuts = [
            {"server": self.node_uuid(one), "callback": f"https://{layout.address}:{layout.callback_port + one}/"}
            for one in indices
        ]
        self.simulator("PUT", "/cut", cuts)

    def heal(self, kind: str, index: int) -> None:
        """Join what was cut or stalled."""
        fault_proxy.tell(self._proxy_control, "heal", self._links[kind, index])

    def mend(self) -> None:
        """End every fault that a test may have left."""
        for index, name in enumerate(self.layout.names):
            self.wrapper(index).unlink(missing_ok=True)
            self.release(index)
            with contextlib.suppress(OSError, ValueError):
                self.resume(index)
            for kind in ("database", "broker"):
                self.heal(kind, index)
            self._marker(name).unlink(missing_ok=True)
        for name in ("postgresql", "rabbitmq"):
            self._marker(name).unlink(missing_ok=True)
        self.simulator("PUT", "/cut", [])
        self.simulator("DELETE", "/faults")

    # --- services -----------------------------------------------------------------------------------------------------

    def restart_service(self, name: str, seconds: float = 0, *, wipe: bool = False) -> None:
        """Kill `postgresql` or `rabbitmq` and start it after `seconds`; `wipe`: without its data."""
        with self._stopped(name):
            time.sleep(seconds)
            if wipe:
                shutil.rmtree(self.layout.home / name / "mnesia")

    @contextlib.contextmanager
    def small_database_disk(self, spare: int) -> Iterator[Path]:
        """Have PostgreSQL on a disk with so many bytes left; its directory. It is restarted before and after."""
        home = self.layout.home / "postgresql"
        aside = home.with_name("postgresql-aside")
        with self._stopped("postgresql"):
            home.rename(aside)
            home.mkdir()
            used = sum(one.stat().st_size for one in aside.rglob("*") if one.is_file())
            words = ["mount", "-t", "tmpfs", "-o", f"size={used + spare},mode=755", "tmpfs"]
            subprocess.run([*words, home], check=True)
            subprocess.run(["cp", "-a", f"{aside}/.", home], check=True)
        try:
            self.wait_service("postgresql")
            yield home
        finally:
            with self._stopped("postgresql"):
                shutil.rmtree(aside)
                subprocess.run(["cp", "-a", f"{home}/.", aside], check=True)
                subprocess.run(["umount", "-l", home], check=True)
                home.rmdir()
                aside.rename(home)
            self.wait_service("postgresql")

    @contextlib.contextmanager
    def _stopped(self, name: str) -> Iterator[None]:
        self._marker(name).touch()
        processes.terminate(self.layout.run / f"{name}.pid", 30)
        yield
        self._marker(name).unlink()

    def wait_service(self, name: str) -> None:
        """Wait until `postgresql` or `rabbitmq` takes connections."""
        port = self.layout.database_port if name == "postgresql" else self.layout.broker_port
        wait_ready(self.layout, {name: lambda: processes.answers((self.layout.address, port))}, {})

    def _marker(self, name: str) -> Path:
        return self.layout.run / f"{name}.stop"

    # --- hosts --------------------------------------------------------------------------------------------------------

    def simulator(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the simulator, see `caelum.simulator.control`."""
        data = None if body is None else msgspec.json.encode(body)
        request = urllib.request.Request(self.layout.control + path, data, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def host_identity(self, kind: str, uuid: str) -> pki.Files:
        """A certificate of the cluster's own authority, as `host` or `server`."""
        directory = self.layout.home / "identities" / uuid
        directory.mkdir(parents=True, exist_ok=True)
        files = pki.Files.in_directory(directory, "own")
        authority = pki.CertificateAuthority.open(self.layout.authority)
        files.authority.write_bytes(authority.certificate_pem)
        pki.store(files, authority.issue(pki.Identity(kind, uuid), [self.layout.address]))  # type: ignore[arg-type]
        return files


class Firewall:
    """`with Firewall([(group, port), ...]):` packets of processes of these groups to these ports get lost."""

    def __init__(self, rules: list[tuple[int, int]]) -> None:
        self._rules = rules

    @staticmethod
    @functools.cache
    def works() -> bool:
        """Whether this machine lets us."""
        if os.geteuid() != 0 or not (shutil.which("iptables") and shutil.which("setpriv")):
            return False
        asked = subprocess.run(["iptables", "-w", "5", "-S", "OUTPUT"], capture_output=True, check=False)
        return asked.returncode == 0

    def __enter__(self) -> None:
        self._tell("-A")

    def __exit__(self, *_: object) -> None:
        self._tell("-D")

    def _tell(self, what: str) -> None:
        for group, port in self._rules:
            words = f"iptables -w 5 {what} OUTPUT -p tcp --dport {port} -m owner --gid-owner {group} -j DROP"
            subprocess.run(words.split(), check=True, capture_output=True)


@contextlib.contextmanager
def fault_cluster(home: Path, **options: Any) -> Iterator[FaultCluster]:
    """A running cluster; after the block nothing of it runs."""
    cluster = FaultCluster(home, **options)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def is_listening(port: int) -> bool:
    """Whether somebody listens at a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
