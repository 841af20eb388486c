"""What a management node refuses."""

from __future__ import annotations

from caelum.kernel.errors import error_type

NOT_READY = error_type(
    "SYS.1010", "Management server is not ready to serve", "Wait a moment and ask again.", transient=True
)
