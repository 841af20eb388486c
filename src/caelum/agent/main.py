"""`caelum agent`: run the host agent until SIGTERM.

Invariant: one agent per state directory; its end, clean or not, touches neither guests nor networks.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from caelum.agent import program
from caelum.agent.core import AgentConfig
from caelum.agent.server import AgentServer

PID_FILE = "agent.pid"
REPLACED = -1
"""In place of an exit code: the agent goes on in another program."""
CHATTY = ("pyroute2", "asyncio")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `caelum agent` and `python -m caelum.agent.main`."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        filename=options.log_file,
    )
    for output in logging.getLogger().handlers:
        output.addFilter(_worth_reading)
    config = AgentConfig(
        state_dir=options.state_dir.resolve(),
        listen=options.listen,
        tls_dir=options.tls_dir.resolve(),
        libvirt_uri=options.libvirt_uri,
        hypervisor=options.hypervisor,
    )
    config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(config.state_dir / PID_FILE, "a+") as pid_file:
        if not _claim(pid_file):
            print(f"an agent runs already with {config.state_dir}", file=sys.stderr)
            return 1
        if options.clean:
            status = _clean(config)
        else:
            given = sys.argv[1:] if arguments is None else arguments
            program.hand_over(config.state_dir, given)
            status = asyncio.run(_serve(config))
            if status == REPLACED:
                program.become(None, given)
            program.stopped(config.state_dir)
        pid_file.truncate(0)
    return status


def _worth_reading(record: logging.LogRecord) -> bool:
    """Not what libraries tell of every packet and every poll; one of them undoes a level that is set on its logger."""
    return record.levelno > logging.DEBUG or not record.name.startswith(CHATTY)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="caelum agent", description="Run the host agent.")
    parser.add_argument("--state-dir", type=Path, default=Path("/var/lib/caelum/agent"))
    parser.add_argument("--tls-dir", type=Path, default=Path("/etc/caelum/agent"), help="ca.crt, tls.crt, tls.key")
    parser.add_argument("--listen", default="0.0.0.0:7070", metavar="HOST:PORT")
    parser.add_argument("--libvirt-uri", default="qemu:///system")
    parser.add_argument("--hypervisor", choices=("auto", "kvm", "tcg"), default="auto")
    parser.add_argument(
        "--clean",
        action="store_true",
        help="do not run, but remove all guests and networks of ours from this host; volumes stay",
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--log-file", default=None)
    return parser


def _claim(pid_file: IO[str]) -> bool:
    """Take the state directory; the lock goes with the process, however it ends."""
    try:
        fcntl.flock(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    pid_file.truncate(0)
    pid_file.write(f"{os.getpid()}\n")
    pid_file.flush()
    return True


def _clean(config: AgentConfig) -> int:
    # Only now: it brings the parts of the agent with all that they need.
    from caelum.agent import cleanup

    return cleanup.run(config)


async def _serve(config: AgentConfig) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = AgentServer(config)
    try:
        await server.start()
        await server.agent.run_blocking(program.listens, config.state_dir)
        replaced = server.agent.replaced
        waiting = [asyncio.create_task(one.wait()) for one in (stop, replaced)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
    finally:
        await server.stop()
    return 0 if stop.is_set() else REPLACED


if __name__ == "__main__":
    sys.exit(main())
