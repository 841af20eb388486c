"""`make down`: stop guests and programs and leave nothing behind; `make purge`: and delete the data.

The guests are stopped through the API, so that the records say so. Whatever is still there afterwards (the server may
be dead) is removed by the agent's own clean-up, which knows our things by their marks.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys

from caelum.onemachine.layout import Layout
from caelum.onemachine.parts import agent_command
from caelum.onemachine.processes import alive, terminate
from caelum.onemachine.provision import ACCOUNT, PASSWORD
from caelum.sdk import ApiError, Client

STOP_TIMEOUT = 90.0


def main() -> None:
    """Stop the cloud."""
    parser = argparse.ArgumentParser(description="Stop the cloud on this machine.")
    parser.add_argument("--purge", action="store_true", help="delete all data too")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("Root is needed, as it was to start the cloud.")
    layout = Layout.from_environment()
    take_down(layout)
    if options.purge and layout.home.exists():
        shutil.rmtree(layout.home)
        print(f"Deleted {layout.home}.")


def take_down(layout: Layout) -> None:
    """Stop guests, then programs, then remove what they made on this machine."""
    if not layout.home.exists():
        print("There is no cloud on this machine.")
        return
    if alive(layout.run / "supervisor.pid"):
        _stop_guests(layout)
        _clean_host(layout)
    terminate(layout.run / "supervisor.pid", STOP_TIMEOUT)
    for name in ("agent", "server", "libvirtd"):
        terminate(layout.run / f"{name}.pid", 20.0)
    print("The cloud is down.")


def _stop_guests(layout: Layout) -> None:
    """Ask the cloud to stop its guests, so that the next start finds them stopped and not lost."""
    client = Client(layout.api)
    try:
        client.login(ACCOUNT, PASSWORD)
        for state in ("Running", "Paused"):
            for vm in client.query("VmInstance", f"state={state}"):
                print(f"stopping {vm['name']}", flush=True)
                client.call("StopVmInstance", uuid=vm["uuid"], timeout=STOP_TIMEOUT)
    except (ApiError, OSError) as error:
        print(f"The guests are stopped without the server: {error}", flush=True)


def _clean_host(layout: Layout) -> None:
    """Stop the agent for good and have its clean-up remove domains, bridges, namespaces and tables of ours."""
    (layout.run / "agent.stop").touch()
    terminate(layout.run / "agent.pid", 20.0)
    done = subprocess.run(agent_command(layout, "--clean"), timeout=STOP_TIMEOUT, check=False)
    if done.returncode != 0:
        print("Not everything could be removed: see the lines above.", file=sys.stderr)


if __name__ == "__main__":
    main()
