"""Commands outlive their agent: one that does not reach it, or loses it in the middle, is repeated when it is back.

Invariant: a command is repeated only while its host was lost less than `host/connection.patience` ago. Commands are
idempotent, so a repeated one has the effect of one. What runs while the host is being connected is never held up: the
connect itself is made of such commands, and would wait for its own end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from caelum.cloud.host.errors import HOST_DISCONNECTED
from caelum.cloud.host.messages import AwaitLostHost
from caelum.kernel.bus import Bus
from caelum.kernel.errors import CloudError

log = logging.getLogger(__name__)

A = TypeVar("A")

FINAL = "final"
"""The fact in an error that says that it is nothing to wait for: the host is being connected."""


async def patiently(bus: Bus, host_uuid: str, attempt: Callable[[], Awaitable[A]]) -> A:
    """What `attempt()` gives, tried again as long as its host may come back. Raises its last error."""
    first: float | None = None
    while True:
        try:
            return await attempt()
        except CloudError as error:
            if error.code != HOST_DISCONNECTED.code or error.facts.get(FINAL):
                raise
            now = time.monotonic()
            first = first or now
            if not await bus.call(AwaitLostHost(host_uuid=host_uuid, waited=now - first)):
                raise
            log.info(
                "host %s is there again after %.1f s; its command is repeated", host_uuid, time.monotonic() - first
            )
