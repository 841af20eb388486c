"""The connection to libvirt: one per agent, opened again whenever it breaks, with libvirt's events in a thread.

Invariant: libvirt is only called from threads, never from the agent's loop; its errors leave here as `AgentFailure`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import libvirt  # type: ignore[import-untyped]

from caelum.agent.core import Agent
from caelum.agent.protocol import LIBVIRT, NOT_FOUND
from caelum.agent.registry import AgentFailure

log = logging.getLogger(__name__)
T = TypeVar("T")

KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 3
"""A libvirtd that is silent for 5 s * 3 is taken for dead, so that no call hangs for ever."""

_LOST = {libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN, libvirt.VIR_ERR_SYSTEM_ERROR}
_BUSY = {libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_AGENT_UNRESPONSIVE}

_event_loop = threading.Lock()
_event_loop_runs = False


def failure(error: libvirt.libvirtError) -> AgentFailure:
    """libvirt's error as ours."""
    code = error.get_error_code()
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return AgentFailure(NOT_FOUND, str(error))
    lost = code in _LOST or (
        code == libvirt.VIR_ERR_INTERNAL_ERROR and error.get_error_domain() == libvirt.VIR_FROM_RPC
    )
    return AgentFailure(LIBVIRT, str(error), transient=lost or code in _BUSY, libvirtCode=code)


class Libvirt:
    """Calls into libvirt."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._uri = agent.config.libvirt_uri
        self._lock = threading.Lock()
        self._connection: Any = None
        self.opened: list[Callable[[Any], None]] = []
        """Called (in a thread) with every new connection, to register for its events."""

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run `function(connection, *args)` in a thread."""
        return await self._agent.run_blocking(self._call, function, *args)

    def _call(self, function: Callable[..., T], *args: Any) -> T:
        try:
            return function(self.connect(), *args)
        except libvirt.libvirtError as error:
            raise failure(error) from error

    def connect(self) -> Any:
        """The live connection; opens one when there is none. Blocking."""
        with self._lock:
            if self._connection is None or not self._connection.isAlive():
                self._connection = self._open()
            return self._connection

    def is_connected(self) -> bool:
        """Whether there is a live connection, without trying to make one."""
        connection = self._connection
        return connection is not None and bool(connection.isAlive())

    def _open(self) -> Any:
        _run_event_loop()
        connection = libvirt.open(self._uri)
        connection.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
        for register in self.opened:
            register(connection)
        log.info("connected to %s", self._uri)
        return connection

    async def close(self, _agent: Agent) -> None:
        """Close the connection; guests do not notice."""
        await self._agent.run_blocking(self._close)

    def _close(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        try:
            if connection is not None:
                connection.close()
        except libvirt.libvirtError as error:
            log.info("closing the libvirt connection: %s", error)


def _run_event_loop() -> None:
    """Start libvirt's event loop once per process; it must be registered before the first connection is opened."""
    global _event_loop_runs  # noqa: PLW0603 - libvirt's event implementation is global to the process
    with _event_loop:
        if _event_loop_runs:
            return
        # Errors come as exceptions; without this, libvirt prints each of them to stderr too.
        libvirt.registerErrorHandler(_ignore_error, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_events, name="libvirt-events", daemon=True).start()
        _event_loop_runs = True


def _ignore_error(_context: Any, _error: Any) -> None:
    return


def _events() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            log.exception("libvirt's event loop")
