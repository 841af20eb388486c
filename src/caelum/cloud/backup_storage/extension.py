"""What a backup storage driver offers to the core."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from caelum.cloud.backup_storage.api import BackupStorageInventory

Progress = Callable[[int, str], Awaitable[None]]
"""Percent done and a word on what."""


class ImageSource(msgspec.Struct, frozen=True, rename="camel"):
    """An image to fetch. `format` None means: take what the header says. `size_limit` is the most that fits."""

    image_uuid: str
    account_uuid: str
    url: str
    media_type: str
    format: str | None
    size_limit: int


class StoredImage(msgspec.Struct, frozen=True, rename="camel"):
    """An image on a backup storage. `size` is what a guest sees, `actual_size` the file."""

    install_path: str
    size: int
    actual_size: int
    md5: str
    sha256: str
    format: str


class BackupCapacity(msgspec.Struct, frozen=True):
    """Bytes, all in all and free."""

    total: int
    available: int


class BackupStorageDriver(Protocol):
    """A type of backup storage. Every method is idempotent: it may be called again after a crash."""

    type: str

    def check_url(self, url: str) -> None:
        """Refuse a URL that this type cannot use, with INVALID_ARGUMENT."""

    def check_source(self, url: str, is_admin: bool) -> None:
        """Refuse an image's URL that this type cannot or may not fetch, before anything is done."""

    async def connect(self, bs: BackupStorageInventory, first: bool) -> BackupCapacity:
        """Prepare the storage; `first` says that it is new to this cloud."""

    async def remove(self, bs: BackupStorageInventory) -> None:
        """The storage leaves this cloud; its images stay where they are."""

    async def capacity(self, bs: BackupStorageInventory) -> BackupCapacity:
        """What is there now."""

    async def probe(self, bs: BackupStorageInventory, source: ImageSource) -> int | None:
        """How many bytes a fetch will bring, or None when the source does not say."""

    async def add_image(self, bs: BackupStorageInventory, source: ImageSource, progress: Progress) -> StoredImage:
        """Fetch, check and keep an image. On any error nothing is left behind."""

    async def delete_image(self, bs: BackupStorageInventory, image_uuid: str, install_path: str | None) -> None:
        """Delete an image's files, also half-fetched ones; success if absent."""

    async def files(self, bs: BackupStorageInventory) -> list[str]:
        """Every file that is there, but for the driver's own marks and notes."""

    async def image_size(self, bs: BackupStorageInventory, install_path: str) -> int:
        """The file's true size."""

    async def url_for(self, bs: BackupStorageInventory, install_path: str) -> str:
        """Where hosts fetch the image, by HTTPS with their certificates."""
