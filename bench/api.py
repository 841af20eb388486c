"""A client for load: many calls at once over kept connections, each job waited for by one long poll."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import aiohttp
import msgspec

from caelum.sdk.client import ApiError, request_parts
from caelum.sdk.manifest import load

_PATIENCE = aiohttp.ClientTimeout(total=1800)
_WAIT = {"Prefer": "wait=30"}


class Api:
    """The public API at one address."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), timeout=_PATIENCE
        )
        self._session = ""

    async def close(self) -> None:
        """End all connections."""
        await self._http.close()

    async def login(self, account: str = "admin", password: str = "password") -> None:
        """Open a session."""
        hashed = hashlib.sha512(password.encode()).hexdigest()
        self._session = (await self.call("LogInByAccount", accountName=account, password=hashed))["uuid"]

    async def call(self, name: str, /, **parameters: Any) -> Any:
        """Run an operation to its end. Raises ApiError."""
        operation = load()[name]
        path, body, query = request_parts(operation, parameters)
        status, answer = await self._send(operation.method, f"/zstack/v1{path}", body, query)
        location = answer.get("location", "")
        while status == 202:
            status, answer = await self._send("GET", location.removeprefix(self.address), headers=_WAIT)
        if "error" in answer:
            raise ApiError(answer["error"])
        return answer.get(operation.reply_key) if operation.reply_key else answer

    async def text(self, path: str) -> str:
        """A page."""
        async with self._http.get(self.address + path) as response:
            return await response.text()

    async def _send(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: list[tuple[str, str]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json", **(headers or {})}
        if self._session:
            headers["Authorization"] = f"OAuth {self._session}"
        data = None if body is None else msgspec.json.encode(body)
        while True:
            async with self._http.request(
                method, self.address + path, params=query or None, data=data, headers=headers
            ) as response:
                if response.status != 429:
                    return response.status, msgspec.json.decode(await response.read() or b"{}")
                pause = float(response.headers.get("Retry-After", "0.1"))
            await asyncio.sleep(min(pause, 1.0))
