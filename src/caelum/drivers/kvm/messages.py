"""Internal messages to the KVM driver. Other drivers use `remote.on_host`, which is these with types."""

from __future__ import annotations

from typing import Any

from caelum.kernel.message import Message, message

LONGEST_COMMAND = 72 * 3600.0
"""Seconds; the caller's deadline is usually shorter."""


@message(route_by="host_uuid", timeout=LONGEST_COMMAND)
class RunAgentCommand(Message[dict[str, Any]], kw_only=True):
    """Run a command of the agent's protocol on a host; the reply is the answer's fields.

    Refused with HOST.1010 at once while the host is Disconnected.
    """

    host_uuid: str
    command_uuid: str
    """What `CancelAgentCommand` names."""
    path: str
    body: dict[str, Any]


@message(route_by="host_uuid", timeout=60)
class CancelAgentCommand(Message[None], kw_only=True):
    """Whoever asked no longer wants the command: stop it on the host. Success when it is not running."""

    host_uuid: str
    command_uuid: str
