"""Only plain files below a marked storage can be named."""

from __future__ import annotations

from pathlib import Path

import pytest

from caelum.agent.protocol import INVALID, NOT_FOUND, STORAGE
from caelum.agent.registry import AgentFailure
from caelum.agent.storage.paths import MARKER, Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    root = tmp_path / "ps"
    (root / "volumes").mkdir(parents=True)
    (root / MARKER).write_text('{"storage_uuid":"s"}')
    (root / "volumes" / "one.qcow2").touch()
    (tmp_path / "secret").write_text("x")
    (root / "way-out").symlink_to(tmp_path)
    (root / "volumes" / "link").symlink_to(tmp_path / "secret")
    return Storage(str(root))


def test_a_file_of_the_storage(storage: Storage) -> None:
    path = storage.root / "volumes" / "one.qcow2"
    assert storage.file(str(path)) == storage.existing(str(path)) == path
    assert storage.file(f"{storage.root}/new/deep/two.qcow2").name == "two.qcow2"
    assert list(storage.files()) != []
    assert storage.marker not in storage.files()


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "{root}", "{root}/", "{root}/../secret", "{root}/volumes/../../secret", "{root}/./x",
        "{root}-other/x", "{root}/way-out/secret", "{root}/volumes/link", "{root}/.caelum-storage", "volumes/one.qcow2",
        "", "{root}//x",
        "{root}/a\nb", "{root}/a b", "{root}/a,b", "{root}/a%", "json:{root}/x", "{root}/\x00",
    ],
)  # fmt: skip
def test_everything_else_is_refused(storage: Storage, path: str) -> None:
    with pytest.raises(AgentFailure) as caught:
        storage.file(path.replace("{root}", str(storage.root)))
    assert caught.value.code == INVALID


def test_missing_file_and_missing_mark(storage: Storage) -> None:
    with pytest.raises(AgentFailure) as caught:
        storage.existing(f"{storage.root}/volumes/none")
    assert caught.value.code == NOT_FOUND
    storage.marker.unlink()
    with pytest.raises(AgentFailure, match="not mounted") as caught:
        storage.file(f"{storage.root}/volumes/one.qcow2")
    assert caught.value.code == STORAGE


def test_empty_parents_go_up_to_the_root(storage: Storage) -> None:
    deep = storage.root / "a" / "b" / "c"
    deep.mkdir(parents=True)
    storage.remove_empty_parents(deep / "file")
    assert not (storage.root / "a").exists()
    storage.remove_empty_parents(storage.root / "volumes" / "gone")
    assert (storage.root / "volumes").is_dir()
    assert storage.root.is_dir()
