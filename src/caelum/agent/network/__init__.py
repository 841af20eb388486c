"""Networks on a host: bridges, DHCP with DNS and metadata, address translation, anti-spoofing.

Invariant: everything made here is named after its UUID, is made again by repeating its command, outlives the agent, and
is told of by `report.dump`, so that nothing can be left behind unseen.
"""

from __future__ import annotations

from caelum.agent.core import Agent
from caelum.agent.network import bridge, dhcp, keeper, metadata, nat, report, spoofing

__all__ = ["bridge", "dhcp", "metadata", "nat", "setup"]


def setup(agent: Agent) -> None:
    """Take part in the agent: guard taps, tell what is here, keep it."""
    agent.hooks.nic_plugged.append(spoofing.plugged)
    agent.hooks.nic_unplugged.append(spoofing.unplugged)
    agent.hooks.dump.append(report.dump)
    agent.hooks.started.append(keeper.started)
