"""What operators ask: is the process alive, does the node serve, its numbers.

Invariant: health answers never wait for anything; metrics tell nothing to people without a session unless the
configuration says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client.core import GaugeMetricFamily, Metric

from caelum.cloud.identity.messages import CheckSession
from caelum.gateway.http import SECURITY_HEADERS, json_answer, oauth_session
from caelum.gateway.refusal import Refusal
from caelum.kernel.errors import CloudError

if TYPE_CHECKING:
    from caelum.gateway.server import Gateway
    from caelum.kernel.node import Node

_METRICS_TYPE = "text/plain; version=1.0.0; charset=utf-8"


class Operations:
    """`/healthz`, `/readyz`, `/metrics`."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def observe(self, gateway: Gateway) -> None:
        """Add the gateway's own numbers to the node's."""

        def numbers() -> Iterator[Metric]:
            yield GaugeMetricFamily(
                "caelum_api_requests_running", "API requests being worked on", value=gateway.running
            )
            yield GaugeMetricFamily("caelum_api_requests_waiting", "API requests not begun", value=gateway.waiting)
            yield GaugeMetricFamily("caelum_api_polls_waiting", "API requests that wait for jobs", value=gateway.idle)
            yield GaugeMetricFamily(
                "caelum_feed_clients", "Clients connected to the live feed", value=gateway.feed.clients
            )

        self._node.metrics.collect_from(numbers)

    async def serve(self, request: web.BaseRequest, segments: list[str]) -> web.StreamResponse | None:
        """The answer, or None when the path is not one of these."""
        if segments == ["healthz"]:
            return self._read_only(request, json_answer({"status": "alive", "node": self._node.uuid}))
        if segments == ["readyz"]:
            return self._read_only(request, self._ready())
        if segments == ["metrics"]:
            return self._read_only(request, await self._metrics(request))
        return None

    def _read_only(self, request: web.BaseRequest, answer: web.Response) -> web.Response:
        if request.method not in ("GET", "HEAD"):
            raise Refusal(405, f"the method {request.method} is not allowed", {"Allow": "GET"})
        return answer

    def _ready(self) -> web.Response:
        body = {
            "ready": self._node.serves,
            "waitingFor": self._node.waiting_for,
            "broken": [f"{one.name}: {one.error}" for one in self._node.broken],
        }
        return json_answer(body, 200 if self._node.serves else 503)

    async def _metrics(self, request: web.BaseRequest) -> web.Response:
        if not self._node.config.metrics_public:
            try:
                actor = await self._node.bus.call(CheckSession(session_uuid=oauth_session(request)))
            except CloudError as error:
                raise Refusal(403, error.details) from None
            if not actor.is_admin:
                raise Refusal(403, "metrics are for administrators")
        text = await asyncio.to_thread(self._node.metrics.render)
        return web.Response(body=text, headers={"Content-Type": _METRICS_TYPE, **SECURITY_HEADERS})
