"""How other drivers run commands on a host: one typed call.

    info = await on_host(node.bus, host_uuid, protocol.CreateVolume(...), timeout=60)

or, where nothing is decided between several commands, one for all of them: `all_on_host`.

The fence of the running workflow step goes along as the command's attempt. When the caller is cancelled, the command is
cancelled on the host. An agent that is gone for a moment is waited for (`patience.py`), and not in the queue of its
host's commands: those that bring it back must find room there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from caelum.agent import protocol
from caelum.cloud.host.spec import HostOrder
from caelum.drivers.kvm.messages import CancelAgentCommand, RunAgentCommand
from caelum.drivers.kvm.patience import patiently
from caelum.kernel import context
from caelum.kernel.bus import Bus
from caelum.kernel.errors import INVALID_ARGUMENT, CloudError
from caelum.kernel.ids import new_uuid

A = TypeVar("A")

DEFAULT_TIMEOUT = 1800.0
"""Seconds that a command may take when neither the call nor the task has a limit."""


async def on_host(bus: Bus, host_uuid: str, command: protocol.Command[A], timeout: float | None = None) -> A:
    """Run a command on a host and return its answer. Raises CloudError: HOST.1010, AGENT.*, or a time-out."""
    if timeout is None and context.current().deadline is None:
        timeout = DEFAULT_TIMEOUT
    answer = await patiently(bus, host_uuid, lambda: _once(bus, host_uuid, command, timeout))
    return msgspec.convert(answer, protocol.answer_type(type(command)))  # type: ignore[no-any-return]


async def all_on_host(
    bus: Bus, host_uuid: str, commands: Sequence[protocol.Command[Any]], timeout: float | None = None
) -> None:
    """Run commands on a host one after another, until one fails. Raises its error."""
    if len(commands) == 1:
        await on_host(bus, host_uuid, commands[0], timeout)
    elif commands:
        orders = [protocol.Order(path=one.path, body=msgspec.to_builtins(one)) for one in commands]
        try:
            await on_host(bus, host_uuid, protocol.Series(orders=orders), timeout)
        except CloudError as error:
            if not _is_unknown(error, protocol.Series):
                raise
            for command in commands:
                await on_host(bus, host_uuid, command, timeout)


def order(command: protocol.Command[Any]) -> HostOrder:
    """A command as part of what a host does right before it starts a machine."""
    return HostOrder(path=command.path, body=msgspec.to_builtins(command))


def _is_unknown(error: CloudError, command: type[protocol.Command[Any]]) -> bool:
    """Whether the host's owner does not know the command: a server of the version before, during an upgrade."""
    return error.code == INVALID_ARGUMENT.code and error.facts.get("path") == command.path


async def _once(bus: Bus, host_uuid: str, command: protocol.Command[Any], timeout: float | None) -> dict[str, Any]:
    request = RunAgentCommand(
        host_uuid=host_uuid, command_uuid=new_uuid(), path=command.path, body=msgspec.to_builtins(command)
    )
    try:
        return await bus.call(request, timeout)
    except asyncio.CancelledError:
        bus.send(CancelAgentCommand(host_uuid=host_uuid, command_uuid=request.command_uuid))
        raise
