"""The example of a plugin, found as an installed package is: by its entry points."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from caelum.cloud.allocator.api import GetHostAllocatorStrategies
from caelum.cloud.host.api import DeleteHost
from caelum.cloud.host.messages import ListHosts
from caelum.cloud.offering.api import CreateInstanceOffering
from caelum.cloud.tag.api import CreateSystemTag
from caelum.cloud.vm.api import StartVmInstance, StopVmInstance
from caelum.gateway.server import Gateway
from caelum.kernel.errors import CloudError
from caelum.testing.simcloud import MIB, SimulatedCloud, simulated_cloud

PLUGIN = Path(__file__).parents[2] / "examples" / "plugin-hello"


def install(directory: Path) -> None:
    """What pip would leave behind: metadata with the entry points of the project's table."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    info = directory / "caelum_hello-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = ["[caelum.plugins]", *(f"{k} = {v}" for k, v in project["entry-points"]["caelum.plugins"].items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
async def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SimulatedCloud]:
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.syspath_prepend(PLUGIN / "src")
    async with simulated_cloud(tmp_path / "cloud", hosts=2) as made:
        assert made.cloud.node.broken == []
        yield made


async def host_uuids(cloud: SimulatedCloud) -> list[str]:
    return [one.uuid for one in (await cloud.cloud.node.bus.call(ListHosts())).hosts]


async def tag(cloud: SimulatedCloud, host_uuid: str, rack: str) -> None:
    await cloud.api(CreateSystemTag(resource_uuid=host_uuid, resource_type="HostVO", tag=f"hello::rack::{rack}"))


class Http:
    """A client of the gateway."""

    def __init__(self, gateway: Gateway, http: aiohttp.ClientSession) -> None:
        self._base, self._http = f"http://127.0.0.1:{gateway.port}", http
        self._headers: dict[str, str] = {}

    async def log_in(self) -> None:
        password = hashlib.sha512(b"password").hexdigest()
        body = {"logInByAccount": {"accountName": "admin", "password": password}}
        answer = await self.send("PUT", "/zstack/v1/accounts/login", body)
        self._headers = {"Authorization": f"OAuth {answer['inventory']['uuid']}"}

    async def send(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The answer, after the job's end where there is one."""
        url = path if path.startswith("http") else self._base + path
        status, answer = await self._exchange(method, url, body)
        while status == 202:
            url = answer.get("location", url)
            status, answer = await self._exchange("GET", url, None)
        return answer

    async def _exchange(self, method: str, url: str, body: Any) -> tuple[int, dict[str, Any]]:
        async with self._http.request(method, url, json=body, headers=self._headers) as response:
            return response.status, await response.json()


async def test_greetings_are_made_found_and_gone_with_their_host(cloud: SimulatedCloud) -> None:
    first, second = await host_uuids(cloud)
    gateway = Gateway(cloud.cloud.node)
    await gateway.start()
    try:
        async with aiohttp.ClientSession() as session:
            http = Http(gateway, session)
            await http.log_in()
            path = "/zstack/v1/hello/greetings"
            made = (await http.send("POST", path, {"params": {"name": "world", "hostUuid": first}}))["inventory"]
            assert (made["text"], made["hostUuid"]) == ("Hello, world!", first)
            again = await http.send("POST", path, {"params": {"name": "world", "hostUuid": first}})
            assert again["error"]["code"] == "HELLO.1000"
            empty = await http.send("POST", path, {"params": {"name": " ", "hostUuid": first}})
            assert empty["error"]["code"] == "SYS.1007"
            wrong = await http.send("POST", path, {"params": {"name": "x", "hostUuid": "0" * 32}})
            assert wrong["error"]["code"] == "SYS.1003"
            other = (await http.send("POST", path, {"params": {"name": "x", "hostUuid": second}}))["inventory"]

            async def names(query: str = "") -> list[str]:
                return sorted(one["name"] for one in (await http.send("GET", path + query))["inventories"])

            assert await names("?q=host.name=host0") in (["world"], ["x"])
            await http.send("DELETE", f"{path}/{other['uuid']}")
            assert await names() == ["world"]
            await cloud.api(DeleteHost(uuid=first))
            assert await names() == []
            document = await http.send("GET", "/openapi.json")
            assert any(one.endswith("/hello/greetings") for one in document["paths"])
    finally:
        await gateway.stop(1)


class CommandLine:
    """`caelum` as its own process, which has neither the plugin nor a cloud's declarations."""

    def __init__(self, home: Path, url: str) -> None:
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(home), "CAELUM_URL": url}
        self.cache = home / ".cache" / "caelum"

    async def run(self, *words: str, fails: bool = False) -> str:
        """What it says."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "caelum.cli.main", *words, env=self._environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        text = (await asyncio.wait_for(process.communicate(), 60))[0].decode()
        assert bool(process.returncode) == fails, text
        return text


async def test_the_command_line_learns_the_operations_from_the_server(cloud: SimulatedCloud, tmp_path: Path) -> None:
    gateway = Gateway(cloud.cloud.node)
    await gateway.start()
    caelum = CommandLine(tmp_path / "home", f"http://127.0.0.1:{gateway.port}")
    try:
        assert "caelum-hello" not in await caelum.run("--help")
        await caelum.run("login", "--password", "password")
        assert "caelum-hello" in await caelum.run("--help")
        command = ("caelum-hello", "create-greeting", "--name", "world", "--host", "host0")
        assert "Hello, world!" in await caelum.run(*command)
        for kept in caelum.cache.iterdir():
            kept.unlink()
        # Without the login's knowledge the server is asked when a command is not known.
        assert "HELLO.1000" in await caelum.run(*command, fails=True)
        assert "world" in await caelum.run("caelum-hello", "list-greeting")
        assert "is not a command" in await caelum.run("nonsense", fails=True)
    finally:
        await gateway.stop(1)
    # Help goes on without the server, from what is kept.
    assert "caelum-hello" in await caelum.run("--help")
    assert "create-greeting" in await caelum.run("caelum-hello", "--help")
    assert "cannot be reached" in await caelum.run(*command, fails=True)


async def test_a_vm_stays_in_its_rack(cloud: SimulatedCloud) -> None:
    first, second = await host_uuids(cloud)
    await tag(cloud, first, "a1")
    await tag(cloud, second, "b2")
    for number in range(2):
        vm = await cloud.create_vm(f"vm{number}", system_tags=["hello::rack::b2"])
        assert vm.host_uuid == second
    with pytest.raises(CloudError) as refused:
        await cloud.create_vm("lost", system_tags=["hello::rack::c3"])
    assert "it is in rack[a1], not in rack[c3]" in str(refused.value.to_wire())


async def test_the_strategy_fills_hosts_by_name(cloud: SimulatedCloud) -> None:
    assert "ByNameHostAllocatorStrategy" in (await cloud.api(GetHostAllocatorStrategies())).strategies
    made = await cloud.api(
        CreateInstanceOffering(
            name="o", cpu_num=1, memory_size=64 * MIB, allocator_strategy="ByNameHostAllocatorStrategy"
        )
    )
    vms = [await cloud.create_vm(f"vm{number}", instance_offering_uuid=made.uuid) for number in range(2)]
    assert len({vm.host_uuid for vm in vms}) == 1


async def test_without_the_plugin_everything_else_goes_on(
    cloud: SimulatedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await cloud.create_vm("vm")
    monkeypatch.undo()
    await cloud.cloud.__aexit__(None, None, None)
    await cloud.stage.reboot()
    node = cloud.cloud.node
    assert "caelum_hello" not in node.services
    assert node.broken == []
    await cloud.api(StopVmInstance(uuid=vm.uuid))
    assert (await cloud.api(StartVmInstance(uuid=vm.uuid))).state == "Running"
