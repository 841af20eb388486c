"""System tags of offerings."""

from __future__ import annotations

from caelum.cloud.offering.api import DISK_OFFERING, INSTANCE_OFFERING
from caelum.kernel.tag import system_tag

DISK_OFFERING_USER_CONFIG = system_tag("diskOfferingUserConfig::{diskOfferingUserConfig}", DISK_OFFERING)
INSTANCE_OFFERING_USER_CONFIG = system_tag(
    "instanceOfferingUserConfig::{instanceOfferingUserConfig}", INSTANCE_OFFERING
)
