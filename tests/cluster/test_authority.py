"""All nodes have one certificate authority, and its key is as secret as the operator wants."""

from __future__ import annotations

from pathlib import Path

import pytest

from caelum.kernel import pki
from caelum.kernel.authority import AuthorityModel, share
from caelum.kernel.database import Database
from caelum.testing import databases


@pytest.fixture
async def db(tmp_path: Path) -> Database:
    database = Database(databases.of_cluster(tmp_path))
    await database.migrate()
    return database


async def test_the_second_node_gets_the_first_ones_authority(tmp_path: Path, db: Database) -> None:
    await share(db, tmp_path / "a", "")
    pki.CertificateAuthority.open(tmp_path / "b")  # it had one of its own
    await share(db, tmp_path / "b", "")
    for name in ("ca.pem", "ca.key"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "b" / "ca.key").stat().st_mode & 0o077 == 0
    server = pki.ensure_server(tmp_path / "a", "0" * 32)
    assert server.authority.read_bytes() == pki.CertificateAuthority.open(tmp_path / "b").certificate_pem
    await db.close()


async def test_the_key_is_encrypted_with_the_secret(tmp_path: Path, db: Database) -> None:
    await share(db, tmp_path / "a", "open sesame")
    async with db.read() as session:
        kept = (await session.get_one(AuthorityModel, 1)).key
    assert "ENCRYPTED" in kept
    await share(db, tmp_path / "b", "open sesame")
    assert (tmp_path / "a" / "ca.key").read_bytes() == (tmp_path / "b" / "ca.key").read_bytes()
    for wrong in ("", "close sesame"):
        with pytest.raises(ValueError, match=r"secret|password|decrypt"):
            await share(db, tmp_path / "c", wrong)
    await db.close()
