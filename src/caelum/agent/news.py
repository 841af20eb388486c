"""What an agent tells a server unasked. How it travels says `caelum.agent.protocol`."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class _News(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True):
    """Base of all that is told."""


class Report(_News):
    """An unasked message. `number` counts from 1 per agent start; the server acknowledges with 200."""

    agent_uuid: str
    host_uuid: str
    number: int
    kind: Literal["vm-state", "progress", "agent-stopping", "unknown-domain", "storage-full"]
    body: dict[str, Any]


class VmStateReport(_News):
    """Body of kind "vm-state": a guest changed by itself, or by a command whose answer does not say so to anybody: it
    failed, or nobody waited for it in its request.
    """

    vm_uuid: str
    state: str
    reason: str = ""


class TaskProgress(_News):
    """Body of kind "progress": how far a long task is."""

    task_uuid: str
    percent: int
    text: str = ""
