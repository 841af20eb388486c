"""What other services ask of images."""

from __future__ import annotations

import msgspec

from caelum.cloud.image.api import ImageInventory
from caelum.kernel.message import Message, message


class ImageLocation(msgspec.Struct, frozen=True, rename="camel"):
    """Where hosts fetch an image, and what they get. `size` is what a guest sees, `actual_size` the file."""

    image_uuid: str
    url: str
    sha256: str | None
    size: int
    actual_size: int
    format: str
    backup_storage_uuid: str
    media_type: str
    md5: str | None = None


@message()
class LocateImage(Message[ImageLocation]):
    """A ready copy of an image, on a backup storage that is connected, enabled and attached to the zone."""

    image_uuid: str
    zone_uuid: str | None = None


@message()
class GetImage(Message[ImageInventory]):
    """One image; an error when it does not exist, or, with `usable`, when it is not enabled and Ready."""

    image_uuid: str
    usable: bool = False


@message(route_by="backup_storage_uuid")
class DropImagesOfBackupStorage(Message[None]):
    """A backup storage is being removed: forget its copies, and the images that have no other."""

    backup_storage_uuid: str
