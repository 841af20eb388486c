"""A private libvirt, an agent as its own process, and the management node that it talks to: for tests of guests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import libvirt
import msgspec
import pytest
from aiohttp import web

from caelum.agent.protocol import Command, ConnectHost, Disk, Nic, StartVm, TaskAnswer, answer_type
from caelum.kernel import pki
from caelum.kernel.ids import new_uuid
from caelum.onemachine.guest_image import build, recipe

MIB = 1 << 20
IMAGE = Path(os.environ.get("CAELUM_GUEST_IMAGE", f"{tempfile.gettempdir()}/caelum-guest-{recipe()}.qcow2"))


def guest_image() -> Path:
    """The small test guest, built once per machine and recipe."""
    if not IMAGE.exists():
        build(IMAGE)
    return IMAGE


class PrivateLibvirt:
    """A libvirt daemon of the tests' own."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="clv-"))
        self.socket = self.home / "run" / "libvirt" / "libvirt-sock"
        self.uri = f"qemu+unix:///system?socket={self.socket}"
        self.small = self.home / "small"
        """A file system of 2 MiB that takes no direct I/O; mounted before the daemon's own mount namespace is made."""
        self.small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(self.small)], check=True, timeout=10)
        self._process: subprocess.Popen[bytes] | None = None

    def enlarge_small(self) -> None:
        subprocess.run(["mount", "-o", "remount,size=32m", str(self.small)], check=True, timeout=10)

    def start(self) -> None:
        command = [sys.executable, "-m", "caelum.onemachine.libvirtd", str(self.home), "--hide-kvm"]
        with (self.home / "out").open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        end = time.monotonic() + 30
        while True:
            try:
                libvirt.open(self.uri).close()
                return
            except libvirt.libvirtError:
                assert time.monotonic() < end, (self.home / "out").read_text()
                time.sleep(0.1)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def close(self) -> None:
        connection = libvirt.open(self.uri)
        for domain in connection.listAllDomains():
            if domain.isActive():
                domain.destroy()
            domain.undefine()
        connection.close()
        self.kill()
        subprocess.run(["umount", str(self.small)], check=True, timeout=10)
        shutil.rmtree(self.home, ignore_errors=True)


class Lab:
    """One host: an agent that can be killed, and what its management node got from it."""

    def __init__(self, directory: Path, libvirt_uri: str) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.tls = directory / "tls"
        self.host_uuid = new_uuid()
        self.libvirt_uri = libvirt_uri
        self.answers: dict[str, TaskAnswer] = {}
        self.reports: list[dict[str, Any]] = []
        self.deaf = False
        self.port = 0
        self._agent: subprocess.Popen[bytes] | None = None
        self._runner: web.AppRunner | None = None

    async def open(self) -> None:
        authority = pki.CertificateAuthority.open(self.directory / "ca")
        server = pki.ensure_server(self.directory / "ca", new_uuid())
        host = authority.issue(pki.Identity("host", self.host_uuid), names=["127.0.0.1"])
        self.tls.mkdir()
        (self.tls / "ca.crt").write_bytes(authority.certificate_pem)
        (self.tls / "tls.crt").write_bytes(host.certificate)
        (self.tls / "tls.key").write_bytes(host.key)
        self.other_host = authority.issue(pki.Identity("host", new_uuid()))
        connector = aiohttp.TCPConnector(ssl=pki.client_context(server))
        self.http = aiohttp.ClientSession(connector=connector)
        await self._serve(pki.server_context(server))

    async def _serve(self, context: ssl.SSLContext) -> None:
        app = web.Application()
        app.add_routes([web.post("/callback", self._callback), web.post("/report", self._report)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context).start()
        self.url = f"https://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _callback(self, request: web.Request) -> web.Response:
        if self.deaf:
            return web.Response(status=503)
        self.answers[request.headers["taskuuid"]] = msgspec.json.decode(await request.read(), type=TaskAnswer)
        return web.Response()

    async def _report(self, request: web.Request) -> web.Response:
        if self.deaf:
            return web.Response(status=503)
        self.reports.append(await request.json())
        return web.Response()

    async def close(self) -> None:
        self.stop_agent()
        await self.http.close()
        assert self._runner is not None
        await self._runner.cleanup()

    async def start_agent(self) -> None:
        """Start (again) on the same port and wait until it answers."""
        self.port = self.port or _free_port()
        command = [
            sys.executable, "-m", "caelum.agent.main", "--state-dir", str(self.state), "--tls-dir", str(self.tls),
            "--listen", f"127.0.0.1:{self.port}", "--libvirt-uri", self.libvirt_uri, "--hypervisor", "tcg",
            "--log-level", "debug",
        ]  # fmt: skip
        with (self.directory / "agent.log").open("ab") as log:
            self._agent = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)  # noqa: ASYNC220

        async def answers() -> bool:
            assert self._agent is not None
            assert self._agent.poll() is None, self.log
            with contextlib.suppress(aiohttp.ClientError):
                async with self.http.post(f"{self.base}/host/echo", server_hostname=self.host_uuid) as reply:
                    return reply.status == 200
            return False

        await eventually(answers, 20)

    @property
    def base(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.directory / "agent.log").read_text()

    def kill_agent(self) -> None:
        assert self._agent is not None
        self._agent.send_signal(signal.SIGKILL)
        self._agent.wait(10)

    def stop_agent(self) -> int:
        assert self._agent is not None
        self._agent.terminate()
        return self._agent.wait(15)

    async def post(self, command: Command[Any], **headers: str) -> tuple[int, dict[str, Any]]:
        """POST a command as it is; the raw answer."""
        url, body = self.base + command.path, msgspec.json.encode(command)
        async with self.http.post(url, data=body, headers=headers, server_hostname=self.host_uuid) as reply:
            return reply.status, await reply.json()

    async def submit(self, command: Command[Any], **headers: str) -> str:
        """Send an asynchronous command; returns its task UUID."""
        task = headers.setdefault("taskuuid", new_uuid())
        status, body = await self.post(command, callbackurl=self.url + "/callback", **headers)
        assert (status, body) == (202, {})
        return task

    async def answer(self, task: str, timeout: float = 60) -> TaskAnswer:
        """The answer of a task, when it came."""
        await eventually(lambda: task in self.answers, timeout)
        return self.answers[task]

    async def task(self, task: str) -> dict[str, Any]:
        """What the agent says of a task."""
        async with self.http.get(f"{self.base}/task/{task}", server_hostname=self.host_uuid) as reply:
            status: dict[str, Any] = await reply.json()
            return status

    async def cancel(self, task: str) -> dict[str, Any]:
        """Cancel a task."""
        async with self.http.delete(f"{self.base}/task/{task}", server_hostname=self.host_uuid) as reply:
            status: dict[str, Any] = await reply.json()
            return status

    async def run(self, command: Command[Any], timeout: float = 60, **headers: str) -> Any:
        """Run a command to its end; its decoded result, or AssertionError with the agent's error."""
        if command.sync:
            _, body = await self.post(command, **headers)
            answer = msgspec.convert(body, TaskAnswer)
        else:
            answer = await self.answer(await self.submit(command, **headers), timeout)
        assert answer.error is None, answer.error
        return msgspec.convert(answer.result, answer_type(type(command)))

    async def connect(self) -> Any:
        return await self.run(ConnectHost(host_uuid=self.host_uuid, report_url=self.url + "/report"))

    def states(self, vm_uuid: str) -> list[str]:
        """States that were reported for a guest, in order."""
        bodies = [report["body"] for report in self.reports if report["kind"] == "vm-state"]
        return [body["state"] for body in bodies if body["vmUuid"] == vm_uuid]

    @contextlib.asynccontextmanager
    async def socket(self, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        url = self.base + path
        async with self.http.ws_connect(url, server_hostname=self.host_uuid, **options) as socket:
            yield socket


async def eventually(condition: Callable[[], Any], timeout: float = 30, what: str = "") -> None:
    """Wait until a condition (a function, or a coroutine function) holds."""
    end = time.monotonic() + timeout
    while True:
        outcome = condition()
        if asyncio.iscoroutine(outcome):
            outcome = await outcome
        if outcome:
            return
        assert time.monotonic() < end, f"not within {timeout} s: {what or condition}"
        await asyncio.sleep(0.05)


async def read_until(socket: aiohttp.ClientWebSocketResponse, text: str, timeout: float = 60) -> str:
    """What a console says until `text` appears."""
    said = b""
    try:
        async with asyncio.timeout(timeout):
            while text.encode() not in said:
                message = await socket.receive()
                assert message.type == aiohttp.WSMsgType.BINARY, (message, said[-500:])
                said += message.data
    except TimeoutError:
        raise AssertionError(f"no {text!r} within {timeout} s: {said[-500:]!r}") from None
    return said.decode(errors="replace")


@contextlib.contextmanager
def bridge(name: str) -> Iterator[str]:
    """A bridge for the test's NICs."""
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True, timeout=10)
    subprocess.run(["ip", "link", "set", name, "up"], check=True, timeout=10)
    try:
        yield name
    finally:
        subprocess.run(["ip", "link", "del", name], check=False, timeout=10)


def root_disk(directory: Path) -> Disk:
    """A fresh overlay of the test guest's image."""
    return disk(directory, 0, "-b", str(guest_image()), "-F", "qcow2")


def disk(directory: Path, device_id: int, *options: str) -> Disk:
    """A volume; an empty one of 16 MiB, unless options say otherwise."""
    volume = new_uuid()
    path = directory / f"{volume}.qcow2"
    size = [] if options else ["16M"]
    command = ["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), *size]
    subprocess.run(command, check=True, timeout=30)
    return Disk(volume_uuid=volume, install_path=str(path), format="qcow2", device_id=device_id)


def nic(device_id: int, on: str, internal_id: int) -> Nic:
    """A NIC."""
    return Nic(
        nic_uuid=new_uuid(), device_id=device_id, mac=f"fa:00:00:00:{internal_id % 256:02x}:{device_id:02x}",
        name=f"vnic{internal_id}.{device_id}", bridge=on, ips=[f"10.99.1.{device_id + 10}"],
    )  # fmt: skip


def definition(root: Disk, internal_id: int, **fields: Any) -> StartVm:
    """A small guest."""
    given: dict[str, Any] = {"nics": [], **fields}
    return StartVm(
        vm_uuid=new_uuid(),
        name="test guest",
        internal_id=internal_id,
        cpu_num=1,
        memory=128 * MIB,
        disks=[root],
        **given,
    )


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[PrivateLibvirt]:
    daemon = PrivateLibvirt()
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
async def lab(tmp_path: Path, libvirtd: PrivateLibvirt) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path, libvirtd.uri)
    await lab.open()
    await lab.start_agent()
    yield lab
    await lab.close()


@pytest.fixture
def lan() -> Iterator[str]:
    with bridge("brlabvm") as name:
        yield name
