"""A cloud with the console parts on a free port, one VM, and a host's agent that is only WebSockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import WSMsgType, web

from caelum.cloud.console.api import ConsoleInventory, RequestConsoleAccess
from caelum.cloud.host.messages import GetConsoleOnHost
from caelum.cloud.host.spec import ConsoleTarget
from caelum.cloud.identity.messages import Access, CheckAccess
from caelum.cloud.vm.api import VmInstanceInventory, VmStateChanged
from caelum.cloud.vm.messages import ListVms, VmsReply
from caelum.console.embedded import EmbeddedProxy
from caelum.kernel import pki
from caelum.kernel.errors import not_found
from caelum.kernel.ids import new_uuid
from caelum.kernel.service import Service, handles
from caelum.testing.cloud import EmbeddedCloud

CHUNK = b"x" * 65536


class FakeAgent:
    """Echoes what is typed, in the host's name; `flood` is how many chunks a viewer gets at once."""

    def __init__(self) -> None:
        self.flood = 0
        self.sent = 0
        self.paths: list[str] = []
        self.peers: list[pki.Identity | None] = []
        self.open: set[web.WebSocketResponse] = set()
        self._runner: web.AppRunner | None = None

    async def start(self, files: pki.Files) -> int:
        app = web.Application()
        app.add_routes([web.get("/console/{line}/{vm}", self._console)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=pki.server_context(files)).start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        for one in list(self.open):
            await one.close()
        assert self._runner is not None
        await self._runner.cleanup()

    async def _console(self, request: web.Request) -> web.WebSocketResponse:
        self.paths.append(request.path)
        self.peers.append(pki.peer_identity(request.transport))
        viewer = web.WebSocketResponse(protocols=("binary",), timeout=0.5)
        await viewer.prepare(request)
        self.open.add(viewer)
        await self.serve(request.match_info["line"], viewer)
        self.open.discard(viewer)
        return viewer

    async def serve(self, line: str, viewer: web.WebSocketResponse) -> None:
        """Be the guest's line until the viewer leaves."""
        for _ in range(self.flood):
            await viewer.send_bytes(CHUNK)
            self.sent += 1
        async for message in viewer:
            if message.type is WSMsgType.BINARY:
                await viewer.send_bytes(b"echo " + message.data)


class FakeVms(Service):
    """The VMs of the test."""

    name = "vm"

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self.vms: dict[str, VmInstanceInventory] = {}

    @handles(ListVms)
    async def list_vms(self, msg: ListVms) -> VmsReply:
        return VmsReply(vms=[self.vms[one] for one in msg.vm_uuids or () if one in self.vms])


class FakeHosts(Service):
    """Tells where consoles are."""

    name = "host"

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self.port = 0
        self.certificate_of: str | None = None

    @handles(GetConsoleOnHost)
    async def console(self, msg: GetConsoleOnHost) -> ConsoleTarget:
        if not self.port:
            raise not_found("HostVO", msg.host_uuid)
        base = f"wss://127.0.0.1:{self.port}/console"
        return ConsoleTarget(
            host_uuid=msg.host_uuid, scheme="vnc", hostname="127.0.0.1", port=5900,
            url=f"{base}/vnc/{msg.vm_uuid}", serial_url=f"{base}/serial/{msg.vm_uuid}",
        )  # fmt: skip


class FakeIdentity(Service):
    """Hides what it is told to hide."""

    name = "identity"

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self.hidden: list[str] = []

    @handles(CheckAccess)
    async def check(self, msg: CheckAccess) -> Access:
        return Access(hidden=[one for one in msg.resource_uuids if one in self.hidden], foreign=[])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def vm_inventory(**fields: Any) -> VmInstanceInventory:
    now = datetime(2026, 1, 1)
    return VmInstanceInventory(
        **{
            "uuid": new_uuid(), "name": "vm", "zone_uuid": new_uuid(), "type": "UserVm", "hypervisor_type": "KVM",
            "memory_size": 1, "reserved_memory_size": 0, "cpu_num": 1, "cpu_speed": 0, "state": "Running",
            "create_date": now, "last_op_date": now, "vm_nics": [], "vm_cd_roms": [], **fields,
        }
    )  # fmt: skip


class ConsoleLab:
    """The cloud, the VM, and ways to its console."""

    def __init__(self, cloud: EmbeddedCloud, agent: FakeAgent, http: aiohttp.ClientSession) -> None:
        self.cloud, self.agent, self.http = cloud, agent, http
        services = cloud.node.services
        self.vms, self.hosts, self.identity = services["vm"], services["host"], services["identity"]
        self.url = f"http://127.0.0.1:{cloud.node.config.console_port}"

    @property
    def proxy(self) -> Any:
        return next(one for one in self.cloud.node._parts if isinstance(one, EmbeddedProxy)).proxy

    async def request(self, vm: VmInstanceInventory | None = None, **more: Any) -> ConsoleInventory:
        return await self.cloud.api(RequestConsoleAccess(vm_instance_uuid=(vm or self.vm).uuid), **more)

    def connect(self, token: str, line: str = "vnc", **more: Any) -> Any:
        return self.http.ws_connect(f"{self.url}/{line}", params={"token": token}, protocols=("binary",), **more)

    async def status(self, token: str, line: str = "vnc", **more: Any) -> int:
        """The HTTP status that a WebSocket is answered with; 101 when it is accepted."""
        try:
            async with self.connect(token, line, **more):
                return 101
        except aiohttp.WSServerHandshakeError as error:
            return error.status

    async def become(self, state: str) -> None:
        """Change the VM's state, and tell it."""
        old, self.vm.state = self.vm.state, state
        event = VmStateChanged(vm_uuid=self.vm.uuid, old_state=old, new_state=state, inventory=self.vm)
        self.cloud.node.bus.publish(event)
        await self.cloud.node.events.idle()


def certificates(directory: Path, host_uuid: str) -> pki.Files:
    """The server's certificate in its place, and one for a host."""
    directory.mkdir(exist_ok=True)
    pki.ensure_server(directory / "pki", new_uuid())
    files = pki.Files(directory / "host.pem", directory / "host.key", directory / "pki" / "ca.pem")
    pki.store(files, pki.CertificateAuthority.open(directory / "pki").issue(pki.Identity("host", host_uuid)))
    return files


@contextlib.asynccontextmanager
async def console_lab(directory: Path, agent: FakeAgent | None = None, **config: Any) -> AsyncIterator[ConsoleLab]:
    """Everything, with one running VM `lab.vm` on the fake agent's host."""
    services = [
        FakeVms, FakeHosts, FakeIdentity,
        "caelum.cloud.query.service:QueryService",
        "caelum.cloud.config.service:ConfigService",
        "caelum.cloud.console.service:ConsoleService",
        EmbeddedProxy,
    ]  # fmt: skip
    host_uuid, agent = new_uuid(), agent or FakeAgent()
    files = certificates(directory, host_uuid)
    async with (
        EmbeddedCloud(directory, services, console_port=free_port(), **config) as cloud,
        aiohttp.ClientSession() as http,
    ):
        lab = ConsoleLab(cloud, agent, http)
        lab.hosts.port = await agent.start(files)  # type: ignore[attr-defined]
        lab.vm = vm_inventory(host_uuid=host_uuid)  # type: ignore[attr-defined]
        lab.vms.vms[lab.vm.uuid] = lab.vm  # type: ignore[attr-defined]
        try:
            yield lab
        finally:
            await asyncio.wait_for(agent.stop(), 5)
