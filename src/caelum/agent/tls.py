"""Mutual TLS: the agent obeys only management nodes of our authority, and talks only to such.

Invariant: a certificate that is renewed on disk is used for new connections within a minute, without a restart. The
directory holds `ca.crt`, `tls.crt` and `tls.key`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from caelum.kernel import pki

log = logging.getLogger(__name__)

RELOAD_SECONDS = 60.0


class Tls:
    """The agent's two TLS contexts: for its port, and for callbacks, reports and downloads."""

    def __init__(self, directory: Path) -> None:
        self._files = pki.Files(directory / "tls.crt", directory / "tls.key", directory / "ca.crt")
        self.server = pki.server_context(self._files)
        self.client = pki.client_context(self._files)
        self._loaded = self._stamp()

    def reload(self) -> bool:
        """Load the certificate again if the file changed; returns whether it did."""
        stamp = self._stamp()
        if stamp == self._loaded:
            return False
        for context in (self.server, self.client):
            context.load_cert_chain(self._files.certificate, self._files.key)
        self._loaded = stamp
        return True

    async def watch(self) -> None:
        """Reload for ever. A half-written pair is tried again."""
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            try:
                if await asyncio.to_thread(self.reload):
                    log.info("loaded the renewed certificate")
            except (OSError, ssl.SSLError) as error:
                log.warning("cannot load the certificate: %s", error)

    def _stamp(self) -> tuple[int, int]:
        return self._files.certificate.stat().st_mtime_ns, self._files.key.stat().st_mtime_ns


@web.middleware
async def only_servers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse whoever is not a management node: another host's certificate is of our authority too."""
    identity = pki.peer_identity(request.transport)
    if identity is None or identity.kind != "server":
        raise web.HTTPForbidden(text="only a management node may command a host")
    return await handler(request)
