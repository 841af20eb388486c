"""Clients of the simulated cloud: they speak the public API over HTTP, through whichever node answers.

Invariant: a call ends with the cloud's one answer, or says that it never got one; a call that was repeated is the same
job. What a client was told is kept, so that the judge can hold the cloud to it.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import uuid
from typing import Any

import aiohttp
import msgspec

from caelum.cloud.management.errors import NOT_READY
from caelum.sdk.client import request_parts
from caelum.sdk.manifest import load
from caelum.testing.simulation.history import History

_HTTP_TIMEOUT = aiohttp.ClientTimeout(total=40, sock_connect=5)
_POLL_WAIT = 5
_PATIENCE = 1500.0
_LOGIN_CODE = "ID.1001"
_MOST_SESSIONS = 3
"""New sessions that are tried; what is refused then was asked for with one that has ended."""
_PAUSES = (0.2, 0.5, 1, 2, 5)


class Call(msgspec.Struct):
    """One operation that a client asked for, and what it was told."""

    name: str
    parameters: dict[str, Any]
    job: str
    begun: float
    about: str | None = None
    """The UUID of the VM or volume."""
    accepted: bool = False
    ended: float | None = None
    error: dict[str, Any] | None = None
    body: dict[str, Any] | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the answer was a success."""
        return self.ended is not None and self.error is None

    @property
    def code(self) -> str:
        """The error's code, or what else it is."""
        if self.ended is None:
            return "unanswered"
        return "done" if self.error is None else str(self.error.get("code"))

    def inventory(self) -> dict[str, Any]:
        """The resource in the answer."""
        found: dict[str, Any] = (self.body or {}).get("inventory") or {}
        return found


class Client:
    """One client."""

    def __init__(self, name: str, addresses: list[str], chance: random.Random, history: History) -> None:
        self.name = name
        self._addresses, self._chance, self._history = addresses, chance, history
        self._http: aiohttp.ClientSession
        self._session: str | None = None
        self._refused_sessions = 0

    async def open(self) -> None:
        """Get ready to speak."""
        self._http = aiohttp.ClientSession(timeout=_HTTP_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar())

    async def close(self) -> None:
        """End all connections."""
        await self._http.close()

    async def call(self, name: str, about: str | None = None, /, **parameters: Any) -> Call:
        """Run an asynchronous operation to its end; gives up only when no node answers for very long."""
        loop = asyncio.get_running_loop()
        made = Call(name, parameters, uuid.UUID(bytes=self._chance.randbytes(16)).hex, loop.time(), about)
        self._history.add(f"asks {name} {parameters} as job {made.job}")
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._to_the_end(made)
        except TimeoutError:
            self._history.add(f"gave up job {made.job}")
        else:
            self._history.add(f"job {made.job} {name} {about or ''}: {made.code}")
        return made

    async def query(self, name: str, *conditions: str) -> list[dict[str, Any]]:
        """What a query finds."""
        path, _, query = request_parts(load()[name], {"q": list(conditions)})
        async with asyncio.timeout(_PATIENCE):
            while True:
                status, body = await self._anywhere("GET", path, query=query)
                if status == 200:
                    found: list[dict[str, Any]] = body.get("inventories") or []
                    return found
                await self._after_refusal(status, body)

    async def answer_of(self, job: str, wait: int = 0) -> tuple[int, dict[str, Any]]:
        """What some node says of a job."""
        headers = {"Prefer": f"wait={wait}"} if wait else {}
        while True:
            status, body = await self._anywhere("GET", f"/api-jobs/{job}", headers=headers)
            if status in (200, 202, 404) or (status == 503 and not self._is_passing(body)):
                self._refused_sessions = 0
                return status, body
            await self._after_refusal(status, body)

    async def final_answer_of(self, job: str, patience: float) -> tuple[int, dict[str, Any]]:
        """What some node says of a job that should have ended; a node in trouble may say that it does not know."""
        end = asyncio.get_running_loop().time() + patience
        while True:
            status, body = await self.answer_of(job)
            if status != 202 or asyncio.get_running_loop().time() > end:
                return status, body
            await asyncio.sleep(1)

    async def _to_the_end(self, made: Call) -> None:
        while made.ended is None:
            if not made.accepted:
                await self._submit(made)
            status, body = await self.answer_of(made.job, _POLL_WAIT)
            if status == 404 and made.accepted:
                self._history.add(f"job {made.job} is lost")
                raise TimeoutError
            if status in (200, 503):
                made.body, made.error = body, body.get("error")
                made.ended = asyncio.get_running_loop().time()

    async def _submit(self, made: Call) -> None:
        path, body, query = request_parts(load()[made.name], made.parameters)
        method, headers = load()[made.name].method, {"X-Job-UUID": made.job}
        while True:
            status, answer = await self._anywhere(method, path, body=body, query=query, headers=headers)
            if status == 202 or (status == 400 and "Duplicate job" in str(answer)):
                made.accepted, self._refused_sessions = True, 0
                return
            if status == 503 and self._is_of_job(answer):
                made.accepted = True  # by a request whose answer got lost
                return
            if status == 400:
                raise AssertionError(f"the workload asks for nonsense: {made}: {answer}")
            await self._after_refusal(status, answer)

    async def _after_refusal(self, status: int, body: dict[str, Any]) -> None:
        code = _code(body) if status == 503 else status
        if code == _LOGIN_CODE or status == 401:
            self._session = None
            self._refused_sessions += 1
        self._history.add(f"is refused: {status} {code} {str(body)[:160]}")
        await asyncio.sleep(self._chance.uniform(0.5, 2))

    async def _anywhere(
        self, method: str, path: str, *, body: Any = None, query: Any = (), headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        tries = 0
        while True:
            address = self._chance.choice(self._addresses)
            try:
                if self._session is None:
                    await self._log_in(address)
                if self._session is not None:
                    return await self._send(address, method, path, body, query, headers or {})
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self._history.add(f"got no answer of {address} for {method} {path}: {type(error).__name__}")
            await asyncio.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
            tries += 1

    async def _log_in(self, address: str) -> None:
        operation = load()["LogInByAccount"]
        password = hashlib.sha512(b"password").hexdigest()
        path, body, query = request_parts(operation, {"accountName": "admin", "password": password})
        status, answer = await self._send(address, operation.method, path, body, query, {})
        if status == 200:
            self._session = str(answer["inventory"]["uuid"])
        else:
            self._history.add(f"cannot log in at {address}: {status} {str(answer)[:160]}")

    async def _send(
        self, address: str, method: str, path: str, body: Any, query: Any, headers: dict[str, str]
    ) -> tuple[int, dict[str, Any]]:
        if self._session is not None:
            headers = {**headers, "Authorization": f"OAuth {self._session}"}
        url = f"{address}/zstack/v1{path}"
        async with self._http.request(method, url, params=list(query), json=body, headers=headers) as answer:
            text = await answer.read()
            try:
                found = msgspec.json.decode(text or b"{}")
            except msgspec.DecodeError:
                found = {"text": text.decode()}
            return answer.status, found if isinstance(found, dict) else {"value": found}

    def _is_passing(self, body: dict[str, Any]) -> bool:
        return _code(body) in (NOT_READY.code, _LOGIN_CODE) and not self._is_of_job(body)

    def _is_of_job(self, body: dict[str, Any]) -> bool:
        """Whether it is the job's answer that its session has ended: new sessions do not help."""
        return _code(body) == _LOGIN_CODE and self._refused_sessions >= _MOST_SESSIONS


def _code(body: dict[str, Any]) -> str | None:
    code: str | None = body.get("error", {}).get("code")
    return code
