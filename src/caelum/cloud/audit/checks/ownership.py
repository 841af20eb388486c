"""Ownership: what is owned exists, and what must be owned is."""

from __future__ import annotations

from collections.abc import Iterator

from caelum.cloud.audit.evidence import Evidence
from caelum.cloud.audit.extension import AuditCheck, Finding, finding
from caelum.cloud.ownership import OWNED, AccountResourceRefModel, SharedResourceModel


class OwnershipCheck(AuditCheck):
    """Compares ownership both ways."""

    reads = (AccountResourceRefModel, SharedResourceModel)

    def check(self, seen: Evidence) -> Iterator[Finding]:
        """From ownership and shares to resources and accounts, and back."""
        accounts = seen.known.get("AccountVO", frozenset())
        owned = {row.resource_uuid for row in seen.rows(AccountResourceRefModel)}
        for row in seen.rows(AccountResourceRefModel):
            what = f"{row.resource_type}[uuid:{row.resource_uuid}]"
            if row.resource_uuid not in seen.known.get(row.resource_type, ()):
                details = f"account[uuid:{row.account_uuid}] owns {what}, which does not exist"
                yield finding("OwnerOfNothing", row.resource_type, row.resource_uuid, details)
            if row.account_uuid not in accounts:
                details = f"{what} is owned by account[uuid:{row.account_uuid}], which does not exist"
                yield finding("OwnerMissing", row.resource_type, row.resource_uuid, details, account=row.account_uuid)
        for row in seen.rows(SharedResourceModel):
            if row.resource_uuid not in seen.known.get(row.resource_type, ()):
                details = f"{row.resource_type}[uuid:{row.resource_uuid}] is shared, but does not exist"
                yield finding("ShareOfNothing", row.resource_type, row.resource_uuid, details)
        for vo in sorted(OWNED):
            for uuid in seen.known.get(vo, frozenset()) - owned:
                yield finding("NotOwned", vo, uuid, f"{vo}[uuid:{uuid}] has no owner")
