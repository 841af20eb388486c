"""Which program runs: what is kept on disk about it, and archives that are none."""

from __future__ import annotations

import io
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import caelum
from caelum.agent.program import FOLDER, HANDED_OVER, STARTS, TRIES, Programs, Record
from caelum.agent.registry import AgentFailure


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    yield Programs(tmp_path)
    signal.alarm(0)


def archive(*names: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as opened:
        for name in names:
            opened.writestr(name, "")
    return packed.getvalue()


def test_a_program_is_tried_so_often_and_given_up(programs: Programs, tmp_path: Path) -> None:
    assert programs.next() is None
    for name in ("former", "newer"):
        programs.install(archive("caelum/agent/main.py"), name)
    programs.write(Record(caelum.__version__, kept="former", tried="newer"))
    for _ in range(TRIES):
        assert programs.next() == tmp_path / FOLDER / "newer"
        assert signal.alarm(0) > 0, "an alarm ends a program that does not listen"
    assert programs.next() == tmp_path / FOLDER / "former"
    assert set(programs.read().given_up) == {"newer"}


def test_a_program_that_ends_by_itself_before_it_is_connected_is_given_up(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = tmp_path / FOLDER / "newer"
    programs.install(archive("caelum/agent/main.py"), "newer")
    monkeypatch.setenv(HANDED_OVER, str(newer))
    programs.write(Record(caelum.__version__, tried="newer"))
    for _ in range(3 * STARTS):  # as often as it is stopped in order
        assert programs.next() == newer
        programs.listens()
        programs.stopped()
    for _ in range(STARTS):
        assert programs.next() == newer
        programs.listens()
    assert programs.next() is None
    assert set(programs.read().given_up) == {"newer"}


def test_a_program_that_is_connected_is_kept(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("oldest", "former", "newer"):
        programs.install(archive("caelum/agent/main.py"), name)
    programs.write(Record(caelum.__version__, kept="former", tried="newer", tries=1))
    monkeypatch.setenv(HANDED_OVER, str(tmp_path / FOLDER / "former"))
    programs.keep()
    assert programs.read().tried == "newer", "only the one that runs can have proved itself"
    monkeypatch.setenv(HANDED_OVER, str(tmp_path / FOLDER / "newer"))
    programs.keep()
    assert (programs.read().kept, programs.read().tried) == ("newer", None)
    assert {one.name for one in (tmp_path / FOLDER).iterdir() if one.is_dir()} == {"former", "newer"}


def test_a_record_of_another_installed_version_or_none_at_all_counts_for_nothing(
    programs: Programs, tmp_path: Path
) -> None:
    programs.install(archive("caelum/agent/main.py"), "newer")
    (tmp_path / FOLDER / "program.json").write_text("{half")
    assert programs.next() is None
    programs.write(Record("0.0.0", kept="newer"))
    assert programs.next() is None
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("content", [b"no archive", archive("readme"), archive("../caelum/agent/main.py.txt")])
def test_what_is_no_program_is_refused(programs: Programs, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(AgentFailure):
        programs.install(content, "newer")
    assert not (tmp_path / FOLDER / "newer").exists()
    assert not (tmp_path / "caelum").exists()
