"""The checks that ship with the auditor, one small module per subject."""

from __future__ import annotations

from caelum.cloud.audit.checks.addresses import AddressCheck
from caelum.cloud.audit.checks.devices import DeviceCheck
from caelum.cloud.audit.checks.host_capacity import HostCapacityCheck
from caelum.cloud.audit.checks.images import ImageCheck
from caelum.cloud.audit.checks.links import LinkCheck
from caelum.cloud.audit.checks.machines import MachineCheck
from caelum.cloud.audit.checks.ownership import OwnershipCheck
from caelum.cloud.audit.checks.quotas import QuotaCheck
from caelum.cloud.audit.checks.reach import ReachCheck
from caelum.cloud.audit.checks.references import ReferenceCheck
from caelum.cloud.audit.checks.storage_capacity import StorageCapacityCheck
from caelum.cloud.audit.checks.tags import TagCheck
from caelum.cloud.audit.checks.volumes import VolumeCheck
from caelum.cloud.audit.checks.work import WorkCheck
from caelum.cloud.audit.extension import AuditCheck

CHECKS: tuple[type[AuditCheck], ...] = (
    ReachCheck,
    WorkCheck,
    MachineCheck,
    DeviceCheck,
    VolumeCheck,
    ImageCheck,
    AddressCheck,
    LinkCheck,
    HostCapacityCheck,
    StorageCapacityCheck,
    QuotaCheck,
    OwnershipCheck,
    TagCheck,
    ReferenceCheck,
)
