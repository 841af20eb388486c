"""System tags of backup storages."""

from __future__ import annotations

from caelum.cloud.backup_storage.api import BACKUP_STORAGE
from caelum.kernel.tag import system_tag

DATA_NETWORK = system_tag("backupStorage::data::network::cidr::{backupStorageDataNetwork}", BACKUP_STORAGE)
EXTRA_IPS = system_tag("extraips::{extraips}", BACKUP_STORAGE)
