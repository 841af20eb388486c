"""UUIDs as the wire has them: version 4 (random) or 5 (derived), 32 lower-case hexadecimal digits."""

from __future__ import annotations

import re
import uuid

_RESOURCE_UUID = re.compile(r"[0-9a-f]{12}[1-5][0-9a-f]{3}[89ab][0-9a-f]{15}")
_NAMESPACE = uuid.UUID("6d2fa657-00f2-42e3-86c2-7e8ff05c4780")


def new_uuid() -> str:
    """A fresh random UUID."""
    return uuid.uuid4().hex


def derived_uuid(*parts: str) -> str:
    """The same UUID for the same parts, always: for work that may be repeated after a crash."""
    return uuid.uuid5(_NAMESPACE, "\0".join(parts)).hex


def is_uuid(text: str) -> bool:
    """Whether a client may use `text` as a resource's UUID."""
    return _RESOURCE_UUID.fullmatch(text) is not None
