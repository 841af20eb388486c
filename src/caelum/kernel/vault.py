"""Secrets that the database must hold but nobody may read who has only the database: a copy, a backup, a dump.

Invariant: what was sealed opens only with the key, which lies beside the certificate authority's in the data directory
and is derived from it, so that all management nodes of a cloud have the same; and only for what it was sealed for, so
that a sealed text in another row opens nothing.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from caelum.kernel.errors import INTERNAL, CloudError
from caelum.kernel.pki import CertificateAuthority

PREFIX = "sealed:1:"
"""How every sealed text begins, with the version of its form."""
_NONCE = 12
_PURPOSE = b"caelum vault 1"


class Vault:
    """Seals and opens texts with the key of the authority in a directory; the first use reads, or makes, it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._cipher: AESGCM | None = None

    def load(self) -> None:
        """Read the key now, which later calls inside the event loop then need not wait for."""
        self._key()

    def seal(self, text: str, about: str) -> str:
        """A form of `text` for the database; `about` names what it belongs to (a row's UUID)."""
        nonce = os.urandom(_NONCE)
        sealed = self._key().encrypt(nonce, text.encode(), about.encode())
        return PREFIX + base64.b64encode(nonce + sealed).decode()

    def open(self, sealed: str, about: str) -> str:
        """The text that was sealed. Raises SYS.1000 when the key, or what it is about, is another."""
        raw = base64.b64decode(sealed.removeprefix(PREFIX))
        try:
            return self._key().decrypt(raw[:_NONCE], raw[_NONCE:], about.encode()).decode()
        except InvalidTag:
            why = f"what is sealed of {about} does not open: the key of the certificate authority is another one"
            raise CloudError(INTERNAL, why) from None

    def _key(self) -> AESGCM:
        if self._cipher is None:
            self._cipher = AESGCM(CertificateAuthority.open(self._directory).derive(_PURPOSE))
        return self._cipher
