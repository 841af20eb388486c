"""The agent's program of this version, for hosts whose agent is older.

Invariant: only our hosts get it, by the connection on which they report; a host whose agent cannot be updated goes on
with the one that it has, as long as its protocol is understood. What is offered was read when the node started: the
package may be replaced on disk later.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import re
import time
import zipfile
from collections.abc import Iterator
from contextvars import Context
from pathlib import Path

from aiohttp import web

import caelum
from caelum.agent import protocol as p
from caelum.cloud.host.errors import HOST_DISCONNECTED
from caelum.drivers.kvm.agents import Agents
from caelum.drivers.kvm.client import Address
from caelum.drivers.kvm.extension import AgentRoutes
from caelum.drivers.kvm.settings import AGENT_UPDATE
from caelum.kernel.errors import OPERATION_ERROR, CloudError
from caelum.kernel.node import Node

log = logging.getLogger(__name__)

_ROUTE = "/agent/program/"
_PARTS = ("__init__.py", "py.typed", "agent", "kernel")
"""What of the package an agent needs."""
_PACKED_AT = (1980, 1, 1, 0, 0, 0)
"""The time of every file: what is packed twice is the same."""
_UPDATE_COMMAND = 2
"""The protocol since which agents can be updated."""
_FETCH_SECONDS = 150.0
_RESTART_SECONDS = 120.0
_PING_SECONDS = 5.0
_PING_PAUSE = 0.5


class AgentProgram(AgentRoutes):
    """Offers the program, and brings agents to it."""

    def __init__(self, node: Node, agents: Agents) -> None:
        self._node, self._agents = node, agents
        self._base_url = ""
        self._packing: asyncio.Task[bytes] | None = None

    def listening(self, base_url: str) -> None:
        self._base_url = base_url
        self._pack()

    async def stop(self) -> None:
        """Wait for the end of what was begun."""
        if self._packing is not None:
            await asyncio.gather(self._packing, return_exceptions=True)

    def routes(self) -> list[web.RouteDef]:
        return [web.get(f"{_ROUTE}{{sha256}}", self._serve)]

    async def _serve(self, request: web.Request) -> web.Response:
        try:
            archive = await self._archive()
        except OSError as error:
            raise web.HTTPServiceUnavailable(text=f"the program cannot be packed: {error}") from error
        if request.match_info["sha256"] != hashlib.sha256(archive).hexdigest():
            raise web.HTTPNotFound(text="this management node has another program")
        return web.Response(body=archive, content_type="application/zip")

    async def _archive(self) -> bytes:
        return await asyncio.shield(self._packing or self._pack())

    def _pack(self) -> asyncio.Task[bytes]:
        work = asyncio.to_thread(pack, Path(caelum.__file__).parent)
        self._packing = asyncio.create_task(work, name="kvm.program", context=Context())
        self._packing.add_done_callback(self._forget_failure)
        return self._packing

    def _forget_failure(self, packing: asyncio.Task[bytes]) -> None:
        """Whoever needs it next tries again."""
        if packing.cancelled() or packing.exception() is not None:
            self._packing = None
            log.warning("the agents' program could not be packed; it is tried again when an agent is to be updated")

    def fits(self, answer: p.ConnectHostAnswer) -> bool:
        """Whether an agent is to be updated, and can be."""
        old = is_older(answer.version, caelum.__version__)
        return old and answer.protocol >= _UPDATE_COMMAND and bool(self._node.settings.get(AGENT_UPDATE))

    async def update(self, address: Address, answer: p.ConnectHostAnswer) -> bool:
        """Have an agent start anew in this version's program. False when it stays what it is."""
        try:
            command = await self._command()
            await self._order(address, command)
            log.info("the agent of host %s goes from %s to %s", address.host_uuid, answer.version, command.version)
            await self._restarted(address, answer.agent_uuid)
        except Exception as error:
            # Whatever it is, the host works with the agent that it has.
            trace = None if isinstance(error, CloudError) else error
            log.warning(
                "the agent of host %s stays at version %s: %s", address.host_uuid, answer.version, error, exc_info=trace
            )
            return False
        return True

    async def _command(self) -> p.UpdateAgent:
        archive = await self._archive()
        digest = hashlib.sha256(archive).hexdigest()
        url = f"{self._base_url}{_ROUTE}{digest}"
        return p.UpdateAgent(version=caelum.__version__, url=url, sha256=digest, size=len(archive))

    async def _order(self, address: Address, command: p.UpdateAgent) -> None:
        try:
            await self._agents.client.run(address, command, _FETCH_SECONDS)
        except CloudError as error:
            # It may be starting anew already, and its answer be late.
            if error.kind is not HOST_DISCONNECTED:
                raise

    async def _restarted(self, address: Address, former: str) -> None:
        """Wait until another agent answers there."""
        end = time.monotonic() + _RESTART_SECONDS
        while True:
            try:
                if (await self._agents.client.run(address, p.Ping(), _PING_SECONDS)).agent_uuid != former:
                    return
            except CloudError as error:
                log.debug("the agent of host %s is not back yet: %s", address.host_uuid, error)
            if time.monotonic() > end:
                details = f"the agent at {address.ip} did not start anew within {_RESTART_SECONDS:.0f} s"
                raise CloudError(OPERATION_ERROR, details, hostUuid=address.host_uuid)
            await asyncio.sleep(_PING_PAUSE)


def check_protocol(answer: p.ConnectHostAnswer, host_uuid: str, ip: str) -> None:
    """Raises OPERATION_ERROR when server and agent have no protocol in common."""
    if answer.protocol >= p.OLDEST_PROTOCOL and answer.oldest_protocol <= p.PROTOCOL_VERSION:
        return
    spoken = f"protocols {answer.oldest_protocol} to {answer.protocol}"
    advice = "the host must get" if answer.protocol < p.OLDEST_PROTOCOL else "the server is too old: the host needs"
    details = (
        f"the agent at {ip} (version {answer.version}) speaks {spoken}, this server {p.OLDEST_PROTOCOL} to"
        f" {p.PROTOCOL_VERSION}: {advice} the agent of a version that is at most one apart"
    )
    raise CloudError(
        OPERATION_ERROR, details, hostUuid=host_uuid, agentVersion=answer.version, protocol=answer.protocol
    )


def is_older(version: str, than: str) -> bool:
    """Whether a version comes before another one; one without numbers is not compared."""
    one, other = ([int(number) for number in re.findall(r"\d+", text)] for text in (version, than))
    return bool(one) and one < other


def pack(package: Path) -> bytes:
    """The agent's program as an archive."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(_files(package)):
            name = Path("caelum") / path.relative_to(package)
            archive.writestr(zipfile.ZipInfo(str(name), _PACKED_AT), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _files(package: Path) -> Iterator[Path]:
    for part in _PARTS:
        found = package / part
        for path in [found] if found.is_file() else found.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path
