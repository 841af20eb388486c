"""Jobs outlive the process: after a restart, and after a kill in the middle of an operation."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

from caelum.gateway.server import Gateway
from caelum.testing.cloud import EmbeddedCloud
from gateway.conftest import PASSWORD, SERVICES, Client

SERVER = """
import sys
sys.path.insert(0, {tests!r})
from caelum import builtin
from gateway.conftest import SERVICES
builtin.SERVICES[:] = [f"{{one.__module__}}:{{one.__name__}}" for one in SERVICES]
builtin.DRIVERS[:] = []
from caelum.cli.server import main
sys.exit(main(sys.argv[1:]))
"""


async def test_results_survive_a_restart(tmp_path: Path) -> None:
    locations = []
    for _ in range(2):
        async with EmbeddedCloud(tmp_path, SERVICES) as cloud, aiohttp.ClientSession() as http:
            gateway = Gateway(cloud.node)
            await gateway.start()
            client = await Client(cloud, gateway, http).log_in()
            if not locations:
                for name in ("desk", "bomb"):
                    answer = await client.send("POST", "/v1/lamps", {"params": {"name": name}})
                    locations.append(answer.json["location"].removeprefix(client.base))
            answers = [await client.poll(one) for one in locations]
            assert [one.status for one in answers] == [200, 503]
            await gateway.stop(1)


class Server:
    """`caelum server` as a process of its own."""

    def __init__(self, directory: Path, port: int, http: aiohttp.ClientSession) -> None:
        self.directory, self.http, self.base = directory, http, f"http://127.0.0.1:{port}"
        self.port = port
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> float:
        """Start it, and tell the seconds until it is ready."""
        started = time.monotonic()
        script = SERVER.format(tests=str(Path(__file__).parent.parent))
        options = ["--data-dir", str(self.directory), "--api-host", "127.0.0.1", "--api-port", str(self.port)]
        environment = {**os.environ, "CAELUM_AGENT_LISTEN_PORT": "0", "CAELUM_CONSOLE_PORT": "0"}
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, *options, env=environment, stdout=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(30):
            while await self.status("/readyz") != 200:  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.05)
        return time.monotonic() - started

    async def status(self, path: str) -> int:
        try:
            async with self.http.get(self.base + path) as response:
                return response.status
        except aiohttp.ClientError:
            return 0

    async def send(self, method: str, path: str, body: Any = None, session: str | None = None) -> tuple[int, Any]:
        headers = {"Authorization": f"OAuth {session}"} if session else {}
        async with self.http.request(method, self.base + path, json=body, headers=headers) as response:
            return response.status, json.loads(await response.read() or b"{}")

    async def end(self, how: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        async with asyncio.timeout(15):
            return await self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_killed_server_answers_its_jobs_after_the_restart(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as http:
        server = Server(tmp_path, free_port(), http)
        await server.start()
        try:
            login = {"logInByAccount": {"accountName": "admin", "password": PASSWORD}}
            _, reply = await server.send("PUT", "/v1/accounts/login", login)
            session = reply["inventory"]["uuid"]
            body = {"waitForLamp": {"seconds": 60}}
            status, accepted = await server.send("PUT", "/v1/lamps/x/waiting/actions", body, session)
            assert status == 202
            lamp = {"params": {"name": "anew", "seconds": 2}}
            status, anew = await server.send("POST", "/v1/lamps/built", lamp, session)
            assert status == 202
            # Killed as soon as the 202 is here: the jobs must be in the database already.
            assert await server.end(signal.SIGKILL) == -signal.SIGKILL
            await server.start()
            path = accepted["location"].removeprefix(server.base)
            status, answer = await server.send("GET", path)
            assert (status, answer["error"]["code"]) == (503, "SYS.1012")
            # What may be done anew, is.
            path = anew["location"].removeprefix(server.base)
            async with asyncio.timeout(20):
                while (status := (await server.send("GET", path))[0]) == 202:  # noqa: ASYNC110 - it is another process
                    await asyncio.sleep(0.1)
            # The session is still there too.
            found, lamps = await server.send("GET", "/v1/lamps", None, session)
            assert (status, found, [one["name"] for one in lamps["inventories"]]) == (200, 200, ["anew"])
        finally:
            code = await server.end(signal.SIGTERM)
        assert code == 0


async def test_before_it_is_ready_the_server_says_so(tmp_path: Path) -> None:
    cloud = EmbeddedCloud(tmp_path, SERVICES)
    gateway = Gateway(cloud.node)
    await gateway.start()
    async with aiohttp.ClientSession() as http:
        client = Client(cloud, gateway, http)
        assert (await client.send("GET", "/healthz")).status == 200
        assert (await client.send("GET", "/readyz")).status == 503
        early = await client.send("GET", "/v1/lamps")
        assert (early.status, early.json["error"]["code"]) == (503, "SYS.1010")
        unknown = await client.send("GET", f"/v1/api-jobs/{'7' * 32}")
        assert (unknown.status, unknown.headers["Retry-After"]) == (202, "1"), "no outcome of a job"
        async with cloud:
            assert (await client.send("GET", "/readyz")).status == 200
            await client.log_in()
        await gateway.stop(1)
