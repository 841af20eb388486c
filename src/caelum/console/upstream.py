"""The way to a host: WebSockets to its agent over mutual TLS, pinned to the host's UUID.

Invariant: what a viewer sees comes from the host that the cloud named: whatever answers at its address without that
host's certificate gets nothing.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from caelum.cloud.console.errors import UNREACHABLE
from caelum.kernel import pki
from caelum.kernel.errors import CloudError

CONNECT_TIMEOUT = 10.0
CLOSE_TIMEOUT = 2.0
HEARTBEAT = 30.0
MAX_MESSAGE = 1 << 20


class Upstream:
    """Opens agents' WebSockets with this node's certificate, which may be renewed at any time."""

    def __init__(self, files: pki.Files) -> None:
        self._files = files
        self._loaded: tuple[float, ssl.SSLContext] | None = None
        self._http: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def open(self, url: str, host_uuid: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """The agent's WebSocket; closed at the end of the block. Raises CONSOLE.1004."""
        socket = await self._connect(url, host_uuid)
        try:
            yield socket
        finally:
            await socket.close()

    async def _connect(self, url: str, host_uuid: str) -> aiohttp.ClientWebSocketResponse:
        try:
            tls = await asyncio.to_thread(self._context)
            async with asyncio.timeout(CONNECT_TIMEOUT):
                return await self._session().ws_connect(
                    url, protocols=("binary",), ssl=tls, server_hostname=host_uuid, heartbeat=HEARTBEAT,
                    max_msg_size=MAX_MESSAGE, timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT),
                )  # fmt: skip
        except aiohttp.WSServerHandshakeError as error:
            why = f"the agent of host[uuid:{host_uuid}] answered the console's WebSocket with HTTP {error.status}"
            raise CloudError(UNREACHABLE, why, hostUuid=host_uuid, httpStatus=error.status) from error
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError and ssl.SSLError too
            why = f"the agent of host[uuid:{host_uuid}] cannot be reached: {type(error).__name__} {error}"
            raise CloudError(UNREACHABLE, why, hostUuid=host_uuid) from error

    def _context(self) -> ssl.SSLContext:
        changed = self._files.certificate.stat().st_mtime
        if self._loaded is None or self._loaded[0] != changed:
            self._loaded = (changed, pki.client_context(self._files))
        return self._loaded[1]

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            self._http = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._http

    async def close(self) -> None:
        """Close every connection."""
        if self._http is not None:
            await self._http.close()
