"""What a primary storage driver offers to the core, where plugins may hook in, and what the service records in the
transactions of others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.host.spec import HostOrder
from caelum.cloud.image.messages import ImageLocation
from caelum.cloud.primary_storage.api import PrimaryStorageInventory
from caelum.cloud.primary_storage.messages import VolumeBits, VolumePlan
from caelum.kernel.extension import ExtensionPoint


class PhysicalCapacity(msgspec.Struct, frozen=True):
    """Bytes that the storage itself has, all in all and free."""

    total: int
    available: int


class Bits(msgspec.Struct, frozen=True):
    """A file, block device or object on a storage."""

    install_path: str
    size: int
    actual_size: int
    format: str


class VolumePlace(msgspec.Struct, frozen=True):
    """Where a volume's bits go: what the driver needs to name them."""

    volume_uuid: str
    account_uuid: str
    type: str = "Data"


class PrimaryStorageDriver(Protocol):
    """A type of primary storage. Every method is idempotent: it may be called again after a crash.

    `host_uuid` is the host that works; for a host-bound storage also the one that holds the bits. A storage that cannot
    be reached raises an error whose type is transient.
    """

    type: str
    host_bound: bool
    """Each host has its own space and its own copies (a local disk); else all hosts see the same."""

    def check_url(self, url: str) -> None:
        """Refuse a URL that this type cannot use, with INVALID_ARGUMENT."""

    async def add(self, ps: PrimaryStorageInventory) -> None:
        """Prepare what the storage needs before any host (pools, exports)."""

    async def remove(self, ps: PrimaryStorageInventory) -> None:
        """Undo `add`."""

    async def connect(self, ps: PrimaryStorageInventory, host_uuid: str, first: bool) -> PhysicalCapacity:
        """Prepare the storage on a host. `first` says that nothing of it can be there yet."""

    async def disconnect(self, ps: PrimaryStorageInventory, host_uuid: str) -> None:
        """Undo `connect` on a host that has nothing of the storage left."""

    async def capacity(self, ps: PrimaryStorageInventory, host_uuid: str) -> PhysicalCapacity:
        """What is there now."""

    def cache_path(self, ps: PrimaryStorageInventory, image: ImageLocation, name: str) -> str:
        """Where an image's cached copy called `name` goes."""

    def volume_path(self, ps: PrimaryStorageInventory, volume: VolumePlace, name: str) -> str:
        """Where a volume's bits called `name` go."""

    async def cache_image(
        self, ps: PrimaryStorageInventory, host_uuid: str, image: ImageLocation, install_path: str
    ) -> Bits:
        """Fetch an image into the cache, checked against its digest."""

    async def create_volume(
        self, ps: PrimaryStorageInventory, host_uuid: str, volume_uuid: str, install_path: str, size: int
    ) -> Bits:
        """Make an empty volume."""

    async def create_from_image(
        self, ps: PrimaryStorageInventory, host_uuid: str, volume_uuid: str, install_path: str, cached: Bits, size: int
    ) -> Bits:
        """Make a volume of at least `size` bytes as a clone of a cached image; NO_CACHED_IMAGE if that is not there."""

    async def delete_bits(self, ps: PrimaryStorageInventory, host_uuid: str, install_path: str) -> None:
        """Delete; success if absent."""

    async def bits_info(self, ps: PrimaryStorageInventory, host_uuid: str, install_path: str) -> Bits:
        """The true size."""


class MakesVolumesWithStart(ABC):
    """What a driver can be besides: one whose hosts make volumes in one go with the start of their machine."""

    format = "qcow2"
    """The format of the volumes that are made so: their machine is started before the host has told of them."""

    @abstractmethod
    def creation(
        self, ps: PrimaryStorageInventory, volume_uuid: str, install_path: str, size: int, cached: Bits | None
    ) -> HostOrder:
        """What makes a volume as `create_from_image` does, or without a cached image as `create_volume`. Idempotent."""

    @abstractmethod
    def created(self, answer: dict[str, Any]) -> Bits:
        """What the host's answer to that order says."""


Reserve = Callable[[AsyncSession, str, int], Awaitable[None]]
"""Reserves bytes under a key in a transaction, as `ReserveStorage` does."""


class SpaceRecords(ExtensionPoint):
    """The records of reserved space, for who reserves it together with something else."""

    async def at(self, primary_storage_uuid: str, host_uuid: str) -> Reserve:
        """What reserves space on a storage for a host. To be asked for before the transaction."""
        raise NotImplementedError


class BitsRecords(ExtensionPoint):
    """The records of bits that somebody else's workflow has a host make, as `PlanVolumeOnStorage` has planned it."""

    async def pin(self, tx: AsyncSession, plan: VolumePlan) -> bool:
        """Note where the bits go before they are made; False, and nothing is noted, when they cannot go there, or their
        image has left the cache since it was planned.
        """
        raise NotImplementedError

    async def made(self, tx: AsyncSession, plan: VolumePlan, answer: dict[str, Any]) -> VolumeBits:
        """Note what was made, which the host's answer says."""
        raise NotImplementedError


class PrimaryStorageBeforeDelete(ExtensionPoint):
    """Objects (raises) to a primary storage's deletion."""

    async def before_delete(self, ps: PrimaryStorageInventory) -> None: ...


class PrimaryStorageBeforeDetach(ExtensionPoint):
    """Called before a primary storage is taken from a cluster: stop what uses it there, or raise."""

    async def before_detach(self, ps: PrimaryStorageInventory, cluster_uuid: str) -> None: ...
