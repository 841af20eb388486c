"""`make down`: stop guests and programs and leave nothing behind; `make purge`: and delete the data.

The guests are stopped through the API, so that the records say so. Whatever is still there afterwards (the server may
be dead) is removed by the agent's own clean-up, which knows our things by their marks.

Invariant: data is deleted only where a one-machine cloud has put it, whatever `CAELUM_HOME` says.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from caelum.onemachine.access import NoAccessError, log_in
from caelum.onemachine.layout import Layout
from caelum.onemachine.parts import PARTS, agent_command, libvirtd_command
from caelum.onemachine.processes import alive, answers, terminate
from caelum.onemachine.progress import Progress
from caelum.onemachine.start import only_one
from caelum.sdk import ApiError

STOP_TIMEOUT = 90.0
LIBVIRT_TIMEOUT = 60.0
SHUTDOWN_TIMEOUT = 20.0
AT_ONCE = 8
"""Guests that are stopped at the same time."""


def main() -> None:
    """Stop the cloud."""
    parser = argparse.ArgumentParser(prog="caelum down", description="Stop the cloud on this machine.")
    parser.add_argument("--purge", action="store_true", help="delete all data too")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("Root is needed, as it was to start the cloud.")
    layout, progress = Layout.from_environment(), Progress()
    if not layout.run.exists():
        print(f"There is no cloud in {layout.home}.")
        return
    with only_one(layout, progress):
        is_clean = take_down(layout, progress)
        if options.purge and is_clean:
            purge(layout)
    sys.exit(0 if is_clean else 1)


def take_down(layout: Layout, progress: Progress) -> bool:
    """Stop guests, then programs, then remove what they made on this machine. Whether nothing is left."""
    supervisor = layout.run / "supervisor.pid"
    if alive(supervisor):
        _stop_guests(layout, progress)
        progress.say("stopping agent, server and libvirt")
        terminate(supervisor, STOP_TIMEOUT)
    for name in PARTS:
        terminate(layout.run / f"{name}.pid", 25.0)
    is_clean = not layout.libvirt.exists() or _clean_host(layout, progress)
    if is_clean:
        print("The cloud is down; nothing of it is left on this machine but its data.")
    else:
        print("Not everything could be removed: see the lines above. `make down` tries again.", file=sys.stderr)
    return is_clean


def purge(layout: Layout) -> None:
    """Delete what the cloud keeps in its home, and the home if nothing else is in it."""
    for directory in layout.directories:
        shutil.rmtree(directory, ignore_errors=True)
    layout.host_uuid_file.unlink(missing_ok=True)
    with suppress(OSError):
        layout.home.rmdir()
    print(f"Deleted {layout.home}." if not layout.home.exists() else f"Deleted the cloud in {layout.home}.")


def _stop_guests(layout: Layout, progress: Progress) -> None:
    """Ask the cloud to stop its guests, so that the next start finds them stopped and not lost."""
    try:
        client = log_in(layout.api)
        vms = [vm for state in ("Running", "Paused") for vm in client.query("VmInstance", f"state={state}")]
    except (ApiError, NoAccessError, OSError) as error:
        progress.say(f"the guests are stopped without the server: {error}")
        return

    def stop(vm: dict[str, Any]) -> None:
        progress.say(f"stopping the VM {vm['name']}")
        try:
            client.call("StopVmInstance", uuid=vm["uuid"], timeout=STOP_TIMEOUT)
        except (ApiError, OSError, TimeoutError) as error:
            progress.say(f"the VM {vm['name']} is stopped without the server: {error}")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(stop, vms))


def _clean_host(layout: Layout, progress: Progress) -> bool:
    """Have the agent's clean-up remove domains, bridges, namespaces and tables of ours."""
    progress.say("removing guests and networks that are left")
    with _libvirt(layout):
        _shut_down_guests(layout, progress)
        done = subprocess.run(agent_command(layout, "--clean", "--log-level", "warning"), timeout=300, check=False)
    return done.returncode == 0


def _shut_down_guests(layout: Layout, progress: Progress) -> None:
    """Press the power button of guests that still run, and give them the time to take notice."""
    for name in (running := _running(layout)):
        progress.say(f"shutting down the guest {name}")
        _virsh(layout, "shutdown", name)
    deadline = time.monotonic() + SHUTDOWN_TIMEOUT
    while running and time.monotonic() < deadline:
        time.sleep(0.2)
        running = _running(layout)


def _running(layout: Layout) -> list[str]:
    return _virsh(layout, "list", "--name").split()


def _virsh(layout: Layout, *words: str) -> str:
    command = ["virsh", "-q", "-c", layout.libvirt_uri, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


@contextmanager
def _libvirt(layout: Layout) -> Iterator[None]:
    """Our libvirt, for as long as the clean-up needs it."""
    with (layout.logs / "libvirtd.out").open("ab") as log:
        daemon = subprocess.Popen(libvirtd_command(layout), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    (layout.run / "libvirtd.pid").write_text(str(daemon.pid))
    try:
        deadline = time.monotonic() + LIBVIRT_TIMEOUT
        while not answers(layout.libvirt_socket) and daemon.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        yield
    finally:
        daemon.terminate()
        daemon.wait(30)
        (layout.run / "libvirtd.pid").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
