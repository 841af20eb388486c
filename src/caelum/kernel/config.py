"""What a node must know before it can read its database: one file, overridden by the environment.

Invariant: every value has a default that runs a one-machine cloud. Whatever can be changed while the cloud runs is a
setting (`settings.py`), not here.
"""

from __future__ import annotations

import os
import socket
import ssl
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_origin

import msgspec

PREFIX = "CAELUM_"


class Config(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The configuration of one node: TOML keys of these names, or the environment (`CAELUM_DATA_DIR`)."""

    data_dir: Path = Path("/var/lib/caelum")
    """Everything that this node keeps: database, certificates, logs, images of the built-in store."""
    database_url: str = ""
    """SQLAlchemy URL; empty: SQLite in `data_dir`."""
    database_pool: int = 20
    """Connections to PostgreSQL that a node keeps open at most."""
    database_pool_extra: int = 20
    """Further connections that it opens under load and closes again."""
    database_statement_seconds: float = 60.0
    """PostgreSQL ends a statement that runs longer."""
    database_idle_seconds: float = 5.0
    """PostgreSQL ends a transaction whose node does nothing for so long: a paused node must not hold up the others."""
    authority_secret: str = ""
    """Encrypts the key of the certificate authority in a database that several nodes share; the same on all nodes."""
    bus_url: str = "memory:"
    """`memory:` for one node, `amqp://user:password@host/` for a cluster."""
    advertised_host: str = ""
    """The name or address under which hosts, other nodes and browsers reach this node; empty: found out."""
    api_host: str = "0.0.0.0"  # noqa: S104 - clients come from other machines
    """Where the REST API, its documentation and the live feed listen."""
    api_port: int = 8080
    api_tls_certificate: Path | None = None
    """PEM file; with `api_tls_key` it makes API and consoles HTTPS. Empty: plain HTTP."""
    api_tls_key: Path | None = None
    agent_listen_host: str = "0.0.0.0"  # noqa: S104 - hosts come from other machines
    agent_listen_port: int = 8443
    """Mutual TLS: answers and reports of host agents, and images for them."""
    console_host: str = "0.0.0.0"  # noqa: S104 - browsers come from other machines
    console_port: int = 4900
    """The console proxy; 0 switches it off."""
    metrics_public: bool = False
    """Serve /metrics without a session."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["console", "json"] = "console"
    """`json`: one object a line, with job, resource and trace as fields."""
    log_file: Path | None = None
    """Empty: `data_dir`/log/server.log. The terminal gets the log too when it is one."""
    log_file_bytes: int = 50 * 1024 * 1024
    """The log begins a new file at this size."""
    log_file_count: int = 10
    """How many older log files are kept."""
    disabled_services: list[str] = []
    """Services, drivers and plugins that are not started, by name."""
    disabled_extensions: list[str] = []
    """Extensions that are not called, by class name or `module:Class`."""
    node_lease_seconds: float = 3.0
    """A node of a cluster that could not write its heartbeat for so long does nothing until it can."""
    node_eviction_seconds: float = 5.0
    """A node whose heartbeat is older is evicted by the others, which take its work over. Longer than the lease."""
    node_patience_seconds: float = 10.0
    """How long a node without its lease waits for the database before its process ends."""
    upgrade_finish: Literal["automatic", "manual"] = "automatic"
    """`manual`: what only a former version needs stays in the database until `caelum admin upgrade finish`."""
    upgrade_finish_seconds: float = 60.0
    """`automatic`: it goes when no server of a former version has been there for so long."""
    upgrade_backup: Literal["dump", "elsewhere"] = "dump"
    """Dump PostgreSQL to `data_dir`/backup before an upgrade changes it; `elsewhere`: you have a backup."""
    stop_seconds: float = 20.0
    """How long a stopping node waits for running work."""
    queue_cap: int = 50_000
    """Tasks that may wait in one work queue."""

    def __post_init__(self) -> None:
        """Refuse what would let two nodes do the same work. Raises ValueError."""
        if self.node_eviction_seconds <= self.node_lease_seconds:
            raise ValueError("node_eviction_seconds must be longer than node_lease_seconds")

    def resolved_database_url(self) -> str:
        """The URL to connect to."""
        return self.database_url or f"sqlite+aiosqlite:///{(self.data_dir / 'caelum.db').absolute()}"

    def api_tls(self) -> ssl.SSLContext | None:
        """What API and consoles are served with, or None: in the clear."""
        if self.api_tls_certificate is None:
            return None
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(self.api_tls_certificate, self.api_tls_key)
        return tls

    def resolved_host(self) -> str:
        """The address that others are told."""
        return self.advertised_host or default_address()


def default_address() -> str:
    """The address of the interface that leads outside, or the loopback address when there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing: connecting a datagram socket only asks for the route.
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def load(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Config:
    """Read the file, if there is one, and the environment. Raises ValueError that names what is wrong."""
    values: dict[str, Any] = {}
    if path is not None:
        with path.open("rb") as file:
            values.update(tomllib.load(file))
    values.update(_from_environment(os.environ if environment is None else environment))
    try:
        return msgspec.convert(values, Config, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ValueError(f"the configuration is wrong: {error}") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    hints = typing.get_type_hints(Config)
    values: dict[str, Any] = {}
    for field, hint in hints.items():
        text = environment.get(PREFIX + field.upper())
        if text is not None:
            values[field] = [one for one in text.split(",") if one] if get_origin(hint) is list else text
    return values


def _decode(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(kind)
