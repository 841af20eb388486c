"""One certificate authority for all nodes of a cloud.

Invariant: with PostgreSQL the authority that the database has is everybody's; the first node that starts puts its own
there, and each node has a copy in its directory. Its key is encrypted when the configuration has an `authority_secret`.
With SQLite there is one node, and the authority is in its directory alone.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import Text
from sqlalchemy.orm import Mapped, mapped_column

from caelum.kernel import pki
from caelum.kernel.database import Base, Database

_ONLY = 1


class AuthorityModel(Base):
    """The certificate authority, in PEM."""

    __tablename__ = "certificate_authority"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    certificate: Mapped[str] = mapped_column(Text)
    key: Mapped[str] = mapped_column(Text)


async def share(db: Database, directory: Path, secret: str) -> None:
    """Have the cloud's authority in this directory. Raises ValueError when the secret does not fit."""
    if db.sqlite:
        return
    async with db.transaction() as tx:
        row = await tx.get(AuthorityModel, _ONLY)
        if row is None:
            authority = await asyncio.to_thread(pki.CertificateAuthority.open, directory)
            key = await asyncio.to_thread(authority.key_pem, secret)
            tx.add(AuthorityModel(id=_ONLY, certificate=authority.certificate_pem.decode(), key=key.decode()))
            return
    await asyncio.to_thread(
        pki.CertificateAuthority.place, directory, row.certificate.encode(), row.key.encode(), secret
    )
