"""News of hosts."""

from __future__ import annotations

from caelum.cloud.host.api import HostInventory
from caelum.kernel.errors import ErrorCode
from caelum.kernel.events import CanonicalEvent, canonical


@canonical("/host/status/change")
class HostStatusChanged(CanonicalEvent, kw_only=True):
    """A host was connected or lost."""

    host_uuid: str
    old_status: str
    new_status: str
    inventory: HostInventory


@canonical("/host/disconnected")
class HostLostSight(CanonicalEvent, kw_only=True):
    """Why a host is Disconnected."""

    host_uuid: str
    reason: ErrorCode


@canonical("/host/delete")
class HostDeleted(CanonicalEvent, kw_only=True):
    """A host is gone."""

    host_uuid: str
    inventory: HostInventory
