"""What is sealed opens with the cloud's key, for what it was sealed for, and for nobody else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from caelum.kernel.errors import CloudError
from caelum.kernel.pki import CertificateAuthority
from caelum.kernel.vault import Vault


def test_every_node_with_the_clouds_authority_opens_it(tmp_path: Path) -> None:
    sealed = Vault(tmp_path / "one").seal("schlüssel", "row")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert Vault(tmp_path / "two").open(sealed, "row") == "schlüssel"


def test_equal_texts_look_different(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    assert vault.seal("a", "row") != vault.seal("a", "row")


@pytest.mark.parametrize(("directory", "about"), [("other", "row"), ("one", "another row")])
def test_another_key_or_row_opens_nothing(tmp_path: Path, directory: str, about: str) -> None:
    sealed = Vault(tmp_path / "one").seal("secret", "row")
    with pytest.raises(CloudError, match=r"SYS\.1000"):
        Vault(tmp_path / directory).open(sealed, about)


def test_each_purpose_has_its_own_key(tmp_path: Path) -> None:
    authority = CertificateAuthority.open(tmp_path)
    assert authority.derive(b"a") == CertificateAuthority.open(tmp_path).derive(b"a")
    assert authority.derive(b"a") != authority.derive(b"b")
