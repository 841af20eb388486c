"""Errors of volumes."""

from __future__ import annotations

from caelum.kernel.errors import error_type

VOLUME_IN_USE = error_type(
    "VOLUME.1000", "Unable to deactivate a volume in use", "Detach the volume from its virtual machine first."
)
