"""Consoles of a real (emulated) guest: the proxy, the agent's WebSockets, the command line and a VNC handshake."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from agent_vm_lab import MIB, Lab, _free_port, read_until, root_disk

from caelum.cloud.cluster.api import CreateCluster
from caelum.cloud.console.api import RequestConsoleAccess
from caelum.cloud.host.messages import StartVmOnHost, StopVmOnHost
from caelum.cloud.host.spec import VmSpec, VolumeSpec
from caelum.cloud.vm.api import VmInstanceInventory
from caelum.cloud.vm.messages import ListVms, VmsReply
from caelum.cloud.zone.api import CreateZone
from caelum.drivers.kvm.api import AddKVMHost
from caelum.drivers.kvm.settings import AGENT_PORT
from caelum.kernel.ids import new_uuid
from caelum.kernel.service import Service, handles
from caelum.testing.cloud import EmbeddedCloud

pytest_plugins = ("agent_vm_lab",)
pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(240)]

ATTACH = """
import sys
from caelum.cli import console
class Client:
    def query(self, *conditions, **options):
        return [{"uuid": sys.argv[3]}]
    def call(self, name, **parameters):
        return {"scheme": "http", "hostname": "127.0.0.1", "port": int(sys.argv[1]), "token": sys.argv[2]}
console.QUIET_SECONDS = 1
sys.exit(console.attach(Client(), sys.argv[3]))
"""


class OneVm(Service):
    """Knows the VM that the test started."""

    name = "vm"
    vm: VmInstanceInventory

    @handles(ListVms)
    async def list_vms(self, msg: ListVms) -> VmsReply:
        return VmsReply(vms=[self.vm] if msg.vm_uuids == [self.vm.uuid] else [])


SERVICES: list[Any] = [
    "caelum.cloud.zone.service:ZoneService",
    "caelum.cloud.cluster.service:ClusterService",
    "caelum.cloud.host.service:HostService",
    "caelum.cloud.allocator.service:AllocatorService",
    OneVm,
    "caelum.cloud.console.service:ConsoleService",
    "caelum.console.embedded:EmbeddedProxy",
]


@pytest.fixture
async def cloud(lab: Lab, tmp_path: Path) -> AsyncIterator[EmbeddedCloud]:
    """A cloud whose one host is the lab's, with a guest on it."""
    directory = tmp_path / "cloud"
    directory.mkdir()
    (directory / "pki").symlink_to(lab.directory / "ca")
    drivers = ["caelum.drivers.kvm.service:KvmService"]
    async with EmbeddedCloud(directory, SERVICES, drivers, console_port=_free_port()) as cloud:
        await cloud.node.settings.set(AGENT_PORT, lab.port)
        zone = await cloud.api(CreateZone(name="zone"))
        cluster = await cloud.api(CreateCluster(zone_uuid=zone.uuid, name="cluster", hypervisor_type="KVM"))
        host = await cloud.api(
            AddKVMHost(
                name="host", management_ip="127.0.0.1", cluster_uuid=cluster.uuid, username="root", password="unused"
            )
        )
        assert host.uuid == lab.host_uuid
        await start_guest(cloud, lab, tmp_path)
        yield cloud
        await cloud.node.bus.call(StopVmOnHost(host_uuid=host.uuid, vm_uuid=vm_of(cloud).uuid, kind="cold"))


async def start_guest(cloud: EmbeddedCloud, lab: Lab, directory: Path) -> None:
    disk, now = await asyncio.to_thread(root_disk, directory), datetime(2026, 1, 1)
    root = VolumeSpec(volume_uuid=disk.volume_uuid, install_path=disk.install_path, device_id=0, type="Root")
    seed = {"meta-data": "instance-id: i-1\nlocal-hostname: consoled\n", "user-data": ""}
    spec = VmSpec(
        vm_uuid=new_uuid(), name="guest", internal_id=91, cpu_num=1, memory=128 * MIB, volumes=[root], cidata=seed
    )
    await cloud.node.bus.call(StartVmOnHost(host_uuid=lab.host_uuid, spec=spec))
    cloud.node.services["vm"].vm = VmInstanceInventory(  # type: ignore[attr-defined]
        uuid=spec.vm_uuid, name="guest", zone_uuid=new_uuid(), type="UserVm", hypervisor_type="KVM", state="Running",
        memory_size=spec.memory, reserved_memory_size=0, cpu_num=1, cpu_speed=0, host_uuid=lab.host_uuid,
        create_date=now, last_op_date=now, vm_nics=[], vm_cd_roms=[],
    )  # fmt: skip


def vm_of(cloud: EmbeddedCloud) -> VmInstanceInventory:
    return cloud.node.services["vm"].vm  # type: ignore[attr-defined, no-any-return]


async def token(cloud: EmbeddedCloud) -> str:
    return (await cloud.api(RequestConsoleAccess(vm_instance_uuid=vm_of(cloud).uuid))).token


async def connect(http: aiohttp.ClientSession, cloud: EmbeddedCloud, line: str) -> aiohttp.ClientWebSocketResponse:
    url = f"http://127.0.0.1:{cloud.node.config.console_port}/{line}"
    return await http.ws_connect(url, params={"token": await token(cloud)}, protocols=("binary",))


async def test_log_in_by_serial_line_and_see_the_screen(cloud: EmbeddedCloud) -> None:
    async with aiohttp.ClientSession() as http:
        async with await connect(http, cloud, "serial") as serial:
            await read_until(serial, "host=consoled", 90)
            await serial.send_bytes(b"\n")
            await read_until(serial, "consoled login:")
            await command_line_logs_in(cloud)  # beside the first viewer, who sees it too
            await read_until(serial, "answer=42")
        async with await connect(http, cloud, "vnc") as screen:
            assert await screen_size(screen) >= (640, 350)
        async with await connect(http, cloud, "serial") as serial, await connect(http, cloud, "vnc") as screen:
            vm = vm_of(cloud)
            await cloud.node.bus.call(StopVmOnHost(host_uuid=vm.host_uuid or "", vm_uuid=vm.uuid, kind="cold"))
            for socket in (serial, screen):
                async with asyncio.timeout(20):
                    while (message := await socket.receive()).type is aiohttp.WSMsgType.BINARY:
                        pass
                assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1000)


async def command_line_logs_in(cloud: EmbeddedCloud) -> None:
    """`caelum vm console` with a pipe as its input."""
    port, access = str(cloud.node.config.console_port), await token(cloud)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ATTACH, port, access, vm_of(cloud).uuid,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    said = b""
    for typed, until in ((b"\n", b"login:"), (b"root\n", b"assword:"), (b"caelum\n", b"# ")):
        process.stdin.write(typed)
        said = b""
        async with asyncio.timeout(60):
            while until not in said:
                said += await process.stdout.read(4096)
    out, _ = await asyncio.wait_for(process.communicate(b"echo answer=$((6*7))\nexit\n"), 60)
    assert b"answer=42" in out
    assert process.returncode == 0


async def screen_size(screen: aiohttp.ClientWebSocketResponse) -> tuple[int, int]:
    """Speak RFB 3.8 up to the size of the screen."""
    said = bytearray()

    async def read(count: int) -> bytes:
        while len(said) < count:
            said.extend(await screen.receive_bytes(timeout=20))
        taken = bytes(said[:count])
        del said[:count]
        return taken

    assert await read(12) == b"RFB 003.008\n"
    await screen.send_bytes(b"RFB 003.008\n")
    assert 1 in await read((await read(1))[0])
    await screen.send_bytes(b"\x01")
    assert await read(4) == bytes(4)
    await screen.send_bytes(b"\x01")
    answer = await read(24)
    return int.from_bytes(answer[:2], "big"), int.from_bytes(answer[2:4], "big")
