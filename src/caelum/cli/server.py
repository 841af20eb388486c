"""`caelum server`: one management node with its gateway, until a signal ends it.

Invariant: the first SIGTERM or SIGINT ends the process in order (no new requests, running ones end, then the node; a
start that still waits for something is given up); a second one ends it at once, which is as safe as a crash: what was
under way is taken up at the next start. A node that is no longer part of its cloud ends at once too, with `EVICTED`, so
that whoever supervises it starts a new one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

import msgspec

from caelum import __version__
from caelum.cli.memory import Collections, SpareMemory, map_large_blocks
from caelum.cli.onlooker import Onlooker
from caelum.gateway.server import Gateway
from caelum.kernel.config import Config, load
from caelum.kernel.node import Node
from caelum.kernel.schema import UpgradeError

log = logging.getLogger(__name__)

EVICTED = 75
"""The exit code of a node that others took for dead, or that lost its database for long."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="caelum server", description="Run a management node.")
    parser.add_argument("--config", type=Path, help="TOML file; see the configuration reference")
    parser.add_argument("--data-dir", type=Path, help="where this node keeps its data")
    parser.add_argument("--api-host", help="address of the API")
    parser.add_argument("--api-port", type=int, help="port of the API; 0 takes a free one")
    parser.add_argument("--version", action="version", version=__version__)
    return parser.parse_args(argv)


def configuration(options: argparse.Namespace) -> Config:
    """The configuration: file and environment, then the command line. Raises ValueError."""
    config = load(options.config)
    given = {name: getattr(options, name) for name in ("data_dir", "api_host", "api_port")}
    return msgspec.structs.replace(config, **{name: value for name, value in given.items() if value is not None})


async def serve(config: Config) -> None:
    """Run until a signal."""
    node = Node(config)
    node.on_lost = lambda reason: _end(node, reason)
    gateway = Gateway(node)
    stopped, aside = asyncio.Event(), (Collections(), SpareMemory(), Onlooker(node.metrics.loop))
    _on_signals(stopped)
    await gateway.start()
    try:
        if not await _started(node, stopped):
            return
        for one in aside:
            one.start()
        scheme = "http" if config.api_tls_certificate is None else "https"
        print(f"caelum is ready: {scheme}://{config.resolved_host()}:{gateway.port}/ (node {node.uuid})", flush=True)
        await stopped.wait()
    finally:
        for one in aside:
            one.stop()
        await gateway.stop(config.stop_seconds / 2)
        await node.stop()


async def _started(node: Node, stopped: asyncio.Event) -> bool:
    """Start the node; false when a signal came first, however long the start would still have waited."""
    start, end = asyncio.create_task(node.start()), asyncio.create_task(stopped.wait())
    await asyncio.wait([start, end], return_when=asyncio.FIRST_COMPLETED)
    end.cancel()
    if not start.done():
        log.info("the start waited for %s; it is given up, because a signal came", node.waiting_for or "nothing")
        start.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await start
    return not start.cancelled()


def _end(node: Node, reason: str) -> None:
    print(f"caelum server: this node is no longer part of the cloud: {reason}", file=sys.stderr, flush=True)
    node.logging.stop()
    os._exit(EVICTED)


def _on_signals(stopped: asyncio.Event) -> None:
    def on_signal() -> None:
        if stopped.is_set():
            os._exit(1)
        stopped.set()

    for one in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(one, on_signal)


def main(argv: list[str] | None = None) -> int:
    """The command. Answers the exit code."""
    try:
        config = configuration(arguments(argv))
    except (ValueError, OSError) as error:
        print(f"caelum server: {error}", file=sys.stderr)
        return 2
    try:
        _run(config)
    except UpgradeError as error:
        print(f"caelum server: {error}", file=sys.stderr)
        return 1
    return 0


def _run(config: Config) -> None:
    map_large_blocks()
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(config))
    else:
        uvloop.run(serve(config))


if __name__ == "__main__":
    sys.exit(main())
