"""Where others hook into offerings."""

from __future__ import annotations

from caelum.kernel.extension import ExtensionPoint


class OfferingAfterDelete(ExtensionPoint):
    """Told when offerings are gone, so that references to them can be cleared. `vo` is their resource type."""

    async def after_delete(self, vo: str, uuids: list[str]) -> None:
        """These offerings no longer exist."""
