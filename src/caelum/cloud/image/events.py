"""News of images."""

from __future__ import annotations

from caelum.cloud.image.api import ImageInventory
from caelum.kernel.errors import ErrorCode
from caelum.kernel.events import CanonicalEvent, canonical


@canonical("/image/track/result")
class ImageTracked(CanonicalEvent):
    """The addition of an image has ended."""

    uuid: str
    success: bool
    error: ErrorCode | None = None
    inventory: ImageInventory | None = None
