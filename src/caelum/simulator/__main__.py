"""`caelum simulator`: simulated hosts beside a server, until interrupted."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import resource
import signal
from pathlib import Path

import uvloop
from aiohttp import web

from caelum.simulator.control import Control
from caelum.simulator.hosts import GIB, SimulatedHosts


def main() -> None:
    """Run until SIGINT or SIGTERM."""
    arguments = _parser().parse_args()
    _allow_many_files()
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="caelum simulator", description="Simulated hosts for a Caelum server.")
    parser.add_argument("--hosts", type=int, default=1, help="how many")
    parser.add_argument("--listen", default="127.1.0.1:7070", help="address of the first host, and the port of all")
    parser.add_argument("--tls-dir", type=Path, required=True, help="the server's authority: <data_dir>/pki")
    parser.add_argument("--control", default="127.0.0.1:7079", help="where the simulator itself is controlled")
    parser.add_argument("--cpus", type=int, default=16)
    parser.add_argument("--memory-gib", type=int, default=64)
    parser.add_argument("--disk-gib", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    return parser


def _allow_many_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(arguments: argparse.Namespace) -> None:
    ip, _, port = arguments.listen.rpartition(":")
    hosts = SimulatedHosts(
        arguments.hosts,
        directory=arguments.tls_dir,
        first_ip=ip,
        port=int(port),
        cpu_num=arguments.cpus,
        memory=arguments.memory_gib * GIB,
        disk=arguments.disk_gib * GIB,
        seed=arguments.seed,
    )
    runner = web.AppRunner(Control(hosts).application(), access_log=None)
    async with hosts:
        await runner.setup()
        control_ip, _, control_port = arguments.control.rpartition(":")
        await web.TCPSite(runner, control_ip, int(control_port)).start()
        control_port = runner.addresses[0][1]
        # What is here stays, however many hosts it is; collecting it again and again would only cost time.
        gc.collect()
        gc.freeze()
        print(
            f"{len(hosts.hosts)} hosts from {hosts[0].ip}:{hosts.port}, controlled at {control_ip}:{control_port}",
            flush=True,
        )
        await _until_told()
        await runner.cleanup()


async def _until_told() -> None:
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await told.wait()


if __name__ == "__main__":
    main()
