"""`make up`: from an installed machine to a running cloud with a first VM; a second run finds all there.

Invariant: it may be interrupted anywhere, with everything that it has started, and run again. One runs per home.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from caelum.onemachine import guest_image, libvirtd, processes
from caelum.onemachine.access import ACCOUNT, FIRST_PASSWORD, VARIABLE, log_in
from caelum.onemachine.layout import Layout
from caelum.onemachine.parts import PARTS, host_identity, parts
from caelum.onemachine.progress import Progress
from caelum.onemachine.provision import Provisioner
from caelum.onemachine.start import (
    RefusedError,
    answers_ready,
    check_ports,
    explained,
    only_one,
    start_parts,
    wait_ready,
)
from caelum.sdk import ApiError, Client

GUEST_TIMEOUT = 180.0
LOOK_INTERVAL = 3.0


def main() -> None:
    """Bring the cloud up and say what runs."""
    argparse.ArgumentParser(prog="caelum up", description="Start a cloud on this machine.").parse_args()
    layout, progress = Layout.from_environment(), Progress()
    with explained("cloud", "make up", "`make down` stops what runs", layout.logs):
        check(layout)
        with only_one(layout, progress):
            vm, client = bring_up(layout, progress)
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
                start_parts(layout, parts(layout))
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


def _check_ports(layout: Layout) -> None:
    check_ports(
        {
            "CAELUM_API_PORT": layout.api_port,
            "CAELUM_AGENT_PORT": layout.agent_port,
            "CAELUM_CONSOLE_PORT": layout.console_port,
            "CAELUM_CALLBACK_PORT": layout.callback_port,
        },
        "make up",
    )


def _wait_ready(layout: Layout) -> None:
    """Wait for all parts: a host whose libvirt still starts would be refused."""
    wait_ready(
        layout,
        {
            "server": lambda: answers_ready(f"{layout.api}/readyz"),
            "libvirtd": lambda: processes.answers(layout.libvirt_socket),
            "agent": lambda: processes.answers((layout.address, layout.agent_port)),
        },
        {"server": layout.server_data / "log" / "server.log"},
    )


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
