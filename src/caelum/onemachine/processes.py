"""Processes of a one-machine cloud: by their pid files, and by the ports and the network that they hold.

Invariant: a pid file names a process only while that process is older than the file, so that after a reboot, or when
the kernel has given the pid to somebody else, nobody else's process is taken for ours.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SUPERVISOR = "caelum.onemachine.supervisor"
Condition = Callable[[], bool]
CLOCK_STEP = 2.0
"""Seconds by which a process may seem younger than its pid file: the kernel counts starts in ticks since the boot."""


def pid_in(file: Path) -> int | None:
    """The pid in a file, or None."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def alive(file: Path) -> bool:
    """Whether the process that a pid file names is running (and no zombie)."""
    pid = pid_in(file)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        written = file.stat().st_mtime
    except OSError:
        return False
    started = _boot_time() + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return fields[0] != "Z" and started < written + CLOCK_STEP


def _boot_time() -> float:
    with open("/proc/stat") as file:
        return next(float(line.split()[1]) for line in file if line.startswith("btime"))


def terminate(file: Path, timeout: float) -> None:
    """End the process that a pid file names, kill it when it does not end within `timeout` seconds."""
    pid = pid_in(file)
    if pid is not None and alive(file):
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout
        while alive(file) and time.monotonic() < deadline:
            time.sleep(0.05)
        if alive(file):
            os.kill(pid, signal.SIGKILL)
    file.unlink(missing_ok=True)


def is_free(port: int) -> bool:
    """Whether one could listen at this port of all addresses."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104 - as the server does
            probe.listen(1)
        except OSError:
            return False
    return True


def answers(address: tuple[str, int] | Path) -> bool:
    """Whether somebody listens there: at a host and port, or at a socket in the file system."""
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        return probe.connect_ex(str(address) if isinstance(address, Path) else address) == 0


def listener(port: int) -> str:
    """Who listens at a port, for a person: `python3 (pid 4711)`."""
    try:
        shown = subprocess.run(
            ["ss", "-Hltnp", f"sport = :{port}"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except OSError:
        shown = ""
    _, _, users = shown.partition('users:(("')
    name, _, rest = users.partition('",pid=')
    return f"{name} (pid {rest.partition(',')[0]})" if rest else "another program"


def other_clouds(home: Path) -> Iterator[Path]:
    """Homes of one-machine clouds other than `home` that run in this network namespace."""
    network = os.readlink("/proc/self/ns/net")
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if SUPERVISOR in words and os.readlink(entry / "ns/net") == network:
                found = Path(words[words.index(SUPERVISOR) + 1])
                if found != home:
                    yield found
        except (OSError, IndexError):
            continue
