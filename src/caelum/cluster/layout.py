"""Where a cluster on this machine keeps its things, and on which ports its parts listen.

Everything is in `cluster` of `CAELUM_HOME`, and `make cluster-down` removes it. `CAELUM_NODES` (3) and `CAELUM_HOSTS`
(3) say how many management nodes and simulated hosts there are; `CAELUM_API_PORT` (8081), `CAELUM_CALLBACK_PORT` (8444)
and `CAELUM_CONSOLE_PORT` (4901) are those of the first node, and the others' follow; `CAELUM_AGENT_PORT` (7071) is the
port of every simulated host, each at an address of its own; `CAELUM_DATABASE_PORT` (5433), `CAELUM_BROKER_PORT` (5673),
`CAELUM_CONTROL_PORT` (7079) are those of PostgreSQL, RabbitMQ and the simulator.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from caelum.onemachine.layout import DEFAULT_HOME, Layout


class ClusterLayout(Layout, frozen=True, kw_only=True):
    """The directories and ports of one cluster on this machine."""

    api_port: int = 8081
    callback_port: int = 8444
    console_port: int = 4901
    agent_port: int = 7071
    database_port: int = 5433
    broker_port: int = 5673
    control_port: int = 7079
    nodes: int = 3
    hosts: int = 3
    first_host: str = "127.1.0.1"

    @classmethod
    def from_environment(cls) -> ClusterLayout:
        """The layout that the environment asks for."""
        home = Path(os.environ.get("CAELUM_HOME", DEFAULT_HOME)) / "cluster"
        given = {name: os.environ.get(f"CAELUM_{name.upper()}", "") for name in cls.__struct_fields__}
        numbers = {name: int(text) for name, text in given.items() if text.isdigit()}
        return msgspec.structs.replace(cls(home=home), **numbers)

    @property
    def names(self) -> list[str]:
        """The names of the nodes: `node1`, `node2`, ..."""
        return [f"node{number + 1}" for number in range(self.nodes)]

    def api_of(self, index: int) -> str:
        """The address of a node's API."""
        return f"http://{self.address}:{self.api_port + index}"

    @property
    def apis(self) -> list[str]:
        """The addresses of all nodes' APIs."""
        return [self.api_of(index) for index in range(self.nodes)]

    def data_of(self, index: int) -> Path:
        """A node's data directory."""
        return self.home / self.names[index]

    @property
    def authority(self) -> Path:
        """The certificate authority that all nodes share."""
        return self.home / "pki"

    @property
    def postgres(self) -> Path:
        return self.home / "postgresql"

    @property
    def rabbitmq(self) -> Path:
        return self.home / "rabbitmq"

    @property
    def database_url(self) -> str:
        return f"postgresql+asyncpg://postgres@{self.address}:{self.database_port}/postgres"

    @property
    def bus_url(self) -> str:
        return f"amqp://guest:guest@{self.address}:{self.broker_port}/"

    @property
    def control(self) -> str:
        """Where the simulator is controlled."""
        return f"http://{self.address}:{self.control_port}"

    @property
    def ports(self) -> dict[str, int]:
        """Every port that must be free, by the variable that chooses it (of a node's, the first)."""
        found = {
            f"CAELUM_{name.upper()}_PORT": getattr(self, f"{name}_port")
            for name in ("agent", "database", "broker", "control")
        }
        for index in range(self.nodes):
            for name in ("api", "callback", "console"):
                found[f"CAELUM_{name.upper()}_PORT" + (f"+{index}" if index else "")] = (
                    getattr(self, f"{name}_port") + index
                )
        return found
