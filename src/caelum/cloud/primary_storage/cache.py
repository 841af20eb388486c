"""The image cache of primary storages: each image once per storage (per host of a host-bound one).

Invariant: all work on one cached image runs in one queue of the storage's node, and those who want it at the same time
share one download. A cached image stays while a reservation names it as the image that its volume is cloned from; that
mark is set before the image is looked up, or only while it still is where it was found, so a clean-up can never take it
away from under a clone that is being made.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.image.messages import GetImage, ImageLocation, LocateImage
from caelum.cloud.primary_storage.api import PrimaryStorageInventory
from caelum.cloud.primary_storage.capacity import CACHE_PREFIX, Place, pin, release, reserve
from caelum.cloud.primary_storage.extension import Bits
from caelum.cloud.primary_storage.model import ImageCacheModel, StorageReservationModel
from caelum.cloud.primary_storage.storages import Storages
from caelum.cloud.primary_storage.trash import Trash, free_path
from caelum.kernel import context
from caelum.kernel.database import insert_new, utcnow
from caelum.kernel.errors import RESOURCE_NOT_FOUND, CloudError
from caelum.kernel.node import Node
from caelum.kernel.rows import values_of

log = logging.getLogger(__name__)

Cache = ImageCacheModel

DOWNLOAD_TIMEOUT = 4 * 3600.0
"""Seconds that one image may take to reach a storage."""


class ImageCache:
    """Brings images to storages and takes them away again."""

    def __init__(self, node: Node, storages: Storages, trash: Trash) -> None:
        self._node, self._storages, self._trash = node, storages, trash

    async def known(self, ps: PrimaryStorageInventory, host_uuid: str, image_uuid: str) -> Bits | None:
        """The cached image, if it is there."""
        return await self._find(self._storages.place(ps, host_uuid), image_uuid)

    async def ensure(self, ps: PrimaryStorageInventory, host_uuid: str, image_uuid: str) -> Bits:
        """The cached image; downloaded when it is not there. Waiters share the download."""
        place = self._storages.place(ps, host_uuid)
        signature = _signature(place, image_uuid)
        known = await self._find(place, image_uuid)
        if known is not None:
            return known
        return await self._node.queues.run(
            signature, 1, self._fill, ps, place, host_uuid, image_uuid, name="cache image", single_flight=signature
        )

    async def forget(self, ps: PrimaryStorageInventory, host_uuid: str, image_uuid: str) -> None:
        """The host says that it has no such file: the record is wrong, and the space is free."""
        place = self._storages.place(ps, host_uuid)
        async with self._node.queues.turn(_signature(place, image_uuid)), self._node.db.transaction() as tx:
            await tx.execute(delete(Cache).where(*_at(place, image_uuid)))
            await release(tx, _key(place, image_uuid))

    async def _fill(self, ps: PrimaryStorageInventory, place: Place, host_uuid: str, image_uuid: str) -> Bits:
        known = await self._find(place, image_uuid)
        if known is not None:
            return known
        # The download serves all who wait for it: it must not end with the first one's deadline or workflow attempt.
        own = context.TaskContext(
            job_uuid=context.current().job_uuid, deadline=time.monotonic() + DOWNLOAD_TIMEOUT, api="image cache"
        )
        with context.use(own):
            image = await self._node.bus.call(LocateImage(image_uuid, ps.zone_uuid))
            return await self._download(ps, place, host_uuid, image)

    async def _download(self, ps: PrimaryStorageInventory, place: Place, host_uuid: str, image: ImageLocation) -> Bits:
        path = await self._reserve(ps, place, image)
        try:
            bits = await self._storages.driver(ps).cache_image(ps, host_uuid, image, path)
            await self._enter(place, image, bits)
        except Exception:
            # The file may be there although the answer was lost: it goes before its space is given back. Unless another
            # node, whose business it was before the ring changed, has made and entered the same one.
            if not await self._is_entered(place, image.image_uuid):
                await self._trash.delete(ps, place, host_uuid, path, _key(place, image.image_uuid))
            raise
        return bits

    async def _is_entered(self, place: Place, image_uuid: str) -> bool:
        """Whether it is cached now, whatever this node remembers."""
        async with self._node.db.read() as session:
            return await session.scalar(select(Cache.id).where(*_at(place, image_uuid))) is not None

    async def _reserve(self, ps: PrimaryStorageInventory, place: Place, image: ImageLocation) -> str:
        """Take the space and choose the path; the same again for a download that a crash cut short."""
        key, driver = _key(place, image.image_uuid), self._storages.driver(ps)
        terms = await self._storages.terms(ps.uuid)
        async with self._node.db.transaction() as tx:
            await reserve(tx, place, key, image.actual_size, terms, scaled=False)
            kept = (await tx.get_one(StorageReservationModel, key)).install_path
            if kept is not None:
                return kept
            path = await free_path(
                tx, ps.uuid, place.host_uuid, image.image_uuid, lambda name: driver.cache_path(ps, image, name)
            )
            await pin(tx, key, path)
        return path

    async def _enter(self, place: Place, image: ImageLocation, bits: Bits) -> None:
        """Note that it is cached, unless another node has done so."""
        url = f"file://{bits.install_path}" + (f";hostUuid://{place.host_uuid}" if place.host_bound else "")
        row = Cache(
            primary_storage_uuid=place.ps_uuid,
            host_uuid=place.host_uuid,
            image_uuid=image.image_uuid,
            install_path=bits.install_path,
            install_url=url,
            media_type=image.media_type,
            format=bits.format,
            size=image.actual_size,
            virtual_size=bits.size,
            md5sum=image.md5,
        )
        values = {name: value for name, value in values_of(row).items() if name != Cache.id.key}
        async with self._node.db.transaction() as tx:
            await insert_new(tx, Cache, **values)

    async def _find(self, place: Place, image_uuid: str) -> Bits | None:
        columns = (Cache.install_path, Cache.virtual_size, Cache.size, Cache.format)

        async def load(session: AsyncSession) -> Bits | None:
            row = (await session.execute(select(*columns).where(*_at(place, image_uuid)))).one_or_none()
            return None if row is None else Bits(*row)

        return await self._node.db.remember((Cache, place.ps_uuid, place.host_uuid, image_uuid), load)

    async def clean(self, ps: PrimaryStorageInventory, force: bool = False) -> int:
        """Delete the cached images that nobody needs; how many went."""
        async with self._node.db.read() as session:
            rows = (await session.scalars(select(Cache).where(Cache.primary_storage_uuid == ps.uuid))).all()
        removed = 0
        for row in rows:
            if await self._stale(row, force):
                place = Place(ps.uuid, row.host_uuid, bool(row.host_uuid))
                signature = _signature(place, row.image_uuid)
                removed += await self._node.queues.run(signature, 1, self._remove, ps, place, row, name="clean cache")
        await self._drop_abandoned(ps)
        return removed

    async def _drop_abandoned(self, ps: PrimaryStorageInventory) -> None:
        """Give back the space of downloads that a crash cut short and that nobody has asked for since."""
        row = StorageReservationModel
        query = select(row).where(
            row.primary_storage_uuid == ps.uuid, row.key.like(f"{CACHE_PREFIX}-%"), row.create_date < _long_ago()
        )
        async with self._node.db.read() as session:
            old = (await session.scalars(query)).all()
        for one in old:
            place, image_uuid = Place(ps.uuid, one.host_uuid, bool(one.host_uuid)), one.key.split("-")[1]
            if await self._find(place, image_uuid) is None:
                host_uuid = await self._storages.worker(ps, one.host_uuid or None)
                await self._trash.delete(ps, place, host_uuid, one.install_path or "", one.key)

    async def _stale(self, row: Cache, force: bool) -> bool:
        # An ISO in a virtual drive leaves no mark here, so it goes only with its image.
        if force and row.media_type != "ISO":
            return True
        try:
            await self._node.bus.call(GetImage(row.image_uuid))
        except CloudError as error:
            return error.code == RESOURCE_NOT_FOUND.code
        return False

    async def _remove(self, ps: PrimaryStorageInventory, place: Place, row: Cache) -> int:
        held = select(StorageReservationModel.key).where(
            StorageReservationModel.primary_storage_uuid == place.ps_uuid,
            StorageReservationModel.host_uuid == place.host_uuid,
            StorageReservationModel.image_uuid == row.image_uuid,
        )
        async with self._node.db.transaction() as tx:
            if await tx.scalar(held.limit(1)) is not None:
                return 0
            await tx.execute(delete(Cache).where(Cache.id == row.id))
        async with self._node.db.transaction() as tx:
            # Another node may have marked it while it was deleted, and found it: from now on nobody does.
            if await tx.scalar(held.limit(1)) is not None:
                await insert_new(tx, Cache, **values_of(row))
                return 0
        log.info("image %s leaves the cache on %s", row.image_uuid, place)
        host_uuid = await self._storages.worker(ps, row.host_uuid or None)
        await self._trash.delete(ps, place, host_uuid, row.install_path, _key(place, row.image_uuid))
        return 1


def _long_ago() -> datetime:
    return utcnow() - timedelta(seconds=2 * DOWNLOAD_TIMEOUT)


def _signature(place: Place, image_uuid: str) -> str:
    return f"image-cache-{image_uuid}-{place.ps_uuid}-{place.host_uuid}"


def _key(place: Place, image_uuid: str) -> str:
    return f"{CACHE_PREFIX}-{image_uuid}-{place.ps_uuid}-{place.host_uuid}"


def _at(place: Place, image_uuid: str) -> tuple[ColumnElement[bool], ...]:
    return (
        Cache.image_uuid == image_uuid,
        Cache.primary_storage_uuid == place.ps_uuid,
        Cache.host_uuid == place.host_uuid,
    )
