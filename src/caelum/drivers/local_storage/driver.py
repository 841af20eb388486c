"""The LocalStorage driver: a directory on every host of the attached clusters.

Invariant: bits lie on one host and are worked on by that host's agent only. Paths are decided here, from UUIDs; nothing
that a user typed but the storage's own directory becomes part of a path.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

import msgspec
from sqlalchemy import select

from caelum.agent import protocol
from caelum.cloud.host.spec import HostOrder
from caelum.cloud.image.messages import ImageLocation
from caelum.cloud.primary_storage.api import PrimaryStorageInventory
from caelum.cloud.primary_storage.errors import NO_CACHED_IMAGE
from caelum.cloud.primary_storage.extension import (
    Bits,
    MakesVolumesWithStart,
    PhysicalCapacity,
    PrimaryStorageDriver,
    VolumePlace,
)
from caelum.cloud.primary_storage.messages import AddPrimaryStorage
from caelum.drivers.kvm.remote import on_host, order
from caelum.drivers.local_storage.api import (
    AddLocalPrimaryStorage,
    GetLocalStorageHostDiskCapacity,
    HostDiskCapacitiesReply,
    HostDiskCapacity,
)
from caelum.kernel.errors import CloudError, invalid
from caelum.kernel.ids import new_uuid
from caelum.kernel.node import Node
from caelum.kernel.service import Service, handles

TYPE = "LocalStorage"

SHORT = 60.0
"""Seconds for a command that moves no data."""
LONG = 4 * 3600.0
"""Seconds for a download."""

_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._/-]+")
_FORBIDDEN = ("/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/usr")


class LocalStorage(MakesVolumesWithStart):
    """Local storage on hosts with our agent."""

    type = TYPE
    host_bound = True

    def __init__(self, node: Node) -> None:
        self._bus = node.bus

    def check_url(self, url: str) -> None:
        """A directory of its own, by its plain absolute path."""
        if not _PLAIN_PATH.fullmatch(url) or posixpath.normpath(url) != url.rstrip("/"):
            raise invalid("url", f"{url!r} is not a plain absolute path like /cloud_ps", value=url)
        if any(url == one or (one != "/" and url.startswith(one + "/")) for one in _FORBIDDEN):
            raise invalid(
                "url", f"{url} belongs to the system; take a directory of its own", forbidden=list(_FORBIDDEN)
            )

    async def add(self, ps: PrimaryStorageInventory) -> None:
        """Nothing is there before the first host."""

    async def remove(self, ps: PrimaryStorageInventory) -> None:
        """Nothing to undo: directories on hosts stay."""

    async def connect(self, ps: PrimaryStorageInventory, host_uuid: str, first: bool) -> PhysicalCapacity:
        command = protocol.InitStorage(storage_uuid=ps.uuid, storage_path=ps.url, first=first)
        return _capacity(await on_host(self._bus, host_uuid, command, timeout=SHORT))

    async def disconnect(self, ps: PrimaryStorageInventory, host_uuid: str) -> None:
        """The directory loses its mark, so that it can become another storage's; what is in it stays."""
        await on_host(self._bus, host_uuid, protocol.LeaveStorage(storage_uuid=ps.uuid, storage_path=ps.url), SHORT)

    async def capacity(self, ps: PrimaryStorageInventory, host_uuid: str) -> PhysicalCapacity:
        command = protocol.GetStorageCapacity(storage_path=ps.url)
        return _capacity(await on_host(self._bus, host_uuid, command, timeout=SHORT))

    def cache_path(self, ps: PrimaryStorageInventory, image: ImageLocation, name: str) -> str:
        kind, suffix = ("iso", "iso") if image.media_type == "ISO" else ("template", image.format)
        return posixpath.join(ps.url, "imagecache", kind, image.image_uuid, f"{name}.{suffix}")

    def volume_path(self, ps: PrimaryStorageInventory, volume: VolumePlace, name: str) -> str:
        kind = "rootVolumes" if volume.type == "Root" else "dataVolumes"
        owner, directory = f"acct-{volume.account_uuid}", f"vol-{volume.volume_uuid}"
        return posixpath.join(ps.url, kind, owner, directory, f"{name}.qcow2")

    async def cache_image(
        self, ps: PrimaryStorageInventory, host_uuid: str, image: ImageLocation, install_path: str
    ) -> Bits:
        command = protocol.DownloadToCache(
            storage_path=ps.url,
            url=image.url,
            install_path=install_path,
            sha256=image.sha256,
            size=image.actual_size,
            format=image.format,
        )
        info = await on_host(self._bus, host_uuid, command, timeout=LONG)
        return Bits(info.path, image.size, info.actual_size, image.format)

    async def create_volume(
        self, ps: PrimaryStorageInventory, host_uuid: str, volume_uuid: str, install_path: str, size: int
    ) -> Bits:
        command = _creation(ps, volume_uuid, install_path, size, None)
        return _bits(await on_host(self._bus, host_uuid, command, timeout=SHORT))

    async def create_from_image(
        self, ps: PrimaryStorageInventory, host_uuid: str, volume_uuid: str, install_path: str, cached: Bits, size: int
    ) -> Bits:
        command = _creation(ps, volume_uuid, install_path, size, cached)
        try:
            return _bits(await on_host(self._bus, host_uuid, command, timeout=SHORT))
        except CloudError as error:
            if error.code != protocol.NOT_FOUND:
                raise
            raise CloudError(NO_CACHED_IMAGE, f"{cached.install_path} is not on host[uuid:{host_uuid}]") from error

    def creation(
        self, ps: PrimaryStorageInventory, volume_uuid: str, install_path: str, size: int, cached: Bits | None
    ) -> HostOrder:
        return order(_creation(ps, volume_uuid, install_path, size, cached))

    def created(self, answer: dict[str, Any]) -> Bits:
        return _bits(msgspec.convert(answer, protocol.FileInfo))

    async def delete_bits(self, ps: PrimaryStorageInventory, host_uuid: str, install_path: str) -> None:
        command = protocol.DeleteFile(storage_path=ps.url, install_path=install_path)
        await on_host(self._bus, host_uuid, command, timeout=SHORT)

    async def bits_info(self, ps: PrimaryStorageInventory, host_uuid: str, install_path: str) -> Bits:
        command = protocol.GetFileInfo(storage_path=ps.url, install_path=install_path)
        return _bits(await on_host(self._bus, host_uuid, command, timeout=SHORT))


def _creation(
    ps: PrimaryStorageInventory, volume_uuid: str, install_path: str, size: int, cached: Bits | None
) -> protocol.CreateVolume:
    """The command that makes a volume: empty, or as a clone of a cached image and at least as large."""
    command = protocol.CreateVolume(storage_path=ps.url, volume_uuid=volume_uuid, install_path=install_path, size=size)
    if cached is not None:
        command.size = max(size, cached.size)
        command.backing, command.backing_format = cached.install_path, cached.format
    return command


def _capacity(answer: protocol.StorageCapacity) -> PhysicalCapacity:
    return PhysicalCapacity(answer.total, answer.available)


def _bits(answer: protocol.FileInfo) -> Bits:
    return Bits(answer.path, answer.virtual_size, answer.actual_size, answer.format)


class LocalStorageService(Service):
    """The operations that only local storage has; registers the driver."""

    name = "local_storage"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.drivers.add(PrimaryStorageDriver, TYPE, LocalStorage(node))

    @handles(AddLocalPrimaryStorage, repeatable=True)
    async def add(self, msg: AddLocalPrimaryStorage) -> PrimaryStorageInventory:
        return await self.node.bus.call(
            AddPrimaryStorage(
                uuid=msg.resource_uuid or new_uuid(),
                type=TYPE,
                name=msg.name,
                url=msg.url.rstrip("/") or "/",
                zone_uuid=msg.zone_uuid,
                description=msg.description,
                system_tags=msg.system_tags,
                user_tags=msg.user_tags,
                tag_uuids=msg.tag_uuids,
            )
        )

    @handles(GetLocalStorageHostDiskCapacity)
    async def get_capacity(self, msg: GetLocalStorageHostDiskCapacity) -> HostDiskCapacitiesReply:
        row = self.node.resources.model("LocalStorageHostRefVO")
        query = select(row).where(row.primary_storage_uuid == msg.primary_storage_uuid)
        if msg.host_uuid is not None:
            query = query.where(row.host_uuid == msg.host_uuid)
        async with self.node.db.read() as session:
            rows = (await session.scalars(query.order_by(row.host_uuid))).all()
        return HostDiskCapacitiesReply(inventories=[_share(one) for one in rows])


def _share(row: object) -> HostDiskCapacity:
    return HostDiskCapacity(**{name: getattr(row, name) for name in HostDiskCapacity.__struct_fields__})
