"""A whole one-machine cloud for tests, on a machine of its own: namespaces for mounts, network, processes and cgroups.

So several clouds can be on one machine, which one network namespace cannot bear: each agent takes everything that
carries our marks for its own. Killing the namespaces' first process ends all that is in them, guests too, and nothing
is left on the real machine; that happens also when the test's process is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agent_vm_lab import guest_image

from caelum.onemachine.access import ACCOUNT, FIRST_PASSWORD
from caelum.onemachine.layout import Layout
from caelum.sdk.client import ApiError, Client, request_parts
from caelum.sdk.manifest import load
from caelum.sdk.transport import NOT_READY, Ask

_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_CGROUPS = Path("/sys/fs/cgroup")

_FIRST_PROCESS = """
import os, subprocess, time
def run(*words):
    subprocess.run(words, check=True, timeout=20)
run("mount", "-t", "sysfs", "sysfs", "/sys")
run("mount", "-t", "tmpfs", "tmpfs", "/sys/fs/cgroup")
for name in CONTROLLERS:
    os.mkdir(f"/sys/fs/cgroup/{name}")
    run("mount", "-t", "cgroup", "-o", name, "cgroup", f"/sys/fs/cgroup/{name}")
run("mount", "-t", "tmpfs", "tmpfs", "/run")
os.mkdir("/run/netns")
run("ip", "link", "set", "lo", "up")
print("ready", flush=True)
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.2)
"""
"""It makes the namespaces' inside, then adopts and buries orphans for as long as it lives."""


class LabMachine:
    """Namespaces that play a machine. `inside()` moves the calling thread into its network."""

    def __init__(self) -> None:
        self.name = f"caelum-lab-{uuid.uuid4().hex[:8]}"
        self._process: subprocess.Popen[str] | None = None
        self.pid = 0

    def start(self) -> None:
        controllers = [one.name for one in _CGROUPS.glob("*") if (one / "tasks").exists() and one.name != "systemd"]
        self._groups = [_CGROUPS / one / self.name for one in controllers]
        for group in self._groups:
            group.mkdir()
            _copy_cpuset(group)

        def enter() -> None:
            for group in self._groups:
                (group / "tasks").write_text(str(os.getpid()))
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

        flags = "-m -n -u -i -p -C --fork --mount-proc --propagation private --kill-child".split()
        script = _FIRST_PROCESS.replace("CONTROLLERS", repr(controllers))
        self._process = subprocess.Popen(
            ["unshare", *flags, sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, preexec_fn=enter
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "the namespaces could not be made"
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self.pid = int(children[0])

    def close(self) -> None:
        """The machine is gone, with everything in it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
        for group in self._groups:
            _remove_group(group)

    def run(self, *argv: object, timeout: float = 60, check: bool = True, **environment: str) -> str:
        """A program's output on this machine."""
        command = ["nsenter", "-t", str(self.pid), "-m", "-n", "-u", "-i", "-p", "-C", "--", *map(str, argv)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, env={**os.environ, **environment}
        )
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The thread, and threads and programs that it starts, use this machine's network."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        try:
            assert _libc.setns(there, _CLONE_NEWNET) == 0
            yield
        finally:
            _libc.setns(before, _CLONE_NEWNET)
            os.close(before)
            os.close(there)

    def outer_pid(self, inner: int) -> int | None:
        """The pid that a process of this machine has outside of it."""
        mine = os.readlink(f"/proc/{self.pid}/ns/pid")
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, StopIteration, ValueError):
                pids = next(line for line in (entry / "status").read_text().splitlines() if line.startswith("NSpid"))
                if pids.split()[-1] == str(inner) and os.readlink(entry / "ns" / "pid") == mine:
                    return int(entry.name)
        return None


def _copy_cpuset(group: Path) -> None:
    """A new group of this controller may use nothing until it is told."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (group / name).exists():
            (group / name).write_text((group.parent / name).read_text())


def _remove_group(group: Path) -> None:
    """Remove a control group with those in it, once the kernel has seen the end of their processes."""
    for _ in range(100):
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        if not group.exists():
            return
        time.sleep(0.05)


class LabCloud:
    """A running cloud: its API, its programs, and its first VM, on which nothing is ever done."""

    def __init__(self) -> None:
        self.machine = LabMachine()
        self.layout = Layout(home=Path(tempfile.mkdtemp(prefix="caelum-lab-")))
        self.client = Client(self.layout.api)
        self.bystander: dict[str, Any] = {}

    # --- life ---------------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """What `make up` does, from the built guest image on."""
        image = self.layout.guest_image
        image.parent.mkdir(parents=True)
        shutil.copyfile(guest_image(), image)
        self.machine.start()
        self.up_again()
        with self.machine.inside():
            self.client.login(ACCOUNT, FIRST_PASSWORD)
            self.bystander = self.client.query("VmInstance", "name=first")[0]

    def up_again(self) -> None:
        """What `make up` does when it has been done before, or was interrupted."""
        self.said = self.machine.run(sys.executable, "-m", "caelum.onemachine.up", timeout=300, **self._environment)

    def down(self) -> str:
        """What `make purge` does, and the end of the machine whatever that leaves. Returns what it said."""
        try:
            if self.machine.pid:
                command = (sys.executable, "-m", "caelum.onemachine.down", "--purge")
                return self.machine.run(*command, timeout=120, check=False, **self._environment)
            return ""
        finally:
            self.machine.close()
            shutil.rmtree(self.layout.home, ignore_errors=True)

    @property
    def _environment(self) -> dict[str, str]:
        return {"CAELUM_HOME": str(self.layout.home)}

    def logs(self, lines: int = 60) -> str:
        """The ends of the programs' logs, for a failed test."""
        files = sorted(self.layout.logs.glob("*"))
        tails = (f"--- {file.name}\n" + "\n".join(file.read_text().splitlines()[-lines:]) for file in files)
        return "\n".join(tails)

    # --- programs -----------------------------------------------------------------------------------------------------

    def pid(self, part: str) -> int | None:
        """The pid of one of the supervisor's parts, as it is seen here."""
        try:
            inner = int((self.layout.run / f"{part}.pid").read_text())
        except (OSError, ValueError):
            return None
        return self.machine.outer_pid(inner)

    def kill(self, part: str) -> float:
        """Kill a part as nothing else can, and tell when."""
        pid = self.pid(part)
        assert pid is not None, f"{part} does not run"
        os.kill(pid, signal.SIGKILL)
        return time.monotonic()

    def guest_pid(self, vm_uuid: str) -> int | None:
        """The pid of a guest's emulator, as it is seen here."""
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"qemu-system" in words[0] and any(vm_uuid.encode() in one for one in words[:4]):
                    return int(entry.name)
        return None

    def uptime(self, vm_uuid: str) -> float:
        """Seconds that a guest runs, by its own clock."""
        script = Path(__file__).with_name("guest_uptime.py")
        return float(self.machine.run(sys.executable, script, self.layout.libvirt_uri, vm_uuid, timeout=60))

    # --- the API ------------------------------------------------------------------------------------------------------

    def ready(self, timeout: float = 60) -> float:
        """Wait until the server serves, and tell when it did."""

        def answers() -> bool:
            try:
                with urllib.request.urlopen(f"{self.layout.api}/readyz", timeout=5) as answer:
                    return bool(answer.status == 200)
            except (urllib.error.URLError, OSError):
                return False

        return self.until(answers, timeout, "the server is ready")

    def until(self, condition: Callable[[], Any], timeout: float, what: str) -> float:
        """Wait until a condition holds, and tell when it did."""
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, f"not within {timeout:.0f} s: {what}\n{self.logs()}"
            time.sleep(0.05)
        return time.monotonic()

    def post(self, operation_name: str, job_uuid: str, /, **parameters: Any) -> bool:
        """Begin an operation as a job of this UUID; False when the server was gone before it said that it took it."""
        operation = load()[operation_name]
        path, body, query = request_parts(operation, parameters)
        tail = f"/zstack/v1{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        try:
            self.client._transport.send(Ask(operation.method, tail, data, self.client._headers(), job=job_uuid))
        except OSError:
            return False
        return True

    def job(self, job_uuid: str) -> tuple[str, Any]:
        """What became of a job: Processing, Succeeded with its answer, Failed with its error, or Unknown."""
        ask = Ask("GET", f"/zstack/v1/api-jobs/{job_uuid}", headers=self.client._headers(), safe=True, poll=True)
        try:
            status, answer = self.client._transport.send(ask)
        except ApiError as error:
            if error.code == NOT_READY:
                return "Processing", {}
            return ("Unknown" if error.code in ("HTTP.404", "SYS.1003") else "Failed"), error.error
        return ("Processing" if status == 202 else "Succeeded"), answer

    def audit(self) -> dict[str, Any]:
        """What the auditor says."""
        report: dict[str, Any] = self.client.call("RunAudit", timeout=120)
        return report


def said(report: dict[str, Any]) -> str:
    """An audit's findings as text."""
    return json.dumps(report["findings"], indent=1)
