"""What plugs into the auditor: checks.

Invariant: a check is a pure function of the evidence. It never reads the database or asks a host by itself, so that all
checks of one pass speak of the same moment, and no check can change anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from caelum.cloud.audit.api import ERROR, AuditFinding
from caelum.kernel.database import Base
from caelum.kernel.extension import ExtensionPoint

if TYPE_CHECKING:
    from caelum.cloud.audit.evidence import Evidence
    from caelum.kernel.node import Node


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a check reports. `about` names (UUIDs, paths, addresses) the things whose running work would explain it."""

    shown: AuditFinding
    about: tuple[str, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """What makes it the same finding in the next pass: the thing and its place. Its numbers may differ."""
        places = (str(value) for name, value in self.shown.facts.items() if name.endswith("Uuid"))
        return (self.shown.kind, self.shown.resource_uuid, *self.about, *places)


def finding(
    kind: str,
    resource_type: str,
    resource_uuid: str,
    details: str,
    *,
    about: tuple[str, ...] | None = None,
    severity: str = ERROR,
    **facts: Any,
) -> Finding:
    """A finding; it is about the resource unless `about` names other things (nothing: no work ever explains it)."""
    shown = AuditFinding(
        kind=kind, severity=severity, resource_type=resource_type, resource_uuid=resource_uuid, details=details,
        facts=facts,
    )  # fmt: skip
    return Finding(shown=shown, about=(resource_uuid,) if about is None else about)


class AuditCheck(ExtensionPoint):
    """A check of one subject. `reads` are the tables whose rows it wants in the evidence."""

    reads: ClassVar[tuple[type[Base], ...]] = ()

    def __init__(self, node: Node) -> None:
        self.node = node

    def check(self, seen: Evidence) -> Iterator[Finding]:
        """Everything that is wrong."""
        raise NotImplementedError
