"""Whether everything could be looked at."""

from __future__ import annotations

from collections.abc import Iterator

from caelum.cloud.audit.api import WARNING
from caelum.cloud.audit.evidence import Evidence
from caelum.cloud.audit.extension import AuditCheck, Finding, finding


class ReachCheck(AuditCheck):
    """A host or backup storage that does not answer is not known to be in order."""

    def check(self, seen: Evidence) -> Iterator[Finding]:
        """Who is silent."""
        for uuid, why in seen.silent.items():
            vo = "HostVO" if uuid in seen.known.get("HostVO", ()) else "BackupStorageVO"
            details = f"what is on {vo}[uuid:{uuid}] is not known: {why}"
            yield finding("NotReached", vo, uuid, details, about=(), severity=WARNING)
