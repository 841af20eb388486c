"""`make up`: from an installed machine to a running cloud with a first VM; a second run finds all there.

Invariant: it may be interrupted anywhere, with everything that it has started, and run again. One runs per home.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from caelum.onemachine import guest_image, libvirtd, processes
from caelum.onemachine.access import ACCOUNT, FIRST_PASSWORD, VARIABLE, NoAccessError, log_in
from caelum.onemachine.layout import Layout
from caelum.onemachine.parts import PARTS, host_identity, parts
from caelum.onemachine.progress import Progress
from caelum.onemachine.provision import Provisioner
from caelum.sdk import ApiError, Client

READY_TIMEOUT = 120.0
GUEST_TIMEOUT = 180.0
LOOK_INTERVAL = 3.0
DEATHS = 3
"""A part that died this often while we wait is not going to live."""
LOG_LINES = 12


class RefusedError(Exception):
    """The cloud cannot be started, and why."""


def main() -> None:
    """Bring the cloud up and say what runs."""
    argparse.ArgumentParser(prog="caelum up", description="Start a cloud on this machine.").parse_args()
    layout, progress = Layout.from_environment(), Progress()
    try:
        check(layout)
        with only_one(layout, progress):
            vm, client = bring_up(layout, progress)
    except RefusedError as reason:
        sys.exit(f"\n{reason}")
    except NoAccessError as reason:
        sys.exit(f"\nThe cloud runs, but {reason}:\n  {VARIABLE}=... make up")
    except ApiError as error:
        sys.exit(f"\nThe cloud refused:\n{error}\nLogs are in {layout.logs}.")
    except (OSError, TimeoutError) as error:
        sys.exit(f"\nThe cloud did not answer: {error}\nLogs are in {layout.logs}.")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. `make up` goes on from here, `make down` stops what runs.")
    progress.say(f"up after {progress.seconds:.1f} s: {progress.times()}")
    _summary(layout, client, vm)


def check(layout: Layout) -> None:
    """Refuse what cannot work, before anything is started."""
    if os.geteuid() != 0:
        raise RefusedError(
            "Root is needed: guests, bridges and address translation belong to the machine. Try: sudo make up"
        )
    if not libvirtd.installed():
        raise RefusedError("libvirtd or QEMU is missing: run `make up`, or `tools/install up` first.")
    for home in processes.other_clouds(layout.home):
        raise RefusedError(
            f"A cloud runs here already, from {home}; one machine's network holds one. Stop it with:\n"
            f"  CAELUM_HOME={home} make down"
        )


@contextmanager
def only_one(layout: Layout, progress: Progress) -> Iterator[None]:
    """Wait for another `up` or `down` of this home."""
    layout.run.mkdir(parents=True, exist_ok=True)
    with (layout.run / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say("another `make up` or `make down` is under way: waiting for its end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def bring_up(layout: Layout, progress: Progress) -> tuple[dict[str, Any], Client]:
    """Start what does not run, make what is absent. Returns the first VM and a client with a session."""
    runs = processes.alive(layout.run / "supervisor.pid")
    if not runs:
        _make_way(layout)
    with ThreadPoolExecutor(1) as pool:
        image = pool.submit(_guest_image, layout, progress)
        with progress.phase(
            "programs", "server, libvirt and agent run" if runs else "starting server, libvirt and agent"
        ):
            host_uuid = host_identity(layout)
            if not runs:
                _start(layout)
            _wait_ready(layout)
        if not image.done():
            progress.say("waiting for the guest image")
        image.result()
    client = log_in(layout.api)
    provisioner = Provisioner(client, layout, host_uuid, progress.say)
    with progress.phase("resources", "registering this machine with the cloud"):
        provisioner.resources()
    with progress.phase("first VM", "making sure that the first VM runs"):
        vm = provisioner.vm()
    with progress.phase("guest", "waiting for the guest's answer"):
        vm = _wait_guest(provisioner, vm)
    return vm, client


def _guest_image(layout: Layout, progress: Progress) -> None:
    if layout.guest_image.exists():
        return
    try:
        with progress.phase("guest image", "building the guest image"):
            guest_image.build(layout.guest_image)
    except guest_image.BuildError as error:
        raise RefusedError(f"The guest image cannot be built: {error}") from None


def _make_way(layout: Layout) -> None:
    """Make the directories, end what a supervisor that was killed may have left, see that our ports are free."""
    for directory in (layout.logs, layout.run, layout.primary_storage, layout.backup_storage):
        directory.mkdir(parents=True, exist_ok=True)
    layout.home.chmod(0o755)
    for name in PARTS:
        processes.terminate(layout.run / f"{name}.pid", 30.0)
    _check_ports(layout)


def _start(layout: Layout) -> None:
    """Start the supervisor with all parts."""
    for marker in layout.run.glob("*.stop"):
        marker.unlink()
    (layout.run / "parts.json").write_text(json.dumps(parts(layout)))
    with (layout.logs / "supervisor.out").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", processes.SUPERVISOR, str(layout.home)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _check_ports(layout: Layout) -> None:
    ports = {
        "API": layout.api_port,
        "AGENT": layout.agent_port,
        "CONSOLE": layout.console_port,
        "CALLBACK": layout.callback_port,
    }
    taken = {name: port for name, port in ports.items() if not processes.is_free(port)}
    if taken:
        lines = [f"  {port} is held by {processes.listener(port)}" for port in taken.values()]
        others = " ".join(
            f"CAELUM_{name}_PORT={port + (10000 if port < 55000 else -10000)}" for name, port in taken.items()
        )
        raise RefusedError(
            "Ports that the cloud needs are taken:\n" + "\n".join(lines) + "\nStop what holds them, or choose others:\n"
            f"  {others} make up"
        )


def _wait_ready(layout: Layout) -> None:
    """Wait for all parts: a host whose libvirt still starts would be refused. Give up when a part keeps dying."""
    log = layout.logs / "supervisor.out"
    seen = log.stat().st_size if log.exists() else 0
    waits: dict[str, Callable[[], bool]] = {
        "server": lambda: _answers_ready(f"{layout.api}/readyz"),
        "libvirtd": lambda: processes.answers(layout.libvirt_socket),
        "agent": lambda: processes.answers((layout.address, layout.agent_port)),
    }
    deadline = time.monotonic() + READY_TIMEOUT
    for name, is_ready in waits.items():
        while not is_ready():
            with log.open() as file:
                file.seek(seen)
                deaths = sum(line.startswith(f"{name} ended") for line in file)
            if deaths >= DEATHS or time.monotonic() > deadline:
                raise RefusedError(_why(layout, name, deaths))
            time.sleep(0.1)


def _answers_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _why(layout: Layout, name: str, deaths: int) -> str:
    outputs = (layout.logs / f"{name}.out", layout.server_data / "log" / "server.log")
    file = next((one for one in outputs if one.exists() and one.stat().st_size), outputs[0])
    lines = file.read_text(errors="replace").splitlines()[-LOG_LINES:] if file.exists() else []
    what = f"died {deaths} times" if deaths else f"was not ready within {READY_TIMEOUT:.0f} s"
    return f"The {name} {what}. The end of {file}:\n" + "\n".join(f"  {line}" for line in lines)


def _wait_guest(provisioner: Provisioner, vm: dict[str, Any]) -> dict[str, Any]:
    """Wait until the VM answers; start it again when the host has told meanwhile that it does not run any more."""
    deadline, look = time.monotonic() + GUEST_TIMEOUT, time.monotonic() + LOOK_INTERVAL
    while vm["vmNics"] and not _pings(vm["vmNics"][0]["ip"]):
        if time.monotonic() > deadline:
            raise RefusedError(
                f"The guest did not answer at {vm['vmNics'][0]['ip']} within {GUEST_TIMEOUT:.0f} s; its serial console"
                f" tells more:\n  caelum vm console {vm['name']}"
            )
        if time.monotonic() > look:
            vm, look = provisioner.vm(), time.monotonic() + LOOK_INTERVAL
        time.sleep(0.1)
    return vm


def _pings(address: str) -> bool:
    command = ["ping", "-n", "-c", "1", "-W", "1", address]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=10, check=False)
    return done.returncode == 0


def _summary(layout: Layout, client: Client, vm: dict[str, Any]) -> None:
    address = vm["vmNics"][0]["ip"] if vm["vmNics"] else "no address"
    try:
        console = client.call("RequestConsoleAccess", vmInstanceUuid=vm["uuid"])
        link = f"{console['scheme']}://{console['hostname']}:{console['port']}/?token={console['token']}"
    except ApiError as error:
        link = f"(none: {error.error.get('details')})"
    password = "..." if VARIABLE in os.environ else FIRST_PASSWORD
    elsewhere = "" if layout.api_port == 8080 else f" --url {layout.api}"
    print(f"""
Your cloud is running.

  API          {layout.api}/zstack/v1   (reference: {layout.api}/docs)
  Login        {ACCOUNT} / {password}   (change it: caelum account update {ACCOUNT} --password ...)
  First VM     {vm["name"]} at {address}, {vm["state"]}
  Console      {link}
  Data, logs   {layout.home}

Try next:
  . .venv/bin/activate
  caelum login --account {ACCOUNT} --password {password}{elsewhere}
  caelum vm list
  caelum vm console {vm["name"]}     # Ctrl-] leaves
  ssh root@{address}          # password: {guest_image.PASSWORD}

`make down` stops everything; `make purge` deletes the data too.""")


if __name__ == "__main__":
    main()
