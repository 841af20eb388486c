"""Whether guests can run with hardware acceleration: not whether /dev/kvm is there, but whether it truly works.

Invariant: `kvm` is only said when a 64-bit program ran in a KVM guest, in less time than an emulated processor needs.
There are hosts (themselves guests of some clouds) whose /dev/kvm opens, answers, and then emulates each instruction.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import platform
from pathlib import Path
from typing import Literal

from caelum.agent import process
from caelum.agent.core import Agent
from caelum.agent.registry import AgentFailure

log = logging.getLogger(__name__)

Kind = Literal["kvm", "tcg"]

KVM = Path("/dev/kvm")
FILE = "acceleration.json"
KVM_GET_API_VERSION = 0xAE00
KVM_API_VERSION = 12
CPU_SECONDS = 2
"""Processor time that the probe may use. Working KVM needs some tenths of a second; emulation of single instructions
needs minutes for the counting."""
PROBE_TIMEOUT = 60.0
DEBUG_EXIT = 0x2A
EXIT_CODE = DEBUG_EXIT << 1 | 1
"""What QEMU's debug device makes of the value that the guest writes to it."""

# A boot sector: builds page tables, enters 64-bit mode, checks 64-bit arithmetic, counts down from 2^28, and writes
# DEBUG_EXIT to port 0xf4.
BOOT_SECTOR = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007ce4920c02e69266bf0010000089ff6631c0b9000c"
    "fc66f3ab66c70600100320000066c70600200330000066c7060030830000000f"
    "0116c07c0f20e06683c8200f22e066b8001000000f22d866b9800000c00f3266"
    "0d000100000f300f20c0660d010000800f22c0ea787c080048b8f0debc9a7856"
    "341248c1c80448bbefcdab89674523014839d8751048c7c10000001048ffc975"
    "fbb02ae6f4f4ebfd0000000000000000000000000000000000000000009a2000"
    "0f00b07c0000"
)


class Acceleration:
    """The answer for this host, found once per boot."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._lock = asyncio.Lock()
        self._kind: Kind | None = None

    async def kind(self) -> Kind:
        """`kvm` or `tcg`."""
        async with self._lock:
            if self._kind is None:
                self._kind = await self._find()
                log.info("guests run with %s", self._kind)
            return self._kind

    async def _find(self) -> Kind:
        forced = self._agent.config.hypervisor
        if forced in ("kvm", "tcg"):
            return "kvm" if forced == "kvm" else "tcg"
        return await find(self._agent.state_dir)


async def find(state_dir: Path) -> Kind:
    """The answer for this host: the one that was kept in `state_dir` since the boot, or one found now and kept."""
    known = await asyncio.to_thread(_remembered, state_dir)
    if known is not None:
        return known
    kind: Kind = "kvm" if await _kvm_works(state_dir / "kvm-probe.img") else "tcg"
    await asyncio.to_thread(_remember, state_dir, kind)
    return kind


async def _kvm_works(image: Path) -> bool:
    if platform.machine() != "x86_64" or not await asyncio.to_thread(answers):
        return False
    await asyncio.to_thread(write_image, image)
    try:
        done = await process.run(probe_command(image), timeout=PROBE_TIMEOUT, check=False)
    except AgentFailure as failure:
        log.info("the KVM probe failed: %s", failure)
        return False
    log.info("the KVM probe ended with %d: %s", done.code, done.error_text)
    return done.code == EXIT_CODE


def _remembered(state_dir: Path) -> Kind | None:
    try:
        kept = json.loads((state_dir / FILE).read_text())
    except (OSError, ValueError):
        return None
    return kept.get("kind") if kept.get("boot") == _boot_id() else None


def _remember(state_dir: Path, kind: Kind) -> None:
    (state_dir / FILE).write_text(json.dumps({"boot": _boot_id(), "kind": kind}))


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def answers() -> bool:
    """Whether /dev/kvm opens and speaks the protocol that we know."""
    try:
        device = os.open(KVM, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return bool(fcntl.ioctl(device, KVM_GET_API_VERSION) == KVM_API_VERSION)
    except OSError:
        return False
    finally:
        os.close(device)


def write_image(path: Path) -> None:
    """Write the disk that the probe boots."""
    path.write_bytes((BOOT_SECTOR.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))


def probe_command(image: Path) -> list[str]:
    """The command that ends with `EXIT_CODE` when KVM runs a 64-bit guest."""
    return [
        "prlimit", f"--cpu={CPU_SECONDS}", "qemu-system-x86_64", "-accel", "kvm", "-machine", "pc", "-nodefaults",
        "-no-user-config", "-display", "none", "-m", "32", "-net", "none", "-no-reboot",
        "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-drive", f"if=ide,format=raw,file={image}",
    ]  # fmt: skip
