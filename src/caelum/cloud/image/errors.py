"""Errors of images."""

from __future__ import annotations

from caelum.kernel.errors import error_type

IMAGE_NOT_USABLE = error_type(
    "CAELUM.IMG.1000", "The image cannot be used", "Wait until it is Ready, enable it, or recover it."
)
NO_COPY = error_type(
    "CAELUM.IMG.1001",
    "No copy of the image can be reached",
    "Attach a backup storage that has the image to the zone, enable it, or reconnect it.",
)
