"""A cloud with lamps behind a real gateway, and a small client."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yarl

from caelum.cloud.identity.service import IdentityService
from caelum.cloud.management.service import ManagementService
from caelum.cloud.query.service import QueryService
from caelum.gateway.server import Gateway
from caelum.testing.cloud import EmbeddedCloud
from gateway.lamps import LampService

SERVICES = [ManagementService, IdentityService, QueryService, LampService]
PASSWORD = hashlib.sha512(b"password").hexdigest()


class Answer:
    """An HTTP answer, read."""

    def __init__(self, response: aiohttp.ClientResponse, raw: bytes) -> None:
        self.status, self.headers, self.raw = response.status, response.headers, raw

    @property
    def text(self) -> str:
        return self.raw.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


class Client:
    """Talks to the gateway as a client would."""

    def __init__(self, cloud: EmbeddedCloud, gateway: Gateway, http: aiohttp.ClientSession) -> None:
        self.cloud, self.gateway, self.http = cloud, gateway, http
        self.base = f"http://127.0.0.1:{gateway.port}"
        self.session: str | None = None

    def fresh(self) -> Client:
        return Client(self.cloud, self.gateway, self.http)

    async def send(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, **more: Any
    ) -> Answer:
        sent = {**({"Authorization": f"OAuth {self.session}"} if self.session else {}), **(headers or {})}
        if body is not None:
            more["json"] = body
        url = path if path.startswith("http") else self.base + path
        async with self.http.request(method, yarl.URL(url, encoded=True), headers=sent, **more) as response:
            return Answer(response, await response.read())

    async def log_in(self, name: str = "admin", password: str = PASSWORD) -> Client:
        body = {"logInByAccount": {"accountName": name, "password": password}}
        answer = await self.send("PUT", "/zstack/v1/accounts/login", body)
        assert answer.status == 200, answer.text
        self.session = answer.json["inventory"]["uuid"]
        return self

    async def job(self, method: str, path: str, body: Any = None, **more: Any) -> Answer:
        """An asynchronous operation to its end."""
        accepted = await self.send(method, path, body, **more)
        assert accepted.status == 202, accepted.text
        return await self.poll(accepted.json["location"])

    async def poll(self, location: str, **more: Any) -> Answer:
        for _ in range(200):
            answer = await self.fresh().send("GET", location, **more)
            if answer.status != 202:
                return answer
            assert answer.json == {}
            await asyncio.sleep(0.02)
        raise TimeoutError(location)

    async def lamp(self, name: str = "lamp", **params: Any) -> str:
        answer = await self.job("POST", "/zstack/v1/lamps", {"params": {"name": name, **params}})
        assert answer.status == 200, answer.text
        uuid: str = answer.json["inventory"]["uuid"]
        return uuid

    async def account(self, name: str) -> Client:
        """A new ordinary account, logged in."""
        answer = await self.job("POST", "/zstack/v1/accounts", {"params": {"name": name, "password": PASSWORD}})
        assert answer.status == 200, answer.text
        return await self.fresh().log_in(name)


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[Client]:
    async with EmbeddedCloud(tmp_path, SERVICES) as cloud, aiohttp.ClientSession() as http:
        gateway = Gateway(cloud.node)
        await gateway.start()
        try:
            yield await Client(cloud, gateway, http).log_in()
        finally:
            await gateway.stop(1)
