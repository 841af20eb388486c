"""UUIDs as the wire has them: version 4 (random) or 5 (derived), 32 lower-case hexadecimal digits."""

from __future__ import annotations

import hashlib
import os
import re

_RESOURCE_UUID = re.compile(r"[0-9a-f]{12}[1-5][0-9a-f]{3}[89ab][0-9a-f]{15}")
_NAMESPACE = bytes.fromhex("6d2fa65700f242e386c27e8ff05c4780")


def new_uuid() -> str:
    """A fresh random UUID. `uuid.uuid4` does the same, but makes an object first, and dozens are made per operation."""
    return _marked(bytearray(os.urandom(16)), 0x40)


def derived_uuid(*parts: str) -> str:
    """The same UUID for the same parts, always: for work that may be repeated after a crash. As `uuid.uuid5`."""
    digits = bytearray(hashlib.sha1(_NAMESPACE + "\0".join(parts).encode(), usedforsecurity=False).digest()[:16])
    return _marked(digits, 0x50)


def _marked(digits: bytearray, version: int) -> str:
    """The UUID of this version with these digits."""
    digits[6] = digits[6] & 0x0F | version
    digits[8] = digits[8] & 0x3F | 0x80  # the variant
    return digits.hex()


def is_uuid(text: str) -> bool:
    """Whether a client may use `text` as a resource's UUID."""
    return _RESOURCE_UUID.fullmatch(text) is not None
