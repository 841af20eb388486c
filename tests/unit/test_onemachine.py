"""The parts of `make up` and `make down` that need no cloud."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from caelum.onemachine import processes, provision
from caelum.onemachine.down import purge
from caelum.onemachine.layout import Layout
from caelum.onemachine.processes import alive, terminate
from caelum.onemachine.up import RefusedError, _check_ports


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_a_process_is_alive_until_it_is_terminated(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    assert not alive(file)
    with sleeper() as process:
        file.write_text(str(process.pid))
        assert alive(file)
        terminate(file, 10)
        assert not file.exists()
        assert process.wait(1) < 0


def test_a_process_younger_than_its_pid_file_is_somebody_elses(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with sleeper() as process:
        file.write_text(str(process.pid))
        long_ago = time.time() - 3600
        os.utime(file, (long_ago, long_ago))
        assert not alive(file)
        terminate(file, 10)
        assert process.poll() is None
        process.kill()


def test_purge_deletes_only_what_a_cloud_has_put_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout(home=tmp_path / "home")
    for directory in layout.directories:
        directory.mkdir(parents=True)
    layout.host_uuid_file.write_text("1")
    letter = layout.home / "letter"
    letter.write_text("mine")
    purge(layout)
    assert list(layout.home.iterdir()) == [letter]
    letter.unlink()
    purge(layout)
    assert not layout.home.exists()


def test_ports_that_are_taken_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "is_free", lambda port: port != 4900)
    monkeypatch.setattr(processes, "listener", lambda port: "vnc (pid 7)")
    with pytest.raises(RefusedError, match=r"4900 is held by vnc \(pid 7\)[^$]*CAELUM_CONSOLE_PORT=14900 make up"):
        _check_ports(Layout(home=tmp_path))


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["nameserver 10.0.0.1\nnameserver ::1\nsearch x\n"], ["10.0.0.1"]),
        (["nameserver 127.0.0.53\n", "nameserver 10.0.0.2\n"], ["10.0.0.2"]),
        (["nameserver 127.0.0.1\n"], []),
        ([], []),
    ],
)
def test_name_servers_that_guests_can_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], found: list[str]
) -> None:
    files = [tmp_path / str(number) for number in range(2)]
    for file, text in zip(files, texts, strict=False):
        file.write_text(text)
    monkeypatch.setattr(provision, "RESOLVER_FILES", tuple(files))
    assert provision._resolvers() == found


def test_the_guests_network(tmp_path: Path) -> None:
    layout = Layout(home=tmp_path, guest_cidr="10.9.8.0/24")
    assert [layout.guest_address(number) for number in (1, 10, 250)] == ["10.9.8.1", "10.9.8.10", "10.9.8.250"]
