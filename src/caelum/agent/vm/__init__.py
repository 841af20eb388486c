"""Guests on this host: libvirt domains of ours, their devices, states and consoles.

Invariant: only domains that carry our metadata are ever touched; every other one is reported and left alone. Stopping
or killing the agent changes nothing for a guest.
"""

from __future__ import annotations

from caelum.agent.core import Agent
from caelum.agent.vm import commands, hotplug
from caelum.agent.vm.acceleration import Acceleration
from caelum.agent.vm.console import Consoles
from caelum.agent.vm.libvirtd import Libvirt
from caelum.agent.vm.watch import Watch

__all__ = ["commands", "hotplug", "setup"]


def setup(agent: Agent) -> None:
    """Take part in the agent: connect to libvirt, watch guests, offer consoles."""
    libvirt = Libvirt(agent)
    watch = Watch(agent, libvirt)
    consoles = Consoles(agent)
    for part in (Acceleration(agent), libvirt, watch, consoles):
        agent.add_part(part)
    agent.routes.extend(consoles.routes())
    agent.hooks.started.append(watch.start)
    agent.hooks.stopping.append(consoles.close)
    agent.hooks.stopping.append(libvirt.close)
