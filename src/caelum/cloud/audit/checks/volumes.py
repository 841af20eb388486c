"""Files on primary storages: every volume and cached image has its file, and every file is somebody's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from caelum.cloud.audit.evidence import Evidence
from caelum.cloud.audit.extension import AuditCheck, Finding, finding
from caelum.cloud.primary_storage.model import (
    ImageCacheModel,
    LocalStorageHostRefModel,
    LocalStorageResourceRefModel,
    PrimaryStorageModel,
    StorageReservationModel,
)
from caelum.cloud.volume.model import READY, VolumeModel

_VO = "VolumeVO"
_UNFINISHED = (".part", ".new")
"""Endings of files that a host is still making."""


class VolumeCheck(AuditCheck):
    """Compares bits both ways."""

    reads = (
        VolumeModel,
        PrimaryStorageModel,
        LocalStorageHostRefModel,
        LocalStorageResourceRefModel,
        ImageCacheModel,
        StorageReservationModel,
    )

    def check(self, seen: Evidence) -> Iterator[Finding]:
        """From the records to the files, and back."""
        storages = seen.by_uuid(PrimaryStorageModel)
        yield from self._volumes(seen, storages)
        yield from self._cached(seen, storages)
        yield from self._strays(seen, storages)

    def _volumes(self, seen: Evidence, storages: dict[str, Any]) -> Iterator[Finding]:
        places = {one.resource_uuid: one.host_uuid for one in seen.rows(LocalStorageResourceRefModel)}
        bound = {one.key for one in seen.rows(StorageReservationModel) if one.host_uuid}
        for volume in seen.rows(VolumeModel):
            what = f"volume[uuid:{volume.uuid}, name:{volume.name}]"
            storage, path = storages.get(volume.primary_storage_uuid), volume.install_path
            if volume.status == READY and (path is None or storage is None):
                details = f"{what} is {READY} without a file on a primary storage"
                yield finding("VolumeWithoutBits", _VO, volume.uuid, details)
            elif path is None or storage is None:
                continue
            elif volume.uuid in bound and volume.uuid not in places:
                yield finding("VolumePlaceUnknown", _VO, volume.uuid, f"no host is known to have {what}")
            elif not self._is_there(seen, storage, places.get(volume.uuid), path):
                details = (
                    f"{what} is {volume.status}, but {path} is not on {self._at(storage, places.get(volume.uuid))}"
                )
                yield finding("VolumeFileMissing", _VO, volume.uuid, details, path=path)

    def _cached(self, seen: Evidence, storages: dict[str, Any]) -> Iterator[Finding]:
        for row in seen.rows(ImageCacheModel):
            storage, path = storages.get(row.primary_storage_uuid), row.install_path
            host_uuid = row.host_uuid or None
            if storage is not None and not self._is_there(seen, storage, host_uuid, path):
                details = f"cached image[uuid:{row.image_uuid}] has no file {path} on {self._at(storage, host_uuid)}"
                about = (row.image_uuid, path)
                yield finding(
                    "CachedImageMissing", "ImageVO", row.image_uuid, details, about=about, path=path, hostUuid=host_uuid
                )

    def _is_there(self, seen: Evidence, storage: Any, host_uuid: str | None, path: str) -> bool:
        """Whether a host that should know has the file; true when none could be asked."""
        asked = [uuid for uuid in seen.hosts if host_uuid in (None, uuid) and storage.url in seen.hosts[uuid].files]
        return not asked or any(path in seen.hosts[uuid].files[storage.url] for uuid in asked)

    def _at(self, storage: Any, host_uuid: str | None) -> str:
        on_host = f" on host[uuid:{host_uuid}]" if host_uuid else ""
        return f"primary storage[uuid:{storage.uuid}, name:{storage.name}]{on_host}"

    def _strays(self, seen: Evidence, storages: dict[str, Any]) -> Iterator[Finding]:
        owners = self._owners(seen)
        for ref in seen.rows(LocalStorageHostRefModel):
            storage, contents = storages.get(ref.primary_storage_uuid), seen.hosts.get(ref.host_uuid)
            if storage is None or contents is None:
                continue
            mine = {**owners[storage.uuid, ""], **owners[storage.uuid, ref.host_uuid]}
            for path in contents.files.get(storage.url, ()):
                if path not in mine:
                    whole = next((path.removesuffix(one) for one in _UNFINISHED if path.endswith(one)), path)
                    details = f"{path} on {self._at(storage, ref.host_uuid)} belongs to no volume and no image"
                    yield finding(
                        "StrayFile", "PrimaryStorageVO", storage.uuid, details,
                        about=(path, whole, *mine.get(whole, ())), path=path, hostUuid=ref.host_uuid,
                    )  # fmt: skip

    def _owners(self, seen: Evidence) -> dict[tuple[str, str], dict[str, tuple[str, ...]]]:
        """By storage and host ("": any): path to the UUIDs of what has its bits there, or will have, or had."""
        owners: dict[tuple[str, str], dict[str, tuple[str, ...]]] = defaultdict(dict)
        places = {one.resource_uuid: one.host_uuid for one in seen.rows(LocalStorageResourceRefModel)}
        for one in seen.rows(StorageReservationModel):
            uuids = tuple(part for part in one.key.split("-") if len(part) == 32)
            owners[one.primary_storage_uuid, one.host_uuid][one.install_path] = uuids
        for row in seen.rows(ImageCacheModel):
            owners[row.primary_storage_uuid, row.host_uuid][row.install_path] = (row.image_uuid,)
        for volume in seen.rows(VolumeModel):
            place = volume.primary_storage_uuid, places.get(volume.uuid, "")
            owners[place][volume.install_path] = (volume.uuid,)
        return owners
