"""The parts of `make cluster` that need no cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from caelum.cluster.layout import ClusterLayout
from caelum.cluster.parts import AUTHORITY_FILES, parts, share_authority
from caelum.onemachine.processes import SUPERVISOR, is_free, terminate
from caelum.simulator.faults import Behaviour, Cut


def test_the_environment_chooses_places_and_ports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAELUM_HOME", str(tmp_path))
    monkeypatch.setenv("CAELUM_NODES", "2")
    monkeypatch.setenv("CAELUM_API_PORT", "9000")
    layout = ClusterLayout.from_environment()
    assert layout.home == tmp_path / "cluster"
    assert layout.apis == ["http://127.0.0.1:9000", "http://127.0.0.1:9001"]
    assert len(layout.ports) == len(set(layout.ports.values())) == 4 + 2 * 3
    assert [one["name"] for one in parts(layout)] == ["postgresql", "rabbitmq", "hosts", "node1", "node2"]


def test_all_nodes_have_one_authority(tmp_path: Path) -> None:
    layout = ClusterLayout(home=tmp_path)
    for _ in range(2):
        share_authority(layout)
    for name in AUTHORITY_FILES:
        assert len({(layout.data_of(index) / "pki" / name).read_bytes() for index in range(3)}) == 1


def test_a_part_waits_for_what_it_needs(tmp_path: Path) -> None:
    port = next(one for one in range(34_000, 35_000) if is_free(one))
    needed = f"import socket; s = socket.create_server(('127.0.0.1', {port})); s.accept(); input()"
    rows = [
        {"name": "needs", "command": ["/bin/sh", "-c", "touch begun; exec sleep 60"], "needs": [f"127.0.0.1:{port}"]},
        {"name": "needed", "command": [sys.executable, "-c", f"import time; time.sleep(1); {needed}"]},
    ]
    for directory in ("run", "log"):
        (tmp_path / directory).mkdir()
    (tmp_path / "run" / "parts.json").write_text(json.dumps(rows))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-m", SUPERVISOR, str(tmp_path)], cwd=tmp_path, env=environment) as process:
        until = time.monotonic() + 30
        while not (tmp_path / "run" / "needed.pid").exists() and time.monotonic() < until:
            time.sleep(0.02)
        assert not (tmp_path / "begun").exists()
        while not (tmp_path / "begun").exists() and time.monotonic() < until:
            time.sleep(0.02)
        assert (tmp_path / "begun").exists()
        terminate(tmp_path / "run" / "supervisor.pid", 30)
        process.wait(30)


def test_a_cut_is_between_a_node_and_all_hosts() -> None:
    behaviour = Behaviour()
    behaviour.cuts = [Cut(server="1", callback="https://127.0.0.1:8444/")]
    assert behaviour.is_cut_from("1")
    assert not behaviour.is_cut_from("2")
    assert behaviour.cannot_post("https://127.0.0.1:8444/agent/callback")
    assert not behaviour.cannot_post("https://127.0.0.1:8445/agent/callback")
    behaviour.clear()
    assert not behaviour.is_cut_from("1")
