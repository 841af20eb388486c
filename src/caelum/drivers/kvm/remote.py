"""How other drivers run commands on a host: one typed call.

    info = await on_host(node.bus, host_uuid, protocol.CreateVolume(...), timeout=60)

The fence of the running workflow step goes along as the command's attempt. When the caller is cancelled, the command is
cancelled on the host.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec

from caelum.agent import protocol
from caelum.drivers.kvm.messages import CancelAgentCommand, RunAgentCommand
from caelum.kernel import context
from caelum.kernel.bus import Bus
from caelum.kernel.ids import new_uuid

A = TypeVar("A")

DEFAULT_TIMEOUT = 1800.0
"""Seconds that a command may take when neither the call nor the task has a limit."""


async def on_host(bus: Bus, host_uuid: str, command: protocol.Command[A], timeout: float | None = None) -> A:
    """Run a command on a host and return its answer. Raises CloudError: HOST.1010, AGENT.*, or a time-out."""
    if timeout is None and context.current().deadline is None:
        timeout = DEFAULT_TIMEOUT
    request = RunAgentCommand(
        host_uuid=host_uuid, command_uuid=new_uuid(), path=command.path, body=msgspec.to_builtins(command)
    )
    try:
        answer = await bus.call(request, timeout)
    except asyncio.CancelledError:
        bus.send(CancelAgentCommand(host_uuid=host_uuid, command_uuid=request.command_uuid))
        raise
    return msgspec.convert(answer, protocol.answer_type(type(command)))  # type: ignore[no-any-return]
