"""System tags of images."""

from __future__ import annotations

from caelum.cloud.image.api import IMAGE
from caelum.kernel.tag import system_tag

BOOT_MODE = system_tag("bootMode::{bootMode}", IMAGE)
QEMU_GUEST_AGENT = system_tag("qemuga", IMAGE)
SOURCE_TYPE = system_tag("sourceType::{sourceType}", IMAGE)
CREATED_BY_SYSTEM = system_tag("CreatedBySystem", IMAGE, admin_only=True)
TEMPORARY = system_tag("temporary", IMAGE)
GUEST_TOOLS = system_tag("GuestTools::{guestToolsVersion}", IMAGE)
APPLIANCE_TYPE = system_tag("applianceType::{applianceType}", IMAGE)
