"""The example of a service in Node.js, installed and run as its README says."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.cluster.clouds import AmqpClient, Member, nodes

from caelum.cluster.rabbitmq import RabbitMq
from caelum.gateway.settings import RATE

EXAMPLES = Path(__file__).parents[2] / "examples"
ZONE = "org.zstack.header.zone."
TRANSLATE = "org.example.hello.APITranslateGreetingMsg"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with what npm installs for it."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed, which the example needs")
    directory = tmp_path_factory.mktemp("service-node") / "service"
    shutil.copytree(EXAMPLES / "service-node", directory, ignore=shutil.ignore_patterns("node_modules"))
    command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin that declares what the service serves."""
    monkeypatch.syspath_prepend(EXAMPLES / "plugin-hello" / "src")
    __import__("caelum_hello.api")


class Output:
    """The lines that a process prints."""

    def __init__(self, process: Process) -> None:
        self.lines: list[str] = []
        self._reader = asyncio.get_running_loop().create_task(self._read(process))
        self._more = asyncio.Event()

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self.lines.append(line.decode().rstrip())
            self._more.set()

    async def has(self, text: str) -> str:
        """The first line with this text, once it is printed."""
        async with asyncio.timeout(60):
            while True:
                self._more.clear()
                for line in self.lines:
                    if text in line:
                        return line
                await self._more.wait()


@asynccontextmanager
async def running(directory: Path, url: str, **environment: str) -> AsyncIterator[tuple[Process, Output]]:
    process = await asyncio.create_subprocess_exec(
        "node", "hello.js", cwd=directory, env={**os.environ, "CAELUM_BUS_URL": url, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process, Output(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture
async def cloud(plugin: None, tmp_path: Path, broker: RabbitMq) -> AsyncIterator[list[Member]]:
    async with nodes(tmp_path, broker.url, 2) as made:
        yield made


@pytest.mark.timeout(240)
async def test_it_serves_its_messages_calls_the_api_and_hears_events(
    installed: Path, cloud: list[Member], broker: RabbitMq
) -> None:
    async with AmqpClient(broker.url) as client:
        await client.log_in()
        await client.ask(ZONE + "APICreateZoneMsg", name="north")
        async with running(installed, broker.url) as (process, output):
            await output.has("hello is served")
            assert await output.has("zones:") == "zones: north"
            answer = await client.ask(TRANSLATE, name="Ada", language="fr")
            assert (answer["success"], answer["text"]) == (True, "Bonjour, Ada!")
            assert answer["servedBy"].startswith("Node.js v")
            refused = await client.ask(TRANSLATE, name="Ada", language="xx")
            assert refused["error"]["code"] == "HELLO.1001"
            assert refused["error"]["opaque"] == {"known": ["de", "fr", "ja", "cy"]}
            await cloud[1].node.settings.set(RATE, 123)
            line = await output.has("event /globalConfig/update/")
            assert '"newValue":"123"' in line
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 20) == 0
        begun = time.monotonic()
        dead = await client.ask(TRANSLATE, name="Ada", language="fr")
        assert dead["error"]["code"] == "SYS.1011"
        assert time.monotonic() - begun < 5


@pytest.mark.timeout(240)
async def test_its_operation_has_a_rest_route_like_any_other(
    installed: Path, cloud: list[Member], broker: RabbitMq
) -> None:
    async with AmqpClient(broker.url) as client, running(installed, broker.url) as (_, output):
        await client.log_in()
        await output.has("hello is served")
        headers = {"Authorization": f"OAuth {client.session}"}
        url = f"http://127.0.0.1:{cloud[0].gateway.port}/zstack/v1/hello/translations?name=Ada&language=ja"
        async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as response:
            body: dict[str, Any] = await response.json()
            assert (response.status, body["text"]) == (200, "こんにちは, Ada!")


@pytest.mark.timeout(300)
async def test_it_comes_back_after_a_restart_of_the_broker(
    installed: Path, cloud: list[Member], broker: RabbitMq
) -> None:
    async with running(installed, broker.url) as (_, output):
        await output.has("hello is served")
        await output.has("zones:")
        await broker.restart()
        async with AmqpClient(broker.url) as client:
            await client.log_in()
            async with asyncio.timeout(90):
                while not (answer := await client.ask(TRANSLATE, name="Ada", language="de"))["success"]:
                    assert answer["error"]["code"] == "SYS.1011"
                    await asyncio.sleep(0.2)
            assert answer["text"] == "Hallo, Ada!"
