"""The auditor.

Invariant: it changes nothing, and reports only what it saw twice, a pause apart, of things that no running work is
about. What running work leaves behind when it ends is seen by the next audit.
"""

from __future__ import annotations

import asyncio

from caelum.cloud.audit.api import ERROR, INFO, WARNING, AuditReply, RunAudit
from caelum.cloud.audit.checks import CHECKS
from caelum.cloud.audit.evidence import Evidence, collect
from caelum.cloud.audit.extension import AuditCheck, Finding
from caelum.cloud.audit.settings import RECHECK_AFTER
from caelum.kernel.node import Node
from caelum.kernel.service import Service, handles

_ORDER = (ERROR, WARNING, INFO)


class AuditService(Service):
    """Runs all checks."""

    name = "audit"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        for check in CHECKS:
            node.extensions.add(check(node))

    @handles(RunAudit, queue="audit")
    async def run(self, msg: RunAudit) -> AuditReply:
        """Look; when something seems wrong, look again."""
        seen, found = await self._look()
        if any(one.shown.severity != INFO for one in found):
            await asyncio.sleep(self.node.settings.get(RECHECK_AFTER))
            again, second = await self._look()
            found = [one for one in _lasting(found, second) if not _explained(one, seen, again)]
            seen = again
        shown = sorted((one.shown for one in found), key=lambda one: (_ORDER.index(one.severity), one.kind))
        clean = all(one.severity == INFO for one in shown)
        return AuditReply(clean=clean, checked=seen.counts(), findings=shown)

    async def _look(self) -> tuple[Evidence, list[Finding]]:
        checks = self.node.extensions.of(AuditCheck)
        seen = await collect(self.node, checks)
        # In a thread: a large cloud takes a while to be looked through, and nobody else should wait for that.
        found = await asyncio.to_thread(lambda: [one for check in checks for one in check.check(seen)])
        return seen, found


def _lasting(first: list[Finding], second: list[Finding]) -> list[Finding]:
    """What is found both times, as the second pass saw it; infos as they are."""
    before = {one.key for one in first}
    return [one for one in second if one.shown.severity == INFO or one.key in before]


def _explained(found: Finding, *passes: Evidence) -> bool:
    """Whether work that runs, or ran between the passes, is about it."""
    return found.shown.severity != INFO and any(seen.is_busy(found.about) for seen in passes)
