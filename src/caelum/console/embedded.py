"""The console proxy inside the server: a part of the node, on `console_port` unless that is 0."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import WSCloseCode

from caelum.cloud.console.messages import ENDED, AnnounceConsoleProxy
from caelum.cloud.vm.api import VmStateChanged
from caelum.console.proxy import ConsoleProxy
from caelum.kernel import pki
from caelum.kernel.errors import CloudError
from caelum.kernel.node import Node

log = logging.getLogger(__name__)


class EmbeddedProxy:
    """Serves consoles from this node, with the API's TLS certificate when it has one."""

    name = "console-proxy"

    def __init__(self, node: Node) -> None:
        self._node = node
        self.proxy: ConsoleProxy | None = None

    async def serve(self) -> None:
        """Listen, and say so."""
        config = self._node.config
        if config.console_port == 0:
            return
        files = pki.Files.in_directory(config.data_dir / "pki", "server")
        self.proxy = ConsoleProxy(self._node.bus, self._node.settings.get, files, [config.api_port])
        await self.proxy.start(config.console_host, config.console_port, await asyncio.to_thread(config.api_tls))
        self._node.bus.subscribe(VmStateChanged, self._vm_ended, lambda event: event.new_state in ENDED)
        await self._announce(connected=True)
        log.info("consoles are at %s:%d", config.console_host, config.console_port)

    async def stop(self) -> None:
        """Send all viewers away."""
        if self.proxy is None:
            return
        await self.proxy.stop()
        try:
            await self._announce(connected=False)
        except CloudError as error:
            log.info("the console proxy leaves without a word: %s", error)

    async def _announce(self, *, connected: bool) -> None:
        config = self._node.config
        await self._node.bus.call(
            AnnounceConsoleProxy(
                management_ip=config.resolved_host(),
                port=config.console_port,
                scheme="http" if config.api_tls_certificate is None else "https",
                connected=connected,
            )
        )

    async def _vm_ended(self, event: VmStateChanged) -> None:
        if self.proxy is not None:
            self.proxy.sessions.end(WSCloseCode.OK, f"the VM is {event.new_state}", event.vm_uuid)
