"""The KVM driver against the real agent as a process of its own, over a private libvirt."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.lab.agent_vm_lab import PrivateLibvirt
from tests.service.host_clouds import SERVICES, HostCloud

from caelum.agent import protocol as p
from caelum.cloud.host.api import ChangeHostState, HostInventory
from caelum.cloud.host.messages import GetVmStatesOnHost
from caelum.cloud.host.settings import PING_INTERVAL
from caelum.drivers.kvm.api import AddKVMHost
from caelum.drivers.kvm.remote import on_host
from caelum.drivers.kvm.service import KvmService
from caelum.drivers.kvm.settings import AGENT_PORT
from caelum.kernel import pki
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.pki import CertificateAuthority, Identity

pytestmark = pytest.mark.timeout(180)


class AgentProcess:
    """An agent that can be killed."""

    def __init__(self, directory: Path, pki_directory: Path, libvirt_uri: str) -> None:
        self.host_uuid = new_uuid()
        self.directory = directory
        self._libvirt_uri = libvirt_uri
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        authority = CertificateAuthority.open(pki_directory)
        tls = directory / "tls"
        tls.mkdir(parents=True)
        (tls / "ca.crt").write_bytes(authority.certificate_pem)
        files = pki.Files(tls / "tls.crt", tls / "tls.key", tls / "ca.crt")
        pki.store(files, authority.issue(Identity("host", self.host_uuid)))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "caelum.agent.main", "--state-dir", str(self.directory / "state"),
            "--tls-dir", str(self.directory / "tls"), "--listen", f"127.0.0.1:{self.port}",
            "--libvirt-uri", self._libvirt_uri, "--hypervisor", "tcg",
        ]  # fmt: skip
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < end, (self.directory / "log").read_text()
                time.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateLibvirt]:
    daemon = PrivateLibvirt()
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
async def agent(tmp_path: Path, daemon: PrivateLibvirt) -> AsyncIterator[AgentProcess]:
    agent = AgentProcess(tmp_path / "agent", tmp_path / "pki", daemon.uri)
    await asyncio.to_thread(agent.start)
    yield agent
    agent.kill()


@pytest.fixture
async def cloud(tmp_path: Path, agent: AgentProcess) -> AsyncIterator[HostCloud]:
    async with HostCloud(tmp_path, services=SERVICES, drivers=[KvmService]) as cloud:
        await cloud.node.settings.set(AGENT_PORT, agent.port)
        await cloud.node.settings.set(PING_INTERVAL, 60)
        await cloud.make_cluster()
        yield cloud


async def add(cloud: HostCloud) -> HostInventory:
    return await cloud.api(
        AddKVMHost(
            name="host", management_ip="127.0.0.1", cluster_uuid=cloud.cluster.uuid, username="root", password="unused"
        )
    )


async def test_the_real_agent_becomes_a_host(cloud: HostCloud, agent: AgentProcess) -> None:
    host = await add(cloud)
    assert (host.uuid, host.status) == (agent.host_uuid, "Connected")
    assert (host.cpu_num or 0) > 0
    assert (host.total_memory_capacity or 0) > 1 << 30
    dump = await on_host(cloud.node.bus, host.uuid, p.DumpHost())
    assert dump.vms == {}
    assert (await cloud.node.bus.call(GetVmStatesOnHost(host_uuid=host.uuid))).states == {}
    with pytest.raises(CloudError) as caught:
        await on_host(cloud.node.bus, host.uuid, p.CheckInterface(name="nosuchif0"))
    assert caught.value.code == p.NETWORK
    assert (await cloud.api(ChangeHostState(uuid=host.uuid, state_event="maintain"))).state == "Maintenance"


async def test_a_killed_agent_is_connected_again_within_fifteen_seconds(cloud: HostCloud, agent: AgentProcess) -> None:
    host = await add(cloud)
    await asyncio.sleep(1)
    killed = time.monotonic()
    agent.kill()
    await cloud.until_status(host.uuid, "Disconnected", 10)
    await asyncio.sleep(2)
    await asyncio.to_thread(agent.start)
    await cloud.until_status(host.uuid, "Connected", 15)
    assert time.monotonic() - killed < 15


async def test_an_agent_that_is_replaced_at_once_is_noticed(cloud: HostCloud, agent: AgentProcess) -> None:
    host = await add(cloud)
    await asyncio.sleep(1)
    agent.kill()
    await asyncio.to_thread(agent.start)

    async def adopted() -> bool:
        address = cloud.node.services["kvm"].agents.address(host.uuid, host.management_ip)
        answer = await cloud.node.services["kvm"].agents.client.run(address, p.Ping())
        return answer.host_uuid == host.uuid and (await cloud.host(host.uuid)).status == "Connected"

    await cloud.until(adopted, 15)
