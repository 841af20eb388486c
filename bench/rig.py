"""What is measured: a server and simulated hosts as processes of their own, and what they use of the machine.

The server runs as an operator would start it, with its default durability; only addresses and ports are its own.
Nothing is left behind: both processes end and their directory goes when a `Rig` is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from api import Api

from caelum.cluster.postgres import Postgres
from caelum.cluster.rabbitmq import RabbitMq
from caelum.kernel import pki

TIMEOUT = 180.0
_LAGS = re.compile(r"caelum_loop_lag_(sampled|own)_seconds_bucket")
_SAMPLE = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$")


class Usage(NamedTuple):
    """Processor seconds of each process, and what the server did, since its start."""

    server: float
    simulator: float
    load: float
    statements: float
    transactions: float
    lags: dict[float, float]
    own_lags: dict[float, float]
    shared: float = 0.0
    """Processor seconds of the database's and the broker's processes, in a cluster."""
    messages: float = 0.0
    """What the nodes sent over the broker."""

    def since(self, before: Usage) -> Usage:
        """What was used after `before`."""
        return Usage(
            self.server - before.server,
            self.simulator - before.simulator,
            self.load - before.load,
            self.statements - before.statements,
            self.transactions - before.transactions,
            _counted_since(self.lags, before.lags),
            _counted_since(self.own_lags, before.own_lags),
            self.shared - before.shared,
            self.messages - before.messages,
        )

    def lag(self, share: float) -> float:
        """The upper bound, in ms, of the event loop's lag in this share of the time."""
        return _quantile(self.lags, share) * 1000

    def own_lag(self, share: float) -> float:
        """The same without the time for which other programs had the processors."""
        return _quantile(self.own_lags, share) * 1000


def _counted_since(lags: dict[float, float], before: dict[float, float]) -> dict[float, float]:
    return {bound: count - before.get(bound, 0) for bound, count in lags.items()}


def _quantile(lags: dict[float, float], share: float) -> float:
    total = max(lags.values(), default=0.0)
    return next((bound for bound, count in sorted(lags.items()) if count >= total * share), 0.0)


class Process:
    """A program that was started, until it is stopped."""

    def __init__(self, command: list[str], ready: str, environment: dict[str, str] | None = None) -> None:
        begun = time.perf_counter()
        self._command = " ".join(command)
        self._process = subprocess.Popen(
            command, env=os.environ | (environment or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.pid = self._process.pid
        self.line = self._wait(ready)
        self.seconds_to_ready = time.perf_counter() - begun

    def _wait(self, ready: str) -> str:
        said = []
        for line in self._process.stdout or ():
            if ready in line:
                return line
            said.append(line)
        raise SystemExit(f"{self._command} ended before it was ready:\n{''.join(said[-20:])}")

    def stop(self) -> None:
        """End it in order."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(TIMEOUT)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def processor_seconds(self) -> float:
        """What it has used."""
        return processor_seconds(self.pid)

    def megabytes(self, field: str = "VmRSS") -> float:
        """Its resident memory; `VmHWM` for the most that it ever had."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
        raise ValueError(f"process {self.pid} has no {field}")


def processor_seconds(pid: int, *, family: bool = False) -> float:
    """What a process has used; with its children, those that live and those that it has waited for, as `family`."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    used = sum(int(one) for one in fields[11 : 15 if family else 13]) / os.sysconf("SC_CLK_TCK")
    if not family:
        return used
    children = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return used + sum(_unless_gone(one) for one in children)


def _unless_gone(pid: int) -> float:
    try:
        return processor_seconds(pid)
    except OSError:
        return 0.0


class Rig:
    """A server and its simulated hosts; `keep` is a directory that outlives them."""

    def __init__(self, hosts: int, keep: Path | None = None) -> None:
        self.hosts = hosts
        self.directory = keep or Path(tempfile.mkdtemp(prefix="caelum-bench-"))
        self._keep = keep is not None
        self.api: Api
        self.server: Process
        self.simulator: Process
        self.agent_port = self.control_port = 0

    async def __aenter__(self) -> Rig:
        try:
            await self.start_server()
            self.start_simulator()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start_server(self) -> None:
        """Start a server on this rig's directory and log in."""
        self.server, self.api = await started("server", self.directory / "server", {})

    def start_simulator(self) -> None:
        """Start the simulated hosts."""
        command = [sys.executable, "-m", "caelum.cli.main", "simulator", "--hosts", str(self.hosts)]
        command += ["--listen", f"127.1.0.1:{self.agent_port}", "--control", f"127.0.0.1:{self.control_port}"]
        command += ["--tls-dir", str(self.directory / "server" / "pki")]
        self.simulator = Process(command, " hosts from ")
        agent, control = re.findall(r":(\d+)", self.simulator.line)
        self.agent_port, self.control_port = int(agent), int(control)

    async def stop_server(self) -> None:
        """End the server in order."""
        await self.api.close()
        await asyncio.to_thread(self.server.stop)

    async def close(self) -> None:
        """End everything."""
        if hasattr(self, "api"):
            await self.api.close()
        for one in ("server", "simulator"):
            process = getattr(self, one, None)
            if process is not None:
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    await asyncio.to_thread(process.stop)
        if not self._keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    async def usage(self) -> Usage:
        """What has been used until now."""
        return await self._of(self.server, self.api)

    async def _of(self, server: Process, api: Api) -> Usage:
        own = resource.getrusage(resource.RUSAGE_SELF)
        values: dict[str, float] = {}
        lags: dict[str, dict[float, float]] = {"sampled": {}, "own": {}}
        for name, labels, value in samples(await api.text("/metrics")):
            if found := _LAGS.fullmatch(name):
                lags[found[1]][float(labels.partition('le="')[2].rstrip('"'))] = value
            elif not labels:
                values[name] = value
        return Usage(
            server.processor_seconds(),
            self.simulator.processor_seconds() if hasattr(self, "simulator") else 0.0,
            own.ru_utime + own.ru_stime,
            values["caelum_database_statements_total"],
            values["caelum_database_transactions_total"],
            lags["sampled"],
            lags["own"],
            messages=values["caelum_bus_sent_total"],
        )


class ClusterRig(Rig):
    """So many management nodes with a PostgreSQL and a RabbitMQ of their own; `apis` are the nodes' addresses."""

    def __init__(self, hosts: int, nodes: int) -> None:
        super().__init__(hosts)
        self._nodes = nodes
        self.servers: list[Process] = []
        self.apis: list[Api] = []
        self._postgres = Postgres(self.directory / "postgresql")
        self._rabbitmq = RabbitMq(self.directory / "rabbitmq")

    async def start_server(self) -> None:
        """Start what the nodes share, then the nodes, one after the other."""
        for one in (self._postgres, self._rabbitmq):
            one.directory.mkdir(parents=True, exist_ok=True)
            await one.start()
        pki.CertificateAuthority.open(self.directory / "server" / "pki")
        shared = {"CAELUM_DATABASE_URL": self._postgres.url, "CAELUM_BUS_URL": self._rabbitmq.url}
        for number in range(self._nodes):
            directory = self.directory / ("server" if number == 0 else f"server{number + 1}")
            if number:
                shutil.copytree(self.directory / "server" / "pki", directory / "pki")
            server, api = await started(f"node {number + 1}", directory, shared)
            self.servers.append(server)
            self.apis.append(api)
        self.server, self.api = self.servers[0], self.apis[0]

    async def close(self) -> None:
        """End the nodes before what they share."""
        for api in self.apis[1:]:
            await api.close()
        for server in self.servers[1:]:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                await asyncio.to_thread(server.stop)
        keep, self._keep = self._keep, True
        await super().close()
        for one in (self._rabbitmq, self._postgres):
            await one.stop()
        if not keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    async def usage(self) -> Usage:
        """What the nodes have used together; of lags, the first node's."""
        own = await super().usage()
        others = [await self._of(server, api) for server, api in zip(self.servers[1:], self.apis[1:], strict=True)]
        return own._replace(
            server=own.server + sum(one.server for one in others),
            statements=own.statements + sum(one.statements for one in others),
            transactions=own.transactions + sum(one.transactions for one in others),
            messages=own.messages + sum(one.messages for one in others),
            shared=sum(processor_seconds(one.pid, family=True) for one in (self._postgres, self._rabbitmq)),
        )


async def started(what: str, directory: Path, environment: dict[str, str]) -> tuple[Process, Api]:
    """A server that is ready, and a session with it."""
    environment = environment | {
        "CAELUM_AGENT_LISTEN_PORT": "0", "CAELUM_AGENT_LISTEN_HOST": "127.0.0.1",
        "CAELUM_ADVERTISED_HOST": "127.0.0.1",
        "CAELUM_CONSOLE_PORT": "0", "CAELUM_CONSOLE_HOST": "127.0.0.1", "CAELUM_METRICS_PUBLIC": "true",
    }  # fmt: skip
    command = [sys.executable, "-m", "caelum.cli.main", "server", "--data-dir", str(directory)]
    command += ["--api-host", "127.0.0.1", "--api-port", "0"]
    server = await asyncio.to_thread(Process, command, "caelum is ready", environment)
    address = re.search(r"http://[\w.:]+", server.line)
    assert address is not None, f"{what}: {server.line}"
    api = Api(address[0])
    await api.login()
    return server, api


def samples(text: str) -> list[tuple[str, str, float]]:
    """The samples of a page of metrics: name, labels, value."""
    found = (_SAMPLE.match(line) for line in text.splitlines())
    return [(one[1], one[2] or "", float(one[3])) for one in found if one]
