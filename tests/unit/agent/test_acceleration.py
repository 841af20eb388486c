"""Whether KVM truly works is found by running a program in it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from caelum.agent import process
from caelum.agent.core import Agent, AgentConfig
from caelum.agent.vm import acceleration
from caelum.agent.vm.acceleration import Acceleration

from .fakes import FakeHttp, Sink


def _acceleration(directory: Path, hypervisor: str = "auto") -> Acceleration:
    config = AgentConfig(state_dir=directory, tls_dir=directory, hypervisor=hypervisor)
    return Acceleration(Agent(config, FakeHttp(), Sink()))  # type: ignore[arg-type]


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed")
async def test_the_probe_program_runs_on_a_processor(tmp_path: Path) -> None:
    image = tmp_path / "probe.img"
    acceleration.write_image(image)
    emulated = [{"kvm": "tcg"}.get(word, word) for word in acceleration.probe_command(image)]
    done = await process.run(emulated, timeout=60, check=False)
    assert done.code == acceleration.EXIT_CODE


@pytest.mark.parametrize(
    ("answers", "code", "kind"), [(True, acceleration.EXIT_CODE, "kvm"), (True, -9, "tcg"), (False, 0, "tcg")]
)
async def test_the_probe_decides_and_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool, code: int, kind: str
) -> None:
    probes: list[int] = []

    async def run(*_: object, **__: object) -> process.Completed:
        probes.append(1)
        return process.Completed((), code, b"", b"")

    monkeypatch.setattr(acceleration, "answers", lambda: answers)
    monkeypatch.setattr(process, "run", run)
    found = _acceleration(tmp_path)
    assert await asyncio.gather(found.kind(), found.kind()) == [kind, kind]
    assert await _acceleration(tmp_path).kind() == kind
    assert len(probes) == int(answers)
    assert await _acceleration(tmp_path, "kvm").kind() == "kvm"
