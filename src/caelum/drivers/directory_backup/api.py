"""The public operation that adds a directory as a backup storage. It has no counterpart in the original system."""

from __future__ import annotations

from typing import Annotated

from caelum.cloud.backup_storage.api import BACKUP_STORAGE, BackupStorageInventory
from caelum.kernel.message import CreateMessage, Param, rest

PACKAGE = "org.caelum.storage.backup.directory"


@rest("POST /backup-storage/directory", package=PACKAGE, admin_only=True, tags_for=BACKUP_STORAGE)
class AddDirectoryBackupStorage(CreateMessage[BackupStorageInventory]):
    """Add a directory of the management nodes as a backup storage. With several nodes it must be a shared one.

    Hosts fetch images from the server itself, over HTTPS with their own certificates.
    """

    url: Annotated[str, Param(max_length=2048, empty_string=False)]
    name: Annotated[str, Param(max_length=255)]
    description: Annotated[str | None, Param(max_length=2048)] = None
    type: Annotated[str | None, Param(valid_values=("DirectoryBackupStorage",))] = None
