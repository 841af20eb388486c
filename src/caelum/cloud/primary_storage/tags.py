"""System tags of primary storages."""

from __future__ import annotations

from caelum.cloud.primary_storage.api import PRIMARY_STORAGE
from caelum.kernel.tag import system_tag

CAPABILITY_SNAPSHOT = system_tag("capability:snapshot", PRIMARY_STORAGE, inherent=True)
CAPABILITY_HYPERVISOR_SNAPSHOT = system_tag(
    "capability::snapshot::hypervisor::{hypervisorType}", PRIMARY_STORAGE, inherent=True
)
GATEWAY = system_tag("primaryStorage::gateway::cidr::{storageGateway}", PRIMARY_STORAGE)
PROVISIONING = system_tag(
    "primaryStorageVolumeProvisioningStrategy::{primaryStorageVolumeProvisioningStrategy}", PRIMARY_STORAGE
)
