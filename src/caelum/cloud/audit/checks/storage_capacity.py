"""Space of primary storages: what is counted is what is reserved, and what is reserved is what lies there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from caelum.cloud.audit.evidence import Evidence
from caelum.cloud.audit.extension import AuditCheck, Finding, finding
from caelum.cloud.primary_storage.capacity import CACHE_PREFIX, TRASH_PREFIX
from caelum.cloud.primary_storage.model import (
    ImageCacheModel,
    LocalStorageHostRefModel,
    PrimaryStorageCapacityModel,
    StorageReservationModel,
)
from caelum.cloud.volume.model import READY, VolumeModel

_VO = "PrimaryStorageVO"


class StorageCapacityCheck(AuditCheck):
    """Compares storage capacities, reservations, volumes and cached images."""

    reads = (
        PrimaryStorageCapacityModel, LocalStorageHostRefModel, StorageReservationModel, ImageCacheModel, VolumeModel,
    )  # fmt: skip

    def check(self, seen: Evidence) -> Iterator[Finding]:
        """Sums, then each reservation."""
        yield from self._sums(seen)
        for row in seen.rows(StorageReservationModel):
            yield from self._reservation(seen, row)
        yield from self._not_reserved(seen)

    # --- sums ---------------------------------------------------------------------------------------------------------

    def _sums(self, seen: Evidence) -> Iterator[Finding]:
        charged: dict[tuple[str, str], int] = defaultdict(int)
        for row in seen.rows(StorageReservationModel):
            charged[row.primary_storage_uuid, row.host_uuid] += row.charged
        bound = {row.uuid: self._shares(seen, row.uuid) for row in seen.rows(PrimaryStorageCapacityModel)}
        for whole in seen.rows(PrimaryStorageCapacityModel):
            shares = bound[whole.uuid]
            if not shares:
                yield from self._place(whole, whole.uuid, charged[whole.uuid, ""], "")
                continue
            for share in shares:
                yield from self._place(share, whole.uuid, charged[whole.uuid, share.host_uuid], share.host_uuid)
            total = sum(share.available_capacity for share in shares)
            if whole.available_capacity != total:
                details = (
                    f"primary storage[uuid:{whole.uuid}] counts {whole.available_capacity} bytes available;"
                    f" its hosts have {total}"
                )
                facts = {"counted": whole.available_capacity, "true": total}
                yield finding("StorageCapacityWrong", _VO, whole.uuid, details, about=(), **facts)

    def _shares(self, seen: Evidence, uuid: str) -> list[Any]:
        """The hosts' shares of a host-bound storage; hosts of a shared one have none."""
        refs = [ref for ref in seen.rows(LocalStorageHostRefModel) if ref.primary_storage_uuid == uuid]
        return [ref for ref in refs if ref.total_capacity]

    def _place(self, row: Any, uuid: str, charged: int, host_uuid: str) -> Iterator[Finding]:
        true = row.total_capacity - row.system_used_capacity - charged
        if row.available_capacity != true:
            on_host = f" on host[uuid:{host_uuid}]" if host_uuid else ""
            details = (
                f"primary storage[uuid:{uuid}]{on_host} counts {row.available_capacity} bytes available; of"
                f" {row.total_capacity}, {row.system_used_capacity} are the system's and {charged} reserved"
            )
            facts = {"counted": row.available_capacity, "true": true, "hostUuid": host_uuid}
            # No running work explains a wrong sum: it changes with what it is the sum of.
            yield finding("StorageCapacityWrong", _VO, host_uuid or uuid, details, about=(), **facts)

    # --- reservations -------------------------------------------------------------------------------------------------

    def _reservation(self, seen: Evidence, row: Any) -> Iterator[Finding]:
        prefix, _, rest = row.key.partition("-")
        if prefix == TRASH_PREFIX:
            if not any(row.key in job.context for job in seen.clean_ups):
                yield self._stray(row, "bits that nobody deletes", (row.key,))
        elif prefix == CACHE_PREFIX:
            image_uuid = rest[:32]
            cached = [one for one in seen.rows(ImageCacheModel) if self._is_of(one, row, image_uuid)]
            if not cached:
                yield self._stray(row, f"image[uuid:{image_uuid}], which is not cached", (image_uuid,))
            elif cached[0].size != row.size:
                yield self._differs(row, f"cached image[uuid:{image_uuid}]", cached[0].size, (image_uuid,))
        else:
            yield from self._of_volume(row, seen.by_uuid(VolumeModel).get(row.key))

    def _of_volume(self, row: Any, volume: Any) -> Iterator[Finding]:
        if volume is None:
            yield self._stray(row, f"volume[uuid:{row.key}], which does not exist", (row.key,))
        elif volume.install_path is not None and volume.size != row.size:
            yield self._differs(row, f"volume[uuid:{row.key}]", volume.size, (row.key, volume.vm_instance_uuid or ""))

    def _is_of(self, cached: Any, row: Any, image_uuid: str) -> bool:
        place = (cached.primary_storage_uuid, cached.host_uuid)
        return cached.image_uuid == image_uuid and place == (row.primary_storage_uuid, row.host_uuid)

    def _stray(self, row: Any, what: str, about: tuple[str, ...]) -> Finding:
        details = f"primary storage[uuid:{row.primary_storage_uuid}] keeps {row.charged} bytes for {what}"
        return finding(
            "StrayStorageReservation", _VO, row.primary_storage_uuid, details, about=about, key=row.key,
            charged=row.charged, path=row.install_path or "",
        )  # fmt: skip

    def _differs(self, row: Any, what: str, size: int, about: tuple[str, ...]) -> Finding:
        details = (
            f"primary storage[uuid:{row.primary_storage_uuid}] keeps {row.size} bytes for {what}, which has {size}"
        )
        facts = {"key": row.key, "reserved": row.size, "size": size}
        return finding("StorageReservationWrong", _VO, row.primary_storage_uuid, details, about=about, **facts)

    def _not_reserved(self, seen: Evidence) -> Iterator[Finding]:
        keys = {row.key for row in seen.rows(StorageReservationModel)}
        for volume in seen.rows(VolumeModel):
            if volume.install_path is not None and volume.uuid not in keys:
                details = f"nothing is reserved for volume[uuid:{volume.uuid}] of {volume.size} bytes, {volume.status}"
                yield finding("VolumeNotCounted", "VolumeVO", volume.uuid, details, size=volume.size)
        places = {(row.primary_storage_uuid, row.host_uuid, row.key[len(CACHE_PREFIX) + 1 :][:32])
                  for row in seen.rows(StorageReservationModel)}  # fmt: skip
        for one in seen.rows(ImageCacheModel):
            if (one.primary_storage_uuid, one.host_uuid, one.image_uuid) not in places:
                details = (
                    f"nothing is reserved for the cached image[uuid:{one.image_uuid}] of {one.size} bytes, {READY}"
                )
                about = (one.image_uuid, one.install_path)
                yield finding("CachedImageNotCounted", "ImageVO", one.image_uuid, details, about=about, size=one.size)
