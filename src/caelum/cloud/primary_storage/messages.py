"""What other services ask of primary storages. Every message may be repeated: its key makes it the same one."""

from __future__ import annotations

import msgspec

from caelum.cloud.host.spec import HostOrder
from caelum.cloud.primary_storage.api import PrimaryStorageInventory
from caelum.kernel.message import Message, message


class StorageCandidate(msgspec.Struct, frozen=True, rename="camel"):
    """A primary storage that can take the size asked for on these hosts. `available` is the free space by host."""

    primary_storage_uuid: str
    host_uuids: list[str]
    available: dict[str, int]


class StorageRefusal(msgspec.Struct, frozen=True, rename="camel"):
    """Why a primary storage cannot: on one host, or (without `host_uuid`) at all. `reason` has the numbers."""

    primary_storage_uuid: str
    host_uuid: str | None
    reason: str


class StorageCandidates(msgspec.Struct, frozen=True, rename="camel"):
    """Where a size fits, best first (most free space), and where it does not."""

    candidates: list[StorageCandidate]
    refusals: list[StorageRefusal]


class VolumeBits(msgspec.Struct, frozen=True, rename="camel"):
    """A volume's bits on a storage."""

    install_path: str
    size: int
    actual_size: int
    format: str


class VolumePlan(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """How a host makes a volume's bits in one go with the start of the machine that they are for: by `order`."""

    volume_uuid: str
    primary_storage_uuid: str
    storage_type: str
    host_uuid: str
    install_path: str
    format: str = "qcow2"
    size: int
    image_uuid: str | None
    cached_path: str | None = None
    """Where the image is cached that the bits are to be cloned from."""
    order: HostOrder


class CachedImage(msgspec.Struct, frozen=True, rename="camel"):
    """An image's copy on a storage."""

    install_path: str
    size: int
    format: str
    actual_size: int = 0


class VolumeHosts(msgspec.Struct, frozen=True, rename="camel"):
    """The host that holds each volume; volumes of storages that all hosts share are absent."""

    hosts: dict[str, str]


class StorageContents(msgspec.Struct, frozen=True, rename="camel"):
    """Resources by UUID."""

    uuids: list[str]


@message(route_by="uuid")
class AddPrimaryStorage(Message[PrimaryStorageInventory]):
    """Add a storage of a driver's type. Drivers send it from their own public operation."""

    uuid: str
    type: str
    name: str
    url: str
    zone_uuid: str
    description: str | None = None
    system_tags: list[str] | None = None
    user_tags: list[str] | None = None
    tag_uuids: list[str] | None = None


@message()
class GetPrimaryStorage(Message[PrimaryStorageInventory]):
    """One primary storage."""

    uuid: str


@message()
class FindStorage(Message[StorageCandidates]):
    """Which primary storages can take `size` bytes on which of `host_uuids`. Reserves nothing.

    Only enabled, connected storages attached to a cluster of the hosts count. `cluster_uuids` narrows to clusters,
    `primary_storage_uuid` to one storage, `required_tags` to storages with all of these user tags. With `image_uuid`,
    a host without the cached image must also have room for it. Size 0 asks who reaches what is there already: then
    space does not matter, and a disabled storage will do.
    """

    host_uuids: list[str]
    size: int
    primary_storage_uuid: str | None = None
    cluster_uuids: list[str] | None = None
    required_tags: list[str] = []
    image_uuid: str | None = None


@message(route_by="key")
class ReserveStorage(Message[None]):
    """Reserve space under a key (a volume's UUID). Refused with numbers when it does not fit.

    The same key on the same storage and host is the same reservation; a larger or smaller size replaces the old one.
    """

    key: str
    primary_storage_uuid: str
    host_uuid: str | None
    size: int


@message(route_by="key")
class ReleaseStorage(Message[None]):
    """Give back exactly what the key reserved, nothing if it reserved nothing.

    A reservation that bits were made on stays: it goes with them (`DeleteBitsOnStorage`).
    """

    key: str


@message(route_by="key")
class MoveReservation(Message[None]):
    """Rename a reservation; done already if only the new key exists."""

    key: str
    new_key: str


@message(route_by="volume_uuid")
class CreateVolumeOnStorage(Message[VolumeBits]):
    """Make a volume's bits: empty, or a clone of an image, cached first. Its space is reserved under its UUID.

    Served where the volume is, as is their deletion, which stops it.
    """

    primary_storage_uuid: str
    host_uuid: str | None
    volume_uuid: str
    size: int
    image_uuid: str | None = None
    account_uuid: str | None = None
    volume_type: str = "Data"
    maker: str | None = None
    """Who makes the bits (a workflow's run): only the maker's undo finds them, see `DeleteBitsOnStorage`."""


@message()
class PlanVolumeOnStorage(Message[VolumePlan | None], kw_only=True):
    """How a volume's bits would be made with the start of its machine; None: only `CreateVolumeOnStorage` can.

    Nothing is done. A workflow that goes this way notes the plan first (`BitsRecords`) and lets nobody else make or
    delete the bits meanwhile.
    """

    primary_storage_uuid: str
    host_uuid: str
    volume_uuid: str
    size: int
    image_uuid: str | None = None
    account_uuid: str
    volume_type: str


@message(route_by="key")
class DeleteBitsOnStorage(Message[None]):
    """Delete bits. A host or path that is not given is looked up by `key`; success when nothing was made.

    `key` names the reservation that goes with the bits. When the host cannot be reached, the garbage collector
    deletes them later, and only then the reservation is given back.
    """

    primary_storage_uuid: str
    host_uuid: str | None
    install_path: str | None
    key: str | None = None
    maker: str | None = None
    """Given by an undo: bits that somebody else has made under the key meanwhile are left alone."""


@message(route_by="primary_storage_uuid")
class GetBitsOnStorage(Message[VolumeBits]):
    """The true size of bits, read from the storage."""

    primary_storage_uuid: str
    host_uuid: str | None
    install_path: str
    volume_uuid: str | None = None


@message(route_by="primary_storage_uuid")
class CacheImage(Message[CachedImage]):
    """Have an image (template or ISO) on the storage. Many at once download it once per host: the storage's node.

    `again` says that the host has no such file, whatever the records say.
    """

    primary_storage_uuid: str
    host_uuid: str | None
    image_uuid: str
    again: bool = False


@message()
class GetVolumeHosts(Message[VolumeHosts]):
    """On which host each of these volumes lies."""

    volume_uuids: list[str]


@message(route_by="host_uuid")
class GetVolumesOnHost(Message[StorageContents]):
    """The volumes that only this host holds."""

    host_uuid: str
