"""`make demo`: a cloud with 1,000 simulated hosts and 10,000 VMs on this machine; `make demo-down` ends it.

It has a directory and ports of its own, so it stands beside anything else. The VMs are copies of one that was created
through the API: creating all of them one by one is what `make bench-full` does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import aiohttp
import msgspec
from fill import Filler
from furnish import furnish
from rig import Rig
from scenarios import addresses, all_connected

DIRECTORY = Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local" / "state")) / "caelum-demo"
_PIDS = "pids.json"


def main() -> None:
    """Bring the demo up, or down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=["up", "down"])
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--vms", type=int, default=10_000)
    parser.add_argument("--directory", type=Path, default=DIRECTORY)
    options = parser.parse_args()
    down(options.directory)
    if options.action == "up":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        options.directory.mkdir(parents=True)
        asyncio.run(up(options.directory, options.hosts, options.vms))


def down(directory: Path) -> None:
    """End the demo's processes, if they run, and remove its directory."""
    with contextlib.suppress(FileNotFoundError):
        for pid in msgspec.json.decode((directory / _PIDS).read_bytes(), type=list[int]):
            _end(pid)
    shutil.rmtree(directory, ignore_errors=True)


def _end(pid: int) -> None:
    # A process of another program may have the number by now.
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        if b"caelum" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGTERM)
            while Path(f"/proc/{pid}").exists():
                time.sleep(0.1)


async def up(directory: Path, hosts: int, vms: int) -> None:
    """Make everything, and say what to look at."""
    rig = Rig(hosts, keep=directory)
    ips = addresses(hosts)
    print(f"a cloud in {directory}: the first host and VM ...", flush=True)
    await rig.start_server()
    rig.start_simulator()
    _note(rig)
    made = await furnish(rig.api, directory, rig.agent_port, ips[:1])
    vm = await rig.api.call("CreateVmInstance", name="vm", **made.vm)
    host = (await rig.api.call("QueryHost"))[0]
    await rig.stop_server()
    print(f"{hosts} hosts and {vms} VMs ...", flush=True)
    filler = Filler(directory / "server" / "caelum.db")
    filler.hosts(host["uuid"], ips[1:])
    placed = filler.vms(vm["uuid"], vms - 1, filler.host_uuids())
    filler.close()
    await _give_guests(rig, vm["uuid"], placed)
    await rig.start_server()
    _note(rig)
    print("all hosts connect ...", flush=True)
    await all_connected(rig.api, hosts)
    _tell(rig, hosts, vms)
    await rig.api.close()


async def _give_guests(rig: Rig, vm_uuid: str, placed: dict[str, list[str]]) -> None:
    """Let the simulated hosts have the guests that the database says."""
    url = f"http://127.0.0.1:{rig.control_port}/copies"
    body = msgspec.json.encode({"vm": vm_uuid, "hosts": placed})
    async with aiohttp.ClientSession() as http, http.post(url, data=body) as answer:
        if answer.status != 200:
            raise SystemExit(await answer.text())


def _note(rig: Rig) -> None:
    pids = [rig.simulator.pid, rig.server.pid]
    (rig.directory / _PIDS).write_bytes(msgspec.json.encode(pids))


def _tell(rig: Rig, connected: int, vms: int) -> None:
    url = rig.api.address
    print(f"""
{connected} hosts are connected, {vms} VMs run. Account admin, password "password".

  {url}/docs            the API
  {url}/metrics         what the server does
  http://127.0.0.1:{rig.control_port}/hosts      what the simulated hosts do; POST /hosts/<uuid>/die kills one

  caelum login --url {url} --password password
  caelum vm-instance list --limit 5
  python bench/demo.py down   (or: make demo-down)
""")


if __name__ == "__main__":
    main()
