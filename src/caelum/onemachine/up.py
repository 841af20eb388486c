"""`make up`: from an installed machine to a running cloud with a first VM; a second run finds all there."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from caelum.onemachine import guest_image, libvirtd
from caelum.onemachine.layout import Layout
from caelum.onemachine.processes import alive
from caelum.onemachine.provision import ACCOUNT, PASSWORD, Provisioner
from caelum.sdk import ApiError, Client

READY_TIMEOUT = 60.0
GUEST_TIMEOUT = 120.0
_started = time.monotonic()


def main() -> None:
    """Bring the cloud up and say what runs."""
    argparse.ArgumentParser(description="Start a cloud on this machine.").parse_args()
    layout = Layout.from_environment()
    _check()
    try:
        vm, client = bring_up(layout)
    except ApiError as error:
        sys.exit(f"\nThe cloud refused:\n{error}\nLogs are in {layout.logs}.")
    _summary(layout, client, vm)


def bring_up(layout: Layout) -> tuple[dict[str, Any], Client]:
    """Start what does not run, make what is absent. Returns the first VM and a client with a session."""
    _guest_image(layout)
    host_uuid = _start(layout)
    _wait_ready(layout)
    client = Client(layout.api)
    client.login(ACCOUNT, PASSWORD)
    vm = Provisioner(client, layout, host_uuid, say).run()
    _wait_guest(vm)
    return vm, client


def say(text: str) -> None:
    """One line of progress with the seconds since the start."""
    print(f"[{time.monotonic() - _started:6.1f} s] {text}", flush=True)


def _check() -> None:
    if os.geteuid() != 0:
        sys.exit("Root is needed: guests, bridges and address translation belong to the machine.")
    if not libvirtd.installed():
        sys.exit("libvirtd or QEMU is missing: run `make up`, or `tools/install up` first.")


def _guest_image(layout: Layout) -> None:
    if not layout.guest_image.exists():
        say("building the guest image")
        guest_image.build(layout.guest_image)


def _start(layout: Layout) -> str:
    """Start the supervisor with all parts unless it runs. Returns this host's UUID."""
    from caelum.onemachine.parts import host_identity, parts

    for directory in (layout.logs, layout.run, layout.primary_storage, layout.backup_storage):
        directory.mkdir(parents=True, exist_ok=True)
    layout.home.chmod(0o755)
    host_uuid = host_identity(layout)
    if alive(layout.run / "supervisor.pid"):
        say("the cloud's processes are running")
        return host_uuid
    say("starting libvirt, server and agent")
    for marker in layout.run.glob("*.stop"):
        marker.unlink()
    (layout.run / "parts.json").write_text(json.dumps(parts(layout)))
    with (layout.logs / "supervisor.out").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "caelum.onemachine.supervisor", str(layout.home)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (layout.run / "supervisor.pid").write_text(str(process.pid))
    return host_uuid


def _wait_ready(layout: Layout) -> None:
    """Wait for all parts: a host whose libvirt is still starting would be refused."""
    deadline = time.monotonic() + READY_TIMEOUT
    parts: dict[str, Callable[[], bool]] = {
        "libvirtd": lambda: _answers(socket.AF_UNIX, str(layout.libvirt_socket)),
        "agent": lambda: _answers(socket.AF_INET, (layout.address, layout.agent_port)),
        "server": lambda: _serves(layout),
    }
    for name, is_ready in parts.items():
        while not is_ready():
            if time.monotonic() > deadline:
                sys.exit(f"{name} was not ready within {READY_TIMEOUT:.0f} s; {layout.logs}/{name}.out says why.")
            time.sleep(0.1)
    say("the server is ready")


def _answers(family: int, address: Any) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        return probe.connect_ex(address) == 0


def _serves(layout: Layout) -> bool:
    try:
        with urllib.request.urlopen(f"{layout.api}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _wait_guest(vm: dict[str, Any]) -> None:
    address = vm["vmNics"][0]["ip"]
    say(f"waiting for the guest at {address}")
    deadline = time.monotonic() + GUEST_TIMEOUT
    while time.monotonic() < deadline:
        ping = subprocess.run(
            ["ping", "-c", "1", "-W", "1", address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=10
        )
        if ping.returncode == 0:
            say(f"the guest answers at {address}")
            return
        time.sleep(0.2)
    sys.exit(f"The guest did not answer at {address} within {GUEST_TIMEOUT:.0f} s; see its serial console.")


def _summary(layout: Layout, client: Client, vm: dict[str, Any]) -> None:
    address = vm["vmNics"][0]["ip"]
    try:
        console = client.call("RequestConsoleAccess", vmInstanceUuid=vm["uuid"])
        link = f"{console['scheme']}://{console['hostname']}:{console['port']}/?token={console['token']}"
    except ApiError as error:
        link = f"(none: {error.error.get('details')})"
    print(f"""
Your cloud is running.

  API          {layout.api}/zstack/v1   (reference: {layout.api}/docs)
  Login        {ACCOUNT} / {PASSWORD}   (change it: caelum account update)
  First VM     {vm["name"]} at {address}, {vm["state"]}
  Console      {link}
  Data, logs   {layout.home}

Try next:
  . .venv/bin/activate
  caelum login --account {ACCOUNT} --password {PASSWORD}
  caelum vm list
  caelum vm console {vm["name"]}
  ssh root@{address}          # password: {guest_image.PASSWORD}

`make down` stops everything; `make purge` deletes the data too.""")


if __name__ == "__main__":
    main()
