"""What an administrator may ask the auditor."""

from __future__ import annotations

from typing import Any

import msgspec

from caelum.kernel.message import ApiMessage, Reply, rest

ERROR = "error"
"""Something is wrong: an orphan, a loss, a wrong count."""
WARNING = "warning"
"""Something could not be looked at, so nobody knows."""
INFO = "info"
"""Something worth knowing that is in order."""


class AuditFinding(msgspec.Struct, rename="camel", kw_only=True, frozen=True):
    """One thing that is not as it should be. `kind` is a word for programs, `details` a sentence with the numbers."""

    kind: str
    severity: str
    resource_type: str
    resource_uuid: str
    details: str
    facts: dict[str, Any]


class AuditReply(Reply, kw_only=True):
    """What an audit found, the worst first; `clean` means that nothing but infos was found."""

    clean: bool
    checked: dict[str, int]
    """How many things of each kind were looked at."""
    findings: list[AuditFinding]


@rest("POST /audits", package="org.caelum.audit", admin_only=True, timeout=600)
class RunAudit(ApiMessage[AuditReply], kw_only=True):
    """Compare database, hosts and storages both ways and report every orphan and every wrong count.

    Nothing is changed. What is seen is looked at a second time after a pause, so that running work is not reported.
    """
