"""Images: every copy has its file, and every file on a backup storage is a copy."""

from __future__ import annotations

from collections.abc import Iterator

from caelum.cloud.audit.evidence import Evidence
from caelum.cloud.audit.extension import AuditCheck, Finding, finding
from caelum.cloud.backup_storage.model import BackupReservationModel, BackupStorageModel
from caelum.cloud.image.model import READY, ImageBackupStorageRefModel, ImageModel

_VO = "ImageVO"


class ImageCheck(AuditCheck):
    """Compares images both ways."""

    reads = (ImageModel, ImageBackupStorageRefModel, BackupStorageModel, BackupReservationModel)

    def check(self, seen: Evidence) -> Iterator[Finding]:
        """From the records to the files and the books, and back."""
        yield from self._copies(seen)
        yield from self._files(seen)
        yield from self._books(seen)

    def _copies(self, seen: Evidence) -> Iterator[Finding]:
        refs = seen.rows(ImageBackupStorageRefModel)
        ready = {ref.image_uuid for ref in refs if ref.status == READY}
        for image in seen.rows(ImageModel):
            if image.status == READY and image.uuid not in ready:
                details = f"image[uuid:{image.uuid}, name:{image.name}] is {READY} without any copy that is"
                yield finding("ImageWithoutCopy", _VO, image.uuid, details)
        for ref in refs:
            files = seen.backups.get(ref.backup_storage_uuid)
            if ref.install_path is not None and files is not None and ref.install_path not in files:
                details = (
                    f"image[uuid:{ref.image_uuid}] has no file {ref.install_path}"
                    f" on backup storage[uuid:{ref.backup_storage_uuid}]"
                )
                yield finding("ImageFileMissing", _VO, ref.image_uuid, details, path=ref.install_path)

    def _files(self, seen: Evidence) -> Iterator[Finding]:
        owned = {(ref.backup_storage_uuid, ref.install_path) for ref in seen.rows(ImageBackupStorageRefModel)}
        for storage_uuid, files in seen.backups.items():
            for path in files:
                if (storage_uuid, path) not in owned:
                    details = f"{path} on backup storage[uuid:{storage_uuid}] belongs to no image"
                    names = (path, *(part for part in path.split("/") if len(part) == 32))
                    yield finding("StrayImageFile", "BackupStorageVO", storage_uuid, details, about=names, path=path)

    def _books(self, seen: Evidence) -> Iterator[Finding]:
        sizes = {image.uuid: image.actual_size for image in seen.rows(ImageModel)}
        booked = {(row.backup_storage_uuid, row.image_uuid): row.size for row in seen.rows(BackupReservationModel)}
        refs = {(ref.backup_storage_uuid, ref.image_uuid): ref for ref in seen.rows(ImageBackupStorageRefModel)}
        for (storage_uuid, image_uuid), size in booked.items():
            if (storage_uuid, image_uuid) not in refs:
                details = (
                    f"backup storage[uuid:{storage_uuid}] keeps {size} bytes for image[uuid:{image_uuid}], unknown"
                )
                yield finding("StrayBackupReservation", _VO, image_uuid, details, size=size, storageUuid=storage_uuid)
        for key, ref in refs.items():
            if ref.status == READY and booked.get(key) != sizes.get(ref.image_uuid):
                details = (
                    f"image[uuid:{ref.image_uuid}] has {sizes.get(ref.image_uuid)} bytes;"
                    f" backup storage[uuid:{ref.backup_storage_uuid}] counts {booked.get(key, 0)}"
                )
                yield finding("ImageNotCounted", _VO, ref.image_uuid, details, counted=booked.get(key, 0))
