"""System tags of volumes."""

from __future__ import annotations

from caelum.cloud.volume.api import VOLUME
from caelum.kernel.tag import system_tag

VIRTIO_SCSI = system_tag("capability::virtio-scsi", VOLUME)
WWN = system_tag("kvm::volume::{wwn}", VOLUME)
HOST = system_tag("localStorage::hostUuid::{hostUuid}", VOLUME)
"""On which host of a host-bound storage a new data volume is made."""
PROVISIONING = system_tag("volumeProvisioningStrategy::{volumeProvisioningStrategy}", VOLUME)
QOS = system_tag("qos::{qos}", VOLUME)
