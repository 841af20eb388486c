"""A real agent process is brought to another version by a server, and falls back when that version does not come up.

Its program is the true one but for the parts that need libvirt, in whose place it has `BARE_HOST`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest
from tests.service.host_clouds import SERVICES, HostCloud, QuickKvmService

import caelum
from caelum.agent import protocol as p
from caelum.agent.program import FOLDER, Programs
from caelum.cloud.host.api import HostInventory, ReconnectHost
from caelum.drivers.kvm import program
from caelum.drivers.kvm.api import AddKVMHost
from caelum.drivers.kvm.settings import AGENT_PORT
from caelum.kernel import pki
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid

A = TypeVar("A")
OLD, NEW = "0.0.1", "0.0.2"
PACKAGE = Path(caelum.__file__).parent
BARE_HOST = """
import caelum
from caelum.agent import protocol as p
from caelum.agent.program import HOST_LOCK, proving
from caelum.agent.registry import handler

FACTS = p.HostFacts(
    hostname="h", os_distribution="d", os_version="1", kernel_version="1", architecture="x86_64", cpu_model="m",
    cpu_num=4, cpu_sockets=1, cpu_mhz=1000, total_memory=1 << 33, libvirt_version="1", qemu_version="1",
    hypervisor="tcg", ip_addresses=[],
)

@handler(p.ConnectHost, lock=HOST_LOCK)
async def connect(agent, cmd):
    async with proving(agent):
        return await adopt(agent, cmd)

async def adopt(agent, cmd):
    agent.report_to(cmd.report_url, cmd.host_uuid)
    return p.ConnectHostAnswer(
        agent_uuid=agent.uuid, version=caelum.__version__, protocol=p.PROTOCOL_VERSION, facts=FACTS, vm_states={},
        unknown_domains=[],
    )

@handler(p.Ping)
async def ping(agent, cmd):
    return p.PingAnswer(
        host_uuid=agent.host_uuid, agent_uuid=agent.uuid, version=caelum.__version__, vm_states={}
    )
"""


def make_program(directory: Path, version: str, *, at_start: str = "") -> Path:
    """A package of this version for hosts without libvirt; `at_start` runs before anything else of the agent."""
    package = directory / "caelum"
    for part in ("agent", "kernel"):
        shutil.copytree(PACKAGE / part, package / part, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").write_text(f'__version__ = "{version}"\n')
    (package / "agent" / "bare.py").write_text(BARE_HOST)
    _change(
        package / "agent" / "core.py", r"MODULES = \(.*?\n\)", 'MODULES = ("caelum.agent.program", "caelum.agent.bare")'
    )
    _change(package / "agent" / "program.py", r"LISTEN_SECONDS = 30", "LISTEN_SECONDS = 3")
    _change(
        package / "agent" / "main.py",
        r"from caelum.agent import program\n",
        f"{at_start}\nfrom caelum.agent import program\n",
    )
    return package


def _change(path: Path, old: str, new: str) -> None:
    text, number = re.subn(old, lambda _: new, path.read_text(), count=1, flags=re.DOTALL)
    assert number == 1, f"{path.name} has no {old}"
    path.write_text(text)


class AgentProcess:
    """An installed agent under a supervisor that starts it again when it ends."""

    def __init__(self, directory: Path, authority: pki.CertificateAuthority) -> None:
        self.uuid, self.state = new_uuid(), directory / "state"
        self.starts = 0
        self.pid = 0
        self._installed, self._tls = directory / "installed", directory / "tls"
        self._tls.mkdir()
        files = pki.Files(*(self._tls / name for name in ("tls.crt", "tls.key", "ca.crt")))
        pki.store(files, authority.issue(pki.Identity("host", self.uuid), ["127.0.0.1"]))
        files.authority.write_bytes(authority.certificate_pem)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def install(self, version: str) -> None:
        """Have this version be the installed one at the next start."""
        shutil.rmtree(self._installed, ignore_errors=True)
        make_program(self._installed, version)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """It runs during the block."""
        task = asyncio.create_task(self._supervise())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _supervise(self) -> None:
        while True:
            self.starts += 1
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "caelum.agent.main", "--state-dir", str(self.state),
                "--tls-dir", str(self._tls), "--listen", f"127.0.0.1:{self.port}",
                env={**os.environ, "PYTHONPATH": str(self._installed)},
            )  # fmt: skip
            self.pid = process.pid
            try:
                await process.wait()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


class Site:
    """A server of version `NEW`, and an agent."""

    def __init__(self, cloud: HostCloud, agent: AgentProcess) -> None:
        self.cloud, self.agent = cloud, agent

    async def add(self) -> HostInventory:
        """Add the host."""
        await self._listening()
        host = AddKVMHost(
            name="h", management_ip="127.0.0.1", cluster_uuid=self.cloud.cluster.uuid, username="root", password="x"
        )
        return await self.cloud.api(host, timeout=60)

    async def reconnect(self) -> None:
        """Connect the host anew, once its agent listens."""
        await self._listening()
        await self.cloud.api(ReconnectHost(uuid=self.agent.uuid), timeout=60)

    async def kill_agent(self) -> None:
        """`kill -9`; its supervisor starts it again."""
        starts = self.agent.starts
        os.kill(self.agent.pid, signal.SIGKILL)
        await self.cloud.until(lambda: self.agent.starts > starts)

    async def _listening(self) -> None:
        async def listens() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.agent.port)
            except OSError:
                return False
            writer.close()
            return True

        await self.cloud.until(listens, 30)

    async def ping(self) -> p.PingAnswer:
        """Ask the agent itself."""
        return await self._run(p.Ping())

    async def connect(self) -> p.ConnectHostAnswer:
        """Have the agent be connected, without what a server does about its version."""
        agents = self.cloud.node.services["kvm"].agents  # type: ignore[attr-defined]
        return await self._run(p.ConnectHost(host_uuid=self.agent.uuid, report_url=agents.report_url))

    async def _run(self, command: p.Command[A]) -> A:
        agents = self.cloud.node.services["kvm"].agents  # type: ignore[attr-defined]
        answer: A = await agents.client.run(agents.address(self.agent.uuid, "127.0.0.1"), command, 5)
        return answer


@contextlib.asynccontextmanager
async def site(directory: Path, monkeypatch: pytest.MonkeyPatch, *, at_start: str = "") -> AsyncIterator[Site]:
    """`at_start` is what the server's version of the agent does first."""
    newer = make_program(directory / "newer", NEW, at_start=at_start)
    monkeypatch.setattr(caelum, "__version__", NEW)
    monkeypatch.setattr(program, "pack", lambda _package, pack=program.pack: pack(newer))
    monkeypatch.setattr(program, "_RESTART_SECONDS", 30.0)
    async with HostCloud(directory / "cloud", services=[*SERVICES], drivers=[QuickKvmService]) as cloud:
        agent = AgentProcess(directory, pki.CertificateAuthority.open(directory / "cloud" / "pki"))
        agent.install(OLD)
        await cloud.node.settings.set(AGENT_PORT, agent.port)
        await cloud.make_cluster()
        async with agent.running():
            yield Site(cloud, agent)


async def test_an_agent_becomes_the_servers_version_and_stays_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site(tmp_path, monkeypatch) as one:
        assert (await one.add()).status == "Connected"
        assert (await one.ping()).version == NEW
        assert one.agent.starts == 1, "the process was replaced, not started again"
        record = Programs(one.agent.state).read()
        assert (record.installed, record.tried, record.given_up) == (OLD, None, {})
        assert record.kept is not None
        assert record.kept.startswith(NEW)

        await one.kill_agent()
        await one.reconnect()
        assert (await one.ping()).version == NEW

        # Who installs another version by hand has the last word; the server brings it to its own again.
        one.agent.install("0.0.1.1")
        await one.kill_agent()
        await one.reconnect()
        assert (await one.ping()).version == NEW
        assert Programs(one.agent.state).read().installed == "0.0.1.1"


@pytest.mark.parametrize(
    "at_start", ["raise SystemExit('broken')", "import time; time.sleep(600)"], ids=["ends", "hangs"]
)
async def test_a_version_that_does_not_come_up_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_start: str
) -> None:
    async with site(tmp_path, monkeypatch, at_start=at_start) as one:
        assert (await one.add()).status == "Connected"
        assert (await one.ping()).version == OLD
        record = Programs(one.agent.state).read()
        assert (record.kept, record.tried) == (None, None)
        assert len(record.given_up) == 1
        starts = one.agent.starts
        await one.reconnect()
        assert (await one.ping()).version == OLD
        assert one.agent.starts == starts, "it is not tried again and again"


async def test_a_version_that_listens_but_cannot_be_connected_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site(tmp_path, monkeypatch) as one:
        _change(tmp_path / "newer" / "caelum" / "agent" / "bare.py", "return await adopt", "raise RuntimeError\n#")
        # The archive was made at the start of the server.
        one.cloud.node.services["kvm"]._program._pack()  # type: ignore[attr-defined]
        with pytest.raises(CloudError):
            await one.add()
        programs = Programs(one.agent.state)
        assert (await one.ping()).version == NEW
        assert (programs.read().connects, programs.read().tries) == (1, 0)
        for _ in range(2):
            with pytest.raises(CloudError):
                await one.connect()
        assert programs.read().tried is None

        async def is_old() -> bool:
            with contextlib.suppress(CloudError):
                return (await one.ping()).version == OLD
            return False

        await one.cloud.until(is_old, 30)
        assert one.agent.starts == 1, "the process was replaced"
        assert (await one.add()).status == "Connected"
        assert (await one.ping()).version == OLD
        assert len(programs.read().given_up) == 1


async def test_a_damaged_program_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The server says of what it offers something that is not true.
    monkeypatch.setattr(program.hashlib, "sha256", lambda _data: SimpleNamespace(hexdigest=lambda: "0" * 64))
    async with site(tmp_path, monkeypatch) as one:
        assert (await one.add()).status == "Connected"
        assert (await one.ping()).version == OLD
        assert not (one.agent.state / FOLDER).exists()
