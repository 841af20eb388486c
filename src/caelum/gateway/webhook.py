"""Web hooks: the outcome of a job is POSTed to the URL that the client gave.

Invariant: a job keeps its web hook until that was taken or given up, so one whose delivery a dead process had begun is
sent by the next start, or by the node that takes over; a receiver may see it twice, and knows it by X-Job-UUID. The
server never sends to a denied network, whatever name the URL has and whatever it resolves to at the moment of sending;
redirects are not followed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from caelum.gateway.answer import error_body
from caelum.gateway.refusal import Refusal
from caelum.gateway.settings import WEB_HOOK_DENIED, networks

if TYPE_CHECKING:
    from caelum.kernel.jobs import Job
    from caelum.kernel.node import Node

log = logging.getLogger(__name__)

TRIES = 15
PAUSE = 2.0
ONE_TRY_SECONDS = 10.0
SWEEP_SECONDS = 10.0
"""How often this node looks for web hooks that wait: those that it inherited, and those there was no room for."""
_AT_A_TIME = 32
_MOST_PENDING = 10_000


class DeniedAddressError(OSError):
    """The URL leads where web hooks are not sent."""


def check_url(text: str) -> None:
    """Refuse what cannot be a web hook's URL."""
    try:
        url = URL(text)
    except ValueError:
        raise Refusal(400, f"X-Web-Hook is not a URL: {text[:255]}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise Refusal(400, f"X-Web-Hook must be an http or https URL: {text[:255]}")


class _GuardedResolver(AbstractResolver):
    """Resolves names, and gives none of the denied addresses away."""

    def __init__(self, check: Callable[[str], None]) -> None:
        self._check = check
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        for one in found:
            self._check(one["host"])
        return found

    async def close(self) -> None:
        await self._inner.close()


class WebHooks:
    """Sends the outcomes of jobs."""

    def __init__(self, node: Node, *, pause: float = PAUSE) -> None:
        self._node = node
        self._pause = pause
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(_AT_A_TIME)
        self._session: aiohttp.ClientSession | None = None

    def start(self) -> None:
        """Watch for jobs that finish, and send what waits from before."""
        self._node.jobs.on_finish(self._finished)
        self._node.timers.every(SWEEP_SECONDS, self.sweep, name="web-hooks").run_now()

    async def stop(self) -> None:
        """Leave what is not delivered yet to the next start."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def sweep(self) -> None:
        """Begin to send what waits and is not being sent."""
        await self._node.jobs.tell_undelivered(_MOST_PENDING)

    def _finished(self, job: Job) -> None:
        if job.web_hook is None or not job.web_hook.startswith("http"):
            return  # an answer by AMQP is the AMQP side's
        if job.uuid in self._tasks or len(self._tasks) >= _MOST_PENDING:
            return  # what finds no room is found by a sweep
        task = asyncio.get_running_loop().create_task(self._settle(job, job.web_hook), name=f"web-hook:{job.uuid}")
        self._tasks[job.uuid] = task
        task.add_done_callback(lambda _task: self._tasks.pop(job.uuid, None))

    async def _settle(self, job: Job, url: str) -> None:
        await self._deliver(job, url)
        await self._node.jobs.hook_settled(job.uuid)

    async def _deliver(self, job: Job, url: str) -> None:
        body = msgspec.json.encode(error_body(job.error)) if job.error else (job.result or "{}").encode()
        headers = {
            "Content-Type": "application/json",
            "X-Job-UUID": job.uuid,
            "X-Job-Success": "false" if job.error else "true",
        }
        for attempt in range(1, TRIES + 1):
            try:
                async with self._turn:
                    await self._post(url, body, headers)
                return
            except DeniedAddressError as error:
                log.warning("the web hook of job %s is not sent: %s", job.uuid, error)
                return
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                log.info("web hook of job %s, try %d of %d: %s", job.uuid, attempt, TRIES, error)
                await asyncio.sleep(self._pause)
        log.warning("the web hook of job %s was not taken in %d tries", job.uuid, TRIES)

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> None:
        host = URL(url).host or ""
        if _is_address(host):
            # The resolver does not see addresses that are written out.
            self._check(host)
        async with self._client().post(url, data=body, headers=headers, allow_redirects=False) as response:
            if not 200 <= response.status < 300:
                raise aiohttp.ClientError(f"answered {response.status}")

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=_GuardedResolver(self._check), force_close=True, use_dns_cache=False
            )
            timeout = aiohttp.ClientTimeout(total=ONE_TRY_SECONDS)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self._session

    def _check(self, address: str) -> None:
        ip = ipaddress.ip_address(address.partition("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        for network in networks(self._node.settings.get(WEB_HOOK_DENIED)):
            if ip in network:
                raise DeniedAddressError(f"{address} is in {network}, which rest/webHook.deniedNetworks lists")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
