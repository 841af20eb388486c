"""Errors of host agents, as the rest of the system sees them."""

from __future__ import annotations

import msgspec

from caelum.agent import protocol
from caelum.agent.protocol import AgentError
from caelum.kernel.errors import CloudError, ErrorType, catalogue, error_type

AGENT_BUSY = error_type(protocol.BUSY, "The host agent is busy", "It is retried.", transient=True)
AGENT_INTERRUPTED = error_type(
    protocol.INTERRUPTED,
    "The host agent stopped while it ran a command",
    "The command is repeated, which settles its effect.",
    transient=True,
)
AGENT_TIMED_OUT = error_type(
    protocol.TIMED_OUT, "A command took too long on the host", "Look at the host's load and storage.", transient=True
)
STALE_ATTEMPT = error_type(
    protocol.STALE_ATTEMPT,
    "The host refused a command of an attempt that was taken over or is undone",
    "Nothing to do: what took its place finishes this work.",
)
AGENT_CANCELED = error_type(protocol.CANCELED, "The command was cancelled on the host")
error_type(protocol.INVALID, "The host agent did not accept a command", "Server and agent may differ in version.")
error_type(protocol.NOT_FOUND, "A thing that a command needs is not on the host")
error_type(protocol.NO_SPACE, "Not enough space on the host", "Free space on the named storage, or add some.")
error_type(protocol.LIBVIRT, "libvirt or QEMU refused an operation", "The details are libvirt's own words.")
error_type(protocol.STORAGE, "A storage operation failed on the host")
error_type(protocol.NETWORK, "A network operation failed on the host")
error_type(protocol.DOWNLOAD, "The host could not download an image", transient=True)
error_type(protocol.INTERNAL, "An internal error happened in the host agent", "The agent's log has the trace.")


def from_agent(error: AgentError, host_uuid: str, path: str) -> CloudError:
    """An agent's error with its facts, and where it happened."""
    kind = catalogue().get(error.code) or ErrorType(error.code, "The host agent reported an error")
    if error.transient and not kind.transient:
        kind = msgspec.structs.replace(kind, transient=True)
    facts = {**error.facts, "hostUuid": host_uuid, "command": path}
    return CloudError(kind, error.details, **facts)


def wrap(kind: ErrorType, error: CloudError, details: str) -> CloudError:
    """`error` as the cause of an operation's own error; a retry helps when it would help the cause."""
    if error.kind.transient and not kind.transient:
        kind = msgspec.structs.replace(kind, transient=True)
    return CloudError(kind, f"{details}: {error.details}", cause=error)
