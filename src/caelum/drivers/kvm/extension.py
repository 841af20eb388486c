"""What others may hook into on the agents' side of a management node."""

from __future__ import annotations

from aiohttp import web

from caelum.kernel.extension import ExtensionPoint

HOST_KEY: web.RequestKey[str] = web.RequestKey("host_uuid", str)
"""On a request at the agent-facing listener: the UUID of the host that asks, from its certificate."""


class AgentRoutes(ExtensionPoint):
    """Further routes on the agent-facing listener. Every request comes from one of our hosts: `request[HOST_KEY]`."""

    def routes(self) -> list[web.RouteDef]:
        """What to serve."""
        return []

    def listening(self, base_url: str) -> None:
        """Told where hosts reach these routes, before any of them is asked for."""
