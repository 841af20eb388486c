"""Clients that use a cluster while it is being broken: each makes, stops, starts and destroys VMs through all nodes.

A client does what the SDK does: a request that fails goes to the next address, repeated under the same job UUID, and a
job is polled at any address. What each request and each operation experienced is written down for the judge.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from caelum.kernel.ids import new_uuid
from caelum.sdk.client import request_parts
from caelum.sdk.manifest import load as manifest
from caelum.sdk.transport import AWAY, DUPLICATE, NOT_READY

LIMIT = 90.0
"""Seconds within which every operation must have its answer."""
REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=4, sock_connect=1)
PAUSE = 0.1
"""Between rounds over all addresses, none of which answered."""
STABLE = {"CreateVmInstance": "Running", "StartVmInstance": "Running", "StopVmInstance": "Stopped",
          "DestroyVmInstance": "Destroyed", "ExpungeVmInstance": None}  # fmt: skip
TRANSITIONAL = {
    "Starting", "Stopping", "Rebooting", "Destroying", "Pausing", "Resuming", "Expunging", "Migrating", "Created",
}  # fmt: skip


@dataclass
class Asked:
    """A request until the address was asked that took it: `failures` are what those before it said, and when."""

    begun: float
    ended: float
    failures: list[str]

    def failed(self, why: str) -> None:
        """An address did not take it."""
        self.failures.append(f"after {time.monotonic() - self.begun:.2f} s: {why}")


@dataclass
class Done:
    """An operation: `error` is None when it succeeded; `wrong` says what was not true about its answer."""

    name: str
    vm: str
    job: str
    begun: float
    ended: float = 0.0
    error: dict[str, Any] | None = None
    wrong: str | None = None

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


@dataclass
class Record:
    """What all clients experienced."""

    asked: list[Asked] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)

    def rate(self, begun: float, ended: float) -> float:
        """Operations a second that succeeded between two moments."""
        number = sum(1 for one in self.done if one.error is None and begun <= one.ended < ended)
        return number / max(0.001, ended - begun)

    def downtime(self, since: float) -> float:
        """The longest time for which a client that tried every address got no request through: until the address was
        asked that answered. How long that one took tells of the machine's load."""
        worst = self.worst(since)
        return 0.0 if worst is None else worst.ended - worst.begun

    def worst(self, since: float) -> Asked | None:
        """The request that took longest, of those that an address refused."""
        late = [one for one in self.asked if one.failures and one.ended > since]
        return max(late, key=lambda one: one.ended - one.begun, default=None)

    def errors(self, since: float = 0.0) -> list[Done]:
        """The operations that ended with an error."""
        return [one for one in self.done if one.error is not None and one.ended > since]


class Api:
    """One client of all addresses."""

    def __init__(self, http: aiohttp.ClientSession, addresses: list[str], session: str, record: Record) -> None:
        self._http, self._addresses, self._record = http, addresses, record
        self._headers = {"Authorization": f"OAuth {session}", "Content-Type": "application/json"}
        self._next = random.randrange(len(addresses))

    async def begin(self, name: str, job: str, /, **parameters: Any) -> None:
        """Have an asynchronous operation accepted under this job UUID."""
        body = await self._send(name, {"X-Job-UUID": job}, parameters)
        assert "error" not in body, f"{name} was refused: {body}"

    async def answer(self, job: str, until: float) -> dict[str, Any]:
        """The job's answer: `{}` or so when it succeeded, `{"error": ...}` when not. Raises TimeoutError."""
        path = f"/zstack/v1/api-jobs/{job}"
        while time.monotonic() < until:
            status, body = await self._anywhere("GET", path, None, {"Prefer": "wait=1"}, until)
            if status != 202:
                return body
        raise TimeoutError(f"job {job} has no answer")

    async def get(self, name: str, /, **parameters: Any) -> dict[str, Any]:
        """The answer of a synchronous operation."""
        return await self._send(name, {}, parameters)

    async def _send(self, name: str, headers: dict[str, str], parameters: dict[str, Any]) -> dict[str, Any]:
        operation = manifest()[name]
        path, body, query = request_parts(operation, parameters)
        tail = f"/zstack/v1{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        self._next += 1  # every node gets its share
        return (await self._anywhere(operation.method, tail, data, headers, time.monotonic() + LIMIT))[1]

    async def _anywhere(
        self, method: str, path: str, data: bytes | None, headers: dict[str, str], until: float
    ) -> tuple[int, dict[str, Any]]:
        asked = Asked(time.monotonic(), 0.0, [])
        while time.monotonic() < until:
            address = self._addresses[self._next % len(self._addresses)]
            asked.ended = time.monotonic()
            answer = await self._exchange(method, address + path, data, headers, asked)
            if answer is not None:
                self._record.asked.append(asked)
                return answer
            self._next += 1
            if len(asked.failures) % len(self._addresses) == 0:
                await asyncio.sleep(PAUSE)
        raise TimeoutError(f"no address took {method} {path}: {asked.failures[-3:]}")

    async def _exchange(
        self, method: str, url: str, data: bytes | None, headers: dict[str, str], asked: Asked
    ) -> tuple[int, dict[str, Any]] | None:
        """An answer, or None, with the reason noted, where another address must be tried."""
        try:
            async with self._http.request(
                method, url, data=data, headers={**self._headers, **headers}, timeout=REQUEST_TIMEOUT
            ) as response:
                text, status = await response.text(), response.status
                if status == 202 and "Retry-After" in response.headers:
                    text, status = "this node does not know now what becomes of the job", 503
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            asked.failed(f"{type(error).__name__} {error}")
            return None
        if status == 400 and DUPLICATE in text:
            return 202, {}
        try:
            body: dict[str, Any] = json.loads(text)
        except ValueError:
            asked.failed(f"HTTP {status} {text[:200]}")
            return None
        code = body.get("error", {}).get("code")
        is_answer = "/api-jobs/" in url
        if code == NOT_READY or (code in AWAY and not is_answer) or (code and method == "GET" and not is_answer):
            asked.failed(f"HTTP {status} {body['error'].get('details')}")
            return None
        return status, body


class Load:
    """`async with Load(...) as load:` has clients at work in the background."""

    def __init__(self, addresses: list[str], session: str, resources: dict[str, Any], clients: int = 6) -> None:
        self.record = Record()
        self._addresses, self._session, self._resources = addresses, session, resources
        self._clients = clients
        self._ending = False
        self._tasks: list[asyncio.Task[None]] = []
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Load:
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    async def end(self) -> None:
        """Let every client end its last operation, and destroy its VM."""
        self._ending = True
        try:
            await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            if self._http is not None:
                await self._http.close()

    async def run(self, seconds: float) -> None:
        """Let the clients work; raises what one of them found impossible."""
        done, _ = await asyncio.wait(self._tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def succeeds(self, seconds: float = 60.0, count: int = 1) -> float:
        """Wait for operations that begin and succeed from now on; how long it took."""
        begun = time.monotonic()
        while time.monotonic() < begun + seconds:
            if sum(1 for one in self.record.done if one.begun > begun and one.error is None) >= count:
                return time.monotonic() - begun
            await self.run(0.1)
        raise AssertionError(f"no operation succeeded within {seconds} s: {self.record.errors(begun)[-3:]}")

    # --- one client ---------------------------------------------------------------------------------------------------

    async def _client(self, number: int) -> None:
        assert self._http is not None
        api = Api(self._http, self._addresses, self._session, self.record)
        life = 0
        while not self._ending:
            life += 1
            await self._one_life(api, new_uuid(), f"load-{number}-{life}")

    async def _one_life(self, api: Api, vm: str, name: str) -> None:
        """From nothing to nothing, whatever fails on the way."""
        for operation in self._script():
            parameters = {"uuid": vm}
            if operation == "CreateVmInstance":
                parameters = {"name": name, "resourceUuid": vm, **self._resources}
            await self._operate(api, operation, vm, parameters)
        while (state := await self._state(api, vm)) is not None:
            await self._operate(
                api, "ExpungeVmInstance" if state == "Destroyed" else "DestroyVmInstance", vm, {"uuid": vm}
            )

    def _script(self) -> Iterator[str]:
        yield "CreateVmInstance"
        for _ in range(random.randrange(1, 3)):
            if not self._ending:
                yield "StopVmInstance"
                yield "StartVmInstance"

    async def _operate(self, api: Api, name: str, vm: str, parameters: dict[str, Any]) -> None:
        before = await self._state(api, vm)
        if before is None and name != "CreateVmInstance":
            return
        done = Done(name, vm, new_uuid(), time.monotonic())
        await api.begin(name, done.job, **parameters)
        body = await api.answer(done.job, done.begun + LIMIT)
        done.ended, done.error = time.monotonic(), body.get("error")
        await self._look(api, done, before)
        self.record.done.append(done)

    async def _look(self, api: Api, done: Done, before: str | None) -> None:
        """Whether the answer is true, and the same when asked again."""
        now = await self._state(api, done.vm)
        if done.error is None and now != STABLE[done.name]:
            done.wrong = f"{done.name} of {done.vm} succeeded (job {done.job}), but the VM is {now}"
        if done.error is not None and now in TRANSITIONAL:
            done.wrong = f"{done.name} of {done.vm} failed (job {done.job}: {done.error}), but the VM is {now}"
        again = (await api.answer(done.job, time.monotonic() + LIMIT)).get("error")
        if (again is None) != (done.error is None):
            done.wrong = f"{done.name} of {done.vm} was answered twice (job {done.job}): {done.error}, then {again}"

    async def _state(self, api: Api, vm: str) -> str | None:
        """The VM's state, once it is known; None when there is no VM."""
        until = time.monotonic() + LIMIT
        while time.monotonic() < until:
            found = (await api.get("QueryVmInstance", uuid=vm))["inventories"]
            if not found or found[0]["state"] != "Unknown":
                return found[0]["state"] if found else None
            await asyncio.sleep(0.2)
        raise TimeoutError(f"the VM {vm} stays Unknown")
