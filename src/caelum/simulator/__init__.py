"""Simulated hosts: the host agent's protocol without the work, for tests and for scale.

    async with SimulatedHosts(3, directory=data_dir / "pki") as hosts: ...
    caelum simulator --hosts 1000 --listen 127.1.0.1:7070 --tls-dir /var/lib/caelum/pki

The server is not told: it finds agents with certificates of its own authority at addresses of their own.
"""

from caelum.simulator.faults import Fault, Latency
from caelum.simulator.host import SimulatedHost
from caelum.simulator.hosts import SimulatedHosts

__all__ = ["Fault", "Latency", "SimulatedHost", "SimulatedHosts"]
