"""What lies on primary storages: reservations, volumes' bits, cached images. The internal half of the service.

Invariant: before bits are made their reservation says where and on which cached image, so that a repetition, an undo or
a clean-up always finds them; and what was reserved is given back only when the bits are gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.host.messages import ListHosts
from caelum.cloud.image.messages import GetImage
from caelum.cloud.interruptible import Interruptible
from caelum.cloud.primary_storage.api import PrimaryStorageInventory
from caelum.cloud.primary_storage.cache import ImageCache
from caelum.cloud.primary_storage.capacity import Place, move, pin, pin_new, release, reserve
from caelum.cloud.primary_storage.errors import ALLOCATE_ERROR, NO_CACHED_IMAGE
from caelum.cloud.primary_storage.extension import (
    Bits,
    BitsRecords,
    MakesVolumesWithStart,
    PrimaryStorageDriver,
    Reserve,
    SpaceRecords,
    VolumePlace,
)
from caelum.cloud.primary_storage.finder import Finder
from caelum.cloud.primary_storage.messages import (
    CachedImage,
    CacheImage,
    CreateVolumeOnStorage,
    DeleteBitsOnStorage,
    FindStorage,
    GetBitsOnStorage,
    GetVolumeHosts,
    GetVolumesOnHost,
    MoveReservation,
    PlanVolumeOnStorage,
    ReleaseStorage,
    ReserveStorage,
    StorageCandidates,
    StorageContents,
    VolumeBits,
    VolumeHosts,
    VolumePlan,
)
from caelum.cloud.primary_storage.model import (
    CONNECTED,
    LocalStorageResourceRefModel,
    StorageReservationModel,
)
from caelum.cloud.primary_storage.storages import Storages
from caelum.cloud.primary_storage.trash import Trash, free_path, job_name
from caelum.kernel.database import insert_new
from caelum.kernel.errors import RESOURCE_NOT_FOUND, CloudError
from caelum.kernel.journal import refuse_late
from caelum.kernel.node import Node
from caelum.kernel.rows import read_rows, update_rows
from caelum.kernel.service import Service, handles

Ref = LocalStorageResourceRefModel
VOLUME = "VolumeVO"


class StorageContentsService(Service):
    """The handlers of other services' messages."""

    def __init__(self, node: Node, storages: Storages, trash: Trash, cache: ImageCache) -> None:
        super().__init__(node)
        self.storages, self.trash, self.cache = storages, trash, cache
        self._making = Interruptible()
        node.extensions.add(RecordsOfBits(node))
        node.extensions.add(RecordsOfSpace(storages))

    # --- space --------------------------------------------------------------------------------------------------------

    @handles(FindStorage, reads=True)
    async def find(self, msg: FindStorage) -> StorageCandidates:
        image_size = 0
        if msg.image_uuid is not None:
            image_size = (await self.node.bus.call(GetImage(msg.image_uuid))).actual_size or 0
        known = await self.storages.all_known()
        if msg.primary_storage_uuid is not None:
            known = [one for one in known if one.uuid == msg.primary_storage_uuid]
        terms = {one.uuid: await self.storages.terms(one.uuid) for one in known}
        bound = {one.uuid: self.node.drivers.get(PrimaryStorageDriver, one.type).host_bound for one in known}
        return await Finder(self.node.db.once, msg, terms, bound, image_size).find(known)

    @handles(ReserveStorage, queue="storage-{key}")
    async def reserve(self, msg: ReserveStorage) -> None:
        take = await reserving(self.storages, msg.primary_storage_uuid, msg.host_uuid)
        async with self.node.db.transaction() as tx:
            await refuse_late(tx)
            await take(tx, msg.key, msg.size)

    @handles(ReleaseStorage, queue="storage-{key}")
    async def release(self, msg: ReleaseStorage) -> None:
        async with self.node.db.transaction() as tx:
            await refuse_late(tx)  # by now the space may be another run's
            for known in await read_rows(tx, StorageReservationModel, lock=True, key=msg.key):
                if known.install_path is None:
                    await release(tx, msg.key)

    @handles(MoveReservation, queue="storage-{key}")
    async def move(self, msg: MoveReservation) -> None:
        async with self.node.db.transaction() as tx:
            await move(tx, msg.key, msg.new_key)

    # --- bits ---------------------------------------------------------------------------------------------------------

    @handles(CreateVolumeOnStorage, queue="bits-{volume_uuid}")
    async def create_volume(self, msg: CreateVolumeOnStorage) -> VolumeBits:
        ps = await self.storages.known(msg.primary_storage_uuid)
        host_uuid, place = await self.storages.worker(ps, msg.host_uuid), self.storages.place(ps, msg.host_uuid)
        path = await self._choose_path(msg, ps, place)
        bits = await self._making.run(msg.volume_uuid, self._make(msg, ps, host_uuid, path))
        if place.host_bound and bits.size != msg.size:
            async with self.node.db.transaction() as tx:
                await update_rows(tx, Ref, {"size": bits.size}, resource_uuid=msg.volume_uuid)
        return _told(bits)

    async def _choose_path(self, msg: CreateVolumeOnStorage, ps: PrimaryStorageInventory, place: Place) -> str:
        """Where the bits go, and on which host they will be: written down before they are made."""
        driver, key = self.storages.driver(ps), msg.volume_uuid
        volume = VolumePlace(key, msg.account_uuid or "system", msg.volume_type)
        path = driver.volume_path(ps, volume, key)
        waiting = job_name(ps.uuid, place.host_uuid, path)
        async with self.node.db.transaction() as tx:
            if not await pin_new(tx, place, key, path, msg.image_uuid, msg.maker, waiting):
                path = await self._known_path(tx, msg, place, lambda name: driver.volume_path(ps, volume, name))
                await pin(tx, key, path, msg.image_uuid, msg.maker)
            if place.host_bound:
                await _note_host(tx, place, key, msg.size)
        return path

    async def _known_path(
        self, tx: AsyncSession, msg: CreateVolumeOnStorage, place: Place, path_of: Callable[[str], str]
    ) -> str:
        """The path that a repetition finds, or a new one because old bits still wait for their deletion."""
        known = await tx.get(StorageReservationModel, msg.volume_uuid)
        if known is None or (known.primary_storage_uuid, known.host_uuid) != (place.ps_uuid, place.host_uuid):
            raise CloudError(
                ALLOCATE_ERROR,
                f"volume[uuid:{msg.volume_uuid}] has no space reserved on {place}",
                uuid=msg.volume_uuid,
            )
        return known.install_path or await free_path(tx, place.ps_uuid, place.host_uuid, msg.volume_uuid, path_of)

    async def _make(self, msg: CreateVolumeOnStorage, ps: PrimaryStorageInventory, host_uuid: str, path: str) -> Bits:
        driver = self.storages.driver(ps)
        if msg.image_uuid is None:
            return await driver.create_volume(ps, host_uuid, msg.volume_uuid, path, msg.size)
        cached = await self.cache.known(ps, host_uuid, msg.image_uuid)
        if cached is None:
            cached = await self._cached(ps, host_uuid, msg.image_uuid)
        try:
            return await driver.create_from_image(ps, host_uuid, msg.volume_uuid, path, cached, msg.size)
        except CloudError as error:
            if error.code != NO_CACHED_IMAGE.code:
                raise
        cached = await self._cached(ps, host_uuid, msg.image_uuid, again=True)
        return await driver.create_from_image(ps, host_uuid, msg.volume_uuid, path, cached, msg.size)

    async def _cached(
        self, ps: PrimaryStorageInventory, host_uuid: str, image_uuid: str, *, again: bool = False
    ) -> Bits:
        """Have the image cached by the storage's node, in whose queues all work on cached images runs."""
        found = await self.node.bus.call(CacheImage(ps.uuid, host_uuid, image_uuid, again))
        return Bits(found.install_path, found.size, found.actual_size, found.format)

    @handles(PlanVolumeOnStorage, reads=True)
    async def plan_volume(self, msg: PlanVolumeOnStorage) -> VolumePlan | None:
        ps = await self.storages.known(msg.primary_storage_uuid)
        driver = self.storages.driver(ps)
        if not isinstance(driver, MakesVolumesWithStart):
            return None
        cached = None if msg.image_uuid is None else await self.cache.known(ps, msg.host_uuid, msg.image_uuid)
        if cached is None and msg.image_uuid is not None:
            return None
        volume = VolumePlace(msg.volume_uuid, msg.account_uuid, msg.volume_type)
        path = driver.volume_path(ps, volume, msg.volume_uuid)
        return VolumePlan(
            volume_uuid=msg.volume_uuid,
            primary_storage_uuid=ps.uuid,
            storage_type=ps.type,
            host_uuid=msg.host_uuid,
            install_path=path,
            format=driver.format,
            size=msg.size,
            image_uuid=msg.image_uuid,
            cached_path=None if cached is None else cached.install_path,
            order=driver.creation(ps, msg.volume_uuid, path, msg.size, cached),
        )

    @handles(DeleteBitsOnStorage)
    async def delete_bits(self, msg: DeleteBitsOnStorage) -> None:
        if msg.key is None:
            await self._delete_bits(msg)
            return
        if _is_anothers(await self._reservation(msg.key), msg):
            return
        self._making.call_off(msg.key)
        async with self.node.queues.turn(f"bits-{msg.key}", name="delete bits"):
            await self._delete_bits(msg)

    async def _delete_bits(self, msg: DeleteBitsOnStorage) -> None:
        try:
            ps = await self.storages.known(msg.primary_storage_uuid)
        except CloudError as error:
            if error.code == RESOURCE_NOT_FOUND.code:
                return  # the storage went, and what was on it with it
            raise
        known = await self._reservation(msg.key)
        if _is_anothers(known, msg):
            return
        path = msg.install_path or (known.install_path if known else None)
        host_uuid = msg.host_uuid or (known.host_uuid if known else None) or None
        if path is not None and (host_uuid is not None or not self.storages.driver(ps).host_bound):
            worker = await self.storages.worker(ps, host_uuid)
            await self.trash.delete(ps, self.storages.place(ps, host_uuid), worker, path, msg.key)
        elif msg.key is not None:
            async with self.node.db.transaction() as tx:
                await release(tx, msg.key)

    async def _reservation(self, key: str | None) -> StorageReservationModel | None:
        if key is None:
            return None
        found = await read_rows(self.node.db.once, StorageReservationModel, key=key)
        return found[0] if found else None

    @handles(GetBitsOnStorage)
    async def get_bits(self, msg: GetBitsOnStorage) -> VolumeBits:
        ps = await self.storages.known(msg.primary_storage_uuid)
        known = await self._reservation(msg.volume_uuid)
        host_uuid = await self.storages.worker(ps, msg.host_uuid or (known.host_uuid if known else None) or None)
        bits = await self.storages.driver(ps).bits_info(ps, host_uuid, msg.install_path)
        return _told(bits)

    @handles(CacheImage)
    async def cache_image(self, msg: CacheImage) -> CachedImage:
        ps = await self.storages.known(msg.primary_storage_uuid)
        host_uuid = await self.storages.worker(ps, msg.host_uuid)
        if msg.again:
            await self.cache.forget(ps, host_uuid, msg.image_uuid)
        bits = await self.cache.ensure(ps, host_uuid, msg.image_uuid)
        return CachedImage(bits.install_path, bits.size, bits.format, bits.actual_size)

    # --- where things are ---------------------------------------------------------------------------------------------

    @handles(GetVolumeHosts)
    async def get_volume_hosts(self, msg: GetVolumeHosts) -> VolumeHosts:
        found = await read_rows(self.node.db.once, Ref, resource_uuid=msg.volume_uuids)
        return VolumeHosts({row.resource_uuid: row.host_uuid for row in found})

    @handles(GetVolumesOnHost)
    async def get_volumes_on_host(self, msg: GetVolumesOnHost) -> StorageContents:
        query = select(Ref.resource_uuid).where(Ref.host_uuid == msg.host_uuid, Ref.resource_type == VOLUME)
        async with self.node.db.read() as session:
            return StorageContents(list((await session.scalars(query)).all()))

    async def connected_hosts(self, ps: PrimaryStorageInventory) -> list[str]:
        """The connected hosts of the clusters that the storage serves."""
        found = await self.node.bus.call(ListHosts(cluster_uuids=ps.attached_cluster_uuids))
        return [one.uuid for one in found.hosts if one.status == CONNECTED]


async def reserving(storages: Storages, ps_uuid: str, host_uuid: str | None) -> Reserve:
    """What reserves space there."""
    ps = await storages.known(ps_uuid)
    place, terms = storages.place(ps, host_uuid), await storages.terms(ps.uuid)

    async def take(tx: AsyncSession, key: str, size: int) -> None:
        await reserve(tx, place, key, size, terms)

    return take


class RecordsOfSpace(SpaceRecords):
    """What others reserve in their transactions."""

    def __init__(self, storages: Storages) -> None:
        self._storages = storages

    async def at(self, primary_storage_uuid: str, host_uuid: str) -> Reserve:
        """What reserves space there."""
        return await reserving(self._storages, primary_storage_uuid, host_uuid)


class RecordsOfBits(BitsRecords):
    """The records of bits that are made with the start of a machine."""

    def __init__(self, node: Node) -> None:
        self._drivers = node.drivers

    async def pin(self, tx: AsyncSession, plan: VolumePlan) -> bool:
        """Note where the bits go."""
        bound = self._drivers.get(PrimaryStorageDriver, plan.storage_type).host_bound
        place = Place(plan.primary_storage_uuid, plan.host_uuid, bound)
        waiting = job_name(place.ps_uuid, place.host_uuid, plan.install_path)
        # A plan of a version before does not say where its image was: it is made in the other way.
        looked_up = None if plan.image_uuid is None else plan.cached_path or ""
        if not await pin_new(
            tx, place, plan.volume_uuid, plan.install_path, plan.image_uuid, None, waiting, cached_path=looked_up
        ):
            return False
        if bound:
            await _note_host(tx, place, plan.volume_uuid, plan.size)
        return True

    async def made(self, tx: AsyncSession, plan: VolumePlan, answer: dict[str, Any]) -> VolumeBits:
        """Note how large they are."""
        driver = self._drivers.get(PrimaryStorageDriver, plan.storage_type)
        if not isinstance(driver, MakesVolumesWithStart):
            raise TypeError(f"{plan.storage_type} does not make volumes with the start of their machines")
        bits = driver.created(answer)
        if bits.size != plan.size:
            await update_rows(tx, Ref, {"size": bits.size}, resource_uuid=plan.volume_uuid)
        return _told(bits)


def _told(bits: Bits) -> VolumeBits:
    return VolumeBits(bits.install_path, bits.size, bits.actual_size, bits.format)


async def _note_host(tx: AsyncSession, place: Place, volume_uuid: str, size: int) -> None:
    """Note which host holds a volume of a host-bound storage."""
    here = {"primary_storage_uuid": place.ps_uuid, "host_uuid": place.host_uuid}
    await insert_new(tx, Ref, resource_uuid=volume_uuid, **here, size=size, resource_type=VOLUME)


def _is_anothers(known: StorageReservationModel | None, msg: DeleteBitsOnStorage) -> bool:
    """Whether an undo comes so late that somebody else has made new bits under its key."""
    return msg.maker is not None and known is not None and known.maker not in (None, msg.maker)
