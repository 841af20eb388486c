"""News of volumes."""

from __future__ import annotations

from datetime import datetime

from caelum.cloud.volume.api import VolumeInventory
from caelum.kernel.events import CanonicalEvent, canonical


@canonical("/volume/status/change")
class VolumeStatusChanged(CanonicalEvent):
    """A volume got its bits, was deleted, was recovered, or is gone."""

    volume_uuid: str
    old_status: str
    new_status: str
    inventory: VolumeInventory
    date: datetime
    account_uuid: str | None = None


@canonical("/volume/config/change")
class VolumeConfigChanged(CanonicalEvent):
    """What is said about a volume changed."""

    inventory: VolumeInventory
    date: datetime
    accout_uuid: str | None = None
    """Spelt as clients know it."""
