"""Networks on a host: bridges, DHCP with DNS and metadata, address translation, anti-spoofing.

Invariant: everything made here is named after its UUID, is made again by repeating its command, outlives the agent, and
is told of by `report.dump`, so that nothing can be left behind unseen.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from caelum.agent.core import Agent
from caelum.agent.network import bridge, dhcp, metadata, nat, report, spoofing

__all__ = ["bridge", "dhcp", "metadata", "nat", "setup"]


def setup(agent: Agent) -> None:
    """Take part in the agent: guard taps, tell what is here, keep the servers alive."""
    agent.hooks.nic_plugged.append(spoofing.plugged)
    agent.hooks.nic_unplugged.append(spoofing.unplugged)
    agent.hooks.dump.append(report.dump)
    supervisor: list[asyncio.Task[None]] = []

    async def started(agent: Agent) -> None:
        supervisor.append(asyncio.create_task(dhcp.supervise(agent), name="network-supervisor"))

    async def stopping(agent: Agent) -> None:  # noqa: ARG001 - the hook's shape
        for task in supervisor:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    agent.hooks.started.append(started)
    agent.hooks.stopping.append(stopping)
