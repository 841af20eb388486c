"""What this host is: read from libvirt, /proc and /sys. Blocking functions, run in threads."""

from __future__ import annotations

import json
import platform
import socket
from pathlib import Path
from typing import Any, Literal

import libvirt  # type: ignore[import-untyped]

from caelum.agent.protocol import HostCapacity, HostFacts

KIB = 1024


def collect(connection: Any, hypervisor: Literal["kvm", "tcg"], addresses: list[str]) -> HostFacts:
    """The facts of a connect."""
    release = os_release(Path("/etc/os-release"))
    _model, _memory, cpus, mhz, _nodes, sockets, *_ = connection.getInfo()
    return HostFacts(
        hostname=socket.gethostname(),
        os_distribution=release.get("ID", "linux"),
        os_version=release.get("VERSION_ID", ""),
        kernel_version=platform.release(),
        architecture=platform.machine(),
        cpu_model=cpu_model(Path("/proc/cpuinfo").read_text()),
        cpu_num=cpus,
        cpu_sockets=max(sockets, 1),
        cpu_mhz=mhz,
        total_memory=total_memory(Path("/proc/meminfo").read_text()),
        libvirt_version=version(connection.getLibVersion()),
        qemu_version=version(connection.getVersion()),
        hypervisor=hypervisor,
        ip_addresses=addresses,
    )


def capacity(connection: Any) -> HostCapacity:
    """Processors and memory. What every running domain takes counts, ours or not: it is not there for others."""
    cpus = memory = 0
    # A guest that is busy with something tells less, but holds up nobody.
    nowait = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
    flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | nowait
    wanted = libvirt.VIR_DOMAIN_STATS_VCPU | libvirt.VIR_DOMAIN_STATS_BALLOON
    for _, stats in connection.getAllDomainStats(wanted, flags):
        cpus += stats.get("vcpu.current", 0)
        memory += stats.get("balloon.maximum", 0) * KIB
    return HostCapacity(
        cpu_num=connection.getInfo()[2],
        used_cpu=cpus,
        total_memory=total_memory(Path("/proc/meminfo").read_text()),
        used_memory=memory,
    )


def os_release(path: Path) -> dict[str, str]:
    """The fields of os-release; empty when there is none."""
    if not path.exists():
        return {}
    pairs = (line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
    return {key: value.strip("\"'") for key, value in pairs}


def cpu_model(cpuinfo: str) -> str:
    """The processor's name."""
    for line in cpuinfo.splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def total_memory(meminfo: str) -> int:
    """Bytes of memory."""
    for line in meminfo.splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * KIB
    raise ValueError("no MemTotal in /proc/meminfo")


def version(number: int) -> str:
    """libvirt's version numbers, 9000000 -> 9.0.0."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def ip_addresses(shown: str) -> list[str]:
    """The addresses in the output of `ip -json address`, without loopback and link-local ones."""
    found = [address for link in json.loads(shown) for address in link.get("addr_info", [])]
    return sorted({address["local"] for address in found if address["scope"] == "global"})


def taps() -> list[str]:
    """Every tap device."""
    return sorted(path.parent.name for path in Path("/sys/class/net").glob("*/tun_flags"))
